//! `detections.json`: one object that `pycocotools.COCO` loads, and whose annotations are COCO results.

use std::io::{self, BufWriter, Write};

use crate::detection::SegmentDetections;
use crate::job::Settings;
use crate::labels::category_id;
use serde::Serialize;

use super::{Fixed, PixelBox, Progress, VideoFacts, class_name};

/// Writes the COCO file of one video as its segments come.
///
/// * `info`: the video, the model and the settings that made the file.
/// * `images`: one a frame. `id` and `frame` are the frame's number from 0, `file_name` its name among the kept
///   frame pictures, `timestamp` its presentation time in seconds.
/// * `categories`: COCO's official, non-contiguous ids for COCO's names.
/// * `annotations`: one a detection, strongest first within a frame as detect found them. `id` counts from 1
///   (pycocotools takes 0 for "no match"), `bbox` is `[x, y, width, height]` in pixels of the upright picture.
pub struct CocoWriter<'a, W: Write> {
    writer: BufWriter<W>,
    video: VideoFacts<'a>,
    category_ids: Vec<u32>,
    progress: Progress,
    annotations: u64,
}

#[derive(Serialize)]
struct Info<'a> {
    description: String,
    contributor: String,
    video: &'a str,
    frames: u32,
    width: u32,
    height: u32,
    model_sha256: &'a str,
    precision: String,
    conf: f32,
    iou: f32,
    max_det: u32,
    every: u32,
}

#[derive(Serialize)]
struct Category {
    id: u32,
    name: String,
}

impl<'a, W: Write> CocoWriter<'a, W> {
    /// Starts the file: everything up to the annotations. `seconds` gives a frame's presentation time.
    ///
    /// # Errors
    /// When `writer` does.
    pub fn new(
        writer: W,
        video: VideoFacts<'a>,
        settings: &Settings,
        seconds: impl Fn(u32) -> f64,
    ) -> io::Result<Self> {
        let mut writer = BufWriter::with_capacity(1 << 16, writer);
        let info = Info {
            description: format!("Objects detected in {}", video.name),
            contributor: format!("Boxreel {}", env!("CARGO_PKG_VERSION")),
            video: video.name,
            frames: video.frames,
            width: video.width,
            height: video.height,
            model_sha256: &settings.model.digest,
            precision: settings.model.precision.to_string(),
            conf: settings.conf,
            iou: settings.iou,
            max_det: settings.max_det,
            every: settings.every,
        };
        write!(writer, "{{\"info\":{},\n\"images\":[", serde_json::to_string(&info)?)?;
        for n in video.told.clone() {
            write!(
                writer,
                "{}\n{{\"id\":{n},\"file_name\":\"frame_{n}.jpg\",\"width\":{},\"height\":{},\"frame\":{n},\
                 \"timestamp\":{}}}",
                if n == video.told.start { "" } else { "," },
                video.width,
                video.height,
                Fixed::micros(seconds(n)),
            )?;
        }
        let categories: Vec<_> = (0..settings.names.len())
            .map(|class| Category {
                id: category_id(&settings.names, class),
                name: class_name(&settings.names, class),
            })
            .collect();
        write!(writer, "\n],\n\"categories\":{},\n\"annotations\":[", serde_json::to_string(&categories)?)?;
        let category_ids = categories.into_iter().map(|category| category.id).collect();
        let progress = Progress::new(&video.told);
        Ok(Self { writer, video, category_ids, progress, annotations: 0 })
    }

    /// Adds the next segment.
    ///
    /// # Errors
    /// When writing fails; [`io::ErrorKind::InvalidInput`] when another frame was due, or a class is not among
    /// the model's names.
    pub fn push(&mut self, segment: &SegmentDetections) -> io::Result<()> {
        self.progress.segment(segment)?;
        for (n, detections) in segment.numbered() {
            for detection in detections {
                let category = self.category_ids.get(usize::from(detection.class)).ok_or_else(|| {
                    let message = format!("frame {n} has a detection of unknown class {}", detection.class);
                    io::Error::new(io::ErrorKind::InvalidInput, message)
                })?;
                let PixelBox { x_min, y_min, x_max, y_max } = PixelBox::new(&detection.bbox, &self.video);
                let (width, height) = (x_max - x_min, y_max - y_min);
                let comma = if self.annotations == 0 { "" } else { "," };
                self.annotations += 1;
                write!(
                    self.writer,
                    "{comma}\n{{\"id\":{},\"image_id\":{n},\"category_id\":{category},\
                     \"bbox\":[{},{},{},{}],\"area\":{},\"iscrowd\":0,\"score\":{}}}",
                    self.annotations,
                    Fixed::<2>(x_min),
                    Fixed::<2>(y_min),
                    Fixed::<2>(width),
                    Fixed::<2>(height),
                    Fixed::<4>(width * height),
                    Fixed::micros(f64::from(detection.score)),
                )?;
            }
        }
        Ok(())
    }

    /// Ends the file and hands the writer back, flushed, for syncing and publishing.
    ///
    /// # Errors
    /// When writing fails; [`io::ErrorKind::InvalidInput`] when frames are missing.
    pub fn finish(mut self) -> io::Result<W> {
        self.progress.finish()?;
        self.writer.write_all(b"\n]}\n")?;
        self.writer.into_inner().map_err(io::IntoInnerError::into_error)
    }
}
