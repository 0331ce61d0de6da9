//! Runs that are killed or stopped, and continued by the same command.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{boxreel, clip, pixels, text, tree};

const ARGUMENTS: [&str; 8] =
    ["detect", "film.mp4", "--every", "25", "--conf", "0.05", "--save-txt", "--quiet"];

fn start(folder: &Path) -> Child {
    boxreel(folder).args(ARGUMENTS).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until `seen` is true of the run's files, or the run has ended; false in the latter case.
fn wait(child: &mut Child, folder: &Path, seen: impl Fn(&[String]) -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        if seen(&tree(&folder.join("runs"))) {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(Instant::now() < deadline, "the run made no progress");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn results(folder: &Path) -> (Vec<u8>, String, String) {
    let results = folder.join("runs/detect/predict/film");
    (
        fs::read(results.join("detections.json")).unwrap(),
        pixels(&results.join("film.mp4")),
        pixels(&results.join("film.avi")),
    )
}

#[test]
fn a_killed_run_is_continued_and_ends_as_if_nothing_had_happened() {
    let (calm, stormy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&calm, &stormy] {
        clip(folder.path(), "film.mp4", 200);
    }
    let output = boxreel(calm.path()).args(ARGUMENTS).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));

    // Killed once each: with a pack on the volume, with detections there, with a segment encoded.
    for folder in ["/pack/", "/detections/", "/render/"] {
        let mut child = start(stormy.path());
        wait(&mut child, stormy.path(), |files| {
            files.iter().any(|file| file.contains(folder) && !file.ends_with(".tmp"))
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = boxreel(stormy.path()).args(ARGUMENTS).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (expected, made) = (results(calm.path()), results(stormy.path()));
    let lines = |json: &[u8]| text(json).lines().map(str::to_owned).collect::<Vec<_>>();
    for (expected, made) in lines(&expected.0).iter().zip(lines(&made.0)) {
        assert_eq!(*expected, made, "the continued run found something else");
    }
    assert_eq!(expected.0.len(), made.0.len());
    assert_eq!((expected.1, expected.2), (made.1, made.2), "the continued run drew something else");
    assert_eq!(fs::read_dir(stormy.path().join("runs/detect")).unwrap().count(), 1);
    assert!(!stormy.path().join("runs/detect/predict/.boxreel").exists());
}

#[test]
fn ctrl_c_stops_at_once_and_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), "film.mp4", 200);
    let mut child = start(folder.path());
    let running = wait(&mut child, folder.path(), |files| {
        files.iter().any(|file| file.contains("/detections/") && !file.ends_with(".tmp"))
    });
    assert!(running, "the run ended before it could be interrupted");
    let asked = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    // A second is promised; a loaded machine gets more before this counts as broken.
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stderr).contains("the same command continues"));
    let left = tree(&folder.path().join("runs/detect/predict"));
    assert!(!left.iter().any(|path| path.ends_with(".tmp") || path == "film"), "{left:?}");

    let output = boxreel(folder.path()).args(ARGUMENTS).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    results(folder.path());
}
