//! What is over is cleared away, and nothing else.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::segment::Stage;
use pre::sweep::Sweeper;

use crate::house::{LEASE, TestApp};

/// Makes a file or folder look `age` old.
fn age(path: &Path, age: Duration) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(modified - age)).unwrap();
    let _: SystemTime = modified;
}

async fn sweep(house: &TestApp) -> usize {
    Sweeper::default().sweep(&house.app).await.unwrap()
}

#[tokio::test]
async fn a_deleted_job_s_files_go_once_nobody_can_be_at_work() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    house.index(1).await;
    house.request("DELETE", &format!("/v1/jobs/{id}")).send().await.unwrap();
    assert_eq!(sweep(&house).await, 0);
    assert!(house.volume.upload(id).exists());
    house.clock.advance(LEASE * 2);
    assert_eq!(sweep(&house).await, 1);
    assert!(!house.volume.upload(id).exists() && !house.volume.job(id).path().exists());
    assert!(house.store.job(id).await.unwrap().is_none());
    assert!(house.store.segments(id).await.unwrap().is_empty());
}

#[tokio::test]
async fn jobs_go_when_their_time_is_over() {
    let house = TestApp::start_with(&["--retention", "1h"]).await;
    let ended = house.upload("bikes.mp4").await;
    house.finish(1).await;
    let running = house.upload("cars.mp4").await;
    house.clock.advance(Duration::from_secs(3599));
    sweep(&house).await;
    house.expect_status(ended, "POSTPROCESSING_COMPLETE").await;
    house.clock.advance(Duration::from_secs(1));
    sweep(&house).await;
    assert_eq!(house.get(&format!("/v1/jobs/{ended}")).await.status(), 404);
    house.clock.advance(LEASE * 2);
    sweep(&house).await;
    assert!(house.store.job(ended).await.unwrap().is_none());
    house.expect_status(running, "ENQUEUE").await;

    let house = TestApp::start_with(&["--retention", "never"]).await;
    let id = house.upload("bikes.mp4").await;
    house.finish(1).await;
    house.clock.advance(Duration::from_secs(1_000_000_000));
    sweep(&house).await;
    house.expect_status(id, "POSTPROCESSING_COMPLETE").await;
}

#[tokio::test]
async fn files_that_nothing_names_go_and_named_ones_stay() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    house.index(2).await;
    house.work(Stage::Decode).await;
    let folder = house.volume.job(id);
    let held = house.claim(Stage::Decode).await;
    let published = folder.pack(1, &held.lease.token);
    fs::write(&published, "a pack whose advance is under way").unwrap();
    let named = folder.named(house.store.segments(id).await.unwrap()[0].files.pack.as_ref().unwrap());
    let lost = folder.pack(0, &common::segment::Token::random());
    let young = folder.pack(1, &common::segment::Token::random());
    let draft = folder.subfolder("render").join(".0.x.h264.0123456789abcdef.tmp");
    for path in [&lost, &young, &draft] {
        fs::write(path, "left over").unwrap();
    }
    for path in [&published, &named, &lost, &draft] {
        age(path, LEASE * 2);
    }
    assert_eq!(sweep(&house).await, 2);
    assert!(!lost.exists() && !draft.exists());
    assert!(published.exists() && named.exists() && young.exists());
}

#[tokio::test]
async fn what_killed_processes_left_is_found_wherever_it_lies() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    house.finish(1).await;
    let picture = house.volume.job(id).subfolder("src_frame").join(".frame_1.jpg.0123456789abcdef.tmp");
    let probe = house.volume.root().join(".ready.0123456789abcdef.tmp");
    let stranger = house.volume.root().join("lost+found");
    let orphan = house.volume.job("630dc9e9aaaaaaaaaaaaaaaa".parse().unwrap());
    orphan.create().unwrap();
    fs::write(&picture, "half a picture").unwrap();
    fs::write(&probe, "").unwrap();
    fs::create_dir(&stranger).unwrap();
    let upload = house.volume.upload("630dc9e9bbbbbbbbbbbbbbbb".parse().unwrap());
    let half = house.volume.uploads().join(".630dc9e9cccccccccccccccc.0123456789abcdef.tmp");
    fs::write(&upload, "an upload whose job was never made").unwrap();
    fs::write(&half, "half an upl").unwrap();
    let piece = house.volume.partial("630dc9e9dddddddddddddddd".parse().unwrap());
    fs::write(&piece, "an upload in pieces that was given up").unwrap();
    let orphaned = orphan.path().to_owned();
    for path in [&picture, &probe, &stranger, &orphaned, &upload, &half, &piece, &house.volume.upload(id)] {
        age(path, Duration::from_secs(23 * 3600));
    }
    house.clock.advance(LEASE * 2);
    assert_eq!(sweep(&house).await, 3, "the draft of a picture, that of a probe, the folder");
    assert!(!picture.exists() && !probe.exists() && !orphan.path().exists());
    assert!(upload.exists() && half.exists() && piece.exists(), "an upload may go on for a day");
    for path in [&upload, &half, &piece, &house.volume.upload(id)] {
        age(path, Duration::from_secs(3600));
    }
    assert_eq!(sweep(&house).await, 3);
    assert!(!upload.exists() && !half.exists() && !piece.exists() && stranger.exists());
    assert!(house.volume.upload(id).exists(), "a job's own upload stays with it");
    assert_eq!(house.get(&format!("/v1/jobs/{id}/frames.zip")).await.status(), 200);
}
