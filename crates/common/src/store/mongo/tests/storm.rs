//! Days of work while the network, the server and the users do their worst, by the server's own clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;
use testbed::ReplicaSet;

use super::*;
use crate::segment::{State, Target};
use crate::store::contract::{cuts, new_job, output, plan};

const SHORT: Duration = Duration::from_secs(3);
const SEGMENTS: u32 = 12;
const JOBS: usize = 4;

struct Day {
    stores: Vec<MongoStore>,
    /// How long a call waits before its caller gives it up and repeats it, while the server still works on it.
    patience: Duration,
    lost: AtomicUsize,
    over: AtomicBool,
    recorded: Mutex<BTreeMap<(Target, Stage, u32), Token>>,
}

impl Day {
    fn new(stores: Vec<MongoStore>, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            stores,
            patience,
            lost: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            recorded: Mutex::default(),
        })
    }

    /// Calls the store until it answers, as all callers do; each try may be given up in the middle.
    async fn ask<T>(
        &self,
        store: &MongoStore,
        call: impl AsyncFn(&MongoStore) -> Result<T, StoreError>,
    ) -> T {
        let mut patience = self.patience;
        loop {
            match tokio::time::timeout(patience, call(store)).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(StoreError::Corrupt(what))) => panic!("{what}"),
                Ok(Err(StoreError::Unavailable(_))) | Err(_) => {}
            }
            self.lost.fetch_add(1, Ordering::Relaxed);
            // On a busy machine every call may take that long.
            patience = patience * 3 / 2;
            tokio::time::sleep(Duration::from_millis(rand::random_range(5..50))).await;
        }
    }

    async fn work(self: Arc<Self>, n: usize) {
        let store = &self.stores[n % self.stores.len()];
        let mut stage = n;
        while !self.over.load(Ordering::Relaxed) {
            stage += 1;
            let request = ClaimRequest {
                stage: Stage::ALL[stage % Stage::ALL.len()],
                worker: format!("worker-{n}"),
                token: Token::random(),
                lease: SHORT,
                model: None,
                pack_budget: None,
            };
            let Some(claimed) = self.ask(store, async |store| store.claim(&request).await).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let lease = claimed.lease;
            let again = || Lease { token: lease.token.clone(), ..lease };
            match rand::random_range(0..30) {
                // Killed.
                0 => continue,
                1 => {
                    self.ask(store, async |store| {
                        store.set_back(again(), Setback::HandBack).await.map_err(|failed| failed.error)
                    })
                    .await;
                    continue;
                }
                _ => {}
            }
            let output = if lease.stage == Stage::Index {
                if self.ask(store, async |store| store.put_segments(&lease, &cuts(SEGMENTS)).await).await
                    != Renewal::Held
                {
                    continue;
                }
                Output::Indexed(plan(SEGMENTS))
            } else {
                output(lease.stage, &lease.token)
            };
            self.ask(store, async |store| store.renew(&lease, SHORT).await).await;
            let advance = async |store: &MongoStore| {
                store.advance(again(), output.clone()).await.map_err(|failed| failed.error)
            };
            if self.ask(store, advance).await == Advanced::Recorded {
                let key = (lease.target, lease.stage, lease.run);
                let other = self.recorded.lock().unwrap().insert(key, lease.token.clone());
                assert!(other.is_none_or(|other| other == lease.token), "{key:?} was recorded twice");
            }
        }
    }

    /// The reconciler, and users who change their minds.
    async fn supervise(self: Arc<Self>, ids: Vec<JobId>, changes: usize) {
        let store = &self.stores[0];
        for change in 0.. {
            for id in self.ask(store, async |store| store.unsettled().await).await {
                self.ask(store, async |store| store.reconcile(id).await).await;
            }
            let mut left = false;
            for id in &ids {
                let job = self.ask(store, async |store| store.job(*id).await).await.expect("no job is lost");
                let status = job.timeline.status();
                left |= status != Status::PostprocessingComplete;
                let meddle = change < changes && *id == ids[change % ids.len()];
                if status.is_final() && status != Status::PostprocessingComplete {
                    self.ask(store, async |store| store.retry(*id).await).await;
                } else if meddle {
                    self.ask(store, async |store| store.cancel(*id).await).await;
                }
            }
            if !left {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.over.store(true, Ordering::Relaxed);
    }

    /// The whole day: all jobs come to their end, and what was acknowledged is what is named in the end.
    async fn pass(self: &Arc<Self>, workers: usize, changes: usize) {
        let mut ids = Vec::new();
        for n in 0..JOBS {
            let id = JobId::new(Stamp(i64::try_from(n).unwrap() * 1_000_000));
            let new = NewJob { id, ..new_job() };
            ids.push(self.ask(&self.stores[0], async |store| store.create_job(new.clone()).await).await.id);
        }
        let local = tokio::task::LocalSet::new();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..workers {
            tasks.spawn_local_on(self.clone().work(n), &local);
        }
        tasks.spawn_local_on(self.clone().supervise(ids.clone(), changes), &local);
        let all = async {
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
        };
        local
            .run_until(tokio::time::timeout(Duration::from_secs(240), all))
            .await
            .expect("the work comes to its end");
        let store = &self.stores[0];
        for id in ids {
            let job = self.ask(store, async |store| store.reconcile(id).await).await.unwrap();
            assert_eq!((job.timeline.status(), &job.state), (Status::PostprocessingComplete, &State::Done));
            let segments = self.ask(store, async |store| store.segments(id).await).await;
            let numbers: BTreeSet<_> = segments.iter().map(|segment| segment.index).collect();
            assert_eq!(numbers, (0..SEGMENTS).collect());
            let recorded = self.recorded.lock().unwrap();
            for segment in segments {
                assert_eq!(segment.state, State::Done);
                // The last run in which anybody was told that detect is recorded made what is named.
                let target = Target::Segment(id, segment.index);
                let told = (0..=job.run).rev().find_map(|run| recorded.get(&(target, Stage::Detect, run)));
                let named = segment.files.detections.unwrap().name;
                if let Some(token) = told {
                    assert_eq!(named, format!("detections/0.{token}"), "{target}");
                }
            }
        }
        let unsettled = self.ask(store, async |store| store.unsettled().await).await;
        assert_eq!(unsettled, []);
        println!("{} answers were lost", self.lost.load(Ordering::Relaxed));
    }
}

/// A third of all commands reach the server so late that their callers have given them up and repeated them: each
/// of these takes effect twice, the second time at some moment of what follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_that_take_effect_late_do_no_harm() {
    let server = Mongod::start();
    let mut stores = Vec::new();
    for _ in 0..2 {
        let uri = format!("{}&appName=late", server.uri());
        stores.push(MongoStore::connect(&uri, "boxreel").await.unwrap());
    }
    let day = Day::new(stores, Duration::from_millis(150));
    let late = json!({ "blockConnection": true, "blockTimeMS": 400 });
    server.fail_commands("late", &json!({ "activationProbability": 0.05 }), &late);
    day.pass(8, 6).await;
    assert!(day.lost.load(Ordering::Relaxed) > 10);
    server.fail_commands("late", &json!("off"), &late);
    server.until_idle("late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_primary_may_be_killed_in_the_middle_of_the_work() {
    let set = ReplicaSet::start();
    let mut stores = Vec::new();
    for _ in 0..2 {
        stores.push(MongoStore::connect(&set.uri(), "boxreel").await.unwrap());
    }
    let day = Day::new(stores, Duration::from_secs(10));
    let storm = async {
        for _ in 0..2 {
            let recorded = day.recorded.lock().unwrap().len();
            let began = Instant::now();
            // In the middle: some more is recorded first.
            while day.recorded.lock().unwrap().len() < recorded + 10 {
                assert!(began.elapsed() < Duration::from_secs(120), "nothing goes on");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(!day.over.load(Ordering::Relaxed), "there is work left");
            let killed = set.primary();
            killed.kill();
            set.primary();
            println!("another primary after {:?}", began.elapsed());
            killed.restart();
        }
    };
    tokio::join!(day.pass(6, 2), storm);
}
