//! The frame index as a file, and how videos are cut.

use std::fs;

use super::clips::{Folder, prepared};
use media::MediaError;
use media::index::{Frame, FrameIndex};

fn index_of(folder: &Folder) -> FrameIndex {
    let clip = folder.clip("a.mkv", 70, "-c:v libx264 -preset ultrafast -bf 2");
    prepared(folder, &clip).0.index
}

/// `n` frames with keyframes where `keyframe` says.
fn frames(index: &FrameIndex, n: i64, keyframe: impl Fn(i64) -> bool) -> FrameIndex {
    let frames = (0..n).map(|n| Frame { pts: n * 40, keyframe: keyframe(n) }).collect();
    FrameIndex { frames, ..index.clone() }
}

#[test]
fn it_is_read_as_it_was_written() {
    let folder = Folder::new();
    let path = folder.path("index");
    let mut index = index_of(&folder);
    index.dropped.push("subtitles (mov_text)".into());
    for (i, pts) in [(0, -(1i64 << 62)), (1, -5), (2, 0), (3, 7), (69, 1i64 << 61)] {
        index.frames[i].pts = pts;
    }
    index.write(&mut fs::File::create(&path).unwrap()).unwrap();
    assert_eq!(FrameIndex::read(&path).unwrap(), index);
}

#[test]
fn every_damage_is_noticed() {
    let folder = Folder::new();
    let path = folder.path("index");
    let mut bytes = Vec::new();
    index_of(&folder).write(&mut bytes).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        matches!(FrameIndex::read(&path), Err(MediaError::Storage(_)))
    };
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(refused(&damaged), "a bit flipped at byte {at}");
    }
    for length in [0, 7, 8, 20, bytes.len() / 2, bytes.len() - 1] {
        assert!(refused(&bytes[..length]), "cut to {length} bytes");
    }
    assert!(matches!(FrameIndex::read(&folder.path("absent")), Err(MediaError::Storage(_))));
}

#[test]
fn a_day_of_video_stays_small() {
    let folder = Folder::new();
    let index = frames(&index_of(&folder), 2_600_000, |n| n % 250 == 0);
    let mut bytes = Vec::new();
    index.write(&mut bytes).unwrap();
    assert!(bytes.len() < 3 * index.frames.len(), "{} bytes", bytes.len());
    let path = folder.path("index");
    fs::write(&path, bytes).unwrap();
    assert_eq!(FrameIndex::read(&path).unwrap().frames.len(), index.frames.len());
    assert!(index.cut().is_ok());
}

#[test]
fn cuts_fall_on_keyframes_where_these_allow_it() {
    let folder = Folder::new();
    let index = index_of(&folder);
    let cut = |n, every: i64| frames(&index, n, |n| n % every == 0).cut();
    assert_eq!(cut(1, 1), Ok(vec![(0, 0)]));
    assert_eq!(cut(63, 10), Ok(vec![(0, 62)]));
    assert_eq!(cut(128, 10), Ok(vec![(0, 127)]));
    assert_eq!(cut(129, 1), Ok(vec![(0, 63), (64, 128)]));
    assert_eq!(cut(300, 50), Ok(vec![(0, 99), (100, 199), (200, 299)]));
    assert_eq!(cut(500, 250), Ok(vec![(0, 121), (122, 249), (250, 371), (372, 499)]));
    for n in 1..700 {
        for every in [1, 7, 64, 100, 130, 200] {
            let segments = cut(n, every).unwrap();
            assert!(segments.iter().all(|&(a, b)| b - a < 128), "{n} {every}");
            assert!(n < 64 || segments.iter().all(|&(a, b)| b - a >= 63), "{n} {every}: {segments:?}");
        }
    }
}

#[test]
fn one_keyframe_for_long_is_not_cut() {
    let folder = Folder::new();
    let index = index_of(&folder);
    assert!(frames(&index, 250, |n| n == 0).cut().is_ok());
    let refused = frames(&index, 5000, |n| n == 0).cut().unwrap_err();
    assert!(refused.pre_roll > 5000);
}
