//! Measures both stores: what a claim costs while more and more waits, and what an idle worker costs and how soon
//! it takes what comes. `make bench-store` runs all of it; the tables are in docs/scaling-the-store.md.
//!
//!     bench_store [claims] [idle] [--most SEGMENTS]

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use common::clock::{Stamp, SystemClock};
use common::files::FileRecord;
use common::job::{JobId, ModelKey, Plan, Precision, Settings, Source};
use common::segment::{Cut, Stage, Token};
use common::store::mongo::MongoStore;
use common::store::sqlite::SqliteStore;
use common::store::{Advanced, ClaimRequest, JobStore, NewJob, Output};
use common::worker::{Assignment, Hints, JobError, LoopSettings, Work, run};
use serde_json::json;
use testbed::Mongod;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Claims a measurement.
const CLAIMS: usize = 1500;
/// Segments a job: a film of an hour and a half.
const FILM: u32 = 2000;

fn job(at: i64) -> NewJob {
    NewJob {
        id: JobId::new(Stamp(at * 1_000_000)),
        filename: "film.mp4".to_owned(),
        source: Source { path: PathBuf::from("/mnt/src/film"), size: 1 << 30 },
        settings: Settings {
            conf: 0.3,
            iou: 0.45,
            max_det: 200,
            classes: Vec::new(),
            every: 1,
            keep_frames: true,
            save_txt: true,
            mp4: true,
            avi: true,
            names: (0..80).map(|n| format!("class {n}")).collect(),
            model: ModelKey { digest: "0".repeat(64), precision: Precision::Fp32 },
        },
        priority: 0,
        callback_url: None,
    }
}

fn request(stage: Stage) -> ClaimRequest {
    ClaimRequest {
        stage,
        worker: "bench".to_owned(),
        token: Token::random(),
        lease: Duration::from_secs(300),
        model: None,
        pack_budget: None,
    }
}

fn file(name: String) -> FileRecord {
    FileRecord { name, size: 30 << 20, checksum: 1 }
}

/// Adds a job whose segments wait for decode.
async fn add(store: &dyn JobStore, n: i64) {
    store.create_job(job(n)).await.unwrap();
    let lease = store.claim(&request(Stage::Index)).await.unwrap().unwrap().lease;
    let cuts: Vec<_> = (0..FILM).map(|k| Cut { first: k * 64, last: k * 64 + 63 }).collect();
    store.put_segments(&lease, &cuts).await.unwrap();
    let plan = Plan {
        index: file(format!("index/frames.{}", lease.token)),
        mezzanine: None,
        frames: FILM * 64,
        segments: FILM,
        width: 1920,
        height: 1080,
        dropped: Vec::new(),
    };
    assert_eq!(store.advance(lease, Output::Indexed(plan)).await.unwrap(), Advanced::Recorded);
}

/// Milliseconds of the place `part` (0 to 1) in the order of size.
fn quantile(sorted: &[Duration], part: f64) -> f64 {
    let place = (part * (sorted.len() - 1) as f64).round() as usize;
    sorted[place].as_secs_f64() * 1e3
}

/// Claims and advances by `claimers` at once, and a line of the table.
async fn measure(name: &str, stores: &[Arc<dyn JobStore>], waiting: i64, claimers: usize) {
    let times = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for n in 0..claimers {
        let (store, times) = (stores[n % stores.len()].clone(), times.clone());
        tasks.spawn(async move {
            for _ in 0..CLAIMS / claimers {
                let asked = Instant::now();
                let claimed = store.claim(&request(Stage::Decode)).await.unwrap().expect("enough waits");
                times.lock().unwrap().push(asked.elapsed());
                let pack = file(format!("pack/0.{}", claimed.lease.token));
                let output = Output::Decoded { pack, concealed: Vec::new() };
                assert_eq!(store.advance(claimed.lease, output).await.unwrap(), Advanced::Recorded);
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let took = began.elapsed().as_secs_f64();
    let mut times = std::mem::take(&mut *times.lock().unwrap());
    times.sort_unstable();
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|part| quantile(&times, part));
    let rate = times.len() as f64 / took;
    println!("| {name} | {waiting} | {claimers} | {rate:.0} | {p50:.1} | {p95:.1} | {p99:.1} |");
}

async fn claims(name: &str, stores: &[Arc<dyn JobStore>], most: i64) {
    let mut jobs = 0;
    for waiting in [10_000, 100_000, 1_000_000] {
        if waiting > most {
            break;
        }
        while (jobs + 1) * i64::from(FILM) <= waiting {
            add(&*stores[0], jobs).await;
            jobs += 1;
        }
        for claimers in [1, 16, 64] {
            measure(name, stores, waiting, claimers).await;
        }
    }
}

/// Notes when it is called, and fails the job.
struct Noted(Mutex<Option<Instant>>);

#[async_trait]
impl Work for Noted {
    fn stage(&self) -> Stage {
        Stage::Index
    }

    async fn run(&self, _work: &Assignment) -> Result<Output, JobError> {
        *self.0.lock().unwrap() = Some(Instant::now());
        Err(JobError::fail("This was only to see when it is claimed."))
    }
}

/// Commands that the server was given, without those of the drivers' monitors and of this program's looking.
fn commands(server: &Mongod) -> i64 {
    let status = server.command("admin", &json!({ "serverStatus": 1 }));
    ["find", "findAndModify", "aggregate", "getMore", "insert", "update", "delete", "create"]
        .iter()
        .map(|name| {
            let total = &status["metrics"]["commands"][name]["total"];
            total.as_i64().or_else(|| total["$numberLong"].as_str().and_then(|n| n.parse().ok())).unwrap_or(0)
        })
        .sum()
}

/// One idle loop of `slots` places: what it costs, and how soon it takes what comes.
async fn idle(slots: usize, bridged: bool, rounds: usize) {
    let server = Mongod::start();
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let mut processes = Vec::new();
    // The worker, and whoever creates jobs: two processes, as far as the store and the hints go.
    for _ in 0..2 {
        let store = Arc::new(MongoStore::connect(&server.uri(), "bench").await.unwrap());
        let hints = Hints::new();
        if bridged {
            let (store, hints, shutdown) = (store.clone(), hints.clone(), shutdown.clone());
            tasks.spawn(async move { store.bridge(hints, shutdown).await });
        }
        processes.push((store, hints));
    }
    let work = Arc::new(Noted(Mutex::new(None)));
    let settings = LoopSettings { slots, streak: 0, ..LoopSettings::new("bench") };
    let (store, hints) = processes[0].clone();
    let (running, stop) = (work.clone(), shutdown.clone());
    tasks.spawn(async move {
        run(store, running, settings, hints, stop).await;
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, began) = (commands(&server), Instant::now());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let rate = (commands(&server) - before) as f64 / began.elapsed().as_secs_f64();
    let (store, hints) = &processes[1];
    let mut times = Vec::new();
    for n in 0..rounds {
        tokio::time::sleep(Duration::from_millis(3000 + rand::random_range(0..1000))).await;
        *work.0.lock().unwrap() = None;
        store.create_job(job(i64::try_from(n).unwrap())).await.unwrap();
        let created = Instant::now();
        hints.notify(Stage::Index);
        loop {
            if let Some(claimed) = *work.0.lock().unwrap() {
                times.push(claimed.saturating_duration_since(created));
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    times.sort_unstable();
    let [p50, p95] = [0.5, 0.95].map(|part| quantile(&times, part));
    let bridge = if bridged { "yes" } else { "no" };
    println!("| {slots} | {bridge} | {rate:.2} | {p50:.0} | {p95:.0} |");
    shutdown.cancel();
    while tasks.join_next().await.is_some() {}
}

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let both = !named("claims") && !named("idle");
    let most =
        arguments.iter().position(|argument| argument == "--most").and_then(|at| arguments.get(at + 1));
    let most: i64 = most.map_or(1_000_000, |text| text.parse().expect("--most takes a number"));
    if both || named("claims") {
        println!("| store | segments waiting | claimers | claims/s | p50 ms | p95 ms | p99 ms |");
        println!("|---|---|---|---|---|---|---|");
        let folder = tempfile::tempdir().unwrap();
        let file = SqliteStore::open(&folder.path().join("jobs.db"), Arc::new(SystemClock)).unwrap();
        claims("SQLite", &[Arc::new(file)], most).await;
        let server = Mongod::start();
        let mut stores: Vec<Arc<dyn JobStore>> = Vec::new();
        for _ in 0..8 {
            stores.push(Arc::new(MongoStore::connect(&server.uri(), "bench").await.unwrap()));
        }
        claims("MongoDB", &stores, most).await;
    }
    if both || named("idle") {
        println!("\n| places | bridge | commands/s while idle | claim latency p50 ms | p95 ms |");
        println!("|---|---|---|---|---|");
        for (slots, bridged) in [(1, true), (1, false), (2, true), (8, true)] {
            idle(slots, bridged, 20).await;
        }
    }
}
