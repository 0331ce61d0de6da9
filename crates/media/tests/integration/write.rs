//! Encoding segments and joining them: pictures made here go in, ffprobe and ffmpeg say what came out.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

use std::path::{Path, PathBuf};
use std::process::Command;

use media::MediaError;
use media::encode::{Codec, EncoderSettings, SegmentEncoder, SegmentSpec};
use media::index::{Frame, FrameIndex};
use media::join::{Container, JoinError, Joined, SegmentFault, join, verify};
use media::packets::PacketReader;
use media::picture::Picture;
use media::probe::{AudioInfo, Color, Matrix, Orientation, Ratio, VideoInfo};

mod sound;

const SEGMENT: usize = 64;

fn ratio(num: i32, den: i32) -> Ratio {
    Ratio { num, den }
}

/// An index of small frames at `pts`.
fn index(time_base: Ratio, rate: Ratio, pts: &[i64], last_duration: i64) -> FrameIndex {
    FrameIndex {
        video: VideoInfo {
            stream: 0,
            codec: "h264".to_owned(),
            coded_width: 160,
            coded_height: 96,
            orientation: Orientation::default(),
            width: 160,
            height: 96,
            sample_aspect: ratio(1, 1),
            time_base,
            frame_rate: rate,
            color: Color { matrix: Matrix::Bt709, primaries: 1, transfer: 1 },
            hdr: None,
        },
        audio: Vec::new(),
        dropped: Vec::new(),
        frames: pts.iter().map(|&pts| Frame { pts, keyframe: false }).collect(),
        last_duration,
        numbered: false,
    }
}

/// A gradient that moves with `n`, under a block that jumps.
fn draw(picture: &mut Picture, n: usize) {
    for (at, plane) in picture.planes_mut().into_iter().enumerate() {
        for y in 0..plane.height {
            for x in 0..plane.width {
                let block = at == 0 && (x / 16 + y / 16 + n / 3).is_multiple_of(7);
                plane.data[y * plane.stride + x] =
                    if block { 210 } else { 60 + ((x + 2 * y + 3 * n + 40 * at) % 100) as u8 };
            }
        }
    }
}

fn encode(index: &FrameIndex, codec: Codec, first: usize, last: usize, threads: u32, out: &Path) {
    let settings = EncoderSettings::default();
    let spec = SegmentSpec { codec, video: &index.video, settings: &settings, first: first as u32, threads };
    let mut encoder = SegmentEncoder::create(&spec, out).unwrap();
    let mut picture = Picture::new(index.video.width, index.video.height);
    for n in first..last {
        draw(&mut picture, n);
        encoder.push(&picture).unwrap();
    }
    assert_eq!(encoder.finish().unwrap().frames as usize, last - first);
}

/// Encodes the whole index in segments; the last may be short.
fn render(index: &FrameIndex, codec: Codec, folder: &Path) -> Vec<PathBuf> {
    (0..index.frames.len())
        .step_by(SEGMENT)
        .map(|first| {
            let path = folder.join(format!("{first}.{codec:?}"));
            encode(index, codec, first, (first + SEGMENT).min(index.frames.len()), 2, &path);
            path
        })
        .collect()
}

fn join_and_verify(
    index: &FrameIndex,
    container: Container,
    source: Option<&Path>,
    folder: &Path,
) -> (PathBuf, Joined) {
    let segments = render(index, container.codec(), folder);
    join_segments(index, container, source, &segments, folder)
}

fn join_segments(
    index: &FrameIndex,
    container: Container,
    source: Option<&Path>,
    segments: &[PathBuf],
    folder: &Path,
) -> (PathBuf, Joined) {
    let out = folder.join(match container {
        Container::Mp4 => "out: 1.mp4",
        Container::Avi => "out: 1.avi",
    });
    let mut last = 0;
    let joined = join(index, segments, source, container, &out, &mut |n| {
        assert!(n > last, "progress must rise");
        last = n;
    })
    .unwrap();
    assert_eq!(joined.frames as usize, index.frames.len());
    assert_eq!(joined.bytes, std::fs::metadata(&out).unwrap().len());
    verify(&out, container, index, &joined, &mut |_| ()).unwrap();
    (out, joined)
}

fn run(program: &str, arguments: &[&str], file: &Path) -> String {
    let mut url = std::ffi::OsString::from("file:");
    url.push(file);
    let arguments: Vec<_> = arguments
        .iter()
        .map(|&argument| if argument == "FILE" { url.clone() } else { argument.into() })
        .collect();
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{program}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn probe(file: &Path, stream: &str, entries: &str) -> Vec<String> {
    let arguments =
        ["-v", "error", "-select_streams", stream, "-show_entries", entries, "-of", "csv=p=0", "FILE"];
    run("ffprobe", &arguments, file)
        .lines()
        .map(|line| line.trim_end_matches(',').to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// (PTS, duration, keyframe) of every video packet that holds something.
fn packets(file: &Path) -> Vec<(i64, i64, bool)> {
    probe(file, "v", "packet=pts,duration,size,flags")
        .iter()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(',').collect();
            let number = |at: usize| fields[at].parse::<i64>().unwrap();
            (number(2) > 0).then(|| (number(0), number(1), fields[3].starts_with('K')))
        })
        .collect()
}

fn decodes(file: &Path) {
    // The null format counts in frames of the nominal rate unless told to take the file's own times.
    let own_times = ["-vsync", "passthrough", "-enc_time_base", "-1", "-f", "null", "-"];
    run("ffmpeg", &[&["-v", "error", "-xerror", "-i", "FILE"][..], &own_times].concat(), file);
}

/// A hash of every decoded frame.
fn hashes(file: &Path, format: Option<&str>) -> Vec<String> {
    let mut arguments = vec!["-v", "error"];
    arguments.extend(format.iter().flat_map(|format| ["-f", *format]));
    arguments.extend(["-i", "FILE", "-map", "0:v", "-vsync", "passthrough", "-f", "framemd5", "-"]);
    run("ffmpeg", &arguments, file)
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit(',').next().unwrap().trim().to_owned())
        .collect()
}

/// Where a top-level box of an MP4 begins.
fn mp4_box(file: &Path, name: &[u8; 4]) -> Option<usize> {
    let data = std::fs::read(file).unwrap();
    let mut at = 0;
    while at + 8 <= data.len() {
        let size = u32::from_be_bytes(data[at..at + 4].try_into().unwrap()) as usize;
        if data[at + 4..at + 8] == *name {
            return Some(at);
        }
        at += size.max(8);
    }
    None
}

/// PTS of `n` frames whose gaps go round through `steps`.
fn times(n: usize, start: i64, steps: &[i64]) -> Vec<i64> {
    let mut pts = start;
    (0..n)
        .map(|i| {
            let this = pts;
            pts += steps[i % steps.len()];
            this
        })
        .collect()
}

#[test]
fn an_mp4_keeps_every_timestamp_exactly() {
    let cases = [
        (ratio(1, 30000), ratio(30000, 1001), times(150, 0, &[1001]), 1001),
        (ratio(1, 25), ratio(25, 1), times(130, 0, &[1]), 1),
        (ratio(1, 90000), ratio(30, 1), times(140, 0, &[3003, 2997, 6001, 1]), 4500),
        (ratio(1, 12800), ratio(25, 2), times(100, 0, &[512, 1024, 3, 12801]), 77),
        (ratio(1001, 30000), ratio(30000, 1001), times(70, 0, &[1, 2, 1]), 3),
        (ratio(1, 1000), ratio(30000, 1001), times(129, 0, &[33, 33, 34]), 33),
        (ratio(1, 10), ratio(10, 1), times(65, 0, &[1]), 1),
        // Far apart in a fine clock: more ticks than the format's durations hold.
        (ratio(1, 1_000_000_000), ratio(1, 1), times(66, 0, &[3_000_000_000, 5_000_000_000]), 1_000_000_000),
    ];
    for (time_base, rate, pts, last) in cases {
        let folder = tempfile::tempdir().unwrap();
        let index = index(time_base, rate, &pts, last);
        let (out, _) = join_and_verify(&index, Container::Mp4, None, folder.path());
        let found = packets(&out);
        let base = &probe(&out, "v", "stream=time_base")[0];
        let (num, den) = base.split_once('/').unwrap();
        let (num, den): (i128, i128) = (num.parse().unwrap(), den.parse().unwrap());
        if time_base.num == 1 && time_base.den < 1_000_000_000 {
            assert_eq!(den, i128::from(time_base.den));
        }
        let ticks = |t: i64| i128::from(t) * i128::from(time_base.num) * den;
        let out_ticks = |t: i64| i128::from(t) * num * i128::from(time_base.den);
        let expected: Vec<_> = pts.iter().map(|&pts| ticks(pts)).collect();
        assert_eq!(found.iter().map(|p| out_ticks(p.0)).collect::<Vec<_>>(), expected, "{time_base:?}");
        assert_eq!(out_ticks(found.last().unwrap().1), ticks(last), "last duration of {time_base:?}");
        for (n, packet) in found.iter().enumerate() {
            assert_eq!(packet.2, n % SEGMENT == 0, "keyframe at {n}");
        }
        assert!(mp4_box(&out, b"moov").unwrap() < mp4_box(&out, b"mdat").unwrap(), "faststart");
        decodes(&out);
    }
}

#[test]
fn a_start_beyond_zero_becomes_zero() {
    for start in [-3000, 126_000] {
        let folder = tempfile::tempdir().unwrap();
        let index = index(ratio(1, 90000), ratio(30, 1), &times(10, start, &[3000]), 3000);
        let (out, _) = join_and_verify(&index, Container::Mp4, None, folder.path());
        assert_eq!(packets(&out)[0].0, 0);
        assert_eq!(probe(&out, "v", "stream=start_time,duration"), ["0.000000,0.333333"]);
    }
}

#[test]
fn browsers_and_players_are_told_what_the_pixels_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = index(ratio(1, 25), ratio(25, 1), &times(70, 0, &[1]), 1);
    (index.video.width, index.video.height) = (161, 95);
    index.video.sample_aspect = ratio(4, 3);
    index.video.color = Color { matrix: Matrix::Bt601, primaries: 5, transfer: 6 };
    let (out, _) = join_and_verify(&index, Container::Mp4, None, folder.path());
    let entries = "stream=codec_name,profile,width,height,sample_aspect_ratio,pix_fmt,color_range,color_space,\
                   color_transfer,color_primaries,level,has_b_frames";
    assert_eq!(
        probe(&out, "v", entries),
        ["h264,High,162,96,0,4:3,yuv420p,30,tv,smpte170m,smpte170m,bt470bg"]
    );
    let (out, _) = join_and_verify(&index, Container::Avi, None, folder.path());
    assert_eq!(
        probe(&out, "v", "stream=codec_name,codec_tag_string,width,height,has_b_frames,sample_aspect_ratio"),
        ["mpeg4,XVID,162,96,0,4:3"]
    );
    decodes(&out);
}

#[test]
fn the_joined_video_decodes_to_what_its_segments_decode_to() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(ratio(1, 25), ratio(25, 1), &times(150, 0, &[1]), 1);
    for (container, format) in [(Container::Mp4, "h264"), (Container::Avi, "m4v")] {
        let (out, _) = join_and_verify(&index, container, None, folder.path());
        let mut expected = Vec::new();
        for segment in render(&index, container.codec(), folder.path()) {
            let mut reader = PacketReader::open(&segment).unwrap();
            let mut raw = Vec::new();
            if container == Container::Mp4 {
                raw.extend_from_slice(&reader.header().parameter_sets);
            }
            while let Some(packet) = reader.read().unwrap() {
                raw.extend_from_slice(packet.data);
            }
            let path = folder.path().join("raw");
            std::fs::write(&path, raw).unwrap();
            expected.extend(hashes(&path, Some(format)));
        }
        assert_eq!(expected.len(), 150);
        assert_eq!(hashes(&out, None), expected, "{container:?}");
    }
}

#[test]
fn an_avi_puts_frames_at_the_nearest_free_tick() {
    // 10 frames a second, but: two frames within a tick, a gap of three ticks, then a gap of 70 000 ticks.
    let mut pts = vec![0, 100, 120, 149, 500, 601];
    pts.push(7_000_000);
    pts.push(7_000_100);
    let folder = tempfile::tempdir().unwrap();
    let index = index(ratio(1, 1000), ratio(10, 1), &pts, 520);
    let (out, _) = join_and_verify(&index, Container::Avi, None, folder.path());
    let found: Vec<_> = packets(&out).iter().map(|p| p.0).collect();
    assert_eq!(found, [0, 1, 2, 3, 5, 6, 70_000, 70_001]);
    // The last frame is shown for half a second, five ticks.
    assert_eq!(probe(&out, "v", "stream=r_frame_rate,duration")[0], "10/1,7000.600000");
    decodes(&out);
}

#[test]
fn an_avi_of_a_steady_rate_has_no_gaps_and_flags_its_keyframes() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(ratio(1, 1000), ratio(30000, 1001), &times(150, 0, &[33, 33, 34, 33, 34, 33]), 33);
    let (out, _) = join_and_verify(&index, Container::Avi, None, folder.path());
    let found = packets(&out);
    assert_eq!(found.len(), 150);
    for (n, packet) in found.iter().enumerate() {
        assert_eq!((packet.0, packet.2), (n as i64, n % SEGMENT == 0), "frame {n}");
    }
    assert_eq!(probe(&out, "v", "stream=r_frame_rate,nb_frames")[0], "30000/1001,150");
    decodes(&out);
}

#[test]
fn the_same_pictures_encode_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(ratio(1, 25), ratio(25, 1), &times(128, 0, &[1]), 1);
    let bytes = |codec, threads, name: &str| {
        let path = folder.path().join(name);
        encode(&index, codec, 64, 128, threads, &path);
        std::fs::read(path).unwrap()
    };
    for codec in [Codec::H264, Codec::Mpeg4] {
        for threads in [1, 3] {
            assert!(bytes(codec, threads, "a") == bytes(codec, threads, "b"), "{codec:?} x{threads}");
        }
    }
    assert!(bytes(Codec::Mpeg4, 1, "a") == bytes(Codec::Mpeg4, 4, "b"), "MPEG-4 knows no threads");
    // Workers with more or fewer cores must still make segments that join.
    let sets = |threads, first, last| {
        let path = folder.path().join("c");
        encode(&index, Codec::H264, first, last, threads, &path);
        PacketReader::open(&path).unwrap().header().parameter_sets.clone()
    };
    assert_eq!(sets(1, 0, 64), sets(4, 64, 65));
}

/// Joins three segments after `spoil` did something to them, and returns what that was answered with.
fn join_spoiled(spoil: impl FnOnce(&FrameIndex, &mut Vec<PathBuf>)) -> JoinError {
    let folder = tempfile::tempdir().unwrap();
    let index = index(ratio(1, 25), ratio(25, 1), &times(150, 0, &[1]), 1);
    let mut segments = render(&index, Codec::H264, folder.path());
    spoil(&index, &mut segments);
    let out = folder.path().join("out.mp4");
    join(&index, &segments, None, Container::Mp4, &out, &mut |_| ()).unwrap_err()
}

fn faulty(error: JoinError) -> (usize, SegmentFault) {
    match error {
        JoinError::Segment { segment, fault } => (segment, fault),
        JoinError::Media(error) => panic!("{error:?}"),
    }
}

#[test]
fn a_segment_encoded_otherwise_is_named() {
    let error = join_spoiled(|index, segments| {
        let mut other = index.clone();
        other.video.sample_aspect = ratio(4, 3);
        encode(&other, Codec::H264, 128, 150, 2, &segments[2]);
    });
    assert_eq!(faulty(error), (2, SegmentFault::Parameters));
    let error = join_spoiled(|index, segments| {
        let mut other = index.clone();
        other.video.frame_rate = ratio(50, 1);
        encode(&other, Codec::H264, 0, 64, 2, &segments[0]);
    });
    assert_eq!(faulty(error), (0, SegmentFault::Parameters), "the odd one is wrong, be it the first");
    let error = join_spoiled(|index, segments| encode(index, Codec::Mpeg4, 64, 128, 2, &segments[1]));
    assert_eq!(faulty(error), (1, SegmentFault::Parameters));
}

#[test]
fn a_missing_or_damaged_segment_is_named() {
    let error = join_spoiled(|_, segments| std::fs::remove_file(&segments[1]).unwrap());
    assert_eq!(faulty(error), (1, SegmentFault::Missing));
    let error = join_spoiled(|_, segments| {
        let mut bytes = std::fs::read(&segments[1]).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&segments[1], bytes).unwrap();
    });
    assert!(matches!(faulty(error), (1, SegmentFault::Damaged(_))));
    let error = join_spoiled(|_, segments| {
        let bytes = std::fs::read(&segments[2]).unwrap();
        std::fs::write(&segments[2], &bytes[..bytes.len() - 5]).unwrap();
    });
    assert!(matches!(faulty(error), (2, SegmentFault::Damaged(_))));
}

#[test]
fn a_segment_with_other_frames_is_named() {
    let error = join_spoiled(|index, segments| encode(index, Codec::H264, 64, 120, 2, &segments[1]));
    assert!(matches!(faulty(error), (1, SegmentFault::Damaged(_))), "too few");
    let error = join_spoiled(|index, segments| encode(index, Codec::H264, 128, 140, 2, &segments[2]));
    assert!(matches!(faulty(error), (2, SegmentFault::Damaged(_))), "too few at the end");
    let error = join_spoiled(|_, segments| segments.swap(1, 2));
    assert!(matches!(faulty(error), (0 | 1, SegmentFault::Damaged(_))), "in the wrong order");
}

#[test]
fn a_disk_that_refuses_is_a_storage_error() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(ratio(1, 25), ratio(25, 1), &times(3, 0, &[1]), 1);
    let segments = render(&index, Codec::H264, folder.path());
    // Every write to this device fails as on a full disk.
    let full = Path::new("/dev/full");
    let error = join(&index, &segments, None, Container::Mp4, full, &mut |_| ()).unwrap_err();
    let JoinError::Media(MediaError::Storage(text)) = error else { panic!("{error:?}") };
    assert!(text.contains("disk is full"), "{text}");

    let nowhere = folder.path().join("gone/out.mp4");
    let error = join(&index, &segments, None, Container::Mp4, &nowhere, &mut |_| ()).unwrap_err();
    assert!(matches!(error, JoinError::Media(MediaError::Storage(_))), "{error:?}");

    let settings = EncoderSettings::default();
    let spec =
        SegmentSpec { codec: Codec::H264, video: &index.video, settings: &settings, first: 0, threads: 1 };
    let mut encoder = SegmentEncoder::create(&spec, full).unwrap();
    let mut picture = Picture::new(160, 96);
    draw(&mut picture, 0);
    encoder.push(&picture).unwrap();
    let error = encoder.finish().unwrap_err();
    assert!(matches!(error, MediaError::Storage(_)), "{error:?}");
}

#[test]
fn verifying_notices_what_is_not_as_the_index_says() {
    let folder = tempfile::tempdir().unwrap();
    let index = index(ratio(1, 25), ratio(25, 1), &times(70, 0, &[1]), 1);
    let (out, joined) = join_and_verify(&index, Container::Mp4, None, folder.path());
    let refused = |index: &FrameIndex| {
        verify(&out, Container::Mp4, index, &joined, &mut |_| ()).unwrap_err();
    };
    let mut more = index.clone();
    more.frames.push(Frame { pts: 70, keyframe: false });
    refused(&more);
    let mut moved = index.clone();
    moved.frames[69].pts = 75;
    refused(&moved);
    let mut longer = index.clone();
    longer.last_duration = 2;
    refused(&longer);
}
