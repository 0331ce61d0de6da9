//! Decode, per segment: pictures as the network wants them into a pack, and as JPEG when frames are kept.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use common::files::{Draft, JobFolder, Volume};
use common::input::{blocking, named_file};
use common::job::{Plan, Settings};
use common::pack::PackWriter;
use common::segment::Stage;
use common::store::{ClaimRequest, JobStore, Output};
use common::worker::{Assignment, JobError, Work};
use media::MediaError;
use media::child::{Access, Pool, Progress, Task};
use media::decode::decode_segment;
use media::index::FrameIndex;
use media::picture::{JPEG_QUALITY, JpegWriter, Shrinker};
use serde::{Deserialize, Serialize};

/// What the child is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct DecodeRequest {
    source: PathBuf,
    index: PathBuf,
    first: u32,
    last: u32,
    settings: Settings,
    folder: JobFolder,
    pack: PathBuf,
}

/// The part of decode that touches the video.
pub struct DecodeTask;

impl Task for DecodeTask {
    const NAME: &'static str = "decode";
    type Request = DecodeRequest;
    /// Numbers of the frames that show their predecessor.
    type Response = Vec<u32>;

    fn run(request: DecodeRequest, progress: &Progress) -> Result<Vec<u32>, MediaError> {
        let DecodeRequest { source, index, first, last, settings, folder, pack } = request;
        let index = FrameIndex::read(&index)?;
        let not_stored = |error: std::io::Error| MediaError::storage("store decoded frames", &error);
        let draft = Draft::new(&pack);
        let mut writer = draft.create().and_then(PackWriter::new).map_err(not_stored)?;
        let mut shrinker = Shrinker::new(&index.video.color);
        let mut jpeg =
            settings.keep_frames.then(|| JpegWriter::new(&index.video.color, JPEG_QUALITY)).transpose()?;
        let mut pictures = Vec::new();
        // With `every`, the boxes of the first frames may be held from a frame before the segment.
        let from = settings.detected_frame(first);
        let mut concealed = decode_segment(&source, &index, from, last, 1, &mut |n, picture| {
            if settings.detected_frame(n) == n {
                writer.push(shrinker.shrink(picture)?).map_err(not_stored)?;
            }
            if let Some(jpeg) = jpeg.as_mut().filter(|_| n >= first) {
                let draft = Draft::new(&folder.src_frame(n));
                std::fs::write(draft.aside(), jpeg.encode(picture)?).map_err(not_stored)?;
                pictures.push(draft);
            }
            progress.tick(1);
            Ok(())
        })?;
        concealed.retain(|&n| n >= first);
        writer.finish().map_err(not_stored)?;
        Draft::publish_all(pictures).map_err(not_stored)?;
        draft.publish().map_err(not_stored)?;
        Ok(concealed)
    }
}

/// The decode stage of the worker loop.
pub struct DecodeStage {
    /// The shared volume.
    pub volume: Volume,
    /// The children that touch the video.
    pub pool: Arc<Pool>,
    /// Where the other segments' damage is recorded.
    pub store: Arc<dyn JobStore>,
    /// Bytes of packs that may wait for detect before decode pauses.
    pub pack_budget: u64,
}

#[async_trait]
impl Work for DecodeStage {
    fn stage(&self) -> Stage {
        Stage::Decode
    }

    fn request(&self, request: ClaimRequest) -> ClaimRequest {
        ClaimRequest { pack_budget: Some(self.pack_budget), ..request }
    }

    async fn run(&self, work: &Assignment) -> Result<Output, JobError> {
        let (plan, segment) = work.planned()?;
        let folder = self.volume.job(work.job.id);
        let index = named_file(work, &folder, &plan.index, Stage::Index).await?;
        let access =
            Access { read: vec![work.job.source.path.clone()], write: vec![folder.path().to_owned()] };
        let request = DecodeRequest {
            source: plan.pictures(&folder, &work.job.source),
            index,
            first: segment.first,
            last: segment.last,
            settings: work.job.settings.clone(),
            pack: folder.pack(segment.index, &work.lease.token),
            folder: folder.clone(),
        };
        let concealed = media::stage::run_in_child::<DecodeTask>(&self.pool, work, &request, &access).await?;
        self.check_damage(work, plan, &concealed).await?;
        let pack = blocking(move || folder.record(&request.pack))
            .await
            .map_err(|error| JobError::storage("read the decoded frames back", error))?;
        Ok(Output::Decoded { pack, concealed })
    }
}

impl DecodeStage {
    /// A video of which more than one frame in twenty is damaged is no result one would want.
    async fn check_damage(&self, work: &Assignment, plan: &Plan, concealed: &[u32]) -> Result<(), JobError> {
        if concealed.is_empty() {
            return Ok(());
        }
        let segments = self.store.segments(work.job.id).await;
        let segments = segments
            .map_err(|error| JobError::retry_because("The segments cannot be read from the store.", error))?;
        let others =
            segments.iter().filter(|other| Some(other.index) != work.segment.as_ref().map(|own| own.index));
        let damaged = concealed.len() + others.map(|other| other.files.concealed.len()).sum::<usize>();
        if damaged * 20 > plan.frames as usize {
            return Err(JobError::fail(format!(
                "At least {damaged} of the video's {} frames are damaged and cannot be decoded; use an undamaged copy.",
                plan.frames
            )));
        }
        Ok(())
    }
}
