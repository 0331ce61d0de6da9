//! Times each stage and each of its parts alone, on a video of yours. `make bench` runs it; JSON goes to standard
//! output, a table to standard error.
//!
//!     bench_stages VIDEO [--model FILE] [--precision P] [--rounds 3]
//!     bench_stages smoke
//!
//! Stages run as in `boxreel detect`, on all cores, one after the other: all of the video is decoded, then all of it
//! detected, and so on; then all of them at once. Before and after, the bare network runs in a loop, on the
//! same detector; it is what the stage and the whole are held against. Parts run in this process, on one thread.
//!
//! `smoke` does this on a clip of its own and fails where a ratio is below its floor: a guard against what would
//! make Boxreel much slower, on any machine and in any profile. Times it does not judge.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxreel::pipeline::{self, PACK_BUDGET};
use common::clock::{Clock, SystemClock};
use common::detection::{BoundingBox, Detection};
use common::files::Volume;
use common::job::{JobId, Settings, Source};
use common::segment::{Stage, State};
use common::store::sqlite::SqliteStore;
use common::store::{JobStore, NewJob};
use common::worker::{self, Hints, LoopSettings};
use infer::ssd300::FRAME_BYTES;
use infer::{Detector, DetectorSettings, Frames, ModelFile, NmsOptions};
use media::decode::decode_segment;
use media::encode::{Codec, EncoderSettings, SegmentEncoder, SegmentSpec};
use media::index::prepare;
use media::picture::{JPEG_QUALITY, JpegWriter, Picture, Shrinker};
use media::probe::Limits;
use serde_json::{Value, json};
use testbed::cluster::clip;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the bare network runs at a time.
const BARE: Duration = Duration::from_secs(4);
/// How often `smoke` measures before it fails.
const SMOKE_ROUNDS: usize = 3;
/// Frames that the parts are timed on.
const PARTS: usize = 48;
/// The least shares of the bare network's rate that `smoke` lets pass. On quiet machines the stage is at 0.9 and
/// more, the whole between 0.7 and 0.9.
const FLOORS: [(&str, f64); 2] = [(STAGE_SHARE, 0.6), (WHOLE_SHARE, 0.35)];
const STAGE_SHARE: &str = "detect / bare network";
const WHOLE_SHARE: &str = "all at once / bare network";

fn main() -> ExitCode {
    boxreel::children().serve_if_child();
    let mut arguments = std::env::args().skip(1);
    let video =
        arguments.next().expect("usage: bench_stages VIDEO [--model FILE] [--precision P] [--rounds N]");
    let smoke = video == "smoke";
    let folder = tempfile::tempdir_in("target").expect("the benchmark is started in the repository");
    let video = if smoke { clip(folder.path(), "clip.mp4", 192) } else { PathBuf::from(video) };
    let video = video.canonicalize().expect("the video is there");
    let (mut model, mut settings, mut rounds) = (None, DetectorSettings::default(), 3);
    while let Some(name) = arguments.next() {
        let value = arguments.next().expect("a value after each option");
        match name.as_str() {
            "--model" => model = Some(PathBuf::from(value)),
            "--precision" => settings.precision = value.parse().expect("a precision"),
            "--rounds" => rounds = value.parse().expect("a number of rounds"),
            _ => panic!("{name} is unknown"),
        }
    }
    let model = model.unwrap_or_else(|| infer::weights::default_path().expect("the default weights"));
    let model = ModelFile::open(&model).expect("the model can be read");
    let detector = Detector::start(&model, &settings).expect("the model can be loaded");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut lines = Vec::new();
    if smoke {
        // Other programs may have taken the machine for a while: then it gets another chance.
        for _ in 0..SMOKE_ROUNDS {
            runtime.block_on(stages(&video, &detector, 1, &mut lines));
            if lines.iter().all(|line| line.missed().is_none()) {
                break;
            }
        }
    } else {
        runtime.block_on(stages(&video, &detector, rounds, &mut lines));
        lines.extend(parts(&video, &detector, rounds));
    }
    let described = detector.describe();
    eprintln!("{described}; {}", video.display());
    eprintln!("{:<34}{:>10}{:>10}{:>10}", "", "frames/s", "slowest", "fastest");
    let mut found = serde_json::Map::new();
    let mut failed = false;
    for line in lines {
        let floor = line.missed().filter(|_| smoke);
        let Line { name, mut rates } = line;
        rates.sort_by(f64::total_cmp);
        let (median, slowest, fastest) = (rates[rates.len() / 2], rates[0], rates[rates.len() - 1]);
        eprintln!("{name:<34}{median:>10.2}{slowest:>10.2}{fastest:>10.2}");
        if let Some(floor) = floor {
            eprintln!("{name} is below {floor}: something has become much slower than the network it feeds");
            failed = true;
        }
        found.insert(name, json!({ "median": median, "slowest": slowest, "fastest": fastest }));
    }
    let report =
        json!({ "processor": processor(), "detector": described, "frames_per_second": Value::from(found) });
    println!("{report}");
    ExitCode::from(u8::from(failed))
}

/// What decides the speed: the model, the cores, and the flags that choose the precision.
fn processor() -> Value {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(": ").map_or("", |(_, value)| value).to_owned()
    };
    let wanted = ["amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2"];
    let (flags, cores) = (field("flags"), std::thread::available_parallelism().map_or(1, usize::from));
    let flags: Vec<_> = flags.split(' ').filter(|flag| wanted.contains(flag)).collect();
    json!({ "model": field("model name"), "cores": cores, "flags": flags })
}

/// What was measured, in frames a second, once a round.
struct Line {
    name: String,
    rates: Vec<f64>,
}

impl Line {
    /// The floor below which all its rates are, if it has one.
    fn missed(&self) -> Option<f64> {
        let (_, floor) = FLOORS.into_iter().find(|(name, _)| *name == self.name)?;
        self.rates.iter().all(|rate| *rate < floor).then_some(floor)
    }
}

/// Adds `rate` to the line called `name`.
fn note(lines: &mut Vec<Line>, name: &str, rate: f64) {
    match lines.iter_mut().find(|line| line.name == name) {
        Some(line) => line.rates.push(rate),
        None => lines.push(Line { name: name.to_owned(), rates: vec![rate] }),
    }
}

async fn stages(video: &Path, detector: &Detector, rounds: usize, lines: &mut Vec<Line>) {
    for _ in 0..rounds {
        for keep_frames in [true, false] {
            let with = if keep_frames { "with" } else { "without" };
            let house = House::start(video, detector, keep_frames).await;
            house.work(&[Stage::Index]).await;
            let frames = house.frames().await;
            let rate = frames / house.work(&[Stage::Decode]).await;
            note(lines, &format!("decode, {with} frame files"), rate);
            let before = bare(detector).await;
            let stage = frames / house.work(&[Stage::Detect]).await;
            let between = bare(detector).await;
            let rate = frames / house.work(&[Stage::Render]).await;
            note(lines, &format!("render, {with} frame files"), rate);
            note(lines, "assemble", frames / house.work(&[Stage::Assemble]).await);
            let house = House::start(video, detector, keep_frames).await;
            let whole = frames / house.work(&Stage::ALL).await;
            let after = bare(detector).await;
            [before, between, after].into_iter().for_each(|rate| note(lines, "bare network", rate));
            note(lines, "detect", stage);
            note(lines, STAGE_SHARE, stage / f64::midpoint(before, between));
            note(lines, &format!("all at once, {with} frame files"), whole);
            if keep_frames {
                note(lines, WHOLE_SHARE, whole / f64::midpoint(between, after));
            }
        }
    }
}

/// The network in a loop, on pictures in memory: pictures a second.
async fn bare(detector: &Detector) -> f64 {
    let frames = Frames::of_bytes((0..64 * FRAME_BYTES).map(|i| (i * i / 7 % 251) as u8).collect());
    let (cancel, options) = (CancellationToken::new(), NmsOptions { iou: 0.5, max_det: 200 });
    let start = Instant::now();
    // Two at a time, so that no thread waits while one of them ends.
    let again = async || {
        let mut done = 0;
        while start.elapsed() < BARE {
            done += detector.detect(frames.clone(), options, &cancel, &|_| {}).await.unwrap().len();
        }
        done
    };
    let (one, other) = tokio::join!(again(), again());
    (one + other) as f64 / start.elapsed().as_secs_f64()
}

/// One job, whose stages are run one by one.
struct House {
    store: Arc<dyn JobStore>,
    volume: Volume,
    detector: Detector,
    job: JobId,
    cores: usize,
    _folder: tempfile::TempDir,
}

impl House {
    async fn start(video: &Path, detector: &Detector, keep_frames: bool) -> Self {
        // Beside the video, not in /tmp: that may be memory, which no real job writes to.
        let folder = tempfile::tempdir_in("target").unwrap();
        let root = folder.path().canonicalize().unwrap();
        let store = SqliteStore::open(&root.join("store.sqlite"), Arc::new(SystemClock)).unwrap();
        let settings = Settings {
            conf: 0.3,
            iou: 0.5,
            max_det: 200,
            classes: Vec::new(),
            every: 1,
            keep_frames,
            save_txt: keep_frames,
            mp4: true,
            avi: true,
            names: detector.names().to_vec(),
            model: detector.key().clone(),
        };
        let new = NewJob {
            id: JobId::new(SystemClock.now()),
            filename: "video".to_owned(),
            source: Source { path: video.to_owned(), size: std::fs::metadata(video).unwrap().len() },
            settings,
            priority: 0,
            callback_url: None,
        };
        let job = store.create_job(new).await.unwrap().id;
        let volume = Volume::new(root.join("volume"));
        volume.job(job).create().unwrap();
        Self {
            store: Arc::new(store),
            volume,
            detector: detector.clone(),
            job,
            cores: std::thread::available_parallelism().unwrap().get(),
            _folder: folder,
        }
    }

    /// Frames of the video, once it is indexed.
    async fn frames(&self) -> f64 {
        let plan = self.store.job(self.job).await.unwrap().unwrap().plan;
        f64::from(plan.expect("index planned the job").frames)
    }

    /// Runs `stages` until nothing of the last one is left; the seconds that took, starting their children included.
    async fn work(&self, stages: &[Stage]) -> f64 {
        let (stop, hints, start) = (CancellationToken::new(), Hints::new(), Instant::now());
        let mut running = JoinSet::new();
        // A stage that runs alone has nobody to wait for.
        let pack_budget = if stages == Stage::ALL { PACK_BUDGET } else { u64::MAX >> 1 };
        let all = pipeline::stages(&self.store, &self.volume, self.detector.clone(), self.cores, pack_budget);
        for (slots, work) in all.into_iter().filter(|(_, work)| stages.contains(&work.stage())) {
            let settings = LoopSettings { slots, streak: 0, ..LoopSettings::new("bench") };
            running.spawn(worker::run(self.store.clone(), work, settings, hints.clone(), stop.clone()));
        }
        let last = *stages.last().expect("a stage to run");
        while self.left(last).await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let seconds = start.elapsed().as_secs_f64();
        stop.cancel();
        running.join_all().await;
        seconds
    }

    /// Whether `stage` has something to do still.
    async fn left(&self, stage: Stage) -> bool {
        let job = self.store.job(self.job).await.unwrap().unwrap();
        assert_eq!(job.timeline.ended, None, "the job failed");
        match stage {
            Stage::Index => return job.state == State::Waiting(stage),
            Stage::Assemble => return job.state != State::Done,
            Stage::Decode | Stage::Detect | Stage::Render => {}
        }
        let counts = self.store.counts(self.job).await.unwrap();
        match stage {
            Stage::Decode => counts.held + counts.decode > 0,
            Stage::Detect => counts.detect > 0,
            _ => counts.render > 0,
        }
    }
}

/// What a frame costs on one thread, part by part.
fn parts(video: &Path, detector: &Detector, rounds: usize) -> Vec<Line> {
    let folder = tempfile::tempdir_in("target").unwrap();
    let prepared = prepare(video, &Limits::default(), &folder.path().join("mezzanine"), &mut |_| {}).unwrap();
    let source =
        if prepared.mezzanine.is_some() { folder.path().join("mezzanine") } else { video.to_owned() };
    let index = prepared.index;
    let last = index.frames.len().min(PARTS) as u32 - 1;
    let count = f64::from(last + 1);
    let painter =
        post::draw::Painter::new(detector.names(), index.video.width, index.video.height, index.video.color);
    let boxes: Vec<Detection> = (0..8)
        .map(|i| {
            let at = 0.05 + 0.1 * f32::from(i);
            let bbox = BoundingBox { min_x: at, min_y: at, max_x: at + 0.2, max_y: at + 0.2 };
            Detection { bbox, score: 0.9, class: i }
        })
        .collect();
    let mut lines = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        decode_segment(&source, &index, 0, last, 1, &mut |_, _| Ok(())).unwrap();
        let decoding = start.elapsed();
        note(&mut lines, "one thread: decode", count / decoding.as_secs_f64());
        let mut part = |name: &str, work: &mut dyn FnMut(&mut Picture)| {
            let mut spent = Duration::ZERO;
            decode_segment(&source, &index, 0, last, 1, &mut |_, picture| {
                let start = Instant::now();
                work(picture);
                spent += start.elapsed();
                Ok(())
            })
            .unwrap();
            note(&mut lines, &format!("one thread: {name}"), count / spent.as_secs_f64());
        };
        let mut shrinker = Shrinker::new(&index.video.color);
        part("shrink for the network", &mut |picture| {
            shrinker.shrink(picture).unwrap();
        });
        let mut jpeg = JpegWriter::new(&index.video.color, JPEG_QUALITY).unwrap();
        part("JPEG", &mut |picture| drop(jpeg.encode(picture).unwrap()));
        part("draw 8 boxes", &mut |picture| painter.draw(picture, &boxes));
        let settings = EncoderSettings::default();
        for (name, codec) in [("H.264", Codec::H264), ("MPEG-4", Codec::Mpeg4)] {
            let spec = SegmentSpec { codec, video: &index.video, settings: &settings, first: 0, threads: 1 };
            let mut encoder = SegmentEncoder::create(&spec, &folder.path().join("encoded")).unwrap();
            part(name, &mut |picture| encoder.push(picture).unwrap());
            encoder.finish().unwrap();
        }
    }
    lines
}
