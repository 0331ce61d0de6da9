//! Files that are no videos: one clear sentence each, and nothing left behind.

use std::fs;
use std::path::Path;

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
    assert!(left.iter().all(|path| path == "runs" || path == "runs/detect"), "{name} left {left:?}");
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
