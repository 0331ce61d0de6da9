//! The frame index: every frame of the video, by its presentation time, and where decoding can begin.

mod build;
mod cut;
mod format;
mod mezzanine;
mod units;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::MediaError;
use crate::probe::{AudioInfo, Limits, VideoInfo};

pub use build::{Indexed, build_index};
pub use cut::{LONGEST_SEGMENT, LongGops, SHORTEST_SEGMENT};
pub use mezzanine::make_mezzanine;

/// One frame. Packed into 9 bytes: a day of video has 2.6 million of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(Rust, packed)]
pub struct Frame {
    /// Presentation time in ticks of [`VideoInfo::time_base`], as the container gives it.
    pub pts: i64,
    /// Decoding can begin here: every frame from here on is exact.
    pub keyframe: bool,
}

/// The frames of a video in presentation order; PTS rise strictly.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameIndex {
    /// The stream.
    pub video: VideoInfo,
    /// The audio streams beside it.
    pub audio: Vec<AudioInfo>,
    /// What the result leaves out, each as a phrase, as in [`crate::probe::Source::dropped`].
    pub dropped: Vec<String>,
    /// The frames.
    pub frames: Vec<Frame>,
    /// Ticks the last frame is shown.
    pub last_duration: i64,
    /// The file the pictures come from is a mezzanine: its own timestamps are frame numbers, while
    /// [`Frame::pts`] stays what the source says.
    pub numbered: bool,
}

impl FrameIndex {
    /// When frame `n` is shown: seconds from the first frame on. The end of the last frame for an `n` beyond it.
    #[must_use]
    pub fn seconds(&self, n: u32) -> f64 {
        let first = self.frames.first().map_or(0, |frame| frame.pts);
        let pts = match (self.frames.get(n as usize), self.frames.last()) {
            (Some(frame), _) => frame.pts,
            (None, Some(last)) => last.pts + self.last_duration,
            (None, None) => first,
        };
        (pts - first) as f64 * f64::from(self.video.time_base.num) / f64::from(self.video.time_base.den)
    }

    /// Length of the video in seconds, its last frame included.
    #[must_use]
    pub fn duration(&self) -> f64 {
        self.seconds(u32::MAX)
    }

    /// The frame that the file's timestamp `pts` belongs to.
    pub(crate) fn number_at(&self, pts: i64) -> Option<u32> {
        let found = if self.numbered {
            usize::try_from(pts).ok().filter(|&n| n < self.frames.len())
        } else {
            self.frames.binary_search_by_key(&pts, |f| f.pts).ok()
        };
        found.and_then(|n| u32::try_from(n).ok())
    }

    /// The timestamp that frame `n` has in the file.
    pub(crate) fn pts_in_file(&self, n: u32) -> i64 {
        if self.numbered { i64::from(n) } else { self.frames[n as usize].pts }
    }
}

/// All that the index stage makes of a video.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The frame index, of the mezzanine if there is one.
    pub index: FrameIndex,
    /// First and last frame of every segment.
    pub segments: Vec<(u32, u32)>,
    /// Why a mezzanine was made; it is then what pictures are decoded from.
    pub mezzanine: Option<String>,
}

/// Indexes and cuts the video at `path`. Where the source itself can't be cut exactly, writes a mezzanine to
/// `mezzanine` and indexes that; otherwise nothing is written. `progress` is told frames done so far, from 0 again
/// for the mezzanine.
///
/// # Errors
/// As [`build_index`] and [`make_mezzanine`].
pub fn prepare(
    path: &Path,
    limits: &Limits,
    mezzanine: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Prepared, MediaError> {
    let why = match build_index(path, limits, progress)? {
        Indexed::Ready(index) => match index.cut() {
            Ok(segments) => return Ok(Prepared { index, segments, mezzanine: None }),
            Err(long) => long.to_string(),
        },
        Indexed::NeedsMezzanine { why } => why,
    };
    let index = make_mezzanine(path, limits, mezzanine, progress)?;
    let segments =
        index.cut().map_err(|e| MediaError::Internal(format!("The mezzanine can't be cut: {e}.")))?;
    Ok(Prepared { index, segments, mezzanine: Some(why) })
}
