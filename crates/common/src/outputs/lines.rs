//! Detections as JSON lines: one object a detection, for programs that read as they go.

use std::io::{self, BufWriter, Write};

use super::{Fixed, PixelBox, Progress, VideoFacts, class_name};
use crate::detection::SegmentDetections;
use crate::job::Settings;
use crate::labels::category_id;

/// Writes the lines of one video as its segments come: frame number from 0, presentation time in seconds, class name,
/// category id as in the COCO file, score, and the box as `[x, y, width, height]` in pixels of the upright picture.
pub struct LinesWriter<'a, W: Write, S> {
    writer: BufWriter<W>,
    video: VideoFacts<'a>,
    settings: &'a Settings,
    seconds: S,
    progress: Progress,
}

impl<'a, W: Write, S: Fn(u32) -> f64> LinesWriter<'a, W, S> {
    /// Starts without a line. `seconds` gives a frame's presentation time.
    #[must_use]
    pub fn new(writer: W, video: VideoFacts<'a>, settings: &'a Settings, seconds: S) -> Self {
        let progress = Progress::new(&video.told);
        Self { writer: BufWriter::with_capacity(1 << 16, writer), video, settings, seconds, progress }
    }

    /// Adds the next segment.
    ///
    /// # Errors
    /// When writing fails; [`io::ErrorKind::InvalidInput`] when another frame was due.
    pub fn push(&mut self, segment: &SegmentDetections) -> io::Result<()> {
        self.progress.segment(segment)?;
        for (n, detections) in segment.numbered() {
            let seconds = (self.seconds)(n);
            for detection in detections {
                let PixelBox { x_min, y_min, x_max, y_max } = PixelBox::new(&detection.bbox, &self.video);
                let class = usize::from(detection.class);
                writeln!(
                    self.writer,
                    "{{\"frame\":{n},\"pts_seconds\":{},\"class\":{},\"category_id\":{},\"score\":{},\
                     \"bbox\":[{},{},{},{}]}}",
                    Fixed::micros(seconds),
                    serde_json::to_string(&class_name(&self.settings.names, class))?,
                    category_id(&self.settings.names, class),
                    Fixed::micros(f64::from(detection.score)),
                    Fixed::<2>(x_min),
                    Fixed::<2>(y_min),
                    Fixed::<2>(x_max - x_min),
                    Fixed::<2>(y_max - y_min),
                )?;
            }
        }
        Ok(())
    }

    /// Ends the lines and hands the writer back, flushed.
    ///
    /// # Errors
    /// When writing fails; [`io::ErrorKind::InvalidInput`] when frames are missing.
    pub fn finish(self) -> io::Result<W> {
        self.progress.finish()?;
        self.writer.into_inner().map_err(io::IntoInnerError::into_error)
    }
}
