//! Colour bars: what was red stays red, in the video and in the JPEGs, whatever matrix and range the source has.

use std::fs;
use std::path::Path;

use media::decode::decode_segment;
use media::picture::{JPEG_QUALITY, JpegWriter};

use crate::prove::make;
use crate::shown;

/// The bars' colours: 75% and pastel ones, and greys.
const BARS: [[u8; 3]; 10] = [
    [191, 191, 191],
    [191, 191, 0],
    [0, 191, 191],
    [0, 191, 0],
    [191, 0, 191],
    [191, 0, 0],
    [0, 0, 191],
    [220, 120, 40],
    [16, 16, 16],
    [255, 255, 255],
];
const BAR: usize = 64;

pub struct Case {
    pub name: &'static str,
    height: usize,
    /// How the bars get into the source: swscale's matrix and range, the pixel format, and what the tags say.
    matrix: &'static str,
    range: &'static str,
    format: &'static str,
    coding: &'static str,
    /// Whether `make test` tries it.
    pub often: bool,
}

const X264: &str = "-c:v libx264 -preset ultrafast -crf 1";

pub fn cases() -> Vec<Case> {
    let of = |name, height, matrix, range, format, coding| {
        let often = ["601.mp4", "709-10-bit-full.mkv", "2020-10-bit.mp4", "601-mjpeg.avi"].contains(&name);
        Case { name, height, matrix, range, format, coding, often }
    };
    vec![
        of("601.mp4", 96, "smpte170m", "tv", "yuv420p", "-colorspace smpte170m -color_range tv"),
        of("601-untagged.mkv", 96, "smpte170m", "tv", "yuv420p", ""),
        of("601-full.mp4", 96, "smpte170m", "pc", "yuv420p", "-colorspace smpte170m -color_range pc"),
        of("601-mjpeg.avi", 96, "smpte170m", "pc", "yuvj420p", "-c:v mjpeg -q:v 1"),
        of("709.mp4", 96, "bt709", "tv", "yuv420p", "-colorspace bt709 -color_range tv"),
        of("709-untagged-720.mp4", 720, "bt709", "tv", "yuv420p", ""),
        of("709-full.mkv", 96, "bt709", "pc", "yuv420p", "-colorspace bt709 -color_range pc"),
        of("709-10-bit.mp4", 96, "bt709", "tv", "yuv420p10le", "-colorspace bt709 -color_range tv"),
        of("709-10-bit-full.mkv", 96, "bt709", "pc", "yuv420p10le", "-colorspace bt709 -color_range pc"),
        of("709-422-10-bit.mov", 96, "bt709", "tv", "yuv422p10le", "-c:v prores_ks"),
        of("709-444.mkv", 96, "bt709", "tv", "yuv444p", "-colorspace bt709 -color_range tv"),
        of("2020.mp4", 96, "bt2020", "tv", "yuv420p", "-colorspace bt2020nc -color_range tv"),
        of(
            "2020-10-bit.mp4",
            96,
            "bt2020",
            "tv",
            "yuv420p10le",
            "-c:v libx265 -preset ultrafast -x265-params crf=2:log-level=none -colorspace bt2020nc -color_primaries bt2020 \
             -color_trc bt2020-10 -color_range tv",
        ),
        of("2020-10-bit-full.mkv", 96, "bt2020", "pc", "yuv420p10le", "-colorspace bt2020nc -color_range pc"),
        of("rgb.mkv", 96, "bt709", "pc", "gbrp", "-c:v ffv1"),
    ]
}

/// The largest differences, in levels, in the video and in the JPEG, and of the source as FFmpeg shows it.
pub struct Seen {
    pub name: &'static str,
    pub tags: String,
    pub source: u8,
    pub video: u8,
    pub jpeg: u8,
}

pub const HEADER: &str =
    "| bars | MP4's tags | source off by | MP4 off by | JPEG off by |\n|---|---|---|---|---|";

impl Seen {
    pub fn markdown(&self) -> String {
        format!("| {} | {} | {} | {} | {} |", self.name, self.tags, self.source, self.video, self.jpeg)
    }
}

/// How far the middles of the bars are from what they should be, averaged over 16×16 pixels.
fn off(file: &Path, height: usize) -> u8 {
    let filter = "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp,format=rgb24";
    let out = ["-map", "0:V:0", "-vf", filter, "-frames:v", "1", "-f", "rawvideo", "-"];
    let rgb = shown::ffmpeg(&[], file, &out);
    let width = BAR * BARS.len();
    assert_eq!(rgb.len(), width * height * 3, "{}", file.display());
    let mut worst = 0;
    for (bar, colour) in BARS.iter().enumerate() {
        for (channel, &wanted) in colour.iter().enumerate() {
            let pixels =
                (0..16).flat_map(|y| (0..16).map(move |x| (y + height / 2 - 8, x + bar * BAR + BAR / 2 - 8)));
            let sum: usize = pixels.map(|(y, x)| usize::from(rgb[(y * width + x) * 3 + channel])).sum();
            worst = worst.max(((sum + 128) / 256).abs_diff(usize::from(wanted)));
        }
    }
    worst as u8
}

pub fn see(case: &Case) -> Seen {
    let folder = tempfile::tempdir().unwrap();
    let (raw, source) = (folder.path().join("bars.rgb"), folder.path().join(case.name));
    let row: Vec<u8> = BARS.iter().flat_map(|colour| colour.repeat(BAR)).collect();
    fs::write(&raw, row.repeat(case.height)).unwrap();
    let size = format!("{}x{}", BAR * BARS.len(), case.height);
    let filter = format!(
        "loop=9:1,scale=out_color_matrix={}:out_range={}:flags=bicubic+accurate_rnd+full_chroma_inp,format={}{}",
        case.matrix,
        case.range,
        case.format,
        // ProRes takes its tags from the frames, and only there.
        if case.coding.contains("prores") { ",setparams=colorspace=bt709" } else { "" }
    );
    let coding: Vec<_> = X264.split_whitespace().chain(case.coding.split_whitespace()).collect();
    let mut after = vec!["-vf", &filter, "-y"];
    after.extend(coding);
    after.push(source.to_str().unwrap());
    shown::ffmpeg(&["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", &size, "-r", "25"], &raw, &after);

    let made = make(&source, folder.path());
    let index = &made.prepared.index;
    let jpeg = folder.path().join("frame.jpg");
    decode_segment(&source, index, 0, 0, 1, &mut |_, picture| {
        fs::write(&jpeg, JpegWriter::new(&index.video.color, JPEG_QUALITY)?.encode(picture)?).unwrap();
        Ok(())
    })
    .unwrap();
    let video = shown::written(&made.mp4).video;
    let tag = |key: &str| video[key].as_str().unwrap_or("–").to_owned();
    Seen {
        name: case.name,
        tags: ["color_space", "color_primaries", "color_transfer", "color_range"].map(tag).join(" "),
        source: if case.height == 720 { 0 } else { off(&source, case.height) },
        video: off(&made.mp4, case.height),
        jpeg: off(&jpeg, case.height),
    }
}

/// Greys from black to white, through PQ or HLG at 203 nits for white, and what they become.
pub fn hdr(transfer: &str) -> Vec<(u8, u8)> {
    const GREYS: [u8; 6] = [16, 48, 96, 140, 191, 255];
    let folder = tempfile::tempdir().unwrap();
    let (raw, source) = (folder.path().join("greys"), folder.path().join("hdr.mp4"));
    let row: Vec<u8> = GREYS.iter().flat_map(|&grey| [grey; 3].repeat(64)).collect();
    fs::write(&raw, row.repeat(64)).unwrap();
    let filter = format!(
        "loop=9:1,format=gbrp,zscale=pin=bt709:tin=bt709:p=bt2020:t={transfer}:m=bt2020nc:r=tv:npl=203,format=yuv420p10le"
    );
    let x265 = "-c:v libx265 -preset ultrafast -x265-params crf=2:log-level=none";
    let tags = format!("-color_primaries bt2020 -color_trc {transfer} -colorspace bt2020nc -color_range tv");
    let mut after = vec!["-vf", &filter, "-y"];
    after.extend(x265.split_whitespace().chain(tags.split_whitespace()));
    after.push(source.to_str().unwrap());
    shown::ffmpeg(&["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "384x64", "-r", "25"], &raw, &after);
    let made = make(&source, folder.path());
    let video = shown::written(&made.mp4).video;
    for key in ["color_space", "color_primaries", "color_transfer"] {
        assert_eq!(video[key], "bt709", "{key} of {transfer}");
    }
    let out = ["-map", "0:V:0", "-vf", "format=rgb24", "-frames:v", "1", "-f", "rawvideo", "-"];
    let rgb = shown::ffmpeg(&[], &made.mp4, &out);
    let pixel = |grey: usize| &rgb[(32 * 384 + grey * 64 + 32) * 3..][..3];
    (0..GREYS.len())
        .map(|grey| {
            let [r, g, b] = *pixel(grey) else { unreachable!() };
            assert!(r.abs_diff(g) <= 3 && b.abs_diff(g) <= 3, "grey stays grey: {:?}", pixel(grey));
            (GREYS[grey], g)
        })
        .collect()
}
