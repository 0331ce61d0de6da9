//! Render, per segment: the video's pictures again, with boxes, encoded for both containers.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use common::detection::{Detection, read_detections};
use common::files::{Draft, Encoding, JobFolder, Volume};
use common::input::{blocking, named_file};
use common::job::Settings;
use common::outputs::frame_txt;
use common::segment::Stage;
use common::store::Output;
use common::worker::{Assignment, JobError, Work};
use media::MediaError;
use media::child::{Access, Pool, Progress, Task};
use media::decode::decode_segment;
use media::encode::{EncoderSettings, SegmentEncoder, SegmentSpec};
use media::index::FrameIndex;
use media::join::Container;
use media::picture::{JPEG_QUALITY, JpegWriter};
use serde::{Deserialize, Serialize};

use crate::draw::Painter;

/// What the child is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct RenderRequest {
    source: PathBuf,
    index: PathBuf,
    detections: PathBuf,
    first: u32,
    last: u32,
    settings: Settings,
    encoder: EncoderSettings,
    folder: JobFolder,
    encoded: Vec<(Encoding, PathBuf)>,
}

/// The part of render that touches the video.
pub struct RenderTask;

impl Task for RenderTask {
    const NAME: &'static str = "render";
    type Request = RenderRequest;
    type Response = ();

    fn run(request: RenderRequest, progress: &Progress) -> Result<(), MediaError> {
        let not_stored = |error: std::io::Error| MediaError::storage("store drawn frames", &error);
        let RenderRequest { source, index, detections, first, last, settings, encoder, folder, encoded } =
            request;
        let index = FrameIndex::read(&index)?;
        let detections = read_detections(&detections)
            .map_err(|error| MediaError::storage("read the segment's detections", &error))?;
        let painter = Painter::new(&settings.names, index.video.width, index.video.height, index.video.color);
        let mut outputs = encoded
            .iter()
            .map(|(encoding, path)| {
                let draft = Draft::new(path);
                let spec = SegmentSpec {
                    codec: container(*encoding).codec(),
                    video: &index.video,
                    settings: &encoder,
                    first,
                    threads: 1,
                };
                let encoder = SegmentEncoder::create(&spec, draft.aside())?;
                Ok((draft, encoder))
            })
            .collect::<Result<Vec<_>, MediaError>>()?;
        let mut jpeg =
            settings.keep_frames.then(|| JpegWriter::new(&index.video.color, JPEG_QUALITY)).transpose()?;
        let (mut pictures, mut texts) = (Vec::new(), Vec::new());
        decode_segment(&source, &index, first, last, 1, &mut |n, picture| {
            let shown: Vec<Detection> =
                detections.frame(n).iter().copied().filter(|one| settings.shows(one)).collect();
            painter.draw(picture, &shown);
            for (_, encoder) in &mut outputs {
                encoder.push(picture)?;
            }
            if let Some(jpeg) = &mut jpeg {
                let draft = Draft::new(&folder.tar_frame(n));
                std::fs::write(draft.aside(), jpeg.encode(picture)?).map_err(not_stored)?;
                pictures.push(draft);
            }
            if settings.save_txt {
                let draft = Draft::new(&folder.txt(n));
                std::fs::write(draft.aside(), frame_txt(&settings, &shown)).map_err(not_stored)?;
                texts.push(draft);
            }
            progress.tick(1);
            Ok(())
        })?;
        Draft::publish_all(pictures).map_err(not_stored)?;
        Draft::publish_all(texts).map_err(not_stored)?;
        for (draft, encoder) in outputs {
            encoder.finish()?;
            draft.publish().map_err(not_stored)?;
        }
        Ok(())
    }
}

/// The file an encoding ends up in.
pub(crate) fn container(encoding: Encoding) -> Container {
    match encoding {
        Encoding::H264 => Container::Mp4,
        Encoding::Mpeg4 => Container::Avi,
    }
}

/// The encodings a job asks for.
pub(crate) fn encodings(settings: &Settings) -> impl Iterator<Item = Encoding> {
    [(settings.mp4, Encoding::H264), (settings.avi, Encoding::Mpeg4)]
        .into_iter()
        .filter_map(|(wanted, encoding)| wanted.then_some(encoding))
}

/// The render stage of the worker loop.
pub struct RenderStage {
    /// The shared volume.
    pub volume: Volume,
    /// The children that touch the video.
    pub pool: Arc<Pool>,
}

#[async_trait]
impl Work for RenderStage {
    fn stage(&self) -> Stage {
        Stage::Render
    }

    async fn run(&self, work: &Assignment) -> Result<Output, JobError> {
        let (plan, segment) = work.planned()?;
        let folder = self.volume.job(work.job.id);
        let detections = segment
            .files
            .detections
            .as_ref()
            .ok_or_else(|| JobError::send_back(Stage::Detect, "the segment names no detections"))?;
        let detections = named_file(work, &folder, detections, Stage::Detect).await?;
        let request = RenderRequest {
            source: plan.pictures(&folder, &work.job.source),
            index: named_file(work, &folder, &plan.index, Stage::Index).await?,
            detections,
            first: segment.first,
            last: segment.last,
            settings: work.job.settings.clone(),
            encoder: EncoderSettings::default(),
            encoded: encodings(&work.job.settings)
                .map(|encoding| (encoding, folder.encoded(segment.index, encoding, &work.lease.token)))
                .collect(),
            folder: folder.clone(),
        };
        let access =
            Access { read: vec![work.job.source.path.clone()], write: vec![folder.path().to_owned()] };
        media::stage::run_in_child::<RenderTask>(&self.pool, work, &request, &access).await?;
        let encoded = blocking(move || {
            request
                .encoded
                .into_iter()
                .map(|(encoding, path)| Ok((encoding, folder.record(&path)?)))
                .collect()
        })
        .await
        .map_err(|error| JobError::storage("read the drawn frames back", error))?;
        Ok(Output::Rendered { encoded })
    }
}
