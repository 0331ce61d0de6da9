//! What independent programs, FFmpeg's command line tools, say of a file.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::clips::CODE;

/// Pixels a picture is averaged down to when colours are compared.
pub const COARSE: (usize, usize) = (20, 12);

pub fn ffmpeg(arguments: &[&str], file: &Path, after: &[&str]) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error"])
        .args(arguments)
        .arg("-i")
        .arg(file)
        .args(after)
        .output()
        .expect("ffmpeg is installed");
    assert!(
        output.status.success(),
        "ffmpeg on {}: {}",
        file.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

pub fn ffprobe(file: &Path, arguments: &[&str]) -> Value {
    let output = Command::new("ffprobe")
        .args(["-v", "quiet", "-of", "json"])
        .args(arguments)
        .arg(file)
        .output()
        .expect("ffprobe is installed");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// All frames of the first video stream, averaged to `size` pixels of `format` (`channels` bytes each), upright.
fn averaged(file: &Path, (width, height): (usize, usize), format: &str, channels: usize) -> Vec<Vec<u8>> {
    // Exact first, then averaged: an area filter over chroma of another resolution would shift it.
    let filter = format!(
        "scale=flags=bicubic+accurate_rnd+full_chroma_int,format={format},scale={width}:{height}:flags=area"
    );
    let out = [
        "-map",
        "0:V:0",
        "-vf",
        &filter,
        "-fps_mode",
        "passthrough",
        "-enc_time_base",
        "-1",
        "-f",
        "rawvideo",
        "-",
    ];
    ffmpeg(&[], file, &out).chunks_exact(width * height * channels).map(<[u8]>::to_vec).collect()
}

/// All frames of the first video stream, upright, averaged to [`COARSE`] pixels of RGB.
pub fn frames(file: &Path) -> Vec<Vec<u8>> {
    averaged(file, COARSE, "rgb24", 3)
}

/// The number that a frame carries in its picture.
pub fn code(frame: &[u8]) -> u32 {
    let (across, down) = (COARSE.0 / CODE.0, COARSE.1 / CODE.1);
    let bit = |bit: usize| {
        let cells =
            (0..down).flat_map(|y| (0..across).map(move |x| (y * COARSE.0 + (bit + 1) * across + x) * 3 + 1));
        cells.map(|at| usize::from(frame[at])).sum::<usize>() > 128 * across * down
    };
    (0..8).filter(|&n| bit(n)).map(|n| 1 << n).sum()
}

/// Times in ticks, and how many seconds (as a fraction) a tick is.
#[derive(Debug)]
pub struct Ticks {
    pub times: Vec<i64>,
    pub base: (i64, i64),
}

impl Ticks {
    /// Seconds from the first time to time `n`, as a fraction.
    pub fn since_first(&self, n: usize) -> (i128, i128) {
        (i128::from(self.times[n] - self.times[0]) * i128::from(self.base.0), i128::from(self.base.1))
    }
}

fn base_of(stream: &Value) -> (i64, i64) {
    let (num, den) = stream["time_base"].as_str().unwrap().split_once('/').unwrap();
    (num.parse().unwrap(), den.parse().unwrap())
}

/// When FFmpeg shows the frames that it decodes from the first video stream.
pub fn shown_at(file: &Path) -> Ticks {
    let all = ffprobe(
        file,
        &[
            "-select_streams",
            "V:0",
            "-show_entries",
            "stream=time_base:frame=best_effort_timestamp,media_type",
        ],
    );
    let frames = all["frames"].as_array().cloned().unwrap_or_default();
    let times = frames.iter().filter_map(|frame| frame["best_effort_timestamp"].as_i64()).collect();
    Ticks { times, base: base_of(&all["streams"][0]) }
}

/// One written file.
pub struct Written {
    /// When its frames are shown: the packets that hold something.
    pub frames: Ticks,
    /// The video stream as ffprobe describes it.
    pub video: Value,
    /// The audio streams.
    pub audio: Vec<Value>,
}

pub fn written(file: &Path) -> Written {
    let all = ffprobe(file, &["-show_streams", "-show_entries", "packet=codec_type,pts,size"]);
    let streams = all["streams"].as_array().cloned().unwrap_or_default();
    let of = |kind: &str| streams.iter().filter(|s| s["codec_type"] == kind).cloned().collect::<Vec<_>>();
    let video = of("video").remove(0);
    let packets = all["packets"].as_array().cloned().unwrap_or_default();
    let times = packets
        .iter()
        .filter(|p| p["codec_type"] == "video" && p["size"] != "0")
        .filter_map(|p| p["pts"].as_i64())
        .collect();
    Written { frames: Ticks { times, base: base_of(&video) }, video, audio: of("audio") }
}
