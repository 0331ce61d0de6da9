//! One video all the way through pre, infer and post.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testbed::Mongod;
use testbed::cluster::{API_TOKEN, Cluster, PATIENCE, Plan, Process, clip};

fn probe(file: &Path, entry: &str) -> String {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-count_packets", "-select_streams", "v:0", "-show_entries"])
        .arg(format!("stream={entry}"))
        .args(["-of", "default=noprint_wrappers=1:nokey=1"])
        .arg(file)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The statuses an event stream tells, until the job has ended.
async fn statuses(cluster: &Cluster, id: &str) -> Vec<String> {
    let answer = cluster.request(Method::GET, &format!("/v1/jobs/{id}/events")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut stream = answer.bytes_stream();
    let (mut text, mut found) = (String::new(), Vec::<String>::new());
    let follow = async {
        while let Some(piece) = stream.next().await {
            text.push_str(&String::from_utf8_lossy(&piece.unwrap()));
            while let Some(end) = text.find("\n\n") {
                let event: String = text.drain(..end + 2).collect();
                let data: String = event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                let Ok(data) = serde_json::from_str::<Value>(data.trim()) else { continue };
                let Some(status) = data["status"].as_str() else { continue };
                if found.last().is_none_or(|last| last != status) {
                    found.push(status.to_owned());
                }
                if status.ends_with("ERROR") || status == "POSTPROCESSING_COMPLETE" {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, follow).await.unwrap_or_else(|_| panic!("{}", cluster.last_words()));
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_video_goes_through_three_services() {
    let mongod = Mongod::shared();
    let database = mongod.fresh_database();
    let cluster = Cluster::start(&mongod.uri(), &database, &Plan::default()).await;
    assert!(cluster.processes.iter().all(Process::is_healthy));
    let source = cluster.folder().join("bikes & cars.mp4");
    std::fs::rename(clip(cluster.folder(), "clip.mp4", 150), &source).unwrap();
    let id = cluster.upload(&source, "?every=5&conf=0.1").await;

    let seen = statuses(&cluster, &id).await;
    assert_eq!(seen.last().map(String::as_str), Some("POSTPROCESSING_COMPLETE"), "{seen:?}");

    // The volume, as the original laid it out.
    let folder = cluster.volume().join(&id);
    for n in [0, 77, 149] {
        for name in [
            format!("src_frame/frame_{n}.jpg"),
            format!("txts/infer{n}.txt"),
            format!("tar_frame/tar_{n}.jpg"),
        ] {
            assert!(folder.join(&name).is_file(), "{name}");
        }
    }
    assert!(!folder.join("txts/infer150.txt").exists());
    for name in ["avi", "mp4"] {
        let video = folder.join(format!("target/target_{id}.{name}"));
        assert_eq!(probe(&video, "nb_read_packets"), "150", "{name}");
    }
    let coco: Value =
        serde_json::from_slice(&std::fs::read(folder.join("target/detections.json")).unwrap()).unwrap();
    assert_eq!(coco["images"].as_array().unwrap().len(), 150);
    assert!(cluster.volume().join("src").join(&id).is_file());

    // The document, as the original's operators read it.
    let found = mongod.find(&database, "requests", &json!({ "_id": { "$oid": id } }));
    let document = &found[0];
    assert_eq!(document["FILENAME"], "bikes & cars.mp4");
    assert_eq!(document["STATUS"], "POSTPROCESSING_COMPLETE");
    let stamps = [
        "PROCESS_START",
        "PREPROCESSING_START",
        "PREPROCESSING_END",
        "INFERENCE_START",
        "INFERENCE_END",
        "POSTPROCESSING_START",
        "POSTPROCESSING_END",
        "PROCESS_END",
    ];
    let date = |name: &str| -> String {
        let date = &document[name]["$date"];
        date.as_str().map_or_else(|| date.to_string(), str::to_owned)
    };
    for name in stamps {
        assert!(document[name]["$date"] != Value::Null, "{name} in {document}");
    }
    for (earlier, later) in [(0, 1), (1, 2), (1, 3), (3, 4), (2, 4), (3, 5), (4, 6), (5, 6), (6, 7)] {
        assert!(date(stamps[earlier]) <= date(stamps[later]), "{} before {}", stamps[earlier], stamps[later]);
    }
    assert!(document["TOTAL"].as_str().unwrap().starts_with("0:0"));

    // The result over HTTP, and in part.
    let avi = cluster.request(Method::GET, &format!("/v1/jobs/{id}/video.avi")).send().await.unwrap();
    assert_eq!(avi.status(), StatusCode::OK);
    let named = avi.headers()["content-disposition"].to_str().unwrap().to_owned();
    assert!(named.contains(&format!("target_{id}.avi")), "{named}");
    let part = cluster.request(Method::GET, &format!("/v1/jobs/{id}/video.mp4"));
    let part = part.header("range", "bytes=0-99").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap().len(), 100);

    // A single picture takes the same door.
    let picture = std::fs::read(folder.join("src_frame/frame_0.jpg")).unwrap();
    let answer = cluster.request(Method::POST, "/v1/detect?conf=0.1").body(picture).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.json::<Value>().await.unwrap()["width"], 320);

    // Strangers are not let in; a finished job cannot be failed or stamped again.
    let url = cluster.of("pre").next().unwrap().url();
    let stranger = reqwest::get(format!("{url}/v1/jobs/{id}")).await.unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);

    for process in &cluster.processes {
        let metrics = reqwest::get(format!("{}/metrics", process.url())).await.unwrap().text().await.unwrap();
        assert!(metrics.contains("boxreel_work_total"), "{process:?}");
        let status = process.terminate();
        assert!(status.success(), "{process:?} ended with {status}: {}", process.last_words());
        assert!(!process.is_healthy(), "nobody answers any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_an_hour_apart_change_nothing() {
    let mongod = Mongod::shared();
    let database = mongod.fresh_database();
    let plan = Plan { clocks: [0, 3600, -3600], ..Plan::default() };
    let cluster = Cluster::start(&mongod.uri(), &database, &plan).await;
    let source = clip(cluster.folder(), "a.mp4", 70);
    let id = cluster.upload(&source, "?every=10&keep_frames=false").await;
    let job = cluster.until_ended(&id, PATIENCE).await;
    assert_eq!(job["status"], "POSTPROCESSING_COMPLETE", "{job}\n{}", cluster.last_words());
    let found = mongod.find(&database, "requests", &json!({ "_id": { "$oid": id } }));
    let total = found[0]["TOTAL"].as_str().unwrap().to_owned();
    assert!(total.starts_with("0:0"), "{total}");
    let expired = mongod.find(&database, "segments", &json!({ "expiries": { "$gt": 0 } }));
    assert_eq!(expired, Vec::<Value>::new(), "no lease ended early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clip_does_not_wait_for_a_film() {
    let mongod = Mongod::shared();
    let cluster = Cluster::start(&mongod.uri(), &mongod.fresh_database(), &Plan::default()).await;
    let film = clip(cluster.folder(), "film.mp4", 1500);
    let short = clip(cluster.folder(), "short.mp4", 50);
    let film = cluster.upload(&film, "?every=10&keep_frames=false").await;
    let began = Instant::now();
    loop {
        let job = cluster.try_get(&format!("/v1/jobs/{film}")).await.unwrap_or_default();
        if job["timeline"]["postprocessing_start"].is_string() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let clip = cluster.upload(&short, "?every=10&keep_frames=false").await;
    let clip = cluster.until_ended(&clip, PATIENCE).await;
    let film_then = cluster.try_get(&format!("/v1/jobs/{film}")).await.unwrap();
    assert_eq!(clip["status"], "POSTPROCESSING_COMPLETE", "{clip}");
    assert_eq!(film_then["is_final"], false, "the film is still at it: {film_then}");
    println!("the clip took {} while the film was at it", clip["timeline"]["total"]);
    assert_eq!(cluster.until_ended(&film, PATIENCE * 2).await["status"], "POSTPROCESSING_COMPLETE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_uploads_at_once_are_taken_or_refused() {
    let mongod = Mongod::shared();
    let plan = Plan {
        pre: 2,
        post: 0,
        environment: vec![("BOXREEL_MAX_UPLOADS".to_owned(), "20".to_owned())],
        ..Plan::default()
    };
    let cluster = Arc::new(Cluster::start(&mongod.uri(), &mongod.fresh_database(), &plan).await);
    // What it offers is remembered; that nobody works keeps the test short.
    assert!(cluster.of("infer").all(|infer| infer.terminate().success()));
    let bytes = std::fs::read(clip(cluster.folder(), "short.mp4", 10)).unwrap();
    let uploads: Vec<_> = (0..100)
        .map(|number| {
            let (cluster, bytes) = (cluster.clone(), bytes.clone());
            tokio::spawn(async move {
                let options = format!("?filename={number}.mp4&keep_frames=false");
                cluster.try_upload(number % 2, bytes, &options).await.unwrap()
            })
        })
        .collect();
    let mut taken = BTreeSet::new();
    for (number, upload) in uploads.into_iter().enumerate() {
        match upload.await.unwrap() {
            StatusCode::ACCEPTED => drop(taken.insert(format!("{number}.mp4"))),
            status => assert!(
                matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS),
                "{status}"
            ),
        }
    }
    assert!(taken.len() >= 20, "{taken:?}");
    let jobs = cluster.try_get("/v1/jobs?page_size=100").await.unwrap();
    let listed = jobs["jobs"].as_array().unwrap().iter();
    let listed: BTreeSet<_> = listed.map(|job| job["filename"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed, taken, "each that was taken is there, and no other");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_at_another_pre_when_the_first_was_killed() {
    let mongod = Mongod::shared();
    let plan = Plan { pre: 2, post: 0, lease: 3, ..Plan::default() };
    let cluster = Cluster::start(&mongod.uri(), &mongod.fresh_database(), &plan).await;
    let bytes = std::fs::read(clip(cluster.folder(), "clip.mp4", 50)).unwrap();
    let half = bytes.len() / 2;
    let [first, second] = [0, 1].map(|number| cluster.of("pre").nth(number).unwrap());
    let http = reqwest::Client::new();
    let tus = |method, url: String| {
        http.request(method, url).bearer_auth(API_TOKEN).header("Tus-Resumable", "1.0.0")
    };
    let patch = |url: String, offset: usize| {
        let request = tus(Method::PATCH, url).header("Content-Type", "application/offset+octet-stream");
        request.header("Upload-Offset", offset)
    };
    let begin = tus(Method::POST, format!("{}/v1/uploads", first.url())).header("Upload-Length", bytes.len());
    let begun = begin.send().await.unwrap();
    assert_eq!(begun.status(), StatusCode::CREATED);
    let path = begun.headers()["location"].to_str().unwrap().to_owned();

    // Half of it comes, and then nothing more until its pre is killed.
    let (start, rest) = bytes.split_at(half);
    let trickle = futures_util::stream::iter([Ok::<_, std::io::Error>(start.to_vec())])
        .chain(futures_util::stream::pending());
    let sending = patch(format!("{}{path}", first.url()), 0).body(reqwest::Body::wrap_stream(trickle)).send();
    let sending = tokio::spawn(sending);
    let offset = async || {
        let answer = tus(Method::HEAD, format!("{}{path}", second.url())).send().await.unwrap();
        answer.headers()["upload-offset"].to_str().unwrap().parse::<usize>().unwrap()
    };
    let began = Instant::now();
    while offset().await < half {
        assert!(began.elapsed() < PATIENCE, "what has come is counted while it comes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    first.kill();
    assert!(sending.await.unwrap().is_err());
    let job = loop {
        let answer = patch(format!("{}{path}", second.url()), half).body(rest.to_vec()).send().await.unwrap();
        match answer.status() {
            StatusCode::NO_CONTENT => break answer.headers()["boxreel-job"].to_str().unwrap().to_owned(),
            status => assert_eq!(status, StatusCode::LOCKED, "until the lease of the first has lapsed"),
        }
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(std::fs::read(cluster.volume().join("src").join(&job)).unwrap() == bytes);
}
