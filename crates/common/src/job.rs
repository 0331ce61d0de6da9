//! The job: one video on its way through the house, and the timeline its status is a function of.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::files::FileRecord;

/// Identifies a job: 12 bytes in the layout of a MongoDB ObjectId, written as 24 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId([u8; 12]);

impl JobId {
    /// A new id: seconds of `now`, then eight random bytes.
    #[must_use]
    pub fn new(now: Stamp) -> Self {
        let seconds = u32::try_from(now.0 / 1_000_000).unwrap_or(u32::MAX);
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&seconds.to_be_bytes());
        bytes[4..].copy_from_slice(&rand::random::<[u8; 8]>());
        Self(bytes)
    }

    /// The twelve bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 12] {
        self.0
    }
}

impl From<[u8; 12]> for JobId {
    fn from(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({self})")
    }
}

/// Said when a text is no job id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a job id is 24 hexadecimal digits")]
pub struct InvalidJobId;

impl FromStr for JobId {
    type Err = InvalidJobId;

    fn from_str(text: &str) -> Result<Self, InvalidJobId> {
        if text.len() != 24 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidJobId);
        }
        let mut bytes = [0; 12];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| InvalidJobId)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a job stands, under the names the original published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Uploaded, nothing claimed yet.
    Enqueue,
    /// Index claimed; frames are being read.
    Preprocessing,
    /// Every frame is decoded, no detection has begun.
    PreprocessingComplete,
    /// Detection goes on, all frames are decoded.
    Inference,
    /// All frames are detected, drawing has not begun.
    InferenceComplete,
    /// Drawing and joining.
    Postprocessing,
    /// The result is there.
    PostprocessingComplete,
    /// What was stored is no video Boxreel accepts.
    EnqueueError,
    /// Index or decode failed.
    FrameConvertError,
    /// Detection failed.
    InferenceError,
    /// Drawing or joining failed.
    PostprocessingError,
    /// Cancelled by a user.
    Cancelled,
}

impl Status {
    /// Every status, in the order of the lifecycle.
    pub const ALL: [Self; 12] = [
        Self::Enqueue,
        Self::Preprocessing,
        Self::PreprocessingComplete,
        Self::Inference,
        Self::InferenceComplete,
        Self::Postprocessing,
        Self::PostprocessingComplete,
        Self::EnqueueError,
        Self::FrameConvertError,
        Self::InferenceError,
        Self::PostprocessingError,
        Self::Cancelled,
    ];

    /// The published name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enqueue => "ENQUEUE",
            Self::Preprocessing => "PREPROCESSING",
            Self::PreprocessingComplete => "PREPROCESSING_COMPLETE",
            Self::Inference => "INFERENCE",
            Self::InferenceComplete => "INFERENCE_COMPLETE",
            Self::Postprocessing => "POSTPROCESSING",
            Self::PostprocessingComplete => "POSTPROCESSING_COMPLETE",
            Self::EnqueueError => "ENQUEUE_ERROR",
            Self::FrameConvertError => "FRAME_CONVERT_ERROR",
            Self::InferenceError => "INFERENCE_ERROR",
            Self::PostprocessingError => "POSTPROCESSING_ERROR",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// No further work follows from this status.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::PostprocessingComplete
                | Self::EnqueueError
                | Self::FrameConvertError
                | Self::InferenceError
                | Self::PostprocessingError
                | Self::Cancelled
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Said when a text names no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown status {0:?}")]
pub struct UnknownStatus(pub String);

impl FromStr for Status {
    type Err = UnknownStatus;

    /// Takes the published names and the aliases that the original's workers sent.
    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        match text {
            "INFERENCING" | "INFRENCING" => return Ok(Self::Inference),
            "INFERENCING_COMPLETE" | "INFRENCING_COMPLETE" => return Ok(Self::InferenceComplete),
            _ => {}
        }
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// The part of the house in which a job failed; decides its error status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// What was stored is no video Boxreel accepts.
    EnqueueError,
    /// Index or decode.
    FrameConvertError,
    /// Detect.
    InferenceError,
    /// Render or assemble.
    PostprocessingError,
}

impl From<ErrorCode> for Status {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::EnqueueError => Self::EnqueueError,
            ErrorCode::FrameConvertError => Self::FrameConvertError,
            ErrorCode::InferenceError => Self::InferenceError,
            ErrorCode::PostprocessingError => Self::PostprocessingError,
        }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which part of the house failed.
    pub code: ErrorCode,
    /// One sentence for the user: what was wrong and what to do.
    pub message: String,
}

/// How a job ended early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// A stage failed for good.
    Failed(Failure),
    /// A user cancelled it.
    Cancelled,
}

/// The stamps of a job. [`Timeline::status`] is a pure function of it; every change goes through
/// [`Timeline::apply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The upload is whole and the job exists.
    pub process_start: Stamp,
    /// Index was claimed.
    pub preprocessing_start: Option<Stamp>,
    /// The last segment's decode advanced.
    pub preprocessing_end: Option<Stamp>,
    /// First detect claim.
    pub inference_start: Option<Stamp>,
    /// The last segment's detect advanced.
    pub inference_end: Option<Stamp>,
    /// First render claim.
    pub postprocessing_start: Option<Stamp>,
    /// Assemble finished.
    pub postprocessing_end: Option<Stamp>,
    /// The job ended, well or not.
    pub process_end: Option<Stamp>,
    /// How it ended, when that was not with a result.
    pub ended: Option<Ended>,
}

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Index was claimed.
    PreprocessingStarted,
    /// The last decode advanced.
    PreprocessingEnded,
    /// First detect claim.
    InferenceStarted,
    /// The last detect advanced.
    InferenceEnded,
    /// First render claim.
    PostprocessingStarted,
    /// Assemble finished.
    PostprocessingEnded,
    /// A stage failed for good.
    Failed(Failure),
    /// A user cancelled the job.
    Cancelled,
    /// A user asked for another run of a failed or cancelled job.
    Retried {
        /// Every segment is decoded: PREPROCESSING_END still holds.
        decoded: bool,
        /// Every segment is detected: INFERENCE_END still holds.
        detected: bool,
    },
}

/// Why an event changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The event is already in the timeline.
    #[error("already recorded")]
    Repeat,
    /// The job has ended.
    #[error("the job has ended")]
    Finished,
    /// What must precede the event has not happened.
    #[error("what must come before has not happened")]
    TooEarly,
}

impl Timeline {
    /// The timeline of a job created at `now`.
    #[must_use]
    pub fn new(now: Stamp) -> Self {
        Self {
            process_start: now,
            preprocessing_start: None,
            preprocessing_end: None,
            inference_start: None,
            inference_end: None,
            postprocessing_start: None,
            postprocessing_end: None,
            process_end: None,
            ended: None,
        }
    }

    /// The status, derived.
    #[must_use]
    pub fn status(&self) -> Status {
        if self.postprocessing_end.is_some() {
            return Status::PostprocessingComplete;
        }
        match &self.ended {
            Some(Ended::Failed(failure)) => return failure.code.into(),
            Some(Ended::Cancelled) => return Status::Cancelled,
            None => {}
        }
        if self.postprocessing_start.is_some() && self.inference_end.is_some() {
            Status::Postprocessing
        } else if self.inference_end.is_some() {
            Status::InferenceComplete
        } else if self.inference_start.is_some() && self.preprocessing_end.is_some() {
            Status::Inference
        } else if self.preprocessing_end.is_some() {
            Status::PreprocessingComplete
        } else if self.preprocessing_start.is_some() {
            Status::Preprocessing
        } else {
            Status::Enqueue
        }
    }

    /// From PROCESS_START to PROCESS_END, once it has ended.
    #[must_use]
    pub fn total(&self) -> Option<Duration> {
        self.process_end.map(|end| end.since(self.process_start))
    }

    /// The timeline after `event` happened at `at`.
    ///
    /// # Errors
    /// The [`Refusal`] says why the event changes nothing; the timeline then stays as it was. What is
    /// recorded already is a [`Refusal::Repeat`], however late it is repeated.
    pub fn apply(&self, event: Event, at: Stamp) -> Result<Self, Refusal> {
        let mut next = self.clone();
        let (slot, required) = match event {
            Event::PreprocessingStarted => (&mut next.preprocessing_start, true),
            Event::PreprocessingEnded => (&mut next.preprocessing_end, self.preprocessing_start.is_some()),
            Event::InferenceStarted => (&mut next.inference_start, self.preprocessing_start.is_some()),
            Event::InferenceEnded => {
                (&mut next.inference_end, self.inference_start.is_some() && self.preprocessing_end.is_some())
            }
            Event::PostprocessingStarted => (&mut next.postprocessing_start, self.inference_start.is_some()),
            Event::PostprocessingEnded => (
                &mut next.postprocessing_end,
                self.postprocessing_start.is_some() && self.inference_end.is_some(),
            ),
            Event::Failed(failure) => return self.end(Ended::Failed(failure), at),
            Event::Cancelled => return self.end(Ended::Cancelled, at),
            Event::Retried { decoded, detected } => return self.again(decoded, detected),
        };
        if slot.is_some() {
            return Err(Refusal::Repeat);
        }
        if self.process_end.is_some() {
            return Err(Refusal::Finished);
        }
        if !required {
            return Err(Refusal::TooEarly);
        }
        *slot = Some(at);
        if next.postprocessing_end.is_some() {
            next.process_end = Some(at);
        }
        Ok(next)
    }

    /// The timeline of a job that ends without a result. A second failure of the same part is a repeat:
    /// two segments may fail at the same moment, and the first one's message stands.
    fn end(&self, ended: Ended, at: Stamp) -> Result<Self, Refusal> {
        match (&self.ended, &ended) {
            (Some(Ended::Failed(old)), Ended::Failed(new)) if old.code == new.code => Err(Refusal::Repeat),
            (Some(Ended::Cancelled), Ended::Cancelled) => Err(Refusal::Repeat),
            _ if self.process_end.is_some() => Err(Refusal::Finished),
            _ => Ok(Self { ended: Some(ended), process_end: Some(at), ..self.clone() }),
        }
    }

    /// The timeline of another run. An END cannot stand while part of its stage's work is to be done.
    fn again(&self, decoded: bool, detected: bool) -> Result<Self, Refusal> {
        if self.postprocessing_end.is_some() {
            return Err(Refusal::Finished);
        }
        if self.ended.is_none() {
            return Err(Refusal::TooEarly);
        }
        Ok(Self {
            preprocessing_end: self.preprocessing_end.filter(|_| decoded),
            inference_end: self.inference_end.filter(|_| decoded && detected),
            process_end: None,
            ended: None,
            ..self.clone()
        })
    }
}

/// Formats a duration as the original's TOTAL: `H:MM:SS.ffffff`.
#[must_use]
pub fn format_total(total: Duration) -> String {
    let seconds = total.as_secs();
    format!("{}:{:02}:{:02}.{:06}", seconds / 3600, seconds / 60 % 60, seconds % 60, total.subsec_micros())
}

/// Arithmetic the network is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    Fp32,
    /// bfloat16.
    Bf16,
    /// 16-bit floating point (GPU).
    Fp16,
    /// 8-bit integers, with the scales of a calibrated model (CPU).
    Int8,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        })
    }
}

/// The network a job must be detected with, so that all its segments agree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelKey {
    /// SHA-256 of the weights file, hexadecimal.
    pub digest: String,
    /// Arithmetic.
    pub precision: Precision,
}

/// What a user asked for. Frozen when the job is created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Detections under this score are kept in the data but neither drawn, counted nor written to txt.
    pub conf: f32,
    /// Overlap (intersection over union) above which non-maximum suppression drops the weaker box.
    pub iou: f32,
    /// The most detections a frame keeps.
    pub max_det: u32,
    /// Only these classes (0-based indices into the model's names) are drawn, counted and written; empty: all.
    pub classes: Vec<u16>,
    /// Detect each Nth frame and hold the boxes between. At least 1.
    pub every: u32,
    /// Keep `src_frame/` and `tar_frame/` pictures.
    pub keep_frames: bool,
    /// Write `txts/infer{n}.txt`.
    pub save_txt: bool,
    /// Make the annotated MP4.
    pub mp4: bool,
    /// Make the annotated AVI.
    pub avi: bool,
    /// Names of the model's classes, in the model's order (without background).
    pub names: Vec<String>,
    /// The network to use.
    pub model: ModelKey,
}

impl Settings {
    /// The index of the frame whose detections frame `n` shows.
    #[must_use]
    pub fn detected_frame(&self, n: u32) -> u32 {
        n - n % self.every.max(1)
    }

    /// The frames that must be detected for frames `first..=last` to be shown, in rising order: usually all of
    /// them; with [`Settings::every`] fewer, the first of them perhaps before `first`.
    pub fn detected_frames(&self, first: u32, last: u32) -> impl Iterator<Item = u32> + use<> {
        (self.detected_frame(first)..=last).step_by(self.every.max(1) as usize)
    }

    /// Whether a detection is drawn, counted and written to txt.
    #[must_use]
    pub fn shows(&self, detection: &crate::detection::Detection) -> bool {
        detection.score >= self.conf && (self.classes.is_empty() || self.classes.contains(&detection.class))
    }
}

/// The file a job reads its pictures from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Absolute path of the file; on the volume for uploads, anywhere for `boxreel detect`.
    #[serde(with = "path_text")]
    pub path: std::path::PathBuf,
    /// Bytes.
    pub size: u64,
}

/// What index froze for the whole job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The frame index.
    pub index: FileRecord,
    /// The stand-in for the source, when the source itself can't be cut exactly.
    pub mezzanine: Option<FileRecord>,
    /// Frames in the video.
    pub frames: u32,
    /// Segments it was cut into.
    pub segments: u32,
    /// Width of the upright picture in pixels.
    pub width: u32,
    /// Height of the upright picture in pixels.
    pub height: u32,
    /// Streams of the source that the result leaves out, each as a phrase ("subtitles (mov_text)").
    pub dropped: Vec<String>,
}

impl Plan {
    /// The file that pictures are read from: the stand-in when there is one, else the source.
    #[must_use]
    pub fn pictures(&self, folder: &crate::files::JobFolder, source: &Source) -> std::path::PathBuf {
        self.mezzanine.as_ref().map_or_else(|| source.path.clone(), |mezzanine| folder.named(mezzanine))
    }
}

/// What assemble made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Frames written.
    pub frames: u32,
    /// Length in seconds.
    pub duration: f64,
    /// Shown detections per class name, most first.
    pub counts: Vec<(String, u64)>,
    /// Frames that could not be decoded and show their predecessor.
    pub concealed: Vec<u32>,
    /// Sentences a user should read (dropped streams, concealed frames).
    pub notes: Vec<String>,
}

/// A path as text, or as bytes where it is none: Linux allows any bytes in a name, and a user's folder may
/// hold such a file.
mod path_text {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(PathBuf),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => path.as_os_str().as_bytes().serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Stored::deserialize(deserializer)? {
            Stored::Text(path) => path,
            Stored::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn failed(code: ErrorCode) -> Event {
        Event::Failed(Failure { code, message: "It broke.".to_owned() })
    }

    fn at(second: i64) -> Stamp {
        Stamp(second * 1_000_000)
    }

    /// The timeline after `events`, at seconds 1, 2, 3, …
    fn after(events: &[Event]) -> Timeline {
        events.iter().zip(1..).fold(Timeline::new(at(0)), |timeline, (event, second)| {
            timeline.apply(event.clone(), at(second)).unwrap()
        })
    }

    #[test]
    fn every_event_in_every_state() {
        use Event::*;
        let (ps, pe, is, ie) = (PreprocessingStarted, PreprocessingEnded, InferenceStarted, InferenceEnded);
        let (os, oe) = (PostprocessingStarted, PostprocessingEnded);
        let retried = Retried { decoded: true, detected: true };
        let broken = failed(ErrorCode::FrameConvertError);
        let events = [
            ps.clone(),
            pe.clone(),
            is.clone(),
            ie.clone(),
            os.clone(),
            oe.clone(),
            broken.clone(),
            failed(ErrorCode::InferenceError),
            Cancelled,
            retried.clone(),
        ];
        let straight = [ps.clone(), pe.clone(), is.clone(), ie.clone(), os.clone(), oe.clone()];
        // What led there, its status, and what each event does: + happens, r is a repeat, x comes too late,
        // e too early.
        let states: Vec<(Vec<Event>, Status, &str)> = vec![
            (vec![], Status::Enqueue, "+eeeee+++e"),
            (straight[..1].to_vec(), Status::Preprocessing, "r++eee+++e"),
            (straight[..2].to_vec(), Status::PreprocessingComplete, "rr+eee+++e"),
            (straight[..3].to_vec(), Status::Inference, "rrr++e+++e"),
            (straight[..4].to_vec(), Status::InferenceComplete, "rrrr+e+++e"),
            (straight[..5].to_vec(), Status::Postprocessing, "rrrrr++++e"),
            (straight[..6].to_vec(), Status::PostprocessingComplete, "rrrrrrxxxx"),
            // Stages overlap.
            (vec![ps.clone(), is.clone()], Status::Preprocessing, "r+re+e+++e"),
            (vec![ps.clone(), is.clone(), os.clone()], Status::Preprocessing, "r+rere+++e"),
            (vec![ps.clone(), is.clone(), os.clone(), pe.clone()], Status::Inference, "rrr+re+++e"),
            // Ended early.
            (vec![ps.clone(), broken.clone()], Status::FrameConvertError, "rxxxxxrxx+"),
            (vec![failed(ErrorCode::EnqueueError)], Status::EnqueueError, "xxxxxxxxx+"),
            (vec![ps.clone(), pe.clone(), is.clone(), Cancelled], Status::Cancelled, "rrrxxxxxr+"),
            (vec![ps.clone(), Cancelled, retried.clone()], Status::Preprocessing, "r++eee+++e"),
        ];
        for (led, status, expected) in states {
            let timeline = after(&led);
            assert_eq!(timeline.status(), status, "after {led:?}");
            assert_eq!(timeline.process_end.is_some(), status.is_final(), "after {led:?}");
            let found: String = events
                .iter()
                .map(|event| match timeline.apply(event.clone(), at(99)) {
                    Ok(next) => {
                        assert_ne!(next, timeline, "{event:?} after {led:?}");
                        '+'
                    }
                    Err(Refusal::Repeat) => 'r',
                    Err(Refusal::Finished) => 'x',
                    Err(Refusal::TooEarly) => 'e',
                })
                .collect();
            assert_eq!(found, expected, "after {led:?}");
        }
    }

    #[test]
    fn the_result_outweighs_everything_and_an_early_end_outweighs_the_rest() {
        for bits in 0..64_u32 {
            let stamp = |bit: u32| (bits >> bit & 1 == 1).then_some(at(1));
            let ends = [None, Some(Ended::Cancelled)].into_iter();
            let failures = [ErrorCode::EnqueueError, ErrorCode::InferenceError]
                .map(|code| Some(Ended::Failed(Failure { code, message: String::new() })));
            for ended in ends.chain(failures) {
                let timeline = Timeline {
                    preprocessing_start: stamp(0),
                    preprocessing_end: stamp(1),
                    inference_start: stamp(2),
                    inference_end: stamp(3),
                    postprocessing_start: stamp(4),
                    postprocessing_end: stamp(5),
                    ended: ended.clone(),
                    ..Timeline::new(at(0))
                };
                let status = timeline.status();
                if timeline.postprocessing_end.is_some() {
                    assert_eq!(status, Status::PostprocessingComplete);
                } else {
                    match ended {
                        Some(Ended::Failed(failure)) => assert_eq!(status, failure.code.into()),
                        Some(Ended::Cancelled) => assert_eq!(status, Status::Cancelled),
                        None => assert!(!status.is_final(), "{status} of {timeline:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_result_ends_the_job_and_its_total_counts_from_the_upload() {
        use Event::*;
        let mut events = vec![PreprocessingStarted, PreprocessingEnded, InferenceStarted, InferenceEnded];
        events.extend([PostprocessingStarted, PostprocessingEnded]);
        let timeline = after(&events);
        assert_eq!(timeline.process_end, timeline.postprocessing_end);
        assert_eq!(timeline.total(), Some(Duration::from_secs(6)));
        assert_eq!(after(&events[..5]).total(), None);
    }

    #[test]
    fn a_retry_keeps_the_starts_and_only_the_ends_that_still_hold() {
        use Event::*;
        let mut events = vec![PreprocessingStarted, PreprocessingEnded, InferenceStarted, InferenceEnded];
        events.extend([PostprocessingStarted, failed(ErrorCode::PostprocessingError)]);
        let ended = after(&events);
        for (decoded, detected, status) in [
            (true, true, Status::Postprocessing),
            (true, false, Status::Inference),
            (false, true, Status::Preprocessing),
            (false, false, Status::Preprocessing),
        ] {
            let again = ended.apply(Retried { decoded, detected }, at(9)).unwrap();
            assert_eq!(again.status(), status);
            assert_eq!((again.process_end, again.ended.as_ref()), (None, None));
            assert_eq!(again.process_start, ended.process_start);
            assert_eq!(again.preprocessing_start, ended.preprocessing_start);
            assert_eq!(again.inference_start, ended.inference_start);
            assert_eq!(again.postprocessing_start, ended.postprocessing_start);
        }
    }

    #[test]
    fn statuses_are_read_as_they_are_written_and_as_the_original_misspelt_them() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        for (alias, status) in [
            ("INFERENCING", Status::Inference),
            ("INFRENCING", Status::Inference),
            ("INFERENCING_COMPLETE", Status::InferenceComplete),
            ("INFRENCING_COMPLETE", Status::InferenceComplete),
        ] {
            assert_eq!(alias.parse(), Ok(status));
        }
        for nonsense in ["", "enqueue", "DONE", "ENQUEUE "] {
            assert_eq!(nonsense.parse::<Status>(), Err(UnknownStatus(nonsense.to_owned())));
        }
    }

    #[test]
    fn job_ids_are_object_ids() {
        let id = JobId::new(at(0x630d_c9e9));
        let text = id.to_string();
        assert!(text.starts_with("630dc9e9") && text.len() == 24, "{text}");
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.to_uppercase().parse(), Ok(id));
        for bad in [
            "",
            "630dc9e9",
            "zz0dc9e9aaaaaaaaaaaaaaaa",
            "+30dc9e9aaaaaaaaaaaaaaaa",
            "é30dc9e9aaaaaaaaaaaaaaa",
        ] {
            assert_eq!(bad.parse::<JobId>(), Err(InvalidJobId), "{bad:?}");
        }
        assert!(JobId::new(at(1)) < JobId::new(at(2)), "newer ids sort later");
    }

    #[test]
    fn totals_and_stamps_read_as_in_the_original() {
        assert_eq!(format_total(Duration::from_micros(218_918_805)), "0:03:38.918805");
        assert_eq!(format_total(Duration::from_secs(100 * 3600 + 61)), "100:01:01.000000");
        assert_eq!(Stamp(1_661_847_493_663_000).to_string(), "2022-08-30 08:18:13.663000");
    }

    #[test]
    fn any_path_survives_being_stored() {
        for path in
            ["/videos/Fahrräder.mp4".into(), std::ffi::OsString::from_vec(b"/v/\xff\xfe.mp4".to_vec())]
        {
            let source = Source { path: path.into(), size: 1 };
            let text = serde_json::to_string(&source).unwrap();
            assert_eq!(serde_json::from_str::<Source>(&text).unwrap(), source, "{text}");
        }
    }
}
