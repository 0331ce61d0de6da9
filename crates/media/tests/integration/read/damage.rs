//! Damaged files: what can't be decoded shows its predecessor, and the numbering holds.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::clips::{Folder, hashes, prepared};

/// Position and size of every video packet, in the file's order.
fn packets(path: &std::path::Path) -> Vec<(usize, usize)> {
    let out = Command::new("ffprobe")
        .args(["-v", "quiet", "-select_streams", "v:0", "-show_entries", "packet=pos,size", "-of", "csv=p=0"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines()
        .map(|line| {
            let mut fields = line.split(',').map(|f| f.parse().unwrap());
            let (size, pos) = (fields.next().unwrap(), fields.next().unwrap());
            (pos, size)
        })
        .collect()
}

/// A clip of 200 frames, a keyframe every 20, without B-frames, whose packets `lost` hold nothing but zeros.
fn clip_without(folder: &Folder, lost: impl Iterator<Item = usize>) -> PathBuf {
    let whole = folder.clip("whole.mp4", 200, "-c:v libx264 -preset ultrafast -g 20 -bf 0 -sc_threshold 0");
    let mut bytes = fs::read(&whole).unwrap();
    let packets = packets(&whole);
    for n in lost {
        let (pos, size) = packets[n];
        bytes[pos..pos + size].fill(0);
    }
    let path = folder.path("damaged.mp4");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn lost_frames_show_their_predecessor() {
    let folder = Folder::new();
    let path = clip_without(&folder, 109..112);
    let (prepared, _) = prepared(&folder, &path);
    assert_eq!(prepared.index.frames.len(), 200, "damage is no reason to renumber");
    let (straight, concealed) = hashes(&path, &prepared.index, 0, 199, 1);
    assert!(straight.iter().map(|f| f.0).eq(0..200));
    assert_eq!(concealed, [109, 110, 111]);
    for n in 109..112 {
        assert_eq!(straight[n].1, straight[108].1, "frame {n} shows frame 108");
    }
    assert_ne!(straight[112].1, straight[108].1);
    let mut in_segments = Vec::new();
    for &(first, last) in &prepared.segments {
        in_segments.extend(hashes(&path, &prepared.index, first, last, 1).0);
    }
    assert_eq!(in_segments, straight);
}

#[test]
fn a_segment_whose_first_frame_is_lost_shows_the_one_before_it() {
    let folder = Folder::new();
    // Frame 120 is a keyframe.
    let path = clip_without(&folder, 120..121);
    let (prepared, _) = prepared(&folder, &path);
    let (straight, all) = hashes(&path, &prepared.index, 0, 199, 1);
    let (segment, concealed) = hashes(&path, &prepared.index, 120, 199, 1);
    assert!(concealed.contains(&120));
    assert_eq!(segment[0].1, straight[119].1);
    assert_eq!(segment, straight[120..]);
    assert_eq!(concealed, all);
}

#[test]
fn a_lost_beginning_shows_what_comes_next() {
    let folder = Folder::new();
    let path = clip_without(&folder, 0..20);
    let (prepared, _) = prepared(&folder, &path);
    assert_eq!(prepared.mezzanine, None, "damage is no reason for a mezzanine");
    let (straight, concealed) = hashes(&path, &prepared.index, 0, 199, 1);
    assert!(concealed.iter().copied().eq(0..20));
    assert!(straight[..20].iter().all(|f| f.1 == straight[20].1));
    // A segment of which nothing can be decoded shows what comes after it.
    let (segment, concealed) = hashes(&path, &prepared.index, 3, 9, 1);
    assert_eq!(concealed, [3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(segment, straight[3..10]);
}

#[test]
fn bytes_lost_inside_frames_are_reported() {
    let folder = Folder::new();
    let whole = folder.ffmpeg(
        "whole.mp4",
        "-f lavfi -i testsrc2=s=320x240:r=25 -frames:v 100 -c:v libx264 -preset ultrafast -g 20 -pix_fmt yuv420p",
    );
    let mut bytes = fs::read(&whole).unwrap();
    let (pos, size) = packets(&whole)[50];
    bytes[pos + size / 2..pos + size].fill(0);
    let path = folder.path("damaged.mp4");
    fs::write(&path, bytes).unwrap();
    let (prepared, _) = prepared(&folder, &path);
    let (frames, concealed) = hashes(&path, &prepared.index, 0, 99, 1);
    assert_eq!(frames.len(), 100);
    assert!(!concealed.is_empty(), "a frame with half its bytes gone is no exact frame");
}

#[test]
fn a_keyframe_that_only_looks_like_one_is_no_place_to_begin() {
    let folder = Folder::new();
    let whole = folder.clip("whole.mp4", 200, "-c:v libx264 -preset ultrafast -g 20 -bf 0 -sc_threshold 0");
    let mut bytes = fs::read(&whole).unwrap();
    // The length and the kind of the picture's unit stay (no other unit comes before it), its content is spoilt.
    let (pos, size) = packets(&whole)[120];
    assert_eq!(bytes[pos + 4] & 0x1f, 5, "an IDR picture");
    bytes[pos + 5..pos + size].fill(0xff);
    let path = folder.path("damaged.mp4");
    fs::write(&path, bytes).unwrap();
    let (prepared, _) = prepared(&folder, &path);
    assert!(prepared.index.frames[120].keyframe);
    let (straight, all) = hashes(&path, &prepared.index, 0, 199, 1);
    for first in [120, 121, 130] {
        let (segment, concealed) = hashes(&path, &prepared.index, first, 199, 1);
        assert_eq!(segment, straight[first as usize..], "from {first}");
        assert!(concealed.iter().eq(all.iter().filter(|&&n| n >= first)), "from {first}");
    }
    assert!(all.contains(&120));
}
