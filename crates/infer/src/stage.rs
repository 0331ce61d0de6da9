//! Detect, per segment: a pack in, its detections out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use common::detection::write_detections;
use common::files::{Draft, Volume};
use common::input::{blocking, named_file};
use common::pack::Pack;
use common::segment::{Segment, Stage};
use common::store::{ClaimRequest, Job, Output};
use common::worker::{Assignment, JobError, Work};

use crate::{DetectError, Detector, Frames, NmsOptions};

/// The detect stage of the worker loop.
pub struct DetectStage {
    /// The shared volume.
    pub volume: Volume,
    /// The model.
    pub detector: Detector,
}

#[async_trait]
impl Work for DetectStage {
    fn stage(&self) -> Stage {
        Stage::Detect
    }

    fn request(&self, request: ClaimRequest) -> ClaimRequest {
        ClaimRequest { model: Some(self.detector.key().clone()), ..request }
    }

    async fn run(&self, work: &Assignment) -> Result<Output, JobError> {
        let (_, segment) = work.planned()?;
        let settings = &work.job.settings;
        let folder = self.volume.job(work.job.id);
        let pack = segment
            .files
            .pack
            .as_ref()
            .ok_or_else(|| JobError::send_back(Stage::Decode, "the segment names no pack"))?;
        let path = named_file(work, &folder, pack, Stage::Decode).await?;
        let pack = blocking(move || Pack::read(&path))
            .await
            .map_err(|error| JobError::storage("read the decoded frames", error))?;
        let numbers: Vec<u32> = settings.detected_frames(segment.first, segment.last).collect();
        if pack.len() != numbers.len() {
            return Err(JobError::send_back(Stage::Decode, "the pack holds other frames than planned"));
        }
        let options = NmsOptions { iou: settings.iou, max_det: settings.max_det };
        let control = &work.control;
        let ticked = AtomicU64::new(0);
        let found = self
            .detector
            .detect(Frames::of_pack(Arc::new(pack)), options, control.cancelled(), &|done| {
                let before = ticked.swap(done, Ordering::Relaxed);
                control.tick((done - before) * u64::from(settings.every.max(1)));
            })
            .await
            .map_err(|error| match error {
                DetectError::Cancelled => JobError::Stopped,
                other => JobError::retry(other.to_string()),
            })?;
        // One list a frame: between detected frames, the boxes are held.
        let frames: Vec<_> = (segment.first..=segment.last)
            .map(|n| {
                let held = settings.detected_frame(n);
                numbers.binary_search(&held).ok().and_then(|i| found.get(i)).cloned().unwrap_or_default()
            })
            .collect();
        let (first, path) = (segment.first, folder.detections(segment.index, &work.lease.token));
        let detections = blocking(move || {
            let draft = Draft::new(&path);
            write_detections(&mut draft.create()?, first, &frames)?;
            folder.record(&draft.publish()?)
        })
        .await
        .map_err(|error| JobError::storage("store the detections", error))?;
        Ok(Output::Detected { detections })
    }

    /// The pack has served: nothing reads it any more.
    async fn settled(&self, job: &Job, segment: Option<&Segment>) {
        let Some(pack) = segment.and_then(|segment| segment.files.pack.as_ref()) else { return };
        let path = self.volume.job(job.id).named(pack);
        let removed = blocking(move || std::fs::remove_file(path)).await;
        if let Err(error) = removed {
            tracing::debug!(%error, "a pack that has served could not be removed");
        }
    }
}
