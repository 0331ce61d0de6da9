//! What is no video is refused with one sentence that says why.

use std::fs;
use std::path::Path;

use super::clips::Folder;
use media::MediaError;
use media::index::prepare;
use media::probe::{Limits, probe};

/// The sentence that refuses `path`, checked to be one.
fn refusal(folder: &Folder, path: &Path) -> String {
    let error = prepare(path, &Limits::default(), &folder.path("mezzanine"), &mut |_| {}).unwrap_err();
    let MediaError::Input(sentence) = error else { panic!("{error:?} is not about the input") };
    assert!(sentence.ends_with('.') && sentence.len() > 20 && !sentence.contains('\n'), "{sentence}");
    sentence
}

fn assert_refused(content: &[u8], name: &str, says: &str) {
    let folder = Folder::new();
    let path = folder.path(name);
    fs::write(&path, content).unwrap();
    let sentence = refusal(&folder, &path);
    assert!(sentence.contains(says), "{name}: {sentence}");
}

#[test]
fn no_video_at_all() {
    assert_refused(b"", "empty.mp4", "is empty");
    assert_refused(b"This is a letter.\nYours, N.\n", "letter.mp4", "is text");
    assert_refused("Gr\u{fc}\u{df}e aus K\u{f6}ln \u{2014} ".repeat(300).as_bytes(), "letter.mp4", "is text");
    let noise: Vec<u8> = (0..9000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert_refused(&noise, "noise.mp4", "not a video");
}

#[test]
fn scripts_that_point_to_other_files() {
    let folder = Folder::new();
    let real = folder.clip("real.mp4", 5, "-c:v libx264 -preset ultrafast");
    let real = real.display();
    for script in [
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile://{real}\n#EXT-X-ENDLIST\n"),
        format!("ffconcat version 1.0\nfile '{real}'\n"),
        format!("\u{feff}\n#EXTM3U\n{real}\n"),
    ] {
        assert_refused(script.as_bytes(), "script.mp4", "a playlist");
    }
    assert_refused(format!("file '{real}'\n").as_bytes(), "script.mp4", "is text");
    // Not text by its bytes, so that FFmpeg's own recognition decides: still not followed.
    let padded =
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile://{real}\n#EXT-X-ENDLIST\n\u{1}");
    assert_refused(format!("\u{1}{padded}").as_bytes(), "script.mp4", "not a video");
    assert_refused(padded.as_bytes(), "script.m3u8", "a playlist");
}

#[test]
fn cut_off_files() {
    let folder = Folder::new();
    let clip = folder.clip("a.mp4", 50, "-c:v libx264 -preset ultrafast");
    let bytes = fs::read(&clip).unwrap();
    // The index of an MP4 comes last unless asked for.
    assert_refused(&bytes[..bytes.len() * 2 / 3], "a.mp4", "cut off before its end");
    let fast = folder.clip("fast.mp4", 50, "-c:v libx264 -preset ultrafast -movflags +faststart");
    let bytes = fs::read(&fast).unwrap();
    assert_refused(&bytes[..bytes.len() * 2 / 3], "fast.mp4", "cut off before its end");
    assert_refused(&bytes[..40], "fast.mp4", "cut off before its end");
}

#[test]
fn what_can_be_played_of_a_cut_off_file_is_named_as_a_part() {
    let folder = Folder::new();
    let dropped = |path: &Path| probe(path, &Limits::default()).unwrap().dropped;
    for (name, coding) in [
        ("a.mkv", "-c:v libx264 -preset ultrafast"),
        ("a.webm", "-c:v libvpx -deadline realtime -cpu-used 16"),
        ("a.avi", "-c:v mpeg4"),
    ] {
        let whole = folder.clip(name, 50, coding);
        assert_eq!(dropped(&whole), Vec::<String>::new(), "{name}");
        let bytes = fs::read(&whole).unwrap();
        let part = folder.path(&format!("part-of-{name}"));
        fs::write(&part, &bytes[..bytes.len() * 2 / 3]).unwrap();
        let found = dropped(&part);
        assert!(matches!(&found[..], [one] if one.contains("cut off")), "{name}: {found:?}");
    }
    // Written live, the length is unknown, which is no damage.
    let live = folder.ffmpeg("live.mkv", "-f lavfi -i testsrc2=s=160x120:d=1 -c:v mpeg4 -live 1");
    assert_eq!(dropped(&live), Vec::<String>::new());
}

#[test]
fn sound_and_pictures_that_do_not_move() {
    let folder = Folder::new();
    let sound = folder.ffmpeg("sound.m4a", "-f lavfi -i sine=d=1 -c:a aac");
    assert!(refusal(&folder, &sound).contains("sound but no video"));
    let cover = folder.ffmpeg("cover.png", "-f lavfi -i testsrc2=s=64x64 -frames:v 1");
    let album = folder.ffmpeg(
        "album.m4a",
        &format!(
            "-i {} -i {} -map 0 -map 1 -c copy -disposition:v:0 attached_pic",
            sound.display(),
            cover.display()
        ),
    );
    assert!(refusal(&folder, &album).contains("sound but no video"));
    assert!(refusal(&folder, &cover).contains("not a video"));
}

#[test]
fn sizes_and_lengths_beyond_the_limits() {
    let folder = Folder::new();
    let tiny = folder
        .ffmpeg("tiny.webm", "-f lavfi -i testsrc=s=1x1:r=25 -frames:v 3 -c:v libvpx-vp9 -pix_fmt yuv420p");
    assert!(refusal(&folder, &tiny).contains("1×1"), "{}", refusal(&folder, &tiny));
    let clip = folder.clip("a.mp4", 50, "-c:v libx264 -preset ultrafast");
    let refused = |limits: Limits| {
        prepare(&clip, &limits, &folder.path("mezzanine"), &mut |_| {}).unwrap_err().to_string()
    };
    assert!(refused(Limits { max_side: 100, ..Limits::default() }).contains("at most 100 a side"));
    assert!(refused(Limits { max_frames: 49, ..Limits::default() }).contains("more than 49 frames"));
    let max_duration = std::time::Duration::from_secs(1);
    assert!(refused(Limits { max_duration, ..Limits::default() }).contains("hours"));
}

#[test]
fn eight_k_is_accepted() {
    let folder = Folder::new();
    for size in ["7680x4320", "4320x7680"] {
        let clip = folder.ffmpeg(
            &format!("{size}.mov"),
            &format!("-f lavfi -i color=gray:s={size}:r=25 -frames:v 1 -c:v mjpeg -pix_fmt yuvj420p"),
        );
        assert!(probe(&clip, &Limits::default()).is_ok());
    }
}

#[test]
fn a_track_without_frames() {
    let folder = Folder::new();
    let clip = folder.clip("a.mkv", 10, "-c:v libx264 -preset ultrafast");
    let path = folder.ffmpeg("none.mp4", &format!("-i {} -c copy -frames:v 0", clip.display()));
    refusal(&folder, &path);
}

#[test]
fn nothing_that_can_be_decoded() {
    let folder = Folder::new();
    let clip = folder.clip("a.mp4", 50, "-c:v libx264 -preset ultrafast -movflags +faststart");
    let mut bytes = fs::read(&clip).unwrap();
    let data = bytes.windows(4).position(|w| w == b"mdat").unwrap() + 4;
    bytes[data..].fill(0);
    let path = folder.path("zeros.mp4");
    fs::write(&path, bytes).unwrap();
    refusal(&folder, &path);
}

#[test]
fn files_that_cannot_be_read_are_not_the_users_fault() {
    let folder = Folder::new();
    let error = probe(&folder.path("absent.mp4"), &Limits::default()).unwrap_err();
    assert!(matches!(error, MediaError::Storage(_)), "{error:?}");
}

#[test]
fn odd_names_are_only_names() {
    let folder = Folder::new();
    let clip = folder.clip("a.mp4", 5, "-c:v libx264 -preset ultrafast");
    for name in ["concat:a|b.mp4", "http:%2F%2Fx.mp4", "100%d.mp4", "-i.mp4", "\u{fc}n\u{ef} code.mp4"] {
        let path = folder.path(name);
        fs::copy(&clip, &path).unwrap();
        assert!(probe(&path, &Limits::default()).is_ok(), "{name}");
    }
}

#[test]
fn further_streams_are_named() {
    let folder = Folder::new();
    fs::write(folder.path("a.srt"), "1\n00:00:00,000 --> 00:00:01,000\nHello\n").unwrap();
    let path = folder.ffmpeg(
        "a.mp4",
        &format!(
            "-f lavfi -i testsrc2=s=160x120:d=1 -f lavfi -i testsrc2=s=64x64:d=1 -f lavfi -i sine=d=1 -f lavfi -i sine=d=1 -i {} \
             -map 0 -map 1 -map 2 -map 3 -map 4 -c:v libx264 -preset ultrafast -c:a aac -c:s mov_text",
            folder.path("a.srt").display()
        ),
    );
    let source = probe(&path, &Limits::default()).unwrap();
    assert_eq!((source.video.width, source.audio.len()), (160, 2));
    assert_eq!(source.dropped, ["a further video stream (h264)", "subtitles (mov_text)"]);
}
