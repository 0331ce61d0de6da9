//! Audio decoded and encoded again, on a timeline of its own: gaps become silence, overlaps are cut, so that
//! sound stays where the source's timestamps put it.

use std::ptr;

use ffmpeg_next::codec::context::Context;
use ffmpeg_next::codec::packet::{Mut as _, Ref as _};
use ffmpeg_next::ffi::{
    AV_CODEC_FLAG_GLOBAL_HEADER, AV_NOPTS_VALUE, AVAudioFifo, AVChannelOrder, AVCodec, AVCodecParameters,
    AVERROR, AVERROR_INPUT_CHANGED, AVERROR_OUTPUT_CHANGED, AVRational, AVSampleFormat, AVStream, SwrContext,
    av_audio_fifo_alloc, av_audio_fifo_free, av_audio_fifo_read, av_audio_fifo_size, av_audio_fifo_write,
    av_channel_layout_copy, av_channel_layout_default, av_channel_layout_uninit, av_frame_get_buffer,
    av_frame_unref, av_get_bytes_per_sample, av_sample_fmt_is_planar, av_samples_set_silence, avcodec_open2,
    avcodec_parameters_from_context, avcodec_parameters_to_context, avcodec_receive_frame,
    avcodec_receive_packet, avcodec_send_frame, avcodec_send_packet, swr_alloc, swr_close, swr_convert_frame,
    swr_free, swr_get_delay, swr_is_initialized,
};
use ffmpeg_next::format::context::Input;
use ffmpeg_next::frame::Audio;
use ffmpeg_next::{Packet, decoder, encoder};

use super::Container;
use super::audio::Clock;
use crate::MediaError;
use crate::av::{check, rescale};
use crate::input::read_packet;

/// Bits a second for each channel.
const BIT_RATE_A_CHANNEL: i64 = 80_000;
/// Frames in a row that must be off before their timestamps are believed: single ones jitter.
const PATIENCE: u32 = 4;
/// A jump beyond this many seconds is a broken clock, not silence.
const LONGEST_GAP: i64 = 3600;
/// Samples of silence made at a time.
const SILENCE: i64 = 4096;

pub(super) struct Transcoder {
    decoder: Context,
    encoder: Context,
    resampler: *mut SwrContext,
    fifo: *mut AVAudioFifo,
    decoded: Audio,
    /// Decoded and converted, `used` samples of it already in the fifo.
    converted: Audio,
    outgoing: Audio,
    time_base: AVRational,
    used: i64,
    /// Samples of silence to put in before `converted`.
    silence: i64,
    /// Time of the next sample to enter the fifo; unknown before the first.
    head: Option<i64>,
    /// Time of the next sample to enter the encoder.
    tail: i64,
    start: i64,
    off: u32,
    source: Stage,
    flushed: bool,
    clock: Clock,
}

// SAFETY: both pointers are owned by this value alone; neither is tied to a thread.
unsafe impl Send for Transcoder {}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Stage {
    Reading,
    Draining,
    Done,
}

impl Drop for Transcoder {
    fn drop(&mut self) {
        // SAFETY: each is null or came from its allocator, and is freed once; all accept null.
        unsafe {
            swr_free(&raw mut self.resampler);
            if !self.fifo.is_null() {
                av_audio_fifo_free(self.fifo);
            }
        }
    }
}

impl Transcoder {
    /// A transcoder from `stream` to what `container` takes; the error is a phrase saying what is missing.
    pub(super) fn open(stream: *mut AVStream, container: Container) -> Result<Self, String> {
        // SAFETY: a stream of an open input has parameters.
        let (par, time_base) = unsafe { ((*stream).codecpar, (*stream).time_base) };
        // SAFETY: as above.
        let codec = decoder::find(unsafe { (*par).codec_id }.into()).ok_or("no decoder")?;
        let name = match container {
            Container::Mp4 => "aac",
            Container::Avi => "libmp3lame",
        };
        let target = encoder::find_by_name(name).ok_or_else(|| format!("no encoder {name}"))?;
        let mut this = Self {
            decoder: Context::new_with_codec(codec),
            encoder: Context::new_with_codec(target),
            // SAFETY: takes nothing; null is checked below.
            resampler: unsafe { swr_alloc() },
            fifo: ptr::null_mut(),
            decoded: Audio::empty(),
            converted: Audio::empty(),
            outgoing: Audio::empty(),
            time_base,
            used: 0,
            silence: 0,
            head: None,
            tail: 0,
            start: 0,
            off: 0,
            source: Stage::Reading,
            flushed: false,
            clock: Clock::default(),
        };
        // SAFETY: every pointer is checked before use and owned by `this`, which frees it on every way out.
        unsafe {
            let (decoder, encoder) = (this.decoder.as_mut_ptr(), this.encoder.as_mut_ptr());
            if decoder.is_null() || encoder.is_null() || this.resampler.is_null() {
                return Err("out of memory".to_owned());
            }
            (*decoder).pkt_timebase = time_base;
            if avcodec_parameters_to_context(decoder, par) < 0
                || avcodec_open2(decoder, codec.as_ptr(), ptr::null_mut()) < 0
            {
                return Err("the decoder does not open".to_owned());
            }
            let most = match container {
                Container::Mp4 => 8,
                Container::Avi => 2,
            };
            let channels = (*par).ch_layout.nb_channels.clamp(1, most);
            let rate = nearest_rate(target.as_ptr(), (*par).sample_rate);
            (*encoder).sample_rate = rate;
            (*encoder).time_base = AVRational { num: 1, den: rate };
            (*encoder).sample_fmt = AVSampleFormat::AV_SAMPLE_FMT_FLTP;
            (*encoder).bit_rate = BIT_RATE_A_CHANNEL * i64::from(channels);
            av_channel_layout_default(&raw mut (*encoder).ch_layout, channels);
            if container == Container::Mp4 {
                (*encoder).flags |= AV_CODEC_FLAG_GLOBAL_HEADER as i32;
            }
            if avcodec_open2(encoder, target.as_ptr(), ptr::null_mut()) < 0 || (*encoder).frame_size <= 0 {
                return Err("the encoder does not open".to_owned());
            }
            this.fifo = av_audio_fifo_alloc((*encoder).sample_fmt, channels, (*encoder).frame_size * 4);
            if this.fifo.is_null() {
                return Err("out of memory".to_owned());
            }
        }
        Ok(this)
    }

    /// Samples a second of the result.
    pub(super) fn rate(&self) -> i32 {
        // SAFETY: the encoder is open.
        unsafe { (*self.encoder.as_ptr()).sample_rate }
    }

    /// Makes the result begin exactly at this time (in samples), by silence or by cutting. The encoder's own
    /// delay is cut too: the container can't say that the first samples are not to be heard.
    pub(super) fn begin_at(&mut self, time: i64) {
        // SAFETY: the encoder is open.
        let delay = i64::from(unsafe { (*self.encoder.as_ptr()).initial_padding });
        self.head = Some(time + delay);
        self.tail = time + delay;
        self.start = time;
        // There is no jitter to wait out before the first sample.
        self.off = PATIENCE;
    }

    /// Time of the first sample, known once a packet came out.
    pub(super) fn start(&self) -> i64 {
        self.start
    }

    /// Describes the result.
    ///
    /// # Safety
    /// `par` belongs to a live stream.
    pub(super) unsafe fn parameters(&self, par: *mut AVCodecParameters) -> Result<(), MediaError> {
        // SAFETY: the encoder is open, `par` live.
        check("describe the audio", unsafe { avcodec_parameters_from_context(par, self.encoder.as_ptr()) })
            .map(|_| ())
    }

    /// Puts the next encoded packet into `packet`, its times in samples of the source's time; false at the end.
    pub(super) fn next(
        &mut self,
        input: &mut Input,
        stream: usize,
        packet: &mut Packet,
    ) -> Result<bool, MediaError> {
        loop {
            // SAFETY: encoder and packet are live.
            let code = unsafe { avcodec_receive_packet(self.encoder.as_mut_ptr(), packet.as_mut_ptr()) };
            if code >= 0 {
                return Ok(true);
            }
            if code != AVERROR(libc::EAGAIN) || self.flushed {
                return Ok(false);
            }
            if self.feed_encoder()? {
                continue;
            }
            if self.feed_fifo()? {
                continue;
            }
            match self.source {
                Stage::Reading | Stage::Draining => self.decode(input, stream, packet)?,
                Stage::Done => {
                    self.feed_last()?;
                    // SAFETY: a null frame drains an open encoder.
                    check("finish the audio", unsafe {
                        avcodec_send_frame(self.encoder.as_mut_ptr(), ptr::null())
                    })?;
                    self.flushed = true;
                    // SAFETY: encoder and packet are live.
                    return Ok(unsafe {
                        avcodec_receive_packet(self.encoder.as_mut_ptr(), packet.as_mut_ptr())
                    } >= 0);
                }
            }
        }
    }

    fn feed_encoder(&mut self) -> Result<bool, MediaError> {
        // SAFETY: both are live.
        let (held, frame_size) =
            unsafe { (av_audio_fifo_size(self.fifo), (*self.encoder.as_ptr()).frame_size) };
        if held < frame_size {
            return Ok(false);
        }
        self.send(frame_size)?;
        Ok(true)
    }

    fn feed_last(&mut self) -> Result<(), MediaError> {
        // SAFETY: the fifo is live.
        let held = unsafe { av_audio_fifo_size(self.fifo) };
        if held > 0 { self.send(held) } else { Ok(()) }
    }

    /// Sends `samples` from the fifo to the encoder.
    fn send(&mut self, samples: i32) -> Result<(), MediaError> {
        self.shape_outgoing(samples)?;
        // SAFETY: `frame` has room for `samples`, which the fifo holds.
        unsafe {
            let frame = self.outgoing.as_mut_ptr();
            check("buffer the audio", av_audio_fifo_read(self.fifo, (*frame).extended_data.cast(), samples))?;
            (*frame).pts = self.tail;
            let code = avcodec_send_frame(self.encoder.as_mut_ptr(), frame);
            av_frame_unref(frame);
            check("encode the audio", code)?;
        }
        self.tail += i64::from(samples);
        Ok(())
    }

    /// Makes `outgoing` a frame of `samples` as the encoder wants them.
    fn shape_outgoing(&mut self, samples: i32) -> Result<(), MediaError> {
        // SAFETY: frame and encoder are live; the frame is empty before.
        unsafe {
            let frame = self.outgoing.as_mut_ptr();
            av_frame_unref(frame);
            (*frame).nb_samples = samples;
            (*frame).format = (*self.encoder.as_ptr()).sample_fmt as i32;
            (*frame).sample_rate = (*self.encoder.as_ptr()).sample_rate;
            check(
                "buffer the audio",
                av_channel_layout_copy(
                    &raw mut (*frame).ch_layout,
                    &raw const (*self.encoder.as_ptr()).ch_layout,
                ),
            )?;
            check("buffer the audio", av_frame_get_buffer(frame, 0)).map(|_| ())
        }
    }

    /// Moves owed silence, or else decoded samples, into the fifo; false when there are none.
    fn feed_fifo(&mut self) -> Result<bool, MediaError> {
        if self.silence > 0 {
            let samples = self.silence.min(SILENCE);
            self.shape_outgoing(samples as i32)?;
            // SAFETY: the frame has room for `samples` in the encoder's format.
            unsafe {
                let frame = self.outgoing.as_mut_ptr();
                av_samples_set_silence(
                    (*frame).extended_data,
                    0,
                    samples as i32,
                    (*frame).ch_layout.nb_channels,
                    (*self.encoder.as_ptr()).sample_fmt,
                );
                let code = av_audio_fifo_write(self.fifo, (*frame).extended_data.cast(), samples as i32);
                av_frame_unref(frame);
                check("buffer the audio", code)?;
            }
            self.silence -= samples;
            self.head = self.head.map(|head| head + samples);
            return Ok(true);
        }
        // SAFETY: the frame is live.
        let left = i64::from(unsafe { (*self.converted.as_ptr()).nb_samples }) - self.used;
        if left <= 0 {
            return Ok(false);
        }
        // SAFETY: the frame holds `used + left` samples in the encoder's format; 8 planes are the most, since
        // 8 channels are.
        unsafe {
            let frame = self.converted.as_mut_ptr();
            let format = (*self.encoder.as_ptr()).sample_fmt;
            let channels = (*self.encoder.as_ptr()).ch_layout.nb_channels;
            let width = i64::from(av_get_bytes_per_sample(format));
            let planar = av_sample_fmt_is_planar(format) != 0;
            let planes = if planar { channels } else { 1 };
            let step = if planar { width } else { width * i64::from(channels) };
            let mut data = [ptr::null_mut::<libc::c_void>(); 8];
            for (plane, slot) in data.iter_mut().enumerate().take(planes.clamp(1, 8) as usize) {
                *slot = (*(*frame).extended_data.add(plane)).add((self.used * step) as usize).cast();
            }
            let code = av_audio_fifo_write(self.fifo, data.as_mut_ptr(), left as i32);
            av_frame_unref(frame);
            check("buffer the audio", code)?;
        }
        self.used = 0;
        self.head = self.head.map(|head| head + left);
        Ok(true)
    }

    /// Reads and decodes until there is something in `converted`, or the source is at its end.
    fn decode(&mut self, input: &mut Input, stream: usize, packet: &mut Packet) -> Result<(), MediaError> {
        loop {
            // SAFETY: decoder and frame are live.
            let code = unsafe { avcodec_receive_frame(self.decoder.as_mut_ptr(), self.decoded.as_mut_ptr()) };
            if code >= 0 {
                self.place()?;
                return Ok(());
            }
            if self.source == Stage::Draining {
                if code != AVERROR(libc::EAGAIN) {
                    self.source = Stage::Done;
                    return Ok(());
                }
            } else if read_packet(input, packet, stream)? {
                // SAFETY: packet and decoder are live. A packet that does not decode leaves a gap, which
                // becomes silence.
                unsafe { avcodec_send_packet(self.decoder.as_mut_ptr(), packet.as_ptr()) };
            } else {
                // SAFETY: a null packet drains an open decoder.
                unsafe { avcodec_send_packet(self.decoder.as_mut_ptr(), ptr::null()) };
                self.source = Stage::Draining;
            }
        }
    }

    /// Converts `decoded` and decides where on the timeline it belongs.
    fn place(&mut self) -> Result<(), MediaError> {
        let rate = self.rate();
        // SAFETY: all are live; `converted` was emptied by `feed_fifo` or is new.
        let (time, samples) = unsafe {
            let (from, to) = (self.decoded.as_mut_ptr(), self.converted.as_mut_ptr());
            if (*from).ch_layout.order == AVChannelOrder::AV_CHANNEL_ORDER_UNSPEC {
                let channels = (*from).ch_layout.nb_channels;
                av_channel_layout_uninit(&raw mut (*from).ch_layout);
                av_channel_layout_default(&raw mut (*from).ch_layout, channels);
            }
            let stamp = (*from).best_effort_timestamp;
            // It divides by rates that only the first conversion sets.
            let delay = match swr_is_initialized(self.resampler) {
                0 => 0,
                _ => swr_get_delay(self.resampler, i64::from(rate)).max(0),
            };
            let time = (stamp != AV_NOPTS_VALUE)
                .then(|| rescale(stamp, self.time_base, AVRational { num: 1, den: rate }) - delay);
            let mut code = self.convert();
            if code == AVERROR_INPUT_CHANGED
                || code == AVERROR_OUTPUT_CHANGED
                || code == (AVERROR_INPUT_CHANGED | AVERROR_OUTPUT_CHANGED)
            {
                swr_close(self.resampler);
                code = self.convert();
            }
            av_frame_unref(from);
            if code < 0 {
                // A frame no resampler understands is a gap like one that does not decode.
                av_frame_unref(to);
                return Ok(());
            }
            (time, i64::from((*to).nb_samples))
        };
        self.used = 0;
        let time = time.map(|time| self.clock.go_on(time, self.head, rate));
        let Some(head) = self.head else {
            let start = time.unwrap_or(0);
            (self.head, self.tail, self.start) = (Some(start), start, start);
            return Ok(());
        };
        let ahead = time.map_or(0, |time| time - head);
        let tolerated = i64::from(rate) / 250;
        if ahead.abs() <= tolerated || ahead.abs() > LONGEST_GAP * i64::from(rate) {
            // Within the first frames of a track that was told its beginning, exactness is still to be had.
            self.off = if self.off >= PATIENCE { self.correct(ahead, samples) } else { 0 };
        } else {
            self.off += 1;
            if self.off >= PATIENCE || ahead.abs() > tolerated * 15 {
                self.off = self.correct(ahead, samples);
            }
        }
        Ok(())
    }

    /// Puts `ahead` samples of silence before the `samples` just converted, or drops as many from them.
    /// Returns how impatient to be with the next frame: after dropping a whole frame, as much as with this.
    fn correct(&mut self, ahead: i64, samples: i64) -> u32 {
        if ahead.abs() > LONGEST_GAP * i64::from(self.rate()) {
            return 0;
        }
        if ahead >= 0 {
            self.silence = ahead;
            return 0;
        }
        self.used = (-ahead).min(samples);
        if self.used == samples { PATIENCE } else { 0 }
    }

    /// Converts `decoded` into `converted`, shaped as the encoder wants it.
    ///
    /// # Safety
    /// All objects are live.
    unsafe fn convert(&mut self) -> i32 {
        // SAFETY: what the caller promises; `swr_convert_frame` allocates what the empty frame needs.
        unsafe {
            let to = self.converted.as_mut_ptr();
            av_frame_unref(to);
            (*to).format = (*self.encoder.as_ptr()).sample_fmt as i32;
            (*to).sample_rate = (*self.encoder.as_ptr()).sample_rate;
            let code = av_channel_layout_copy(
                &raw mut (*to).ch_layout,
                &raw const (*self.encoder.as_ptr()).ch_layout,
            );
            if code < 0 { code } else { swr_convert_frame(self.resampler, to, self.decoded.as_ptr()) }
        }
    }
}

/// The rate the encoder has that is nearest to `wanted`, the higher of two.
///
/// # Safety
/// `codec` is an encoder of this FFmpeg.
unsafe fn nearest_rate(codec: *const AVCodec, wanted: i32) -> i32 {
    // SAFETY: the list ends with 0.
    unsafe {
        let mut rate = (*codec).supported_samplerates;
        let mut best = None::<i32>;
        while !rate.is_null() && *rate != 0 {
            let nearer = |best: i32| {
                let (new, old) = ((*rate - wanted).abs(), (best - wanted).abs());
                new < old || (new == old && *rate > best)
            };
            if best.is_none_or(nearer) {
                best = Some(*rate);
            }
            rate = rate.add(1);
        }
        best.unwrap_or(wanted)
    }
}
