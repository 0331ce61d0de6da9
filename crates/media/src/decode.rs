//! Exact decoding of a stretch of frames: they are told apart by presentation time, never by counting.

pub(crate) mod reader;

use std::ops::ControlFlow;
use std::path::Path;

use ffmpeg_next::ffi;
use ffmpeg_next::frame::Video;

use crate::MediaError;
use crate::index::FrameIndex;
use crate::picture::Picture;
use crate::picture::convert::Converter;
use reader::Reader;

/// Decodes frames `first..=last` of the indexed video at `path` and hands each, in order and exactly once, to
/// `sink` with its number.
///
/// Where the stream changes its size midway, pictures are scaled to the size that the index says: the first.
///
/// An indexed frame that can't be decoded is shown as its predecessor (where there is none, as the next
/// frame that can be). The numbers of those, and of frames the decoder itself had to patch up, are returned
/// in rising order.
///
/// `threads` is how many threads the decoder may use, at least 1.
///
/// # Errors
/// [`MediaError::Input`] when nothing can be decoded, [`MediaError::Storage`] when the file can't be read, and
/// whatever `sink` returns.
pub fn decode_segment(
    path: &Path,
    index: &FrameIndex,
    first: u32,
    last: u32,
    threads: usize,
    sink: &mut dyn FnMut(u32, &mut Picture) -> Result<(), MediaError>,
) -> Result<Vec<u32>, MediaError> {
    if first > last || last as usize >= index.frames.len() {
        return Err(MediaError::Internal(format!(
            "Frames {first} to {last} were asked for, and the video has {}.",
            index.frames.len()
        )));
    }
    let mut reader = Reader::open(path, index.video.stream, threads)?;
    // Starting at the keyframe before is right nearly always. Where the seek lands late, or the keyframe turns
    // out not to decode, the start moves back by 1, 2, 4, … keyframes, in the end to the file's beginning.
    let mut bound = keyframe_before(index, first, 0);
    let mut target = bound;
    let mut step = 1;
    loop {
        let landed = if target == 0 {
            reader.rewind()?;
            Some(0)
        } else {
            reader.seek(index, target)?.filter(|&n| n <= bound)
        };
        if let Some(start) = landed {
            let mut show = Show::new(index, start, first, last, sink);
            if show.run(&mut reader)? == Start::Sound {
                return Ok(show.concealed);
            }
            bound = keyframe_before(index, start, 1);
            target = start;
        }
        target = keyframe_before(index, target, step);
        step *= 2;
    }
}

/// Decodes the whole video straight through: [`decode_segment`] of all frames.
///
/// # Errors
/// As [`decode_segment`].
pub fn decode_all(
    path: &Path,
    index: &FrameIndex,
    threads: usize,
    sink: &mut dyn FnMut(u32, &mut Picture) -> Result<(), MediaError>,
) -> Result<Vec<u32>, MediaError> {
    let last = u32::try_from(index.frames.len()).unwrap_or(u32::MAX).saturating_sub(1);
    decode_segment(path, index, 0, last, threads, sink)
}

/// The number of the keyframe at or before frame `n`, or the one `back` keyframes earlier; 0 before the first.
fn keyframe_before(index: &FrameIndex, n: u32, back: usize) -> u32 {
    (0..=n).rev().filter(|&i| index.frames[i as usize].keyframe).nth(back).unwrap_or(0)
}

/// Whether decoding from a place gives exact frames.
#[derive(PartialEq, Eq)]
enum Start {
    Sound,
    /// The keyframe there did not decode: what follows would differ from a straight decode.
    Unsound,
}

/// One pass: decodes from `start` on, and shows `first..=last`.
struct Show<'a> {
    index: &'a FrameIndex,
    start: u32,
    first: u32,
    last: u32,
    /// The frame to show next.
    next: u32,
    /// Indexed frames from `start` to `last` that have not been fed yet.
    to_feed: u32,
    /// A frame came out, and it was the one decoding began with (or there is nowhere else to begin).
    begun: bool,
    previous: Option<Video>,
    converter: Converter,
    concealed: Vec<u32>,
    sink: &'a mut dyn FnMut(u32, &mut Picture) -> Result<(), MediaError>,
}

impl<'a> Show<'a> {
    fn new(
        index: &'a FrameIndex,
        start: u32,
        first: u32,
        last: u32,
        sink: &'a mut dyn FnMut(u32, &mut Picture) -> Result<(), MediaError>,
    ) -> Self {
        Self {
            index,
            start,
            first,
            last,
            next: first,
            to_feed: last - start + 1,
            begun: false,
            previous: None,
            converter: Converter::new(&index.video),
            concealed: Vec::new(),
            sink,
        }
    }

    fn run(&mut self, reader: &mut Reader) -> Result<Start, MediaError> {
        let mut frame = Video::empty();
        loop {
            // Nothing that is wanted remains to be fed: flushing gets it out without feeding what is not.
            let fed_all = self.to_feed == 0 && self.begun;
            let more = !fed_all
                && reader.feed(|packet| {
                    let number = packet.pts().and_then(|pts| self.index.number_at(pts));
                    if number.is_some_and(|n| (self.start..=self.last).contains(&n)) {
                        self.to_feed = self.to_feed.saturating_sub(1);
                    }
                })?;
            if !more {
                reader.finish();
            }
            while reader.receive(&mut frame)? {
                match self.take(&mut frame)? {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(verdict) => return Ok(verdict),
                }
            }
            if !more {
                return self.end();
            }
        }
    }

    /// One decoded frame, in presentation order.
    fn take(&mut self, frame: &mut Video) -> Result<ControlFlow<Start>, MediaError> {
        let number = reader::pts_of(frame).and_then(|pts| self.index.number_at(pts));
        // Frames before the start predict from what was not decoded; others are no part of the video.
        let Some(n) = number.filter(|&n| n >= self.start) else {
            return Ok(ControlFlow::Continue(()));
        };
        let damaged = is_damaged(frame);
        if !self.begun {
            if self.start > 0 && (n != self.start || damaged) {
                return Ok(ControlFlow::Break(Start::Unsound));
            }
            self.begun = true;
        }
        if n >= self.first {
            if self.previous.is_none() && self.next < n {
                self.fill(n, frame)?;
            } else if let Some(previous) = self.previous.take() {
                self.fill(n, &previous)?;
                self.previous = Some(previous);
            }
            if n == self.next && n <= self.last {
                if damaged {
                    self.concealed.push(n);
                }
                self.show(frame)?;
            }
            if self.next > self.last {
                return Ok(ControlFlow::Break(Start::Sound));
            }
        }
        match &mut self.previous {
            Some(previous) => std::mem::swap(previous, frame),
            None => self.previous = Some(std::mem::replace(frame, Video::empty())),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Shows `frame` for every frame still missing before `until`.
    fn fill(&mut self, until: u32, frame: &Video) -> Result<(), MediaError> {
        while self.next < until && self.next <= self.last {
            self.concealed.push(self.next);
            self.show(frame)?;
        }
        Ok(())
    }

    fn show(&mut self, frame: &Video) -> Result<(), MediaError> {
        let mut picture = self.converter.convert(frame)?;
        (self.sink)(self.next, &mut picture)?;
        self.next += 1;
        Ok(())
    }

    /// The decoder has nothing left.
    fn end(&mut self) -> Result<Start, MediaError> {
        match self.previous.take() {
            Some(previous) => {
                self.fill(self.last + 1, &previous)?;
                Ok(Start::Sound)
            }
            None if self.start > 0 => Ok(Start::Unsound),
            None => Err(nothing_decodable(&self.index.video.codec)),
        }
    }
}

/// Whether the decoder says that it had to guess parts of the picture.
fn is_damaged(frame: &Video) -> bool {
    // SAFETY: the frame is valid; only numbers are read.
    unsafe {
        let frame = &*frame.as_ptr();
        frame.decode_error_flags != 0 || frame.flags & ffi::AV_FRAME_FLAG_CORRUPT != 0
    }
}

pub(crate) fn nothing_decodable(codec: &str) -> MediaError {
    MediaError::Input(format!(
        "Not one frame of the video ({codec}) can be decoded: the file is damaged or encrypted. Convert it to H.264 or \
         upload it again."
    ))
}
