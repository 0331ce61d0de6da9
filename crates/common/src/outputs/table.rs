//! `detections.csv`: one line a detection, for spreadsheets and data frames.

use std::io::{self, BufWriter, Write};

use crate::detection::SegmentDetections;
use crate::job::Settings;

use super::{Fixed, PixelBox, Progress, VideoFacts, class_name};

/// Writes the table of one video as its segments come: frame number from 0, presentation time in seconds,
/// class name, score, and the box in pixels of the upright picture. RFC 4180, but for line ends of one `\n`.
pub struct CsvWriter<'a, W: Write, S> {
    writer: BufWriter<W>,
    video: VideoFacts<'a>,
    names: Vec<String>,
    seconds: S,
    progress: Progress,
}

impl<'a, W: Write, S: Fn(u32) -> f64> CsvWriter<'a, W, S> {
    /// Starts the table. `seconds` gives a frame's presentation time.
    ///
    /// # Errors
    /// When `writer` does.
    pub fn new(writer: W, video: VideoFacts<'a>, settings: &Settings, seconds: S) -> io::Result<Self> {
        let mut writer = BufWriter::with_capacity(1 << 16, writer);
        writer.write_all(b"frame,pts_seconds,class,score,x_min,y_min,x_max,y_max\n")?;
        let names =
            (0..settings.names.len()).map(|class| quoted(class_name(&settings.names, class))).collect();
        let progress = Progress::new(&video.told);
        Ok(Self { writer, video, names, seconds, progress })
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
                writeln!(
                    self.writer,
                    "{n},{},{},{},{},{},{},{}",
                    Fixed::micros(seconds),
                    class_name(&self.names, usize::from(detection.class)),
                    Fixed::micros(f64::from(detection.score)),
                    Fixed::<2>(x_min),
                    Fixed::<2>(y_min),
                    Fixed::<2>(x_max),
                    Fixed::<2>(y_max),
                )?;
            }
        }
        Ok(())
    }

    /// Ends the table and hands the writer back, flushed, for syncing and publishing.
    ///
    /// # Errors
    /// When writing fails; [`io::ErrorKind::InvalidInput`] when frames are missing.
    pub fn finish(self) -> io::Result<W> {
        self.progress.finish()?;
        self.writer.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// A field in quotes where it needs them.
fn quoted(field: String) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}
