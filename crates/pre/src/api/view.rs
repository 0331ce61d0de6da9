//! Jobs as clients see them.

use std::time::Duration;

use common::clock::Stamp;
use common::job::{Ended, JobId, Settings, Status, Timeline, format_total};
use common::segment::{Stage, State};
use common::store::{Counts, Job, Store, StoreError};
use serde::Serialize;
use utoipa::ToSchema;

/// An error, as every answer that is no success carries it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used; common's HttpError writes it")]
pub(crate) struct ErrorAnswer {
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// For programs: does not change.
    #[schema(example = "not_found")]
    pub code: String,
    /// For people: what was wrong and what to do.
    pub message: String,
}

/// A job.
#[derive(Serialize, ToSchema)]
pub(crate) struct JobView {
    /// 24 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{24}$")]
    pub id: String,
    /// The name the user's file had.
    pub filename: String,
    /// Bytes of the upload.
    pub size: u64,
    /// Where it stands.
    #[schema(value_type = StatusName)]
    pub status: &'static str,
    /// No further work follows, unless it is retried.
    pub is_final: bool,
    /// 0, plus one for every retry.
    pub run: u32,
    /// When it came to what.
    pub timeline: TimelineView,
    /// How far it is.
    pub progress: Progress,
    /// Seconds it may still take; an estimate, absent until there is something to go by.
    pub eta_seconds: Option<u64>,
    /// Frames in the video, once they are counted.
    pub frames: Option<u32>,
    /// Width of the upright picture in pixels, once it is known.
    pub width: Option<u32>,
    /// Height of the upright picture in pixels, once it is known.
    pub height: Option<u32>,
    /// Why it failed.
    pub error: Option<ErrorDetail>,
    /// What was asked for.
    pub options: OptionsView,
    /// What came of it.
    pub summary: Option<SummaryView>,
    /// Where to go from here; results are absent until they are there.
    pub links: Links,
}

/// The names of the statuses.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
#[schema(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum StatusName {
    Enqueue,
    Preprocessing,
    PreprocessingComplete,
    Inference,
    InferenceComplete,
    Postprocessing,
    PostprocessingComplete,
    EnqueueError,
    FrameConvertError,
    InferenceError,
    PostprocessingError,
    Cancelled,
}

/// The stamps of a job, by the database's clock; absent until they happen.
#[derive(Serialize, ToSchema)]
pub(crate) struct TimelineView {
    /// The upload was whole.
    #[schema(format = DateTime)]
    pub process_start: String,
    /// Reading the video began.
    #[schema(format = DateTime)]
    pub preprocessing_start: Option<String>,
    /// The last frame was read.
    #[schema(format = DateTime)]
    pub preprocessing_end: Option<String>,
    /// Detection began.
    #[schema(format = DateTime)]
    pub inference_start: Option<String>,
    /// The last frame was detected.
    #[schema(format = DateTime)]
    pub inference_end: Option<String>,
    /// Drawing began.
    #[schema(format = DateTime)]
    pub postprocessing_start: Option<String>,
    /// The result was there.
    #[schema(format = DateTime)]
    pub postprocessing_end: Option<String>,
    /// The job ended, well or not.
    #[schema(format = DateTime)]
    pub process_end: Option<String>,
    /// From process_start to process_end, as H:MM:SS.ffffff.
    #[schema(example = "0:03:38.918805")]
    pub total: Option<String>,
}

/// Fractions that are done, 0 to 1.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Progress {
    /// Of the whole.
    pub overall: f64,
    /// Of listing the frames.
    pub index: f64,
    /// Of reading the frames.
    pub decode: f64,
    /// Of detection.
    pub detect: f64,
    /// Of drawing.
    pub render: f64,
    /// Of joining.
    pub assemble: f64,
}

/// What was asked for.
#[derive(Serialize, ToSchema)]
pub(crate) struct OptionsView {
    /// Pictures of the frames are kept.
    pub keep_frames: bool,
    /// The score from which detections are drawn, counted and written to txt.
    pub conf: f64,
    /// Overlap above which the weaker of two boxes is dropped.
    pub iou: f64,
    /// Names of the classes that are drawn; empty: all.
    pub classes: Vec<String>,
    /// Each Nth frame is detected.
    pub every: u32,
    /// Where word of the end is sent.
    pub callback_url: Option<String>,
    /// SHA-256 of the weights.
    pub model: String,
    /// Arithmetic of the network.
    pub precision: String,
}

/// What came of a job.
#[derive(Serialize, ToSchema)]
pub(crate) struct SummaryView {
    /// Length of the video in seconds.
    pub duration_seconds: f64,
    /// Objects per class, most first.
    pub counts: Vec<ClassCount>,
    /// Numbers of the frames that are damaged and show their predecessor.
    pub concealed: Vec<u32>,
    /// Sentences to read.
    pub notes: Vec<String>,
}

/// How often a class was found.
#[derive(Serialize, ToSchema)]
pub(crate) struct ClassCount {
    pub class: String,
    pub count: u64,
}

/// Paths below this service's root.
#[derive(Serialize, ToSchema)]
pub(crate) struct Links {
    #[serde(rename = "self")]
    pub this: String,
    pub events: String,
    pub source: String,
    pub video_mp4: Option<String>,
    pub video_avi: Option<String>,
    pub poster: Option<String>,
    pub detections_json: Option<String>,
    pub detections_csv: Option<String>,
    pub detections_jsonl: Option<String>,
    pub txts: Option<String>,
    pub frames: Option<String>,
}

/// A job as it stands now.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn view(store: &dyn Store, job: &Job) -> Result<JobView, StoreError> {
    let live = job.timeline.process_end.is_none();
    let counts = if job.plan.is_some() && job.timeline.postprocessing_end.is_none() {
        store.counts(job.id).await?
    } else {
        Counts::default()
    };
    let progress = progress(job, &counts);
    let eta = match job.timeline.preprocessing_start {
        // A retry starts with what is done already: the time since the first start tells nothing.
        Some(start) if live && job.run == 0 => eta(progress.overall, store.now().await?.since(start)),
        _ => None,
    };
    Ok(assemble(job, progress, eta))
}

fn assemble(job: &Job, progress: Progress, eta: Option<Duration>) -> JobView {
    let status = job.timeline.status();
    let plan = job.plan.as_ref();
    JobView {
        id: job.id.to_string(),
        filename: job.filename.clone(),
        size: job.source.size,
        status: status.as_str(),
        is_final: status.is_final(),
        run: job.run,
        timeline: timeline(&job.timeline),
        progress,
        eta_seconds: eta.map(|eta| eta.as_secs()),
        frames: plan.map(|plan| plan.frames),
        width: plan.map(|plan| plan.width),
        height: plan.map(|plan| plan.height),
        error: match &job.timeline.ended {
            Some(Ended::Failed(failure)) => Some(ErrorDetail {
                code: Status::from(failure.code).to_string(),
                message: failure.message.clone(),
            }),
            Some(Ended::Cancelled) | None => None,
        },
        options: options(job),
        summary: job.summary.as_ref().map(|summary| SummaryView {
            duration_seconds: summary.duration,
            counts: summary
                .counts
                .iter()
                .map(|(class, count)| ClassCount { class: class.clone(), count: *count })
                .collect(),
            concealed: summary.concealed.clone(),
            notes: summary.notes.clone(),
        }),
        links: links(job.id, &job.settings, job.timeline.postprocessing_end.is_some()),
    }
}

fn timeline(timeline: &Timeline) -> TimelineView {
    let stamp = |stamp: Option<Stamp>| stamp.map(Stamp::rfc3339);
    TimelineView {
        process_start: timeline.process_start.rfc3339(),
        preprocessing_start: stamp(timeline.preprocessing_start),
        preprocessing_end: stamp(timeline.preprocessing_end),
        inference_start: stamp(timeline.inference_start),
        inference_end: stamp(timeline.inference_end),
        postprocessing_start: stamp(timeline.postprocessing_start),
        postprocessing_end: stamp(timeline.postprocessing_end),
        process_end: stamp(timeline.process_end),
        total: timeline.total().map(format_total),
    }
}

fn options(job: &Job) -> OptionsView {
    let settings = &job.settings;
    let name = |class: &u16| {
        settings.names.get(usize::from(*class)).cloned().unwrap_or_else(|| format!("class {class}"))
    };
    OptionsView {
        keep_frames: settings.keep_frames,
        conf: decimal(settings.conf),
        iou: decimal(settings.iou),
        classes: settings.classes.iter().map(name).collect(),
        every: settings.every,
        callback_url: job.callback.as_ref().map(|callback| callback.url.clone()),
        model: settings.model.digest.clone(),
        precision: settings.model.precision.to_string(),
    }
}

/// The number as it was asked for: 0.3, not 0.30000001192092896.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

fn links(id: JobId, settings: &Settings, there: bool) -> Links {
    let path = |what: &str| format!("/v1/jobs/{id}{what}");
    let result = |what: &str, made: bool| (there && made).then(|| path(what));
    Links {
        this: path(""),
        events: path("/events"),
        source: path("/source"),
        video_mp4: result("/video.mp4", settings.mp4),
        video_avi: result("/video.avi", settings.avi),
        poster: result("/poster.jpg", true),
        detections_json: result("/detections.json", true),
        detections_csv: result("/detections.csv", true),
        detections_jsonl: result("/detections.jsonl", true),
        txts: result("/txts.zip", settings.save_txt),
        frames: result("/frames.zip", settings.keep_frames),
    }
}

/// How far a job is. Stages count by segments, which are of about the same length.
fn progress(job: &Job, counts: &Counts) -> Progress {
    if job.timeline.postprocessing_end.is_some() {
        return Progress { overall: 1.0, index: 1.0, decode: 1.0, detect: 1.0, render: 1.0, assemble: 1.0 };
    }
    let total = f64::from(counts.total().max(1));
    let part = |done: u32| round(f64::from(done) / total);
    let indexed = job.plan.is_some() && job.state != State::Waiting(Stage::Index);
    let index = if indexed { 1.0 } else { 0.0 };
    let decode = part(counts.detect + counts.render + counts.done);
    let (detect, render) = (part(counts.render + counts.done), part(counts.done));
    // Roughly what the stages cost on a machine without a GPU.
    let overall = round(0.02 * index + 0.18 * decode + 0.55 * detect + 0.22 * render);
    Progress { overall, index, decode, detect, render, assemble: 0.0 }
}

fn round(fraction: f64) -> f64 {
    (fraction * 1e4).round() / 1e4
}

/// The time that is left if it goes on as it did.
fn eta(done: f64, spent: Duration) -> Option<Duration> {
    (done >= 0.05).then(|| spent.mul_f64((1.0 - done) / done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_the_pace_so_far() {
        assert_eq!(eta(0.01, Duration::from_secs(5)), None);
        assert_eq!(eta(0.25, Duration::from_secs(10)), Some(Duration::from_secs(30)));
        assert_eq!(eta(1.0, Duration::from_secs(10)), Some(Duration::ZERO));
    }

    #[test]
    fn numbers_are_shown_as_they_were_asked_for() {
        assert_eq!(decimal(0.3).to_string(), "0.3");
        assert_eq!(decimal(0.05).to_string(), "0.05");
    }
}
