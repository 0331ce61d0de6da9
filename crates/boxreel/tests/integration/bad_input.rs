//! Files that are no videos: one clear sentence each, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{boxreel, clip, ffmpeg, text, tree};

fn refused(folder: &Path, name: &str, said: &str) {
    let before = tree(folder);
    let output = boxreel(folder).args(["detect", name]).output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{name}: {errors}");
    assert!(!errors.contains("panicked"), "{name}: {errors}");
    let sentences: Vec<_> = errors.lines().filter(|line| line.starts_with("boxreel: ")).collect();
    assert_eq!(sentences.len(), 1, "{name}: {errors}");
    assert!(
        sentences[0].contains(name) && sentences[0].to_lowercase().contains(said),
        "{name}: {}",
        sentences[0]
    );
    let left: Vec<_> = tree(folder).into_iter().filter(|path| !before.contains(path)).collect();
    assert!(left.is_empty(), "{name} left {left:?}");
}

/// Kills every child of the program until it ends.
fn end_without_children(mut program: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(300);
    while program.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the program does not end");
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            // "id (name) state parent …"; a process may be gone by the time it is looked at.
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
            if rest.split(' ').nth(1) == Some(&program.id().to_string()) {
                let id = entry.file_name();
                let _ = Command::new("kill").arg("-SEGV").arg(id).stderr(Stdio::null()).status();
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    program.wait_with_output().unwrap()
}

#[test]
fn files_that_crash_their_readers_are_each_reported() {
    let folder = tempfile::tempdir().unwrap();
    // More than the failures in a row after which a worker that has colleagues would hold itself to be ill.
    let names = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"];
    for name in names {
        clip(folder.path(), name, 3);
    }
    let before = tree(folder.path());
    let program =
        boxreel(folder.path()).arg("detect").args(names).args(["--quiet"]).stderr(Stdio::piped()).spawn();
    let output = end_without_children(program.unwrap());
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), names.len(), "{errors}");
    for (name, line) in names.iter().zip(errors.lines()) {
        assert!(
            line.starts_with("boxreel: ") && line.contains(name) && line.contains("segmentation fault"),
            "{line}"
        );
    }
    assert_eq!(tree(folder.path()), before);
}

#[test]
fn what_is_no_video_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("empty.mp4"), "").unwrap();
    fs::write(path.join("letter.mp4"), "Dear reader, this is not a video at all. ".repeat(50)).unwrap();
    fs::write(path.join("list.mp4"), "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/passwd\n").unwrap();
    fs::write(path.join("script.mp4"), "ffconcat version 1.0\nfile /etc/passwd\n").unwrap();
    ffmpeg(path, "-f lavfi -i sine=duration=1 -c:a aac song.mp4");
    let whole = fs::read(clip(path, "whole.mp4", 50)).unwrap();
    fs::write(path.join("no_moov.mp4"), &whole[..whole.len() / 2]).unwrap();
    for (name, said) in [
        ("empty.mp4", "empty"),
        ("letter.mp4", "not a video"),
        ("list.mp4", "not a video"),
        ("script.mp4", "not a video"),
        ("song.mp4", "no video"),
        ("no_moov.mp4", "cut off"),
        ("missing.mp4", "no such file"),
    ] {
        refused(path, name, said);
    }
}

#[test]
fn a_file_cut_off_in_the_middle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), "whole.mp4", 100);
    ffmpeg(folder.path(), "-i whole.mp4 -c copy -movflags +faststart front.mp4");
    let whole = fs::read(folder.path().join("front.mp4")).unwrap();
    fs::write(folder.path().join("cut.mp4"), &whole[..whole.len() / 2]).unwrap();
    refused(folder.path(), "cut.mp4", "cut off");
}

#[test]
fn one_bad_file_does_not_keep_the_others_from_their_results() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), "good.mp4", 3);
    fs::write(folder.path().join("bad.mp4"), "no video").unwrap();
    let output =
        boxreel(folder.path()).args(["detect", "bad.mp4", "good.mp4", "nowhere.mp4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    assert!(errors.contains("bad.mp4: ") && errors.contains("nowhere.mp4: "), "{errors}");
    assert!(folder.path().join("runs/detect/predict/good/good.mp4").is_file());
    assert!(!folder.path().join("runs/detect/predict/bad").exists());
}
