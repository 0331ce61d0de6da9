//! Index, once per job: read the packets, list the frames, cut the video into segments.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::files::{Draft, Volume};
use common::input::blocking;
use common::job::{ErrorCode, Failure, Plan};
use common::segment::{Cut, Stage};
use common::store::{JobStore, Output, Renewal};
use common::worker::{Assignment, JobError, Work};
use media::MediaError;
use media::child::{Access, Pool, Progress, Task};
use media::index::prepare;
use media::probe::Limits;
use serde::{Deserialize, Serialize};

/// What the child is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct IndexRequest {
    source: PathBuf,
    index: PathBuf,
    mezzanine: PathBuf,
    limits: Limits,
}

/// What the child found.
#[derive(Debug, Serialize, Deserialize)]
pub struct IndexResponse {
    cuts: Vec<(u32, u32)>,
    frames: u32,
    width: u32,
    height: u32,
    has_mezzanine: bool,
    dropped: Vec<String>,
}

/// The part of index that touches the video.
pub struct IndexTask;

impl Task for IndexTask {
    const NAME: &'static str = "index";
    type Request = IndexRequest;
    type Response = IndexResponse;

    fn run(request: IndexRequest, progress: &Progress) -> Result<IndexResponse, MediaError> {
        let mezzanine = Draft::new(&request.mezzanine);
        let prepared =
            prepare(&request.source, &request.limits, mezzanine.aside(), &mut progress.of_totals())?;
        let has_mezzanine = prepared.mezzanine.is_some();
        if has_mezzanine {
            mezzanine.publish().map_err(|error| MediaError::storage("store the re-encoded video", &error))?;
        }
        let index = prepared.index;
        let draft = Draft::new(&request.index);
        let stored =
            draft.create().and_then(|mut file| index.write(&mut file)).and_then(|()| draft.publish());
        stored.map_err(|error| MediaError::storage("store the frame index", &error))?;
        Ok(IndexResponse {
            frames: u32::try_from(index.frames.len()).map_err(|_| too_many_frames())?,
            cuts: prepared.segments,
            width: index.video.width,
            height: index.video.height,
            has_mezzanine,
            dropped: index.dropped,
        })
    }
}

fn too_many_frames() -> MediaError {
    MediaError::Input("The video has too many frames; cut it into parts first.".to_owned())
}

/// The index stage of the worker loop.
pub struct IndexStage {
    /// Where jobs claim their leases.
    pub store: Arc<dyn JobStore>,
    /// The shared volume.
    pub volume: Volume,
    /// The children that touch the video.
    pub pool: Arc<Pool>,
    /// The largest video accepted.
    pub limits: Limits,
}

#[async_trait]
impl Work for IndexStage {
    fn stage(&self) -> Stage {
        Stage::Index
    }

    async fn run(&self, work: &Assignment) -> Result<Output, JobError> {
        let folder = self.volume.job(work.job.id);
        let request = IndexRequest {
            source: work.job.source.path.clone(),
            index: folder.index(&work.lease.token),
            mezzanine: folder.mezzanine(&work.lease.token),
            limits: self.limits.clone(),
        };
        let access =
            Access { read: vec![work.job.source.path.clone()], write: vec![folder.path().to_owned()] };
        let response = media::stage::run_in_child::<IndexTask>(&self.pool, work, &request, &access).await;
        let response = match response {
            Ok(response) => response,
            Err(error) => return Err(self.refused(work, error).await),
        };
        let cuts: Vec<Cut> = response.cuts.iter().map(|&(first, last)| Cut { first, last }).collect();
        let segments =
            u32::try_from(cuts.len()).map_err(|_| JobError::fail(too_many_frames().to_string()))?;
        let (index, mezzanine) = blocking(move || {
            let mezzanine = response.has_mezzanine.then(|| folder.record(&request.mezzanine)).transpose()?;
            Ok((folder.record(&request.index)?, mezzanine))
        })
        .await
        .map_err(|error| JobError::storage("read the frame index back", error))?;
        let put = self.store.put_segments(&work.lease, &cuts).await;
        let put =
            put.map_err(|error| JobError::retry_because("The segments could not be recorded.", error))?;
        if put != Renewal::Held {
            return Err(JobError::Stopped);
        }
        Ok(Output::Indexed(Plan {
            index,
            mezzanine,
            frames: response.frames,
            segments,
            width: response.width,
            height: response.height,
            dropped: response.dropped,
        }))
    }
}

impl IndexStage {
    /// A file that is at fault ends the job with ENQUEUE_ERROR: what was uploaded is no video Boxreel takes. (What the
    /// loop does with the error by itself would read FRAME_CONVERT_ERROR.)
    async fn refused(&self, work: &Assignment, error: JobError) -> JobError {
        if let JobError::Fail { message } = &error {
            // The store does not fence this by a token: only who still holds the lease may speak for the job. (No
            // time is added; renewing tells.)
            match self.store.renew(&work.lease, Duration::ZERO).await {
                Ok(Renewal::Held) => {}
                Ok(Renewal::Lost | Renewal::Cancelled) => return JobError::Stopped,
                Err(error) => {
                    return JobError::retry_because("The job's failure could not be recorded.", error);
                }
            }
            let failure = Failure { code: ErrorCode::EnqueueError, message: message.clone() };
            if let Err(unanswered) = self.store.fail(work.job.id, failure).await {
                return JobError::retry_because("The job's failure could not be recorded.", unanswered);
            }
        }
        error
    }
}
