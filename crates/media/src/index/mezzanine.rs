//! The mezzanine: a stand-in for a source that can't be cut exactly, made in one sequential pass.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::path::Path;

use ffmpeg_next::codec::packet::Mut as _;
use ffmpeg_next::format::context::Output;
use ffmpeg_next::frame::Video;
use ffmpeg_next::{Dictionary, Packet, Rational, codec, encoder, ffi, format};

use super::build::{check_count, check_duration, nominal_rate, ticks_of_a_frame};
use super::{Frame, FrameIndex};
use crate::MediaError;
use crate::av;
use crate::decode::nothing_decodable;
use crate::decode::reader::{Reader, pts_of};
use crate::picture::Picture;
use crate::picture::convert::Converter;
use crate::probe::{Limits, Matrix, Orientation, Source, VideoInfo, probe};

/// A keyframe this often, so that every segment can begin at one.
const KEYFRAME_EVERY: u32 = 64;

/// The mezzanine's own clock: frame numbers. Its rate only matters to who plays it.
const TICKS_PER_SECOND: i32 = 25;

/// Decodes the video at `path` once, from its beginning to its end, and writes it to `out` as H.264 that is
/// all but lossless, with a keyframe every 64 frames. The index returned is of that file; its PTS, rates,
/// duration and audio streams are the source's. `progress` is told the frames so far.
///
/// # Errors
/// [`MediaError::Input`] when nothing can be decoded or the video exceeds `limits`, [`MediaError::Storage`] when the
/// file can't be read or `out` not be written.
pub fn make_mezzanine(
    path: &Path,
    limits: &Limits,
    out: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<FrameIndex, MediaError> {
    let Source { container, video, audio, dropped, .. } = probe(path, limits)?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let mut reader = Reader::open(path, video.stream, threads)?;
    reader.rewind()?;
    let mut converter = Converter::new(&video);
    let mut writer = Writer::create(out, &video, threads)?;
    let mut times = Times::new(&container, &video);
    let mut frames: Vec<Frame> = Vec::new();
    let mut last_duration = 0;
    let mut frame = Video::empty();
    loop {
        let more = reader.feed(|packet| times.fed(packet))?;
        if !more {
            reader.finish();
        }
        while reader.receive(&mut frame)? {
            let Some(pts) = times.of(&frame) else { continue };
            let number = frames.len() as u32;
            frames.push(Frame { pts, keyframe: number.is_multiple_of(KEYFRAME_EVERY) });
            check_count(frames.len(), limits)?;
            // SAFETY: the frame is valid; only a number is read.
            last_duration = unsafe { (*frame.as_ptr()).pkt_duration };
            writer.write(converter.convert(&frame)?, number)?;
            progress(frames.len() as u64);
        }
        if !more {
            break;
        }
    }
    writer.finish()?;
    if frames.is_empty() {
        return Err(nothing_decodable(&video.codec));
    }
    let frame_rate = nominal_rate(&frames, video.time_base, video.frame_rate);
    let nominal = ticks_of_a_frame(video.time_base, frame_rate);
    let index = FrameIndex {
        video: VideoInfo {
            stream: 0,
            codec: "h264".into(),
            coded_width: video.width.next_multiple_of(2),
            coded_height: video.height.next_multiple_of(2),
            orientation: Orientation::default(),
            frame_rate,
            hdr: None,
            ..video
        },
        audio,
        dropped,
        frames,
        last_duration: if last_duration > 0 { last_duration } else { nominal },
        numbered: true,
    };
    check_duration(&index, limits)?;
    Ok(index)
}

/// Gives decoded frames their presentation times, rising strictly whatever the file says.
struct Times {
    /// The container has no presentation times, but one slot a packet: the decoding times, in order.
    slots: Option<VecDeque<i64>>,
    nominal: i64,
    last: Option<i64>,
}

impl Times {
    fn new(container: &str, video: &VideoInfo) -> Self {
        Self {
            slots: ["avi", "h264", "hevc"].contains(&container).then(VecDeque::new),
            nominal: ticks_of_a_frame(video.time_base, video.frame_rate),
            last: None,
        }
    }

    fn fed(&mut self, packet: &Packet) {
        if let (Some(slots), Some(dts)) = (&mut self.slots, packet.dts().or(packet.pts())) {
            slots.push_back(dts);
        }
    }

    /// `None` for a frame that an edit list hides.
    fn of(&mut self, frame: &Video) -> Option<i64> {
        // SAFETY: the frame is valid; only numbers are read.
        let (guess, hidden) = unsafe {
            let f = &*frame.as_ptr();
            (f.best_effort_timestamp, f.flags & ffi::AV_FRAME_FLAG_DISCARD != 0)
        };
        if hidden {
            return None;
        }
        let told = match &mut self.slots {
            Some(slots) => slots.pop_front(),
            None => pts_of(frame).or((guess != ffi::AV_NOPTS_VALUE).then_some(guess)),
        };
        let next = self.last.map(|last| last.saturating_add(self.nominal));
        let pts = told.or(next).unwrap_or(0);
        let pts = self.last.map_or(pts, |last| pts.max(last.saturating_add(1)));
        self.last = Some(pts);
        Some(pts)
    }
}

/// An MP4 of H.264 whose timestamps are frame numbers.
struct Writer {
    output: Output,
    encoder: encoder::Video,
    packet: Packet,
}

fn av_failure(doing: &str) -> impl Fn(ffmpeg_next::Error) -> MediaError {
    move |e| av::failure(doing, e.into())
}

const WRITING: &str = "write the intermediate video";

impl Writer {
    fn create(path: &Path, video: &VideoInfo, threads: usize) -> Result<Self, MediaError> {
        let mut output = {
            // SAFETY: the context and its file pass to the output, whose drop closes them.
            unsafe { Output::wrap(av::create_output(path, c"mp4", None)?) }
        };
        let missing = || MediaError::Internal("FFmpeg was built without the encoder libx264.".into());
        let codec = encoder::find_by_name("libx264").ok_or_else(missing)?;
        let mut context =
            codec::context::Context::new_with_codec(codec).encoder().video().map_err(av_failure(WRITING))?;
        context.set_width(video.width.next_multiple_of(2));
        context.set_height(video.height.next_multiple_of(2));
        context.set_format(format::Pixel::YUV420P);
        context.set_time_base(Rational(1, TICKS_PER_SECOND));
        context.set_frame_rate(Some(Rational(TICKS_PER_SECOND, 1)));
        context.set_gop(KEYFRAME_EVERY);
        context.set_max_b_frames(0);
        context.set_flags(codec::Flags::GLOBAL_HEADER);
        // SAFETY: the context is not open yet, its fields are the caller's to set.
        unsafe {
            let c = &mut *context.as_mut_ptr();
            c.thread_count = c_int::try_from(threads).unwrap_or(1);
            c.color_range = ffi::AVColorRange::AVCOL_RANGE_MPEG;
            c.colorspace = match video.color.matrix {
                Matrix::Bt601 => ffi::AVColorSpace::AVCOL_SPC_SMPTE170M,
                Matrix::Bt709 => ffi::AVColorSpace::AVCOL_SPC_BT709,
                Matrix::Bt2020 => ffi::AVColorSpace::AVCOL_SPC_BT2020_NCL,
            };
        }
        let mut options = Dictionary::new();
        options.set("preset", "superfast");
        options.set("crf", "12");
        options.set("x264-params", "scenecut=0:keyint=64:min-keyint=64:open-gop=0");
        let encoder = context.open_with(options).map_err(av_failure(WRITING))?;
        let mut stream = output.add_stream(codec).map_err(av_failure(WRITING))?;
        stream.set_parameters(&encoder);
        stream.set_time_base(Rational(1, TICKS_PER_SECOND));
        let mut options = Dictionary::new();
        // Otherwise the muxer multiplies the clock, and timestamps are no frame numbers any more.
        options.set("video_track_timescale", &TICKS_PER_SECOND.to_string());
        output.write_header_with(options).map_err(av_failure(WRITING))?;
        Ok(Self { output, encoder, packet: Packet::empty() })
    }

    fn write(&mut self, picture: Picture, number: u32) -> Result<(), MediaError> {
        let mut frame = picture.frame;
        frame.set_pts(Some(i64::from(number)));
        self.encoder.send_frame(&frame).map_err(av_failure(WRITING))?;
        self.drain()
    }

    fn drain(&mut self) -> Result<(), MediaError> {
        while self.encoder.receive_packet(&mut self.packet).is_ok() {
            self.packet.set_stream(0);
            self.packet.set_duration(1);
            // SAFETY: output and packet are valid; the packet's reference passes to the muxer.
            let code = unsafe {
                ffi::av_interleaved_write_frame(self.output.as_mut_ptr(), self.packet.as_mut_ptr())
            };
            av::check(WRITING, code)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), MediaError> {
        self.encoder.send_eof().map_err(av_failure(WRITING))?;
        self.drain()?;
        self.output.write_trailer().map_err(av_failure(WRITING))?;
        // What the disk refused while buffers were flushed shows only here.
        // SAFETY: the context has an open file, closed once: the pointer is null afterwards.
        let code = unsafe {
            let context = &mut *self.output.as_mut_ptr();
            ffi::avio_flush(context.pb);
            (*context.pb).error
        };
        av::check(WRITING, code).map(|_| ())
    }
}
