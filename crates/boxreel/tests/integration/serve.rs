//! The whole house in one process, as a user reaches it.

use std::fs;
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::Value;
use testbed::House;

use crate::support::{boxreel, clip};

#[tokio::test]
async fn a_video_is_uploaded_followed_and_fetched() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let house = House::start();
    let (folder, url) = (house.folder(), &house.url);
    let file = clip(folder, "a.mp4", 30);
    let http = Client::new();
    let sent = http
        .post(format!("{url}/v1/jobs?filename=my%20clip.mp4&every=10&conf=0.1&keep_frames=false"))
        .header("content-type", "video/mp4")
        .body(fs::read(&file).unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(sent.status(), StatusCode::ACCEPTED);
    let job = format!("{url}{}", sent.headers()["location"].to_str().unwrap());
    let began = Instant::now();
    let ended = loop {
        let job: Value = http.get(&job).send().await.unwrap().json().await.unwrap();
        if job["is_final"] == true {
            break job;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{job}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(ended["status"], "POSTPROCESSING_COMPLETE", "{ended}");
    assert_eq!((&ended["filename"], &ended["frames"]), (&"my clip.mp4".into(), &30.into()));
    let video = http.get(format!("{job}/video.mp4")).send().await.unwrap().bytes().await.unwrap();
    assert_eq!(&video[4..8], b"ftyp");

    // A second process must not work on the same folder.
    let second =
        boxreel(folder).args(["serve", "--listen", "127.0.0.1:0", "--data-dir", "data"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("name another --data-dir"));

    let ended = std::process::Command::new("kill").arg(house.id().to_string()).status().unwrap();
    assert!(ended.success());
}

#[test]
fn settings_that_cannot_be_meant_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let run = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(boxreel(folder.path()).arg("serve").env("BOXREEL_LISTN", "x"));
    assert_eq!(code, Some(2));
    assert!(said.contains("BOXREEL_LISTN") && said.contains("did you mean BOXREEL_LISTEN?"), "{said}");
    let (code, said) = run(boxreel(folder.path()).args(["serve", "--listen", "0.0.0.0:0"]));
    assert_eq!(code, Some(1));
    assert!(said.contains("no token guards it"), "{said}");
}
