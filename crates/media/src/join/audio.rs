//! One audio stream of the source on its way into the result: copied, or decoded and encoded again.
//!
//! Each track demuxes the source for itself. That costs reading it once more per track, and buys that memory
//! stays at one packet a track however badly the source is interleaved.

use std::path::Path;
use std::ptr;

use ffmpeg_next::Packet;
use ffmpeg_next::codec::packet::{Mut as _, Ref as _};
use ffmpeg_next::ffi::{
    AV_PKT_FLAG_KEY, AVCodecID, AVCodecParameters, AVPacketSideDataType, AVRational, AVStream, av_dict_get,
    av_dict_set, av_get_audio_frame_duration2, av_packet_get_side_data, avcodec_parameters_copy,
};
use ffmpeg_next::format::context::Input;

use super::Container;
use super::transcode::Transcoder;
use crate::MediaError;
use crate::av::{check, codec_name, rescale};
use crate::input::{ignore_other_streams, open_input, read_packet, stream_pointers};

/// Sources whose audio starts this much off the video (seconds) cannot be copied into an AVI, which has no
/// place for a start time.
const AVI_START_TOLERANCE: f64 = 0.02;

/// A time this many seconds before the one before is no rounding: the source's clock has started again.
const RESTART: f64 = 0.5;

/// The source's times, going on where its clock starts again (two recordings put together).
#[derive(Default)]
pub(super) struct Clock {
    before: Option<i64>,
    shift: i64,
}

impl Clock {
    /// `time` (in samples, `rate` a second) as it goes on; `next` is where it would if nothing is missing.
    pub(super) fn go_on(&mut self, time: i64, next: Option<i64>, rate: i32) -> i64 {
        let back = (RESTART * f64::from(rate)) as i64;
        let restarted = self.before.is_some_and(|before| time < before.saturating_sub(back));
        self.before = Some(time);
        if let Some(next) = next.filter(|_| restarted) {
            self.shift = next.saturating_sub(time);
        }
        time.saturating_add(self.shift)
    }
}

/// One track. Times are in samples at [`Track::rate`], in the source's own time.
pub(super) struct Track {
    input: Input,
    stream: usize,
    work: Work,
    /// Samples a second: the unit of all times here.
    pub(super) rate: i32,
    /// Codec, as FFmpeg names it, in the source.
    pub(super) codec: String,
    /// Time of the first sample that is heard.
    start: i64,
    packet: Packet,
    /// Whether `packet` holds the next packet to write.
    pending: bool,
    /// Decoding time of the packet before: times must rise.
    last: Option<i64>,
}

enum Work {
    Copy {
        /// Where the next packet belongs if nothing is missing.
        next: Option<i64>,
        clock: Clock,
    },
    Encode(Box<Transcoder>),
}

/// Why a track is not in the result, or that the join cannot go on.
pub(super) enum Refusal {
    /// Leave the track out and say so with this phrase.
    Dropped(String),
    /// The join fails.
    Fatal(MediaError),
}

impl From<MediaError> for Refusal {
    fn from(error: MediaError) -> Self {
        Self::Fatal(error)
    }
}

impl Track {
    /// Opens stream `stream` of the file at `source`. `video_start` is the presentation time of the video's
    /// first frame in seconds.
    pub(super) fn open(
        source: &Path,
        stream: usize,
        container: Container,
        video_start: f64,
    ) -> Result<Self, Refusal> {
        let mut input = open_input(source)?;
        let Some(&av_stream) = stream_pointers(&input).get(stream) else {
            return Err(Refusal::Dropped(format!("audio stream {stream} (not in the file any more)")));
        };
        ignore_other_streams(&mut input, stream);
        // SAFETY: a stream of an open input has parameters.
        let par = unsafe { (*av_stream).codecpar };
        // SAFETY: as above.
        let (codec, rate) = unsafe { (codec_name((*par).codec_id), (*par).sample_rate) };
        if rate <= 0 {
            return Err(Refusal::Dropped(format!("audio ({codec}, without a sample rate)")));
        }
        let mut track = Self {
            input,
            stream,
            work: Work::Copy { next: None, clock: Clock::default() },
            rate,
            codec,
            start: 0,
            packet: Packet::empty(),
            pending: false,
            last: None,
        };
        if takes(container, par) {
            if !track.advance()? {
                return Err(Refusal::Dropped(format!("audio ({}, empty)", track.codec)));
            }
            let (skipped, _) = skips(&track.packet);
            track.start = track.time() + i64::from(skipped);
            let off = track.start as f64 / f64::from(rate) - video_start;
            if container == Container::Mp4 || off.abs() <= AVI_START_TOLERANCE {
                return Ok(track);
            }
            // What was read for looking is read again for decoding.
            track.input = open_input(source)?;
            ignore_other_streams(&mut track.input, stream);
            track.packet = Packet::empty();
            track.pending = false;
            track.last = None;
        }
        track.transcode(container, video_start)?;
        Ok(track)
    }

    fn transcode(&mut self, container: Container, video_start: f64) -> Result<(), Refusal> {
        let Some(&stream) = stream_pointers(&self.input).get(self.stream) else {
            return Err(Refusal::Dropped(format!("audio ({})", self.codec)));
        };
        let mut transcoder = Transcoder::open(stream, container)
            .map_err(|why| Refusal::Dropped(format!("audio ({}: {why})", self.codec)))?;
        self.rate = transcoder.rate();
        if container == Container::Avi {
            transcoder.begin_at((video_start * f64::from(self.rate)).round() as i64);
        }
        self.work = Work::Encode(Box::new(transcoder));
        if !self.advance()? {
            return Err(Refusal::Dropped(format!("audio ({}, nothing of it decodes)", self.codec)));
        }
        self.start = match &self.work {
            Work::Encode(transcoder) => transcoder.start(),
            Work::Copy { .. } => 0,
        };
        Ok(())
    }

    /// Whether the track is encoded again.
    pub(super) fn transcoded(&self) -> bool {
        matches!(self.work, Work::Encode(_))
    }

    /// Time of the first sample that is heard.
    pub(super) fn start(&self) -> i64 {
        self.start
    }

    /// Copies what the container must know about the track, and its language.
    ///
    /// # Safety
    /// `out` is a new stream of an output whose header is not yet written.
    pub(super) unsafe fn describe(&self, out: *mut AVStream) -> Result<(), MediaError> {
        let Some(&stream) = stream_pointers(&self.input).get(self.stream) else {
            return Err(MediaError::Internal("an audio stream vanished".to_owned()));
        };
        // SAFETY: both streams are live; `codec_tag` 0 lets the container choose its own.
        unsafe {
            match &self.work {
                Work::Copy { .. } => {
                    let code = avcodec_parameters_copy((*out).codecpar, (*stream).codecpar);
                    check("describe the audio", code)?;
                }
                Work::Encode(transcoder) => transcoder.parameters((*out).codecpar)?,
            }
            (*(*out).codecpar).codec_tag = 0;
            (*out).time_base = AVRational { num: 1, den: self.rate };
            (*out).disposition = (*stream).disposition;
            copy_language(stream, out);
        }
        Ok(())
    }

    /// The next packet to write, if there is one; its times are in samples.
    pub(super) fn peek(&self) -> Option<&Packet> {
        self.pending.then_some(&self.packet)
    }

    /// Time of the packet in `packet`.
    pub(super) fn time(&self) -> i64 {
        time_of(&self.packet).unwrap_or(0)
    }

    /// Goes to the next packet; false at the end.
    pub(super) fn advance(&mut self) -> Result<bool, MediaError> {
        self.pending = match &mut self.work {
            Work::Copy { .. } => self.copy_next()?,
            Work::Encode(transcoder) => transcoder.next(&mut self.input, self.stream, &mut self.packet)?,
        };
        if self.pending {
            let time = self.time();
            self.last = Some(time);
        }
        Ok(self.pending)
    }

    fn copy_next(&mut self) -> Result<bool, MediaError> {
        let Some(&stream) = stream_pointers(&self.input).get(self.stream) else { return Ok(false) };
        // SAFETY: the stream is live.
        let (time_base, par) = unsafe { ((*stream).time_base, (*stream).codecpar) };
        let samples = AVRational { num: 1, den: self.rate };
        let Work::Copy { next, clock } = &mut self.work else { return Ok(false) };
        while read_packet(&mut self.input, &mut self.packet, self.stream)? {
            let told = self.packet.duration();
            let told = rescale(told.max(0), time_base, samples);
            let mut duration = duration_of(par, &self.packet).filter(|&d| d > 0).unwrap_or(told);
            // Containers that count in samples cut the last frame short where the sound ends.
            if time_base.num == 1 && time_base.den == self.rate && told > 0 {
                duration = duration.min(told);
            }
            duration = (duration - i64::from(skips(&self.packet).1)).max(1);
            // Times of milliseconds or of 90 kHz are rounded; counting samples undoes that, and a real gap or
            // overlap shows as more than the rounding.
            let rounding = rescale(1, time_base, samples) + 1;
            let told = time_of(&self.packet).map(|time| rescale(time, time_base, samples));
            let told = told.map(|time| clock.go_on(time, *next, self.rate));
            let time = match (told, *next) {
                (Some(time), Some(next)) if (time - next).abs() > rounding => time,
                (_, Some(next)) => next,
                (Some(time), None) => time,
                (None, None) => 0,
            };
            if self.last.is_some_and(|last| time <= last) {
                // What an edit list hides repeats times already passed; so do some broken files.
                continue;
            }
            *next = Some(time + duration);
            // SAFETY: the packet was just read.
            unsafe {
                let packet = self.packet.as_mut_ptr();
                (*packet).pts = time;
                (*packet).dts = time;
                (*packet).duration = duration;
                (*packet).flags = AV_PKT_FLAG_KEY;
                (*packet).pos = -1;
            }
            return Ok(true);
        }
        Ok(false)
    }
}

/// The packet's presentation time, or its decoding time where it has none.
pub(super) fn time_of(packet: &Packet) -> Option<i64> {
    packet.pts().or(packet.dts())
}

/// Copies the language a stream is tagged with.
///
/// # Safety
/// Both streams are live.
unsafe fn copy_language(from: *mut AVStream, to: *mut AVStream) {
    // SAFETY: the dictionaries belong to live streams; the entry lives as long as `from`'s.
    unsafe {
        let entry = av_dict_get((*from).metadata, c"language".as_ptr(), ptr::null(), 0);
        if !entry.is_null() {
            av_dict_set(&raw mut (*to).metadata, c"language".as_ptr(), (*entry).value, 0);
        }
    }
}

/// Whether the container takes the codec as it is, and players of that container play it.
fn takes(container: Container, par: *const AVCodecParameters) -> bool {
    use AVCodecID as Id;
    // SAFETY: the parameters are live.
    let (codec, frame_size, block) = unsafe { ((*par).codec_id, (*par).frame_size, (*par).block_align) };
    match container {
        Container::Mp4 => matches!(
            codec,
            Id::AV_CODEC_ID_AAC
                | Id::AV_CODEC_ID_MP3
                | Id::AV_CODEC_ID_AC3
                | Id::AV_CODEC_ID_EAC3
                | Id::AV_CODEC_ID_OPUS
                | Id::AV_CODEC_ID_FLAC
                | Id::AV_CODEC_ID_ALAC
        ),
        Container::Avi => match codec {
            Id::AV_CODEC_ID_MP3 | Id::AV_CODEC_ID_AC3 => frame_size > 0,
            Id::AV_CODEC_ID_PCM_S16LE | Id::AV_CODEC_ID_PCM_U8 => block > 0,
            _ => false,
        },
    }
}

/// Samples a decoder is told to drop at the beginning and at the end of what the packet decodes to.
fn skips(packet: &Packet) -> (u32, u32) {
    let mut size = 0;
    // SAFETY: the packet is live; the data, if any, is `size` bytes that live as long as the packet.
    let data = unsafe {
        let data = av_packet_get_side_data(
            packet.as_ptr(),
            AVPacketSideDataType::AV_PKT_DATA_SKIP_SAMPLES,
            &raw mut size,
        );
        if data.is_null() || size < 8 {
            return (0, 0);
        }
        std::slice::from_raw_parts(data, 8)
    };
    let number = |at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
    (number(0), number(4))
}

/// Samples in a packet, where its codec tells.
fn duration_of(par: *mut AVCodecParameters, packet: &Packet) -> Option<i64> {
    // SAFETY: parameters and packet are live, and the packet's data is `size` bytes.
    unsafe {
        let (data, size) = ((*packet.as_ptr()).data, (*packet.as_ptr()).size);
        if (*par).codec_id == AVCodecID::AV_CODEC_ID_OPUS {
            let data = std::slice::from_raw_parts(data, usize::try_from(size).ok()?);
            return opus_samples(data);
        }
        Some(i64::from(av_get_audio_frame_duration2(par, size)))
    }
}

/// Samples at 48 kHz in an Opus packet: RFC 6716, section 3.1.
fn opus_samples(data: &[u8]) -> Option<i64> {
    let toc = *data.first()?;
    let config = toc >> 3;
    let frame = match config {
        0..=11 => [480, 960, 1920, 2880][usize::from(config & 3)],
        12..=15 => [480, 960][usize::from(config & 1)],
        _ => [120, 240, 480, 960][usize::from(config & 3)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => i64::from(data.get(1)? & 0x3f),
    };
    Some(frame * frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opus_packets_tell_their_length() {
        assert_eq!(opus_samples(&[31 << 3]), Some(960));
        assert_eq!(opus_samples(&[16 << 3]), Some(120));
        assert_eq!(opus_samples(&[(1 << 3) | 1]), Some(1920));
        assert_eq!(opus_samples(&[(3 << 3) | 3, 2]), Some(5760));
        assert_eq!(opus_samples(&[]), None);
    }
}
