//! Whatever process is killed, stopped or ended at whatever moment: every job completes, and what comes out is
//! what comes out of an undisturbed run.
//!
//! `BOXREEL_TEST_FAULTS` sets how many faults there are, `BOXREEL_TEST_SEED` which.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use testbed::Mongod;
use testbed::cluster::{Cluster, PATIENCE, Plan, clip, pixels};

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// What a job left: its detections byte for byte, and every frame of its videos.
fn result(cluster: &Cluster, id: &str) -> (String, String, String) {
    let target = cluster.volume().join(id).join("target");
    let read = |name: &str| std::fs::read_to_string(target.join(name)).unwrap().replace(id, "ID");
    let video = |ending: &str| pixels(&target.join(format!("target_{id}.{ending}")));
    (read("detections.json") + &read("detections.csv"), video("mp4"), video("avi"))
}

/// Files below `folder` whose name is that of something half-written.
fn drafts(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            found.extend(drafts(&path));
        } else if name.starts_with('.') && name.ends_with(".tmp") {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_is_killed() {
    let faults = number("BOXREEL_TEST_FAULTS", 8);
    let seed = number("BOXREEL_TEST_SEED", 7);
    let mongod = Mongod::start();
    let plan = Plan {
        pre: 2,
        infer: 2 + usize::from(faults > 20),
        post: 2 + usize::from(faults > 20),
        lease: 3,
        ..Plan::default()
    };
    let plan = plan.one_thread_each();
    let cluster = Cluster::start(&mongod.uri(), "chaos", &plan).await;
    let film = clip(cluster.folder(), "film.mp4", if faults > 20 { 2600 } else { 520 });
    let short = clip(cluster.folder(), "short.mp4", 40);
    let options = "?every=40&conf=0.06&keep_frames=false";

    let (calm_film, calm_short) =
        (cluster.upload(&film, options).await, cluster.upload(&short, options).await);
    for id in [&calm_film, &calm_short] {
        let job = cluster.until_ended(id, PATIENCE * 3).await;
        assert_eq!(job["status"], "POSTPROCESSING_COMPLETE", "{job}");
    }
    let expected = (result(&cluster, &calm_film), result(&cluster, &calm_short));

    let mut random = StdRng::seed_from_u64(seed);
    let mut jobs = vec![(cluster.upload(&film, options).await, true)];
    let mut counts = BTreeMap::<&str, u32>::new();
    for fault in 0..faults {
        tokio::time::sleep(Duration::from_millis(random.random_range(300..1500))).await;
        let victim = &cluster.processes[random.random_range(0..cluster.processes.len())];
        let kind = match random.random_range(0..10) {
            0..4 => {
                victim.kill();
                victim.start();
                "killed"
            }
            4..7 => {
                victim.pause();
                tokio::time::sleep(Duration::from_millis(random.random_range(500..5000))).await;
                victim.go_on();
                "stopped for a while"
            }
            7..9 => {
                // One that has hardly begun does not listen to signals yet: it just ends.
                victim.start();
                cluster.until_ready(victim).await;
                let status = victim.terminate();
                assert!(status.success(), "{victim:?} ended with {status}: {}", victim.last_words());
                victim.start();
                "asked to end"
            }
            _ => {
                mongod.kill();
                tokio::time::sleep(Duration::from_millis(500)).await;
                mongod.restart();
                "the database killed"
            }
        };
        *counts.entry(kind).or_default() += 1;
        if fault % 4 == 1 {
            jobs.push((cluster.upload(&short, options).await, false));
        }
        if fault % 25 == 24 {
            jobs.push((cluster.upload(&film, options).await, true));
        }
    }
    // Whatever ended by itself meanwhile (the database was away for too long) is started again, as Kubernetes does.
    cluster.processes.iter().for_each(testbed::cluster::Process::start);
    for (id, is_film) in &jobs {
        let job = cluster.until_ended(id, PATIENCE * 5).await;
        assert_eq!(job["status"], "POSTPROCESSING_COMPLETE", "{job}\n{}", cluster.last_words());
        let expected = if *is_film { &expected.0 } else { &expected.1 };
        assert!(result(&cluster, id) == *expected, "{id} differs from an undisturbed run");
    }

    // Nothing was completed twice: neither a segment's stage nor a job's.
    let mut done = BTreeMap::<String, u32>::new();
    for line in cluster.logs().iter().filter(|line| line["message"] == "done") {
        let work = &line["span"];
        let key = ["job.id", "job.stage", "job.segment"].map(|field| match &work[field] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        *done.entry(key.join(" ")).or_default() += 1;
    }
    let twice: Vec<_> = done.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");

    let began = std::time::Instant::now();
    while !drafts(&cluster.volume()).is_empty() {
        assert!(began.elapsed() < PATIENCE, "left over: {:?}", drafts(&cluster.volume()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("{faults} faults (seed {seed}): {counts:?}; {} jobs, {} pieces of work", jobs.len(), done.len());
}
