//! Flash and beep: what happens at one moment in the source happens at one moment in the MP4.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::prove::make;
use crate::shown;

/// A source: name, when its audio begins (seconds after its video), how the audio is coded.
pub struct Case {
    pub name: &'static str,
    late: f64,
    coding: &'static str,
    /// Whether `make test` tries it.
    pub often: bool,
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, late, coding) in [
        ("plain.mp4", 0.0, "aac"),
        ("late.mp4", 0.7, "aac"),
        ("early.mp4", -0.5, "aac"),
        ("opus-late.mp4", 0.3, "libopus"),
        ("pcm-late.mov", 0.7, "pcm_s16le"),
        ("pcm-early.mov", -0.5, "pcm_s16le"),
        ("plain.mkv", 0.0, "aac"),
        ("opus-late.mkv", 0.3, "libopus"),
        ("mp3-early.mkv", -0.4, "libmp3lame"),
        ("flac-late.mkv", 0.25, "flac"),
        ("vorbis-late.mkv", 0.1, "libvorbis"),
        ("vorbis-early.webm", -0.3, "libvorbis"),
        ("plain.ts", 0.0, "aac"),
        ("late.ts", 0.6, "aac"),
        ("mp3-early.ts", -0.6, "libmp3lame"),
        ("mp2-late.ts", 0.4, "mp2"),
        ("ac3-early.ts", -0.4, "ac3"),
        ("mp3.avi", 0.0, "libmp3lame"),
        ("mp3-late.avi", 0.5, "libmp3lame"),
        ("pcm.avi", 0.0, "pcm_s16le"),
        ("pcm-late.avi", 0.7, "pcm_s16le"),
        ("pcm-early.avi", -0.5, "pcm_s16le"),
        ("ac3-late.avi", 0.4, "ac3"),
        ("aac-late.flv", 0.4, "aac"),
        ("vorbis.ogv", 0.0, "libvorbis"),
    ] {
        let often =
            ["late.mp4", "early.mp4", "opus-late.mkv", "mp3-early.ts", "pcm-late.avi"].contains(&name);
        cases.push(Case { name, late, coding, often });
    }
    cases
}

/// What was measured, in seconds.
pub struct Heard {
    pub name: &'static str,
    pub late: f64,
    pub how: String,
    /// The beep after the flash, as FFmpeg plays the source, and the MP4.
    pub source: f64,
    pub mp4: f64,
}

pub const HEADER: &str = "| source | audio begins | audio | beep after flash, source | beep after flash, MP4 | moved by |\n\
                          |---|---|---|---|---|---|";

impl Heard {
    pub fn moved(&self) -> f64 {
        self.mp4 - self.source
    }

    pub fn markdown(&self) -> String {
        format!(
            "| {} | {:+.1} s | {} | {:+.2} ms | {:+.2} ms | {:+.2} ms |",
            self.name,
            self.late,
            self.how,
            self.source * 1e3,
            self.mp4 * 1e3,
            self.moved() * 1e3
        )
    }
}

fn source(folder: &Path, case: &Case) -> PathBuf {
    let out = folder.join(case.name);
    let video = match case.name.rsplit_once('.').unwrap().1 {
        "webm" => ["libvpx", "-b:v", "300k", "-deadline", "realtime", "-cpu-used", "16"].as_slice(),
        "ogv" => &["libtheora", "-q:v", "7"],
        "avi" => &["mpeg4", "-q:v", "3"],
        _ => &["libx264", "-preset", "ultrafast", "-bf", "2"],
    };
    // The flash is one second into the video; so is the beep, whenever the audio begins.
    let beep =
        format!("aevalsrc=0.8*sin(2*PI*1000*t)*between(t\\,{0}\\,{0}+0.2):s=48000:d=2.4", 1.0 - case.late);
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-f", "lavfi", "-i"])
        .arg("color=black:s=160x96:r=25:d=3,drawbox=c=white:t=fill:enable=between(t\\,1\\,1.2)")
        .args(["-itsoffset", &case.late.to_string(), "-f", "lavfi", "-i", &beep])
        .args(["-map", "0:v", "-map", "1:a", "-pix_fmt", "yuv420p", "-c:v"])
        .args(video)
        .args(["-c:a", case.coding])
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&output.stderr));
    out
}

/// When the first bright frame is shown, in seconds of the file's clock.
fn flash(file: &Path) -> f64 {
    let shown = shown::shown_at(file);
    let at = shown::frames(file).iter().position(|frame| frame[0] > 128).expect("a flash");
    shown.times[at] as f64 * shown.base.0 as f64 / shown.base.1 as f64
}

/// When the beep begins, in seconds of the file's clock.
fn beep(file: &Path) -> f64 {
    // The first sample's time as the file has it (without `-copyts` ffmpeg moves times to zero), and all samples.
    let folder = tempfile::tempdir().unwrap();
    let listing = folder.path().join("listing");
    let first = ["-map", "0:a:0", "-af", "aresample=48000", "-frames:a", "1", "-f", "framecrc"];
    let rest = ["-map", "0:a:0", "-af", "aresample=48000:async=0", "-ac", "1", "-f", "s16le", "-"];
    let after = [&first[..], &[listing.to_str().unwrap()], &rest].concat();
    let samples = shown::ffmpeg(&["-copyts"], file, &after);
    let listing = std::fs::read_to_string(&listing).unwrap();
    let start = listing
        .lines()
        .find(|line| !line.starts_with('#'))
        .map(|line| line.split(',').nth(2).unwrap().trim().parse::<f64>().unwrap() / 48000.0);
    // Loud from its first period on; what codecs smear before it is not.
    let loud = |s: &[u8]| i16::from_le_bytes([s[0], s[1]]).unsigned_abs() > 6000;
    let at = samples.chunks_exact(2).position(loud).expect("a beep");
    start.unwrap() + at as f64 / 48000.0
}

pub fn hear(case: &Case) -> Heard {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path(), case);
    let made = make(&source, folder.path());
    let [of_mp4, _] = &made.joined;
    let audio = &of_mp4.audio[0];
    let off = |file: &Path| beep(file) - flash(file);
    Heard {
        name: case.name,
        late: case.late,
        how: format!("{} {}", audio.codec, if audio.transcoded { "encoded" } else { "copied" }),
        source: off(&source),
        mp4: off(&made.mp4),
    }
}
