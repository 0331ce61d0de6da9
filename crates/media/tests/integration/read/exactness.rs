//! The pictures of all segments are those of one straight decode, whatever the container and the coding.

use super::clips::{Folder, assert_exact, hashes, prepared, shown_by_ffmpeg, shown_by_us};
use media::index::FrameIndex;

/// Makes a clip of 200 frames, checks it, and that its pictures are those FFmpeg's command line shows.
fn check(name: &str, coding: &str) -> FrameIndex {
    let folder = Folder::new();
    let path = folder.clip(name, 200, coding);
    let prepared = assert_exact(&folder, &path);
    assert_eq!(prepared.mezzanine, None, "{name} can be cut as it is");
    assert!(prepared.segments.len() >= 2);
    assert!(shown_by_us(&path, &prepared.index) == shown_by_ffmpeg(&path), "{name}: the pictures differ");
    prepared.index
}

const X264: &str = "-c:v libx264 -preset ultrafast";

#[test]
fn h264_with_b_frames() {
    for name in ["a.mp4", "a.mov", "a.mkv", "a.ts", "a.flv"] {
        check(name, &format!("{X264} -g 50 -bf 3 -sc_threshold 0"));
    }
}

#[test]
fn fragmented_mp4() {
    check("a.mp4", &format!("{X264} -g 50 -bf 3 -movflags frag_keyframe+empty_moov"));
}

#[test]
fn matroska_that_breaks_off() {
    let folder = Folder::new();
    let whole = folder.clip("whole.mkv", 200, &format!("{X264} -g 50 -bf 3"));
    let bytes = std::fs::read(&whole).unwrap();
    let path = folder.path("a.mkv");
    std::fs::write(&path, &bytes[..bytes.len() * 3 / 4]).unwrap();
    let (prepared, pictures) = prepared(&folder, &path);
    let last = prepared.index.frames.len() as u32 - 1;
    assert!((100..199).contains(&last));
    let (straight, concealed) = hashes(&pictures, &prepared.index, 0, last, 1);
    assert!(concealed.iter().all(|&n| n + 5 > last), "only the torn end can be damaged: {concealed:?}");
    let mut in_segments = Vec::new();
    for &(first, last) in &prepared.segments {
        in_segments.extend(hashes(&pictures, &prepared.index, first, last, 1).0);
    }
    assert_eq!(in_segments, straight);
}

#[test]
fn h264_with_open_groups() {
    for name in ["a.mp4", "a.mkv", "a.ts"] {
        let index = check(
            name,
            "-c:v libx264 -preset veryfast -bf 3 -x264-params open-gop=1:keyint=40:min-keyint=40",
        );
        assert_eq!(index.frames.iter().filter(|f| f.keyframe).count(), 5);
    }
}

#[test]
fn h264_with_deep_b_pyramids() {
    check("a.mp4", "-c:v libx264 -preset veryfast -g 40 -bf 8 -b-pyramid normal -b_strategy 0");
}

#[test]
fn h264_in_avi_has_no_presentation_times() {
    let folder = Folder::new();
    let path = folder.clip("a.avi", 130, &format!("{X264} -g 50 -bf 2"));
    let prepared = assert_exact(&folder, &path);
    assert!(prepared.mezzanine.is_some());
    let steps: Vec<_> = prepared.index.frames.windows(2).map(|w| w[1].pts - w[0].pts).collect();
    assert!(steps.iter().all(|&s| s == steps[0]), "a constant rate stays constant");
    let first = prepared.index.frames[0].pts;
    assert_eq!(first, 0);
}

#[test]
fn hevc_with_open_groups() {
    for name in ["a.mp4", "a.mkv", "a.ts"] {
        check(
            name,
            "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=40:open-gop=1:bframes=4 -tag:v hvc1",
        );
    }
}

#[test]
fn vp9_with_hidden_frames() {
    check(
        "a.webm",
        "-c:v libvpx-vp9 -b:v 200k -g 60 -auto-alt-ref 1 -lag-in-frames 16 -cpu-used 8 -deadline realtime",
    );
}

#[test]
fn vp8_with_hidden_frames() {
    check(
        "a.webm",
        "-c:v libvpx -b:v 200k -g 60 -auto-alt-ref 1 -lag-in-frames 16 -cpu-used 16 -deadline good",
    );
}

#[test]
fn av1() {
    check("a.mp4", "-c:v libsvtav1 -preset 12 -g 60");
}

#[test]
fn mpeg4_with_b_frames() {
    check("a.mp4", "-c:v mpeg4 -q:v 5 -bf 2 -g 30");
    check("a.avi", "-c:v mpeg4 -q:v 5 -bf 0 -g 30");
    let folder = Folder::new();
    let path = folder.clip("packed.avi", 130, "-c:v libxvid -q:v 5 -bf 2 -g 30");
    assert_exact(&folder, &path);
}

#[test]
fn older_codings() {
    check("a.ts", "-c:v mpeg2video -q:v 5 -bf 2 -g 15");
    check("a.avi", "-c:v msmpeg4 -q:v 5 -g 30");
    check("a.wmv", "-c:v wmv2 -q:v 5 -g 30");
    let folder = Folder::new();
    // Full range: FFmpeg's command line rounds otherwise when it converts that.
    assert_exact(&folder, &folder.clip("a.mov", 130, "-c:v mjpeg -q:v 5 -pix_fmt yuvj420p"));
    assert_exact(&folder, &folder.ffmpeg("a.gif", "-f lavfi -i testsrc2=s=160x120:r=25 -frames:v 90"));
    assert_exact(&folder, &folder.clip("a.ogv", 130, "-c:v libtheora -q:v 5 -g 30"));
    let path = folder.clip("a.mpg", 130, "-c:v mpeg2video -q:v 5 -bf 2 -g 15");
    assert!(assert_exact(&folder, &path).mezzanine.is_some(), "a program stream skips presentation times");
}

#[test]
fn variable_frame_rate() {
    for name in ["a.mp4", "a.mkv"] {
        let folder = Folder::new();
        // Every third frame is missing, and then one in seven.
        let path = folder.ffmpeg(
            name,
            "-f lavfi -i testsrc2=s=160x120:r=30 -vf select=mod(n\\,3)*mod(n\\,7) -frames:v 150 -fps_mode vfr -c:v libx264 \
             -preset ultrafast -bf 2 -g 45 -pix_fmt yuv420p",
        );
        let prepared = assert_exact(&folder, &path);
        assert_eq!(prepared.mezzanine, None);
        let steps: std::collections::HashSet<_> =
            prepared.index.frames.windows(2).map(|w| w[1].pts - w[0].pts).collect();
        assert!(steps.len() >= 2, "the times stay uneven");
    }
}

#[test]
fn one_keyframe() {
    let folder = Folder::new();
    // Short: cut inside. Long: more would be decoded twice than once, so a mezzanine stands in.
    let short = folder.clip("short.mp4", 200, &format!("{X264} -g 9999 -bf 2"));
    let prepared = assert_exact(&folder, &short);
    assert_eq!((prepared.mezzanine, prepared.segments.len()), (None, 2));
    let long = folder.clip("long.mkv", 400, &format!("{X264} -g 9999 -bf 2"));
    let prepared = assert_exact(&folder, &long);
    assert!(prepared.mezzanine.is_some());
}

#[test]
fn edit_lists_hide_frames() {
    let folder = Folder::new();
    let whole = folder.clip("whole.mp4", 200, &format!("{X264} -g 50 -bf 2"));
    // Cut at a place that is no keyframe: the frames before it stay in the file, and an edit list hides them.
    let path = folder.ffmpeg("cut.mp4", &format!("-ss 1.2 -i {} -c copy", whole.display()));
    let prepared = assert_exact(&folder, &path);
    assert_eq!(prepared.index.frames.len(), 170);
    assert!(shown_by_us(&path, &prepared.index) == shown_by_ffmpeg(&path));
}

#[test]
fn a_stream_that_begins_amid_an_open_group() {
    let folder = Folder::new();
    let whole = folder.clip(
        "whole.ts",
        200,
        "-c:v libx264 -bf 3 -x264-params open-gop=1:keyint=40:min-keyint=40:bframes=3",
    );
    let bytes = std::fs::read(&whole).unwrap();
    let path = folder.path("tail.ts");
    std::fs::write(&path, &bytes[bytes.len() / 188 / 3 * 188..]).unwrap();
    let (prepared, pictures) = prepared(&folder, &path);
    let last = prepared.index.frames.len() as u32 - 1;
    assert!(last > 60);
    let (_, concealed) = hashes(&pictures, &prepared.index, 0, last, 1);
    assert_eq!(concealed, Vec::<u32>::new(), "what can't be decoded at the start is no frame of the video");
}

#[test]
fn threads_change_nothing() {
    let folder = Folder::new();
    let path = folder.clip("a.mp4", 100, &format!("{X264} -g 30 -bf 3"));
    let (prepared, _) = prepared(&folder, &path);
    assert_eq!(hashes(&path, &prepared.index, 17, 71, 1), hashes(&path, &prepared.index, 17, 71, 4));
}

#[test]
fn real_files() {
    let Some(shared) = std::env::var_os("BOXREEL_SHARED") else {
        eprintln!("BOXREEL_SHARED is not set: real files are not tried");
        return;
    };
    let videos = std::path::Path::new(&shared).join("videos");
    for (name, frames) in [
        ("bikes.mp4", 250),
        ("cars_vfr.mp4", 168),
        ("motorway_hevc_aac.mp4", 441),
        ("people_indoor.mp4", 1394),
        ("portrait_rotated.mp4", 200),
        ("vtest.avi", 795),
    ] {
        let folder = Folder::new();
        let prepared = assert_exact(&folder, &videos.join(name));
        assert_eq!(prepared.index.frames.len(), frames, "{name}");
        eprintln!(
            "{name}: {:?}, {} segments, {:?}",
            prepared.mezzanine,
            prepared.segments.len(),
            prepared.index.video
        );
    }
}
