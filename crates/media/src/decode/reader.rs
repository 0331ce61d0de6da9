//! A file and its decoder: packets in, frames out.

use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use ffmpeg_next::codec::context::Context;
use ffmpeg_next::codec::packet::Ref as _;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::frame::Video;
use ffmpeg_next::{Packet, decoder, ffi};

use crate::MediaError;
use crate::av;
use crate::index::FrameIndex;
use crate::input::{MOST_READ_ERRORS, ignore_other_streams, open_input, read_packet, stream_pointers};

/// The presentation time of a decoded frame, as its packet carried it.
pub(crate) fn pts_of(frame: &Video) -> Option<i64> {
    // SAFETY: the frame is valid; only numbers are read.
    let (pts, flags) = unsafe { ((*frame.as_ptr()).pts, (*frame.as_ptr()).flags) };
    (pts != ffi::AV_NOPTS_VALUE && flags & ffi::AV_FRAME_FLAG_DISCARD == 0).then_some(pts)
}

/// An open file, at some place, and the decoder of its video.
pub(crate) struct Reader {
    path: PathBuf,
    input: Input,
    stream: usize,
    decoder: decoder::Video,
    packet: Packet,
    /// The packet has been read by a seek and is to be fed next.
    pending: bool,
    fresh: bool,
    /// Whether the decoder was refused memory for a picture. Some then say that the picture is damaged, and it
    /// would be concealed.
    starved: Box<AtomicBool>,
}

/// As FFmpeg's own, noting a refusal in the `AtomicBool` that the context's `opaque` points to.
unsafe extern "C" fn get_buffer(
    context: *mut ffi::AVCodecContext,
    frame: *mut ffi::AVFrame,
    flags: c_int,
) -> c_int {
    // SAFETY: FFmpeg passes a live context and frame; what `opaque` points to outlives the decoder.
    unsafe {
        let code = ffi::avcodec_default_get_buffer2(context, frame, flags);
        if code == ffi::AVERROR(libc::ENOMEM) {
            (*(*context).opaque.cast::<AtomicBool>()).store(true, Ordering::Relaxed);
        }
        code
    }
}

impl Reader {
    pub(crate) fn open(path: &Path, stream: usize, threads: usize) -> Result<Self, MediaError> {
        let mut input = open_input(path)?;
        ignore_other_streams(&mut input, stream);
        let starved = Box::new(AtomicBool::new(false));
        let decoder = open_decoder(&input, stream, threads, &starved)?;
        Ok(Self {
            path: path.to_owned(),
            input,
            stream,
            decoder,
            packet: Packet::empty(),
            pending: false,
            fresh: true,
            starved,
        })
    }

    /// Back to the file's beginning, as if just opened: not by a seek, which some demuxers get wrong.
    pub(crate) fn rewind(&mut self) -> Result<(), MediaError> {
        if !self.fresh {
            self.input = open_input(&self.path)?;
            ignore_other_streams(&mut self.input, self.stream);
            self.decoder.flush();
            self.pending = false;
        }
        self.fresh = false;
        Ok(())
    }

    /// Seeks to keyframe `target`, and to wherever the first indexed keyframe is met from there. Its number, or
    /// `None` if the demuxer finds none.
    pub(crate) fn seek(&mut self, index: &FrameIndex, target: u32) -> Result<Option<u32>, MediaError> {
        self.fresh = false;
        self.pending = false;
        self.decoder.flush();
        // SAFETY: the context is open, and the stream exists in it.
        let code = unsafe {
            ffi::av_seek_frame(
                self.input.as_mut_ptr(),
                self.stream as c_int,
                index.pts_in_file(target),
                ffi::AVSEEK_FLAG_BACKWARD,
            )
        };
        if code < 0 {
            return Ok(None);
        }
        while read_packet(&mut self.input, &mut self.packet, self.stream)? {
            let number = self.packet.pts().and_then(|pts| index.number_at(pts));
            if let Some(n) = number.filter(|&n| self.packet.is_key() && index.frames[n as usize].keyframe) {
                self.pending = true;
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    /// Size and first bytes of the packet a seek met: enough to tell whether it is the expected one.
    pub(crate) fn fingerprint(&self) -> u64 {
        fingerprint(&self.packet)
    }

    /// Feeds one packet to the decoder, after `look` has seen it. `false` at the end of the file.
    pub(crate) fn feed(&mut self, look: impl FnOnce(&Packet)) -> Result<bool, MediaError> {
        self.fresh = false;
        if !std::mem::take(&mut self.pending) && !read_packet(&mut self.input, &mut self.packet, self.stream)?
        {
            return Ok(false);
        }
        look(&self.packet);
        // The caller took every frame after the packet before, so the decoder has room; what it says of this
        // packet's content is told by the frames that come out, or don't.
        // SAFETY: decoder and packet are valid.
        let code = unsafe { ffi::avcodec_send_packet(self.decoder.as_mut_ptr(), self.packet.as_ptr()) };
        if code == ffi::AVERROR(libc::ENOMEM) {
            return Err(av::failure("decode the video", code));
        }
        Ok(true)
    }

    /// Says that no more packets come; the remaining frames can then be received.
    pub(crate) fn finish(&mut self) {
        // It can only be refused when it was said before.
        let _ = self.decoder.send_eof();
    }

    /// The next decoded frame, in presentation order. `false` when more packets are needed, or none remain.
    pub(crate) fn receive(&mut self, frame: &mut Video) -> Result<bool, MediaError> {
        let mut failures = 0;
        loop {
            // SAFETY: decoder and frame are valid.
            let code = unsafe { ffi::avcodec_receive_frame(self.decoder.as_mut_ptr(), frame.as_mut_ptr()) };
            if self.starved.load(Ordering::Relaxed) {
                return Err(av::failure("decode the video", ffi::AVERROR(libc::ENOMEM)));
            }
            match code {
                0.. => return Ok(true),
                ffi::AVERROR_EOF => return Ok(false),
                code if code == ffi::AVERROR(libc::EAGAIN) => return Ok(false),
                code if code == ffi::AVERROR(libc::ENOMEM) => {
                    return Err(av::failure("decode the video", code));
                }
                // A damaged frame, reported late; those behind it are still to come.
                _ => failures += 1,
            }
            if failures > MOST_READ_ERRORS {
                return Ok(false);
            }
        }
    }
}

/// See [`Reader::fingerprint`].
pub(crate) fn fingerprint(packet: &Packet) -> u64 {
    let data = packet.data().unwrap_or_default();
    let head = &data[..data.len().min(256)];
    xxhash_rust::xxh3::xxh3_64_with_seed(head, data.len() as u64)
}

/// `starved` must outlive the decoder.
fn open_decoder(
    input: &Input,
    stream: usize,
    threads: usize,
    starved: &AtomicBool,
) -> Result<decoder::Video, MediaError> {
    let changed =
        || MediaError::Input("The video is not the one that was indexed: start the job anew.".into());
    let pointer = *stream_pointers(input).get(stream).ok_or_else(changed)?;
    let parameters = input.stream(stream).ok_or_else(changed)?.parameters();
    let unusable = |e: ffmpeg_next::Error| {
        MediaError::Input(format!("The video can't be decoded here ({e}): convert it to H.264."))
    };
    let mut context = Context::from_parameters(parameters).map_err(unusable)?;
    // SAFETY: the context is not open yet, its fields are the caller's to set; the stream is valid.
    unsafe {
        let c = &mut *context.as_mut_ptr();
        if c.codec_type != ffi::AVMediaType::AVMEDIA_TYPE_VIDEO {
            return Err(changed());
        }
        c.opaque = ptr::from_ref(starved).cast_mut().cast();
        c.get_buffer2 = Some(get_buffer);
        c.pkt_timebase = (*pointer).time_base;
        // MPEG-4 whose headers are damaged counts time by it.
        c.framerate = (*pointer).avg_frame_rate;
        c.thread_count = c_int::try_from(threads).unwrap_or(1).max(1);
        c.thread_type = ffi::FF_THREAD_FRAME | ffi::FF_THREAD_SLICE;
        if c.codec_id == ffi::AVCodecID::AV_CODEC_ID_H264 {
            // Without it the decoder guesses how far frames are reordered, corrects itself on the way, and drops
            // frames where it does: a segment would then differ from a straight decode.
            c.strict_std_compliance = ffi::FF_COMPLIANCE_STRICT;
        }
    }
    context.decoder().video().map_err(unusable)
}
