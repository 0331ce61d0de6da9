//! The detections as data: COCO JSON, a table, text files beside the frames, counts.
//!
//! The two files over a whole video are written as its segments come, one after the other, so memory does not
//! grow with the video. All detections are in them; only the text files and the counts leave out what is not
//! shown ([`Settings::shows`]). The same input gives the same bytes: decimals are fixed, no date is written.

mod coco;
mod lines;
mod table;

pub use coco::CocoWriter;
pub use lines::LinesWriter;
pub use table::CsvWriter;

use std::fmt;
use std::fmt::Write;
use std::io;
use std::ops::Range;

use crate::detection::{BoundingBox, Detection, SegmentDetections};
use crate::job::Settings;

/// What the files say about the video itself.
#[derive(Debug, Clone)]
pub struct VideoFacts<'a> {
    /// Its name, as the user knows it.
    pub name: &'a str,
    /// Width of the upright picture in pixels.
    pub width: u32,
    /// Height of the upright picture in pixels.
    pub height: u32,
    /// Frames in it.
    pub frames: u32,
    /// The frames that are to be told of; the writers want their segments, in order and without gaps.
    pub told: Range<u32>,
}

/// The text of `infer{n}.txt`: for every shown detection five lines, minX, minY, maxX, maxY (fractions of the
/// frame, 0 to 1) and the label (0-based index into the model's names). Empty where nothing was found.
#[must_use]
pub fn frame_txt(settings: &Settings, detections: &[Detection]) -> String {
    let mut text = String::new();
    for detection in detections.iter().filter(|detection| settings.shows(detection)) {
        let BoundingBox { min_x, min_y, max_x, max_y } = detection.bbox;
        for value in [min_x, min_y, max_x, max_y].map(unit) {
            // The shortest digits that are this very number, never an exponent; "0.0" as the original had it.
            let digits = value.to_string();
            text.push_str(&digits);
            text.push_str(if digits.contains('.') { "\n" } else { ".0\n" });
        }
        let _ = writeln!(text, "{}", detection.class);
    }
    text
}

/// Counts shown detections per class.
#[derive(Debug, Clone)]
pub struct ClassCounts<'a> {
    settings: &'a Settings,
    counts: Vec<u64>,
}

impl<'a> ClassCounts<'a> {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(settings: &'a Settings) -> Self {
        Self { settings, counts: vec![0; settings.names.len()] }
    }

    /// Counts the shown detections of some frames.
    pub fn add<'d>(&mut self, detections: impl IntoIterator<Item = &'d Detection>) {
        for detection in detections.into_iter().filter(|detection| self.settings.shows(detection)) {
            let class = usize::from(detection.class);
            if class >= self.counts.len() {
                self.counts.resize(class + 1, 0);
            }
            self.counts[class] += 1;
        }
    }

    /// Class names with their counts, most first, classes never seen left out; equals in the model's order.
    #[must_use]
    pub fn most_first(&self) -> Vec<(String, u64)> {
        let mut counts: Vec<_> = self.counts.iter().copied().enumerate().filter(|(_, n)| *n > 0).collect();
        counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        counts.into_iter().map(|(class, n)| (class_name(&self.settings.names, class), n)).collect()
    }
}

/// The name of output `class`; a class the model has no name for is "class 93".
fn class_name(names: &[String], class: usize) -> String {
    names.get(class).cloned().unwrap_or_else(|| format!("class {class}"))
}

/// `value` between 0 and 1; 0 when it is no number.
fn unit(value: f32) -> f32 {
    // Adding 0 turns -0 into 0.
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 }
}

/// A box in hundredths of pixels, clipped to the picture. Whole numbers, so that an area is exactly width
/// times height and no machine rounds otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PixelBox {
    x_min: i64,
    y_min: i64,
    x_max: i64,
    y_max: i64,
}

impl PixelBox {
    fn new(bbox: &BoundingBox, video: &VideoFacts<'_>) -> Self {
        let hundredths =
            |fraction: f32, size: u32| (f64::from(unit(fraction)) * f64::from(size) * 100.0).round() as i64;
        let (x_min, y_min) = (hundredths(bbox.min_x, video.width), hundredths(bbox.min_y, video.height));
        Self {
            x_min,
            y_min,
            x_max: hundredths(bbox.max_x, video.width).max(x_min),
            y_max: hundredths(bbox.max_y, video.height).max(y_min),
        }
    }
}

/// A whole number of units, shown with `D` decimals.
struct Fixed<const D: usize>(i64);

impl Fixed<6> {
    /// `value` in millionths; 0 when it is no number.
    fn micros(value: f64) -> Self {
        Self((value * 1e6).round() as i64)
    }
}

impl<const D: usize> fmt::Display for Fixed<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = 10_u64.pow(D as u32);
        let (sign, value) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        write!(f, "{sign}{}.{:0D$}", value / unit, value % unit)
    }
}

/// Checks that segments come in order, without gaps, and all of them.
#[derive(Debug)]
struct Progress {
    next: u32,
    frames: u32,
}

impl Progress {
    fn new(told: &Range<u32>) -> Self {
        Self { next: told.start, frames: told.end }
    }

    fn segment(&mut self, segment: &SegmentDetections) -> io::Result<()> {
        let end = u32::try_from(segment.frames.len()).ok().and_then(|count| segment.first.checked_add(count));
        match end {
            Some(end) if segment.first == self.next && end <= self.frames => {
                self.next = end;
                Ok(())
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "detections of {} frames from {} on where frame {} of {} was due",
                    segment.frames.len(),
                    segment.first,
                    self.next,
                    self.frames
                ),
            )),
        }
    }

    fn finish(&self) -> io::Result<()> {
        if self.next == self.frames {
            return Ok(());
        }
        let message = format!("the detections end at frame {} of {}", self.next, self.frames);
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }
}

#[cfg(test)]
mod tests;
