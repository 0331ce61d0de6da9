//! Sound: flashes and beeps made by ffmpeg at the same moments must stay together.

use serde_json::Value;

use super::*;

/// Moments (seconds of the source's clock) at which the beep begins, by decoding with ffmpeg.
fn beep(file: &Path) -> f64 {
    // The first sample's time as the file has it (without `-copyts` ffmpeg moves times to zero), and all samples.
    let folder = tempfile::tempdir().unwrap();
    let listing = folder.path().join("listing");
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-copyts", "-i"])
        .arg(file)
        .args(["-map", "0:a:0", "-af", "aresample=48000", "-frames:a", "1", "-f", "framecrc"])
        .arg(&listing)
        .args(["-map", "0:a:0", "-af", "aresample=48000:async=0", "-ac", "1", "-f", "s16le", "-"])
        .output()
        .unwrap();
    let listing = std::fs::read_to_string(&listing).unwrap();
    let start: f64 = listing
        .lines()
        .find(|line| !line.starts_with('#'))
        .map(|line| line.split(',').nth(2).unwrap().trim().parse::<f64>().unwrap() / 48000.0)
        .unwrap();
    let samples: Vec<i16> = output.stdout.chunks_exact(2).map(|s| i16::from_le_bytes([s[0], s[1]])).collect();
    // The beep is loud from its first period; what codecs smear before it is not.
    let at = samples.iter().position(|s| s.unsigned_abs() > 6000).expect("a beep");
    start + at as f64 / 48000.0
}

/// What ffprobe says of a file, asked once: starting it costs more than its answer.
struct Facts {
    streams: Vec<Value>,
    packets: Vec<Value>,
    mp4: bool,
}

fn facts(file: &Path) -> Facts {
    let entries = "stream=index,codec_type,codec_name,time_base,duration:\
                   packet=codec_type,stream_index,pts,pts_time,duration_time";
    let text = run("ffprobe", &["-v", "error", "-show_entries", entries, "-of", "json", "FILE"], file);
    let mut all: Value = serde_json::from_str(&text).unwrap();
    let mut list = |name: &str| serde_json::from_value(all[name].take()).unwrap();
    let mp4 = file.extension().is_some_and(|ending| ending == "mp4");
    Facts { streams: list("streams"), packets: list("packets"), mp4 }
}

impl Facts {
    fn streams(&self, medium: &str) -> impl Iterator<Item = &Value> {
        self.streams.iter().filter(move |stream| stream["codec_type"] == medium)
    }

    fn packets(&self, medium: &str) -> impl Iterator<Item = &Value> {
        self.packets.iter().filter(move |packet| packet["codec_type"] == medium)
    }

    /// When the first video frame is shown, in seconds.
    fn first_frame(&self) -> f64 {
        self.packets("video").map(|packet| seconds(&packet["pts_time"])).fold(f64::INFINITY, f64::min)
    }

    /// Seconds the audio lasts: what an MP4 says, or from the first packet's beginning to the last one's end
    /// where ffprobe only estimates.
    fn sound_lasts(&self) -> f64 {
        if self.mp4 {
            return seconds(&self.streams("audio").next().unwrap()["duration"]);
        }
        let ends = self.packets("audio").map(|packet| {
            // Matroska says no duration for what only primes the decoder.
            let length =
                if packet["duration_time"].is_null() { 0.0 } else { seconds(&packet["duration_time"]) };
            (seconds(&packet["pts_time"]), seconds(&packet["pts_time"]) + length)
        });
        let (start, end) = ends.fold((f64::MAX, f64::MIN), |all, one| (all.0.min(one.0), all.1.max(one.1)));
        end - start
    }
}

fn seconds(value: &Value) -> f64 {
    value.as_str().unwrap().parse().unwrap()
}

/// The index of a source, its times in the video's time base.
fn source_index(facts: &Facts, rate: Ratio) -> FrameIndex {
    let video = facts.streams("video").next().unwrap();
    let (num, den) = video["time_base"].as_str().unwrap().split_once('/').unwrap();
    let mut pts: Vec<i64> = facts.packets("video").map(|packet| packet["pts"].as_i64().unwrap()).collect();
    pts.sort_unstable();
    let last = pts[pts.len() - 1] - pts[pts.len() - 2];
    let mut index = index(ratio(num.parse().unwrap(), den.parse().unwrap()), rate, &pts, last);
    index.audio = facts
        .streams("audio")
        .map(|stream| AudioInfo {
            stream: stream["index"].as_u64().unwrap() as usize,
            codec: stream["codec_name"].as_str().unwrap().to_owned(),
        })
        .collect();
    index
}

/// Makes a source with a beep one second into an audio that begins `offset` seconds after the video.
fn source(folder: &Path, name: &str, offset: f64, codec: &[&str]) -> PathBuf {
    let out = folder.join(name);
    let offset = offset.to_string();
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "testsrc=size=160x96:rate=25:duration=2"])
        .args(["-itsoffset", &offset, "-f", "lavfi", "-i"])
        .arg("aevalsrc=0.8*sin(2*PI*1000*t)*between(t\\,1\\,1.2):s=48000:d=2")
        .args(["-map", "0:v", "-map", "1:a", "-c:v", "mpeg4", "-q:v", "5"])
        .args(codec)
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

/// One source: name (its ending is its container), when the audio begins, arguments for its codec.
type Case = (&'static str, f64, &'static [&'static str]);

const AAC: &[&str] = &["-c:a", "aac"];
const MP3: &[&str] = &["-c:a", "libmp3lame"];
const OPUS: &[&str] = &["-c:a", "libopus"];

/// Joins each source's audio to an MP4 and, if asked, an AVI, and measures.
fn stays_together(cases: &[Case], avi_too: bool) {
    let rendered = tempfile::tempdir().unwrap();
    let rate = ratio(25, 1);
    // What is encoded depends on size and rate, not on the time base: all sources share the segments.
    let frames = index(ratio(1, 25), rate, &times(50, 0, &[1]), 1);
    let [mp4, avi] = [Codec::H264, Codec::Mpeg4].map(|codec| render(&frames, codec, rendered.path()));
    let mut wrong = Vec::new();
    for &(name, late, codec) in cases {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path(), name, late, codec);
        let of_source = facts(&source);
        let index = source_index(&of_source, rate);
        // How far the beep is from the video's first frame.
        let before = beep(&source) - of_source.first_frame();
        // An AVI can't hide an encoder's delay, so what is copied into it may be that much late.
        let targets = [(Container::Mp4, &mp4, 0.005), (Container::Avi, &avi, 0.03)];
        for (container, segments, allowed) in targets.into_iter().take(if avi_too { 2 } else { 1 }) {
            let (out, joined) = join_segments(&index, container, Some(&source), segments, folder.path());
            assert_eq!(
                (joined.audio.len(), joined.dropped.len()),
                (1, 0),
                "{name} {container:?}: {joined:?}"
            );
            decodes(&out);
            let of_result = facts(&out);
            let moved = beep(&out) - of_result.first_frame() - before;
            let lasts = (of_source.sound_lasts(), of_result.sound_lasts());
            let how = if joined.audio[0].transcoded { "encoded" } else { "copied " };
            let found = format!(
                "{name:16} {container:?} {how} beep moved {:+.2} ms, audio {:.3} s became {:.3} s",
                moved * 1e3,
                lasts.0,
                lasts.1
            );
            println!("{found}");
            if moved.abs() > allowed || (container == Container::Mp4 && (lasts.0 - lasts.1).abs() > 0.03) {
                wrong.push(found);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn sound_from_mp4_stays_with_the_picture() {
    stays_together(&[("plain.mp4", 0.0, AAC), ("late.mp4", 0.7, AAC), ("early.mp4", -0.5, AAC)], true);
}

#[test]
fn sound_from_mkv_stays_with_the_picture() {
    stays_together(
        &[
            ("plain.mkv", 0.0, AAC),
            ("late.mkv", 0.3, OPUS),
            ("plain-opus.mkv", 0.0, OPUS),
            ("early.mkv", -0.4, MP3),
            ("flac.mkv", 0.25, &["-c:a", "flac"]),
            ("vorbis.mkv", 0.1, &["-c:a", "libvorbis"]),
        ],
        false,
    );
}

#[test]
fn sound_from_ts_stays_with_the_picture() {
    stays_together(&[("plain.ts", 0.0, AAC), ("late.ts", 0.6, AAC), ("early.ts", -0.6, MP3)], false);
}

#[test]
fn sound_from_avi_stays_with_the_picture() {
    stays_together(&[("plain.avi", 0.0, MP3), ("pcm.avi", 0.0, &["-c:a", "pcm_s16le"])], true);
}

#[test]
fn every_track_comes_along_with_its_language() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("two.mkv");
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "testsrc=size=160x96:rate=25:duration=2"])
        .args(["-f", "lavfi", "-i", "sine=duration=2", "-f", "lavfi", "-i", "sine=500:duration=1"])
        .args(["-map", "0", "-map", "1", "-map", "2", "-c:v", "mpeg4", "-c:a:0", "aac", "-c:a:1", "flac"])
        .args(["-metadata:s:a:0", "language=ger", "-metadata:s:a:1", "language=fre"])
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut index = source_index(&facts(&source), ratio(25, 1));
    // A track the file does not have is left out and named, not an error.
    index.audio.push(AudioInfo { stream: 7, codec: "aac".to_owned() });
    let (out, joined) = join_and_verify(&index, Container::Mp4, Some(&source), folder.path());
    assert_eq!(joined.dropped.len(), 1, "{joined:?}");
    assert_eq!(probe(&out, "a", "stream=codec_name:stream_tags=language"), ["aac,ger", "flac,fre"]);
    decodes(&out);
}
