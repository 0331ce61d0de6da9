//! Assemble, once per job: the encoded segments joined without re-encoding, the detections merged, a poster.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use common::files::{Draft, Encoding, JobFolder, Volume};
use common::input::{blocking, named_file};
use common::job::{Plan, Settings, Summary};
use common::segment::{Segment, Stage};
use common::store::{JobStore, Output};
use common::worker::{Assignment, JobError, Work};
use media::MediaError;
use media::child::{Access, Pool, Progress, Task};
use media::decode::decode_segment;
use media::index::FrameIndex;
use media::join::{Container, JoinError, join, verify};
use media::picture::{JPEG_QUALITY, JpegWriter};
use serde::{Deserialize, Serialize};

use crate::draw::Painter;
use crate::merge::{MergeError, Merged, merge};
use crate::render::{container, encodings};

/// What the child is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct AssembleRequest {
    pictures: PathBuf,
    source: PathBuf,
    index: PathBuf,
    joins: Vec<(Encoding, Vec<PathBuf>, PathBuf)>,
    poster: (u32, Vec<common::detection::Detection>, PathBuf),
    settings: Settings,
}

/// What the child made.
#[derive(Debug, Serialize, Deserialize)]
pub enum AssembleResponse {
    /// Every file is in its place; sentences a user should read.
    Joined(Vec<String>),
    /// This segment (its position in the job) does not fit the others and must be rendered again.
    Redo(u32, String),
}

/// The part of assemble that touches video.
pub struct AssembleTask;

impl Task for AssembleTask {
    const NAME: &'static str = "assemble";
    type Request = AssembleRequest;
    type Response = AssembleResponse;

    fn run(request: AssembleRequest, progress: &Progress) -> Result<AssembleResponse, MediaError> {
        let AssembleRequest { pictures, source, index, joins, poster, settings } = request;
        let index = FrameIndex::read(&index)?;
        let mut notes = Vec::new();
        for (encoding, segments, path) in joins {
            let container = container(encoding);
            let draft = Draft::new(&path);
            let joined =
                join(&index, &segments, Some(&source), container, draft.aside(), &mut progress.of_totals());
            let joined = match joined {
                Ok(joined) => joined,
                Err(JoinError::Segment { segment, fault }) => {
                    let segment = u32::try_from(segment).unwrap_or(u32::MAX);
                    return Ok(AssembleResponse::Redo(segment, fault.to_string()));
                }
                Err(JoinError::Media(error)) => return Err(error),
            };
            verify(draft.aside(), container, &index, &joined, &mut progress.of_totals())?;
            draft.publish().map_err(|error| MediaError::storage("store the annotated video", &error))?;
            let name = match container {
                Container::Mp4 => "MP4",
                Container::Avi => "AVI",
            };
            notes.extend(joined.dropped.iter().map(|track| format!("The {name} leaves out: {track}.")));
        }
        let (frame, shown, path) = poster;
        let painter = Painter::new(&settings.names, index.video.width, index.video.height, index.video.color);
        let mut jpeg = JpegWriter::new(&index.video.color, JPEG_QUALITY)?;
        decode_segment(&pictures, &index, frame, frame, 1, &mut |_, picture| {
            painter.draw(picture, &shown);
            let draft = Draft::new(&path);
            let stored = std::fs::write(draft.aside(), jpeg.encode(picture)?).and_then(|()| draft.publish());
            stored.map_err(|error| MediaError::storage("store the poster", &error))?;
            progress.tick(1);
            Ok(())
        })?;
        Ok(AssembleResponse::Joined(notes))
    }
}

/// The assemble stage of the worker loop.
pub struct AssembleStage {
    /// Where the segments are.
    pub store: Arc<dyn JobStore>,
    /// The shared volume.
    pub volume: Volume,
    /// The children that touch video.
    pub pool: Arc<Pool>,
}

#[async_trait]
impl Work for AssembleStage {
    fn stage(&self) -> Stage {
        Stage::Assemble
    }

    async fn run(&self, work: &Assignment) -> Result<Output, JobError> {
        let plan = work.plan()?;
        let folder = self.volume.job(work.job.id);
        let segments =
            self.store.segments(work.job.id).await.map_err(|error| {
                JobError::retry_because("The segments cannot be read from the store.", error)
            })?;
        let index = named_file(work, &folder, &plan.index, Stage::Index).await?;
        let Merged { mut summary, poster } =
            self.merge(work, &folder, plan, &segments, index.clone()).await?;

        let mut joins = Vec::new();
        for encoding in encodings(&work.job.settings) {
            let mut paths = Vec::with_capacity(segments.len());
            for segment in &segments {
                let record = segment.files.encoded.iter().find(|(made, _)| *made == encoding);
                let (_, record) = record.ok_or_else(|| {
                    redo(Stage::Render, segment.index, "a segment names no encoded frames".to_owned())
                })?;
                // The join verifies every packet file by its own checksum while it reads it.
                paths.push(folder.named(record));
            }
            let target = match encoding {
                Encoding::H264 => folder.target_mp4(),
                Encoding::Mpeg4 => folder.target_avi(),
            };
            joins.push((encoding, paths, target));
        }
        let request = AssembleRequest {
            pictures: plan.pictures(&folder, &work.job.source),
            source: work.job.source.path.clone(),
            index,
            joins,
            poster: (poster.0, poster.1, folder.poster()),
            settings: work.job.settings.clone(),
        };
        let access =
            Access { read: vec![work.job.source.path.clone()], write: vec![folder.path().to_owned()] };
        match media::stage::run_in_child::<AssembleTask>(&self.pool, work, &request, &access).await? {
            AssembleResponse::Joined(notes) => summary.notes.extend(notes),
            AssembleResponse::Redo(segment, message) => return Err(redo(Stage::Render, segment, message)),
        }
        Ok(Output::Assembled(summary))
    }
}

impl AssembleStage {
    /// Merges the segments' detections into the job's files, and counts.
    async fn merge(
        &self,
        work: &Assignment,
        folder: &JobFolder,
        plan: &Plan,
        segments: &[Segment],
        index: PathBuf,
    ) -> Result<Merged, JobError> {
        let mut parts = Vec::with_capacity(segments.len());
        for segment in segments {
            let record = segment.files.detections.as_ref();
            parts.push(folder.named(record.ok_or_else(|| {
                redo(Stage::Detect, segment.index, "a segment names no detections".to_owned())
            })?));
        }
        let (settings, filename) = (work.job.settings.clone(), work.job.filename.clone());
        let (folder, control) = (folder.clone(), work.control.clone());
        let merged = blocking(move || {
            let index = FrameIndex::read(&index).map_err(std::io::Error::other)?;
            Ok(merge(&folder, &filename, &settings, &index, &parts, &|units| control.tick(units)))
        })
        .await;
        let mut merged = match merged {
            Ok(Ok(merged)) => merged,
            Ok(Err(error @ MergeError::Part(segment, _))) => {
                return Err(redo(Stage::Detect, segment, error.to_string()));
            }
            Ok(Err(MergeError::Io(error))) | Err(error) => {
                return Err(JobError::storage("merge the detections", error));
            }
        };
        merged.summary = Summary {
            concealed: segments.iter().flat_map(|segment| segment.files.concealed.iter().copied()).collect(),
            notes: notes(plan),
            ..merged.summary
        };
        if let Some(note) = concealed_note(&merged.summary) {
            merged.summary.notes.push(note);
        }
        Ok(merged)
    }
}

/// One segment goes back to stage `to`.
fn redo(to: Stage, segment: u32, message: String) -> JobError {
    JobError::SendBack { to, segments: vec![segment], message }
}

fn notes(plan: &Plan) -> Vec<String> {
    if plan.dropped.is_empty() {
        return Vec::new();
    }
    vec![format!("The result leaves out: {}.", plan.dropped.join(", "))]
}

fn concealed_note(summary: &Summary) -> Option<String> {
    match summary.concealed.len() {
        0 => None,
        1 => Some("1 damaged frame shows its predecessor.".to_owned()),
        n => Some(format!("{n} damaged frames show their predecessors.")),
    }
}
