//! Measures the three services together, as real processes on one MongoDB server: one video spread over 1, 2 and 4
//! workers of one thread each, what an idle cluster asks its database, and how long a clip takes beside a film.
//!
//!     bench_cluster [--frames 640] [--workers 1,2,4] [--rounds 3]
//!
//! Prints tables in Markdown. The programs are taken from beside this one: build `pre`, `infer` and `post` in the same
//! profile first, as `make bench-cluster` does.
#![allow(clippy::unwrap_used, reason = "a benchmark may end where it cannot go on")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::Mongod;
use testbed::cluster::{Cluster, Plan, clip};

const HOUR: Duration = Duration::from_secs(3600);
/// What users would upload, without the thousands of frame files.
const OPTIONS: &str = "?keep_frames=false";

/// How many replicas of one service there are.
fn plan(pre: usize, infer: usize, post: usize) -> Plan {
    Plan { pre, infer, post, lease: 30, ..Plan::default() }.one_thread_each()
}

async fn finished(cluster: &Cluster, id: &str) -> Value {
    let job = cluster.until_ended(id, HOUR).await;
    assert_eq!(job["status"], "POSTPROCESSING_COMPLETE", "{job}");
    job
}

/// Uploads a film; seconds from then until its result is there.
async fn one_film(cluster: &Cluster, frames: u32) -> f64 {
    let film = clip(cluster.folder(), "film.mp4", frames);
    let began = Instant::now();
    let id = cluster.upload(&film, OPTIONS).await;
    finished(cluster, &id).await;
    began.elapsed().as_secs_f64()
}

/// Commands that the server has answered, less those that ask for this number.
fn commands(mongod: &Mongod) -> f64 {
    let status = mongod.command("admin", &json!({ "serverStatus": 1 }));
    let number = |value: &Value| {
        value.as_f64().or_else(|| value["$numberLong"].as_str()?.parse().ok()).unwrap_or_default()
    };
    let names = ["insert", "query", "update", "delete", "getmore", "command"];
    names.iter().map(|name| number(&status["opcounters"][name])).sum()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut frames, mut workers, mut rounds) = (640, vec![1, 2, 4], 3);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| panic!("{name} needs a value"));
        match name.as_str() {
            "--frames" => frames = value.parse().unwrap(),
            "--workers" => workers = value.split(',').map(|n| n.parse().unwrap()).collect(),
            "--rounds" => rounds = value.parse().unwrap(),
            _ => panic!("{name} is unknown: see the top of this file"),
        }
    }
    let mongod = Mongod::start();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);

    println!(
        "One video of {frames} frames, workers of one thread each, {cores} cores, {rounds} rounds in turns:\n"
    );
    println!("| infer and post workers | seconds (median) | least | most | times as fast | efficiency |");
    println!("|---|---|---|---|---|---|");
    let mut seconds = vec![Vec::new(); workers.len()];
    for _ in 0..rounds {
        for (&workers, seconds) in workers.iter().zip(&mut seconds) {
            let cluster =
                Cluster::start(&mongod.uri(), &mongod.fresh_database(), &plan(1, workers, workers)).await;
            // The first clip of a process loads what the later ones find loaded.
            let warm = clip(cluster.folder(), "warm.mp4", 64);
            finished(&cluster, &cluster.upload(&warm, OPTIONS).await).await;
            seconds.push(one_film(&cluster, frames).await);
        }
    }
    let mut alone = None;
    for (workers, seconds) in workers.iter().zip(&mut seconds) {
        let middle = median(seconds);
        let first = *alone.get_or_insert(middle * *workers as f64);
        let (least, most) = (seconds[0], seconds[seconds.len() - 1]);
        let times = first / middle;
        let efficiency = times / *workers as f64 * 100.0;
        println!("| {workers} | {middle:.1} | {least:.1} | {most:.1} | {times:.2} | {efficiency:.0}% |");
    }

    let cluster = Cluster::start(&mongod.uri(), &mongod.fresh_database(), &plan(1, 2, 2)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, began) = (commands(&mongod), Instant::now());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let a_second = (commands(&mongod) - before) / began.elapsed().as_secs_f64();
    println!(
        "\nIdle, 1 pre, 2 infer, 2 post: {a_second:.2} commands a second at the database, all processes together."
    );

    let short = clip(cluster.folder(), "clip.mp4", 250);
    let began = Instant::now();
    finished(&cluster, &cluster.upload(&short, OPTIONS).await).await;
    let alone = began.elapsed().as_secs_f64();
    let film = cluster.upload(&clip(cluster.folder(), "film.mp4", frames * 4), OPTIONS).await;
    while cluster.try_get(&format!("/v1/jobs/{film}")).await.unwrap()["timeline"]["inference_start"].is_null()
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let began = Instant::now();
    finished(&cluster, &cluster.upload(&short, OPTIONS).await).await;
    let beside = began.elapsed().as_secs_f64();
    let still = cluster.try_get(&format!("/v1/jobs/{film}")).await.unwrap();
    println!(
        "A clip of 250 frames: {alone:.1} s alone, {beside:.1} s beside a film of {} frames, which was then at {} ({:.0}%).",
        frames * 4,
        still["status"].as_str().unwrap_or_default(),
        still["progress"]["overall"].as_f64().unwrap_or_default() * 100.0
    );
}
