//! The zoo: a clip of every kind that people upload, made by FFmpeg's command line, and by changing bytes where
//! that can't make it.
//!
//! Every frame carries its number in its picture, as bits along the upper edge ([`CODE`]): whatever becomes of a
//! clip, one can see which frame is shown. Shared by the test `zoo` and the example of the same name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bits;

/// Frames of a clip that says nothing else: enough for two segments.
pub const FRAMES: u32 = 150;

/// Those that `make test` tries; the long run tries them all.
const OFTEN: [&str; 32] = [
    "h264-intra-refresh.ts",
    "h264-mbaff.mp4",
    "h264-fields.mkv",
    "h264-fields.ts",
    "h264-hi10.mkv",
    "h264-444.mp4",
    "h264-grey.mp4",
    "h264-raw.h264",
    "hevc-10-bit.mp4",
    "vp8-alpha.webm",
    "vp9-444-10-bit.webm",
    "av1-hidden.mkv",
    "mpeg1.mpg",
    "mpeg2-interlaced.ts",
    "mpeg4-packed.avi",
    "mpeg4-unpacked-b.avi",
    "h263.3gp",
    "prores-4444-alpha.mov",
    "dnxhr-10-bit.mov",
    "odd-rgb.mov",
    "palette.gif",
    "hdr-pq.mp4",
    "hdr-hlg.mp4",
    "size-changes.ts",
    "size-changes.mkv",
    "mirrored-90.mp4",
    "edit-list.mp4",
    "wrapping.ts",
    "same-times.mkv",
    "broken-off-open-gop.ts",
    "three-tracks.mkv",
    "timecode.mov",
];

/// Columns and rows a picture is divided into; columns 1 to 8 of row 0 are bits 0 to 7 of the frame's number.
pub const CODE: (usize, usize) = (10, 6);

/// Where the truth about a clip's times comes from.
#[derive(Clone, Copy, PartialEq)]
pub enum Times {
    /// FFmpeg's own decoding of the source.
    AsShown,
    /// The container gives none, or not all: frames are this far apart (seconds, as a fraction).
    Every(i64, i64),
    /// As before, but the file can't say it better than to so many milliseconds.
    Nearly((i64, i64), i64),
}

type Make = Box<dyn Fn(&Workshop, &Path) + Send + Sync>;

/// One clip, and what must come out of it.
pub struct Clip {
    /// File name; its ending says the container.
    pub name: &'static str,
    /// Frames that are shown.
    pub frames: u32,
    /// The number that the first shown frame carries.
    pub first: u32,
    /// Its times.
    pub times: Times,
    /// Whether it can't be cut as it is.
    pub mezzanine: bool,
    /// Width and height of the upright picture.
    pub size: (u32, u32),
    /// Sample aspect ratio of the upright picture.
    pub aspect: (i32, i32),
    /// Audio tracks.
    pub audio: usize,
    /// What the summary must say is left out.
    pub dropped: &'static [&'static str],
    /// How far (levels, on average) the result's colours may be from what FFmpeg shows of the source; `None` where
    /// FFmpeg shows the source otherwise than a screen would (HDR), or other frames of it.
    pub tolerance: Option<f64>,
    /// Whether `make test` tries it.
    pub often: bool,
    make: Make,
}

impl Clip {
    fn of(name: &'static str, make: impl Fn(&Workshop, &Path) + Send + Sync + 'static) -> Self {
        Self {
            name,
            frames: FRAMES,
            first: 0,
            times: Times::AsShown,
            mezzanine: false,
            size: (160, 96),
            aspect: (1, 1),
            audio: 0,
            dropped: &[],
            tolerance: Some(4.0),
            often: OFTEN.contains(&name),
            make: Box::new(make),
        }
    }

    fn frames(mut self, frames: u32) -> Self {
        self.frames = frames;
        self
    }

    fn first(mut self, first: u32) -> Self {
        self.first = first;
        self
    }

    fn times(mut self, times: Times) -> Self {
        self.times = times;
        self
    }

    fn mezzanine(mut self) -> Self {
        self.mezzanine = true;
        self
    }

    fn size(mut self, width: u32, height: u32) -> Self {
        self.size = (width, height);
        self
    }

    fn aspect(mut self, num: i32, den: i32) -> Self {
        self.aspect = (num, den);
        self
    }

    fn audio(mut self, tracks: usize) -> Self {
        self.audio = tracks;
        self
    }

    fn dropped(mut self, dropped: &'static [&'static str]) -> Self {
        self.dropped = dropped;
        self
    }

    fn tolerance(mut self, levels: f64) -> Self {
        self.tolerance = Some(levels);
        self
    }

    fn unlike_ffmpeg(mut self) -> Self {
        self.tolerance = None;
        self
    }

    /// Makes the clip in `folder`.
    pub fn make(&self, folder: &Path) -> PathBuf {
        let path = folder.join(self.name);
        let workshop = Workshop(folder.join(format!("{}.parts", self.name)));
        fs::create_dir_all(&workshop.0).unwrap();
        (self.make)(&workshop, &path);
        fs::remove_dir_all(&workshop.0).unwrap();
        path
    }
}

/// A folder for what a clip is made from.
pub struct Workshop(PathBuf);

impl Workshop {
    fn part(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs `ffmpeg` with `arguments`, in this folder.
    fn ffmpeg(&self, arguments: &str, out: &Path) {
        let output = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-y"])
            .args(arguments.split_whitespace())
            .arg(out)
            .current_dir(&self.0)
            .output()
            .expect("ffmpeg is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ffmpeg {arguments} {}: {said}", out.display());
    }

    /// As [`Workshop::ffmpeg`], into this folder; the bytes.
    fn bytes(&self, name: &str, arguments: &str) -> Vec<u8> {
        let path = self.part(name);
        self.ffmpeg(arguments, &path);
        fs::read(path).unwrap()
    }
}

/// Arguments for numbered pictures: `size` such as `160x96`, `rate` frames a second, passed through `filter`
/// before they get their numbers.
pub fn numbered(size: &str, rate: &str, filter: &str) -> String {
    let filter = if filter.is_empty() { String::new() } else { format!("{filter},") };
    let black = "drawbox=x=0:y=0:w=iw:h=ih/6:c=black:t=fill";
    let bits: String = (0..8)
        .map(|bit| {
            format!(
                ",drawbox=x=iw*{}/10:y=0:w=iw/10:h=ih/6:c=white:t=fill:enable=mod(floor(n/{})\\,2)",
                bit + 1,
                1 << bit
            )
        })
        .collect();
    format!("-f lavfi -i testsrc2=s={size}:r={rate},{filter}{black}{bits}")
}

const X264: &str = "-pix_fmt yuv420p -c:v libx264 -preset ultrafast -sc_threshold 0";

/// 150 frames of 160×96 at 25 a second, coded as `coding` says.
fn plain(name: &'static str, coding: impl Into<String>) -> Clip {
    let coding = coding.into();
    Clip::of(name, move |workshop, out| {
        workshop.ffmpeg(&format!("{} -frames:v {FRAMES} {coding}", numbered("160x96", "25", "")), out);
    })
}

/// As [`plain`], with arguments of its own for the source.
fn from(name: &'static str, source: String, coding: impl Into<String>) -> Clip {
    let coding = coding.into();
    Clip::of(name, move |workshop, out| workshop.ffmpeg(&format!("{source} {coding}"), out))
}

/// One of the eight ways a picture can lie in the file, stood upright by the display matrix `[a, b, c, d]`.
fn lying(name: &'static str, turn: &'static str, matrix: [i32; 4]) -> Clip {
    let aspect = if matrix[0] == 0 { (3, 4) } else { (4, 3) };
    Clip::of(name, move |workshop, out| {
        let source = numbered("160x96", "25", "");
        let coding = format!("-frames:v {FRAMES} -vf {turn}setsar=4/3 -g 30 -bf 2 {X264}");
        let mut bytes = workshop.bytes("a.mp4", &format!("{source} {coding}"));
        bits::set_display_matrix(&mut bytes, matrix);
        fs::write(out, bytes).unwrap();
    })
    .aspect(aspect.0, aspect.1)
}

/// The whole zoo.
pub fn zoo() -> Vec<Clip> {
    let mut clips = Vec::new();
    clips.extend(h264());
    clips.extend(newer_codings());
    clips.extend(older_codings());
    clips.extend(studio_codings());
    clips.extend(pixels());
    clips.extend(orientations());
    clips.extend(times());
    clips.extend(tracks());
    clips
}

fn h264() -> Vec<Clip> {
    let b = format!("-g 30 -bf 3 {X264}");
    vec![
        plain("h264.mp4", b.clone()),
        plain("h264.mov", b.clone()),
        plain("h264.mkv", b.clone()),
        plain("h264.ts", b.clone()),
        plain("h264.flv", b.clone()),
        plain("h264.3gp", format!("-profile:v baseline -g 30 {X264}")),
        plain("h264-fragmented.mp4", format!("{b} -movflags frag_keyframe+empty_moov")),
        plain("h264-pyramid.mp4", format!("-g 40 -bf 8 -b-pyramid normal -b_strategy 0 {X264}")),
        plain("h264-one-keyframe.mp4", format!("-g 9999 -bf 2 {X264}")),
        from(
            "h264-long-one-keyframe.mkv",
            format!("{} -frames:v 400", numbered("160x96", "25", "")),
            format!("-g 9999 -bf 2 {X264}"),
        )
        .frames(400)
        .mezzanine(),
        plain("h264-open-gop.mp4", format!("-bf 3 {X264} -x264-params open-gop=1:keyint=40:min-keyint=40")),
        plain("h264-open-gop.ts", format!("-bf 3 {X264} -x264-params open-gop=1:keyint=40:min-keyint=40")),
        plain("h264-intra-refresh.mkv", format!("{X264} -x264-params intra-refresh=1:keyint=30")),
        plain("h264-intra-refresh.ts", format!("{X264} -x264-params intra-refresh=1:keyint=30")),
        plain("h264-mbaff.mp4", format!("-g 30 -bf 2 {X264} -flags +ildct+ilme -x264-params tff=1")),
        plain("h264-mbaff.ts", format!("-g 30 -bf 2 {X264} -flags +ildct+ilme -x264-params bff=1")),
        Clip::of("h264-fields.mkv", |workshop, out| field_coded(workshop, out, true))
            .frames(72)
            .times(Times::Every(1, 25))
            .mezzanine(),
        Clip::of("h264-fields.ts", |workshop, out| field_coded(workshop, out, false)).frames(72).mezzanine(),
        plain("h264-b-frames.avi", b.clone()).times(Times::Every(1, 25)).mezzanine(),
        plain("h264-raw.h264", b.clone()).times(Times::Every(1, 25)).mezzanine(),
        plain("h264-cropped.mp4", format!("-g 30 -bf 2 -vf scale=150:90 {X264}")).size(150, 90),
        plain("h264-hi10.mkv", "-pix_fmt yuv420p10le -c:v libx264 -preset ultrafast -g 30 -bf 2"),
        plain("h264-422.mp4", "-pix_fmt yuv422p -c:v libx264 -preset ultrafast -g 30 -bf 2"),
        plain("h264-444.mp4", "-pix_fmt yuv444p -c:v libx264 -preset ultrafast -g 30 -bf 2"),
        plain("h264-rgb.mkv", "-c:v libx264rgb -pix_fmt rgb24 -preset ultrafast -g 30 -bf 2"),
        plain("h264-grey.mp4", "-pix_fmt gray -c:v libx264 -preset ultrafast -g 30 -bf 2"),
        plain("h264-full-range.mp4", "-pix_fmt yuvj420p -c:v libx264 -preset ultrafast -g 30 -bf 2"),
    ]
}

/// H.264 with every field a picture of its own, in packets of their own (Matroska) or as FFmpeg muxes them.
fn field_coded(workshop: &Workshop, out: &Path, own_packets: bool) {
    let source = numbered("160x96", "25", "");
    let raw = workshop.bytes("a.yuv", &format!("{source} -frames:v 72 -pix_fmt yuv420p -f rawvideo"));
    let fields = bits::h264_fields(&raw, 160, 96);
    if own_packets {
        let packets =
            fields.iter().enumerate().map(|(n, field)| (20 * n as i64, n % 2 == 0, field.as_slice()));
        fs::write(out, bits::matroska("V_MPEG4/ISO/AVC", &bits::avcc(), (160, 96), packets)).unwrap();
    } else {
        let stream = workshop.part("a.h264");
        fs::write(&stream, bits::annex_b(&fields)).unwrap();
        workshop.ffmpeg(&format!("-r 25 -f h264 -i {} -c copy", stream.display()), out);
    }
}

fn newer_codings() -> Vec<Clip> {
    let x265 = "-pix_fmt yuv420p -c:v libx265 -preset ultrafast -tag:v hvc1 -x265-params log-level=none";
    let vp9 = "-pix_fmt yuv420p -c:v libvpx-vp9 -b:v 300k -cpu-used 8 -deadline realtime";
    vec![
        plain("hevc.mp4", format!("{x265}:keyint=40:open-gop=0:bframes=4")),
        plain("hevc-open-gop.mkv", format!("{x265}:keyint=40:open-gop=1:bframes=4")),
        plain("hevc-open-gop.ts", format!("{x265}:keyint=40:open-gop=1:bframes=4")),
        plain("hevc-raw.hevc", format!("{x265}:keyint=40:bframes=4")).times(Times::Every(1, 25)).mezzanine(),
        plain(
            "hevc-10-bit.mp4",
            "-pix_fmt yuv420p10le -c:v libx265 -preset ultrafast -tag:v hvc1 -x265-params log-level=none:keyint=40",
        ),
        plain(
            "hevc-422-12-bit.mkv",
            "-pix_fmt yuv422p12le -c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=40",
        ),
        plain(
            "vp8-hidden.webm",
            "-pix_fmt yuv420p -c:v libvpx -b:v 300k -g 60 -auto-alt-ref 1 -lag-in-frames 16 -cpu-used 16 -deadline good",
        ),
        plain(
            "vp8-alpha.webm",
            "-pix_fmt yuva420p -c:v libvpx -b:v 300k -g 60 -auto-alt-ref 0 -cpu-used 16 -deadline realtime",
        ),
        plain("vp9-hidden.webm", format!("{vp9} -g 60 -auto-alt-ref 1 -lag-in-frames 16")),
        plain("vp9-one-keyframe.webm", format!("{vp9} -g 9999")),
        plain("vp9.mp4", format!("{vp9} -g 30")),
        plain(
            "vp9-444-10-bit.webm",
            "-pix_fmt yuv444p10le -c:v libvpx-vp9 -b:v 300k -g 30 -cpu-used 8 -deadline realtime",
        ),
        plain("av1.mp4", "-pix_fmt yuv420p -c:v libsvtav1 -preset 12 -g 60"),
        plain(
            "av1-hidden.mkv",
            "-pix_fmt yuv420p -c:v libaom-av1 -cpu-used 8 -usage good -lag-in-frames 19 -g 60 -row-mt 0 -threads 1",
        ),
        plain("av1-10-bit.webm", "-pix_fmt yuv420p10le -c:v libsvtav1 -preset 12 -g 60"),
    ]
}

fn older_codings() -> Vec<Clip> {
    let p = "-pix_fmt yuv420p";
    vec![
        plain("mpeg1.mpg", format!("{p} -c:v mpeg1video -q:v 3 -bf 2 -g 15")).mezzanine(),
        plain("mpeg1.ts", format!("{p} -c:v mpeg1video -q:v 3 -bf 2 -g 15 -f mpegts")),
        plain("mpeg2.ts", format!("{p} -c:v mpeg2video -q:v 3 -bf 2 -g 15")),
        plain("mpeg2.mpg", format!("{p} -c:v mpeg2video -q:v 3 -bf 2 -g 15")).mezzanine(),
        plain(
            "mpeg2-interlaced.ts",
            format!("{p} -c:v mpeg2video -q:v 3 -bf 2 -g 15 -flags +ildct+ilme -top 1"),
        ),
        plain("mpeg2-422.mkv", "-pix_fmt yuv422p -c:v mpeg2video -q:v 3 -bf 2 -g 15"),
        plain("mpeg4.mp4", format!("{p} -c:v mpeg4 -q:v 3 -bf 2 -g 30")),
        plain("mpeg4.avi", format!("{p} -c:v mpeg4 -q:v 3 -bf 0 -g 30")),
        plain("mpeg4.3gp", format!("{p} -c:v mpeg4 -q:v 3 -bf 0 -g 30")),
        Clip::of("mpeg4-packed.avi", |workshop, out| {
            let source = numbered("160x96", "25", "");
            let coding = format!("-frames:v {FRAMES} -pix_fmt yuv420p -c:v mpeg4 -q:v 3 -bf 1 -g 30");
            let stream = workshop.bytes("a.m4v", &format!("{source} {coding} -b_strategy 0"));
            fs::write(out, bits::avi(b"DIVX", (160, 96), 25, &bits::pack_b_pictures(&stream))).unwrap();
        })
        .times(Times::Every(1, 25))
        .mezzanine(),
        // The encoder keeps two frames for itself, and leaves the two ticks before the second frame empty.
        plain("mpeg4-xvid.avi", format!("{p} -c:v libxvid -q:v 3 -bf 2 -g 30"))
            .frames(FRAMES - 2)
            .times(Times::Nearly((1, 25), 80))
            .mezzanine(),
        plain("mpeg4-unpacked-b.avi", format!("{p} -c:v mpeg4 -q:v 3 -bf 2 -g 30"))
            .times(Times::Every(1, 25))
            .mezzanine(),
        from(
            "h263.3gp",
            format!("{} -frames:v {FRAMES}", numbered("176x144", "25", "")),
            format!("{p} -c:v h263 -q:v 3 -g 30"),
        )
        .size(176, 144),
        plain("flv1.flv", format!("{p} -c:v flv -q:v 3 -g 30")),
        plain("msmpeg4.avi", format!("{p} -c:v msmpeg4 -q:v 3 -g 30")),
        plain("wmv2.wmv", format!("{p} -c:v wmv2 -q:v 3 -g 30")),
        plain("theora.ogv", format!("{p} -c:v libtheora -q:v 7 -g 30")),
        plain("mjpeg.avi", "-pix_fmt yuvj420p -c:v mjpeg -q:v 3"),
        plain("mjpeg-422.mov", "-pix_fmt yuvj422p -c:v mjpeg -q:v 3"),
    ]
}

fn studio_codings() -> Vec<Clip> {
    vec![
        plain("prores-422.mov", "-c:v prores_ks -profile:v standard -pix_fmt yuv422p10le"),
        plain("prores-4444-alpha.mov", "-c:v prores_ks -profile:v 4444 -pix_fmt yuva444p10le"),
        from(
            "dnxhd.mov",
            format!("{} -frames:v 20", numbered("1280x720", "25", "")),
            "-c:v dnxhd -b:v 60M -pix_fmt yuv422p",
        )
        .frames(20)
        .size(1280, 720)
        // Untagged: FFmpeg's command line takes 601 for it, Boxreel 709 from 720 lines up.
        .unlike_ffmpeg(),
        from(
            "dnxhr-10-bit.mov",
            format!("{} -frames:v {FRAMES}", numbered("256x120", "25", "")),
            "-c:v dnxhd -profile:v dnxhr_hqx -pix_fmt yuv422p10le",
        )
        .size(256, 120),
        plain("ffv1.mkv", "-c:v ffv1 -pix_fmt yuv420p"),
        plain("ffv1-444-16-bit.mkv", "-c:v ffv1 -level 3 -pix_fmt yuv444p16le"),
        plain("huffyuv.avi", "-c:v huffyuv -pix_fmt yuv422p"),
        plain("qtrle-alpha.mov", "-c:v qtrle -pix_fmt argb"),
        plain("png.mov", "-c:v png -pix_fmt rgb24"),
        from(
            "dv.avi",
            format!("{} -frames:v 70", numbered("720x576", "25", "")),
            "-c:v dvvideo -pix_fmt yuv420p",
        )
        .frames(70)
        .size(720, 576),
        plain("raw.avi", "-c:v rawvideo -pix_fmt yuv420p"),
    ]
}

fn pixels() -> Vec<Clip> {
    let odd = |name, size, coding: &str| {
        from(
            name,
            format!("{} -frames:v {FRAMES}", numbered("160x96", "25", &format!("scale={size},setsar=1"))),
            coding,
        )
    };
    let hdr = |name, transfer: &str| {
        plain(
            name,
            format!(
                "-vf zscale=pin=bt709:tin=bt709:min=bt709:rin=tv:p=bt2020:t={transfer}:m=bt2020nc:r=tv:npl=200,\
                 format=yuv420p10le -c:v libx265 -preset ultrafast -tag:v hvc1 -color_primaries bt2020 -color_trc \
                 {transfer} -colorspace bt2020nc -color_range tv -x265-params log-level=none:keyint=40"
            ),
        )
        .unlike_ffmpeg()
    };
    vec![
        odd(
            "odd.webm",
            "161:97",
            "-pix_fmt yuv420p -c:v libvpx-vp9 -b:v 300k -g 30 -cpu-used 8 -deadline realtime",
        )
        .size(161, 97)
        .tolerance(8.0),
        odd("odd-444.mkv", "161:97", "-c:v ffv1 -pix_fmt yuv444p").size(161, 97).tolerance(8.0),
        odd("odd-rgb.mov", "163:95", "-c:v png -pix_fmt rgb24").size(163, 95).tolerance(8.0),
        odd("tiny.mp4", "64:48", &format!("-g 30 {X264}")).size(64, 48),
        plain("alpha.mkv", "-c:v ffv1 -pix_fmt bgra"),
        // What the palette and dithering do to the picture is the source's.
        plain("palette.gif", "-pix_fmt rgb8 -c:v gif"),
        plain("palette-8-bit.mov", "-pix_fmt rgb8 -c:v png"),
        plain("grey-10-bit.mkv", "-c:v ffv1 -level 3 -pix_fmt gray10le"),
        plain("black-white.mov", "-pix_fmt monob -c:v png"),
        hdr("hdr-pq.mp4", "smpte2084"),
        hdr("hdr-hlg.mp4", "arib-std-b67"),
        from(
            "anamorphic.mp4",
            format!("{} -frames:v {FRAMES}", numbered("160x96", "25", "")),
            format!("-vf setsar=16/11 -g 30 -bf 2 {X264}"),
        )
        .aspect(16, 11),
        Clip::of("size-changes.ts", |workshop, out| {
            let half = |size: &str, offset: u32| {
                let source = numbered("160x96", "25", "");
                workshop.bytes(
                    &format!("{offset}.ts"),
                    &format!(
                        "{source} -vf select=gte(n\\,{offset}),scale={size} -frames:v 75 -fps_mode passthrough -g 30 -bf 2 {X264} \
                         -muxdelay 0 -muxpreload 0 -output_ts_offset 1"
                    ),
                )
            };
            let mut bytes = half("160:96", 0);
            bytes.extend(half("320:192", 75));
            fs::write(out, bytes).unwrap();
        }),
        Clip::of("size-changes.mkv", |workshop, out| {
            let source = numbered("160x96", "25", "");
            for (part, size, from) in [(0, "160:96", 0), (1, "240:144", 75)] {
                workshop.ffmpeg(
                    &format!(
                        "{source} -vf select=gte(n\\,{from}),setpts=N/25/TB,scale={size} -frames:v 75 -c:v mjpeg -q:v 3 -pix_fmt \
                         yuvj420p"
                    ),
                    &workshop.part(&format!("{part}.mkv")),
                );
            }
            fs::write(workshop.part("list"), "file 0.mkv\nfile 1.mkv\n").unwrap();
            workshop.ffmpeg("-f concat -safe 0 -i list -c copy", out);
        }),
    ]
}

fn orientations() -> Vec<Clip> {
    vec![
        lying("turned-0.mp4", "", [1, 0, 0, 1]),
        lying("turned-90.mp4", "transpose=2,", [0, 1, -1, 0]),
        lying("turned-180.mp4", "hflip,vflip,", [-1, 0, 0, -1]),
        lying("turned-270.mp4", "transpose=1,", [0, -1, 1, 0]),
        lying("mirrored-0.mp4", "hflip,", [-1, 0, 0, 1]),
        lying("mirrored-180.mp4", "vflip,", [1, 0, 0, -1]),
        lying("mirrored-90.mp4", "transpose=0,", [0, 1, 1, 0]),
        lying("mirrored-270.mp4", "transpose=3,", [0, -1, -1, 0]),
    ]
}

fn times() -> Vec<Clip> {
    let uneven = "select=mod(n\\,3)*mod(n\\,7)";
    let vfr = |name| {
        from(
            name,
            format!("{} -frames:v {FRAMES} -fps_mode vfr", numbered("160x96", "30", uneven)),
            format!("-g 45 -bf 2 {X264}"),
        )
    };
    vec![
        vfr("vfr.mp4"),
        vfr("vfr.mkv"),
        from(
            "ntsc.mp4",
            format!("{} -frames:v {FRAMES}", numbered("160x96", "30000/1001", "")),
            format!("-g 30 -bf 2 {X264}"),
        ),
        from(
            "ntsc.avi",
            format!("{} -frames:v {FRAMES}", numbered("160x96", "24000/1001", "")),
            "-pix_fmt yuv420p -c:v mpeg4 -q:v 3 -g 30",
        ),
        from(
            "slow.mkv",
            format!("{} -frames:v 70", numbered("160x96", "1/2", "")),
            format!("-g 30 -bf 2 {X264}"),
        )
        .frames(70),
        from(
            "fast.mp4",
            format!("{} -frames:v {FRAMES}", numbered("160x96", "240", "")),
            format!("-g 30 -bf 2 {X264}"),
        ),
        // Cut where no keyframe is: the frames before stay in the file, hidden by an edit list.
        Clip::of("edit-list.mp4", |workshop, out| {
            let source = numbered("160x96", "25", "");
            workshop.ffmpeg(&format!("{source} -frames:v 180 -g 50 -bf 2 {X264}"), &workshop.part("a.mp4"));
            workshop.ffmpeg("-ss 1.2 -i a.mp4 -c copy", out);
        })
        .first(30),
        // The video's track begins late, by an empty edit.
        from(
            "edit-list-late.mp4",
            format!("-f lavfi -i sine=duration=7 -itsoffset 0.8 {}", numbered("160x96", "25", "")),
            format!("-map 1:v -map 0:a -fps_mode passthrough -frames:v {FRAMES} -c:a aac -g 50 -bf 2 {X264}"),
        )
        .audio(1),
        plain("negative-offsets.mp4", format!("-g 30 -bf 3 {X264} -movflags negative_cts_offsets")),
        plain(
            "no-edit-list.mp4",
            format!("-g 30 -bf 3 {X264} -use_editlist 0 -output_ts_offset -0.5 -avoid_negative_ts disabled"),
        ),
        plain("late-start.ts", format!("-g 30 -bf 3 {X264} -output_ts_offset 3600")),
        plain("wrapping.ts", format!("-g 30 -bf 3 {X264} -output_ts_offset 95440")),
        plain("wrapping-at-a-keyframe.ts", format!("-g 25 -bf 0 {X264} -output_ts_offset 95441.3")),
        from(
            "same-times.mkv",
            format!("{} -frames:v {FRAMES}", numbered("160x96", "1500", "")),
            format!("-g 30 -bf 0 {X264}"),
        )
        .times(Times::Nearly((1, 1500), 60))
        .mezzanine(),
        Clip::of("broken-off-open-gop.ts", |workshop, out| {
            let source = numbered("160x96", "25", "");
            let coding = format!("-bf 3 {X264} -x264-params open-gop=1:keyint=40:min-keyint=40");
            let bytes = workshop.bytes("a.ts", &format!("{source} -frames:v 190 {coding}"));
            let packets = bytes.len() / 188;
            let cut = bits::ts_offset_of_frame(&bytes, 20).min(packets * 188);
            fs::write(out, &bytes[cut..]).unwrap();
        })
        .first(40),
    ]
}

fn tracks() -> Vec<Clip> {
    let sound = |n: u32| {
        (0..n)
            .map(|i| format!(" -f lavfi -i sine=frequency={}:duration=6", 300 + 200 * i))
            .collect::<String>()
    };
    let with = |name, inputs: String, coding: String| {
        from(
            name,
            format!("{} {inputs}", numbered("160x96", "25", "")),
            format!("-frames:v {FRAMES} {X264} -g 30 {coding}"),
        )
    };
    vec![
        with("aac.mp4", sound(1), "-c:a aac".into()).audio(1),
        with("mp3.mkv", sound(1), "-c:a libmp3lame".into()).audio(1),
        with("opus.mkv", sound(1), "-c:a libopus".into()).audio(1),
        with("pcm.mov", sound(1), "-c:a pcm_s24le".into()).audio(1),
        with("aac.flv", sound(1), "-c:a aac".into()).audio(1),
        with("ac3.ts", sound(1), "-c:a ac3".into()).audio(1),
        with("three-tracks.mkv", sound(3), "-map 0 -map 1 -map 2 -map 3 -c:a:0 aac -c:a:1 flac -c:a:2 libvorbis".into())
            .audio(3),
        with("two-tracks.ts", sound(2), "-map 0 -map 1 -map 2 -c:a:0 mp2 -c:a:1 aac".into()).audio(2),
        Clip::of("subtitles.mp4", |workshop, out| {
            fs::write(workshop.part("a.srt"), "1\n00:00:00,000 --> 00:00:01,000\nHello\n").unwrap();
            let source = numbered("160x96", "25", "");
            workshop.ffmpeg(
                &format!("{source} -f lavfi -i sine=duration=6 -i a.srt -frames:v {FRAMES} -c:a aac -c:s mov_text -g 30 {X264}"),
                out,
            );
        })
        .audio(1)
        .dropped(&["subtitles (mov_text)"]),
        Clip::of("subtitles-attachment.mkv", |workshop, out| {
            fs::write(workshop.part("a.srt"), "1\n00:00:00,000 --> 00:00:01,000\nHello\n").unwrap();
            fs::write(workshop.part("font.ttf"), [7; 99]).unwrap();
            let source = numbered("160x96", "25", "");
            workshop.ffmpeg(
                &format!(
                    "{source} -i a.srt -frames:v {FRAMES} -c:s subrip -attach font.ttf -metadata:s:t mimetype=application/x-truetype-font -g 30 {X264}"
                ),
                out,
            );
        })
        .dropped(&["subtitles (subrip)", "an attachment (ttf)"]),
        with("timecode.mov", String::new(), "-timecode 10:00:00:00".into()).dropped(&["data (tmcd)"]),
        with(
            "second-video.mkv",
            "-f lavfi -i testsrc2=s=64x64:d=1".into(),
            "-map 0 -map 1".into(),
        )
        .dropped(&["a further video stream (h264)"]),
        with(
            "cover.mp4",
            "-f lavfi -i testsrc2=s=64x64:d=0.01".into(),
            "-map 0 -map 1 -c:v:1 mjpeg -disposition:v:1 attached_pic".into(),
        )
        .dropped(&["a cover picture (mjpeg)"]),
    ]
}
