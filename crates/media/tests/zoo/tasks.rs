//! What runs in the children of these tests: index and decode, as the stages run them.

use std::fs::File;
use std::path::PathBuf;

use media::MediaError;
use media::child::{Progress, Registry, Task};
use media::decode::decode_segment;
use media::index::{FrameIndex, prepare};
use media::picture::{JPEG_QUALITY, JpegWriter, Shrinker};
use media::probe::Limits;
use serde::{Deserialize, Serialize};

pub fn registry() -> Registry {
    Registry::new().with::<Index>().with::<Decode>().with::<Day>()
}

/// Files of one video.
#[derive(Clone, Serialize, Deserialize)]
pub struct Files {
    pub source: PathBuf,
    pub index: PathBuf,
    pub mezzanine: PathBuf,
}

/// Indexes a video; the segments, and whether there is a mezzanine.
pub struct Index;

impl Task for Index {
    const NAME: &'static str = "index";
    type Request = Files;
    type Response = (Vec<(u32, u32)>, bool);

    fn run(files: Files, progress: &Progress) -> Result<Self::Response, MediaError> {
        let prepared =
            prepare(&files.source, &Limits::default(), &files.mezzanine, &mut progress.of_totals())?;
        let stored = File::create(&files.index).and_then(|mut file| prepared.index.write(&mut file));
        stored.map_err(|error| MediaError::storage("store the frame index", &error))?;
        Ok((prepared.segments, prepared.mezzanine.is_some()))
    }
}

/// Decodes a stretch of frames to small pictures and JPEGs; how many came.
pub struct Decode;

#[derive(Serialize, Deserialize)]
pub struct Stretch {
    pub files: Files,
    pub has_mezzanine: bool,
    pub first: u32,
    pub last: u32,
}

impl Task for Decode {
    const NAME: &'static str = "decode";
    type Request = Stretch;
    type Response = u32;

    fn run(request: Stretch, progress: &Progress) -> Result<u32, MediaError> {
        let Stretch { files, has_mezzanine, first, last } = request;
        let index = FrameIndex::read(&files.index)?;
        let pictures = if has_mezzanine { &files.mezzanine } else { &files.source };
        let mut shrinker = Shrinker::new(&index.video.color);
        let mut jpeg = JpegWriter::new(&index.video.color, JPEG_QUALITY)?;
        let mut came = 0;
        decode_segment(pictures, &index, first, last, 1, &mut |_, picture| {
            shrinker.shrink(picture)?;
            if came == 0 {
                jpeg.encode(picture)?;
            }
            came += 1;
            progress.tick(1);
            Ok(())
        })?;
        Ok(came)
    }
}

/// Indexes a very long video, stores the index and reads it back: what it took.
pub struct Day;

#[derive(Debug, Serialize, Deserialize)]
pub struct Took {
    pub frames: usize,
    pub segments: usize,
    pub index_bytes: u64,
    /// Seconds, by the clock, for building and for reading it back; and of processor time for both.
    pub build: f64,
    pub read: f64,
    pub processor: f64,
    /// The most memory this process ever had (`VmHWM`), and the programs' code in it (`RssFile`), which all children
    /// share; in MB of a million bytes.
    pub peak: f64,
    pub code: f64,
}

/// Seconds of processor time that this process has used.
fn processor() -> f64 {
    // SAFETY: all zeros are a valid `rusage`, and the call only writes into it.
    let used = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut used);
        used
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(used.ru_utime) + seconds(used.ru_stime)
}

/// A line of `/proc/self/status` that counts kB, in MB.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024.0 / 1e6
}

impl Task for Day {
    const NAME: &'static str = "day";
    type Request = Files;
    type Response = Took;

    fn run(files: Files, progress: &Progress) -> Result<Took, MediaError> {
        let before = processor();
        let begun = std::time::Instant::now();
        let segments = Index::run(files.clone(), progress)?.0.len();
        let build = begun.elapsed().as_secs_f64();
        let begun = std::time::Instant::now();
        let frames = FrameIndex::read(&files.index)?.frames.len();
        let index_bytes = std::fs::metadata(&files.index).unwrap().len();
        let read = begun.elapsed().as_secs_f64();
        let processor = processor() - before;
        let (peak, code) = (memory("VmHWM"), memory("RssFile"));
        Ok(Took { frames, segments, index_bytes, build, read, processor, peak, code })
    }
}
