//! Damaged clips: whatever the bytes, index and decode end in a result, a sentence, or the death of a child; never in
//! that of the parent, in a hang, or in something left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use media::MediaError;
use media::child::{Access, ChildError, Limits, Pool, PoolSettings, Task};
use tokio_util::sync::CancellationToken;

use crate::clips;
use crate::tasks::{Decode, Files, Index, Stretch};

/// Clips that are damaged: every container, every coding, the odd ones.
const CLIPS: [&str; 36] = [
    "h264.mp4",
    "h264.mkv",
    "h264.ts",
    "h264.flv",
    "h264.3gp",
    "h264-fragmented.mp4",
    "h264-mbaff.ts",
    "h264-fields.mkv",
    "h264-b-frames.avi",
    "h264-raw.h264",
    "h264-hi10.mkv",
    "h264-444.mp4",
    "hevc.mp4",
    "hevc-open-gop.ts",
    "vp8-hidden.webm",
    "vp9-hidden.webm",
    "vp9.mp4",
    "av1.mp4",
    "mpeg1.mpg",
    "mpeg2.ts",
    "mpeg4.avi",
    "mpeg4-packed.avi",
    "flv1.flv",
    "msmpeg4.avi",
    "wmv2.wmv",
    "theora.ogv",
    "mjpeg.avi",
    "ffv1.mkv",
    "palette.gif",
    "hdr-pq.mp4",
    "turned-90.mp4",
    "edit-list.mp4",
    "wrapping.ts",
    "size-changes.ts",
    "aac.mp4",
    "subtitles.mp4",
];

/// A task that reports nothing for so long hangs: `stall_seconds` of the worker loop.
const STALL: Duration = Duration::from_secs(60);
/// Frames decoded at each end of a video.
const STRETCH: u32 = 24;

/// Marsaglia's xorshift, so that input `n` is the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: usize) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// A place in the file: as often in its first or last kilobytes, where headers and tables are, as anywhere.
    fn place(&mut self, length: usize) -> usize {
        match self.below(4) {
            0 => self.below(length.min(1500)),
            1 => length - 1 - self.below(length.min(3000)),
            _ => self.below(length),
        }
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let begin = self.place(length);
        let most = 1 << self.below(14);
        begin..(begin + 1 + self.below(most)).min(length)
    }
}

fn damage(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.len() < 16 {
            return;
        }
        let length = bytes.len();
        match random.below(10) {
            0 => (0..=random.below(16)).for_each(|_| {
                let at = random.place(length);
                bytes[at] ^= 1 << random.below(8);
            }),
            1 => (0..=random.below(64)).for_each(|_| {
                let at = random.place(length);
                bytes[at] = random.next() as u8;
            }),
            2 => {
                let extremes = [0, 1, 0x7fff_ffff, u32::MAX, 0x8000_0000, length as u32, 0xffff, 0x00ff_ffff];
                let value = extremes[random.below(extremes.len())];
                let at = random.place(length - 4);
                let value = if random.below(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
                bytes[at..at + 4].copy_from_slice(&value);
            }
            3 => drop(bytes.drain(random.range(length))),
            4 => {
                let range = random.range(length);
                let copy = bytes[range].to_vec();
                let at = random.place(length);
                bytes.splice(at..at, copy);
            }
            5 => {
                let noise: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
                let at = random.place(length);
                bytes.splice(at..at, noise);
            }
            6 => bytes.truncate(random.place(length).max(1)),
            7 => bytes[random.range(length)].fill(0),
            8 => {
                let (a, b) = (random.range(length), random.place(length));
                for at in a {
                    bytes.swap(at, (at + b) % length);
                }
            }
            _ => {
                let other = &others[random.below(others.len())];
                let part = other[random.range(other.len())].to_vec();
                let at = random.place(length);
                let end = (at + part.len()).min(length);
                bytes.splice(at..end, part);
            }
        }
    }
}

/// How inputs ended: kinds of ends, and how many of each.
#[derive(Default)]
pub struct Ends {
    pub counts: BTreeMap<&'static str, usize>,
    /// What must not be: input and how it ended.
    pub wrong: Vec<String>,
    pub slowest: Duration,
}

/// One call, killed when it reports nothing for [`STALL`].
async fn call<T: Task>(
    pool: &Pool,
    request: &T::Request,
    access: &Access,
) -> Result<T::Response, ChildError> {
    let (cancel, moved) = (CancellationToken::new(), Mutex::new(Instant::now()));
    let watch = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if moved.lock().unwrap().elapsed() > STALL {
                cancel.cancel();
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        outcome = pool.call::<T>(request, access, &cancel, |_| *moved.lock().unwrap() = Instant::now()) => outcome,
        () = watch => unreachable!(),
    }
}

/// Index, then both ends decoded.
async fn study(pool: &Pool, files: &Files, access: &Access) -> Result<(), ChildError> {
    let (segments, has_mezzanine) = call::<Index>(pool, files, access).await?;
    let last = segments.last().map_or(0, |segment| segment.1);
    for (first, last) in [(0, last.min(STRETCH)), (last.saturating_sub(STRETCH), last)] {
        let stretch = Stretch { files: files.clone(), has_mezzanine, first, last };
        let came = call::<Decode>(pool, &stretch, access).await?;
        assert_eq!(came, last - first + 1, "every indexed frame is shown");
    }
    Ok(())
}

const MEMORY: &str = "child reached its memory limit";

fn kind(outcome: &Result<(), ChildError>) -> &'static str {
    match outcome {
        Ok(()) => "played",
        Err(ChildError::Media(MediaError::Input(_))) => "refused with a sentence",
        // A damaged table may claim more entries than there is memory for.
        Err(ChildError::Media(MediaError::Internal(why))) if why.contains("not enough memory") => MEMORY,
        Err(ChildError::Media(MediaError::Internal(_))) => "called a bug",
        Err(ChildError::Media(MediaError::Storage(_))) => "called a disk's fault",
        Err(ChildError::Crashed { how }) if how.contains("panic") => "panicked",
        Err(ChildError::Crashed { how }) if how.contains("memory") => MEMORY,
        Err(ChildError::Crashed { .. }) => "child crashed",
        Err(ChildError::Cancelled) => "hung",
        Err(ChildError::Spawn(_)) => "child did not start",
    }
}

/// Tries `inputs` damaged clips in children, two at a time.
pub fn run(inputs: usize, first: usize) -> Ends {
    let folder = tempfile::tempdir().unwrap();
    let originals = folder.path().join("clips");
    fs::create_dir(&originals).unwrap();
    let zoo = clips::zoo();
    let clips: Vec<Vec<u8>> = CLIPS
        .iter()
        .map(|name| fs::read(zoo.iter().find(|clip| clip.name == *name).unwrap().make(&originals)).unwrap())
        .collect();

    let limits = Limits { memory_bytes: Some(2 << 30), file_bytes: Some(1 << 30), ..Limits::default() };
    let pool = Arc::new(Pool::new(PoolSettings { limits, ..PoolSettings::new(2) }));
    let (next, ends) = (AtomicUsize::new(first), Mutex::new(Ends::default()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let work = |slot: usize| {
        let (pool, next, ends, clips, folder) = (pool.clone(), &next, &ends, &clips, folder.path());
        async move {
            let (input, output) = (folder.join(format!("in-{slot}")), folder.join(format!("out-{slot}")));
            fs::create_dir(&input).unwrap();
            fs::create_dir(&output).unwrap();
            let access = Access { read: vec![input.clone()], write: vec![output.clone()] };
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= first + inputs {
                    break;
                }
                one(n, clips, &input, &output, &pool, &access, ends).await;
            }
            assert_eq!(fs::read_dir(&input).unwrap().count() + fs::read_dir(&output).unwrap().count(), 0);
        }
    };
    runtime.block_on(async { tokio::join!(work(0), work(1)) });
    drop(pool);
    let mut ends = ends.into_inner().unwrap();
    let left: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    if left.len() != 5 {
        ends.wrong.push(format!("left behind: {left:?}"));
    }
    ends
}

async fn one(
    n: usize,
    clips: &[Vec<u8>],
    input: &Path,
    output: &Path,
    pool: &Pool,
    access: &Access,
    ends: &Mutex<Ends>,
) {
    let mut random = Random::new(n);
    let which = n % clips.len();
    let mut bytes = clips[which].clone();
    damage(&mut bytes, clips, &mut random);
    let source = input.join(CLIPS[which]);
    fs::write(&source, &bytes).unwrap();
    let files = Files { source, index: output.join("index"), mezzanine: output.join("mezzanine") };
    let begun = Instant::now();
    let outcome = study(pool, &files, access).await;
    let took = begun.elapsed();
    let kind = kind(&outcome);
    {
        let mut ends = ends.lock().unwrap();
        *ends.counts.entry(kind).or_default() += 1;
        ends.slowest = ends.slowest.max(took);
        let done: usize = ends.counts.values().sum();
        if done.is_multiple_of(1000) {
            println!("{done} tried: {:?}", ends.counts);
        }
        if !["played", "refused with a sentence", "child crashed", MEMORY].contains(&kind) {
            ends.wrong.push(format!("input {n} ({}): {outcome:?}", CLIPS[which]));
        } else if kind.starts_with("child") {
            println!("input {n} ({}): {outcome:?}", CLIPS[which]);
        }
    }
    if let Some(keep) =
        std::env::var_os("BOXREEL_KEEP").filter(|_| outcome.is_err() && kind != "refused with a sentence")
    {
        fs::copy(&files.source, Path::new(&keep).join(format!("{n}-{}", CLIPS[which]))).unwrap();
    }
    for path in [&files.source, &files.index, &files.mezzanine] {
        let _ = fs::remove_file(path);
    }
}
