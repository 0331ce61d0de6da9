//! The segments' detections, merged into the job's files in one pass.

use std::io::{self, BufWriter};
use std::path::PathBuf;

use common::detection::{Detection, read_detections};
use common::files::{Draft, JobFolder};
use common::job::{Settings, Summary};
use common::outputs::{ClassCounts, CocoWriter, CsvWriter, VideoFacts};
use media::index::FrameIndex;

/// What came of it beside the files.
pub struct Merged {
    /// Frames, length and counts.
    pub summary: Summary,
    /// A frame that shows much, with what is shown in it.
    pub poster: (u32, Vec<Detection>),
}

/// Why merging failed.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// This part (its position in the job) cannot be read and must be made again.
    #[error("the detections of segment {0} cannot be read: {1}")]
    Part(u32, io::Error),
    /// Something else could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes `detections.json` and `detections.csv` from the segments' files `parts`, in order.
///
/// # Errors
/// [`MergeError`], for a part or for anything else that cannot be read or written.
pub fn merge(
    folder: &JobFolder,
    filename: &str,
    settings: &Settings,
    index: &FrameIndex,
    parts: &[PathBuf],
    progress: &dyn Fn(u64),
) -> Result<Merged, MergeError> {
    let (video, frames) = (&index.video, u32::try_from(index.frames.len()).map_err(io::Error::other)?);
    let facts =
        VideoFacts { name: filename, width: video.width, height: video.height, frames, told: 0..frames };
    let seconds = |n: u32| index.seconds(n);
    let (json, csv) = (Draft::new(&folder.detections_json()), Draft::new(&folder.detections_csv()));
    let mut coco = CocoWriter::new(BufWriter::new(json.create()?), facts.clone(), settings, seconds)?;
    let mut table = CsvWriter::new(BufWriter::new(csv.create()?), facts, settings, seconds)?;
    let mut counts = ClassCounts::new(settings);
    let mut poster = (0.0, 0, Vec::new());
    for (position, part) in (0..).zip(parts) {
        let segment = read_detections(part).map_err(|error| MergeError::Part(position, error))?;
        coco.push(&segment)?;
        table.push(&segment)?;
        for (n, found) in segment.numbered() {
            counts.add(found);
            let shown: Vec<Detection> = found.iter().filter(|one| settings.shows(one)).copied().collect();
            let worth: f32 = shown.iter().map(|one| one.score).sum();
            if worth > poster.0 {
                poster = (worth, n, shown);
            }
            progress(1);
        }
    }
    coco.finish()?;
    table.finish()?;
    json.publish()?;
    csv.publish()?;
    let summary =
        Summary { frames, duration: index.duration(), counts: counts.most_first(), ..Summary::default() };
    Ok(Merged { summary, poster: (poster.1, poster.2) })
}
