//! The file being muxed.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr;

use ffmpeg_next::Packet;
use ffmpeg_next::codec::packet::{Mut as _, Ref as _};
use ffmpeg_next::ffi::{
    AV_INPUT_BUFFER_PADDING_SIZE, AVCodecID, AVFormatContext, AVIOInterruptCB, AVMediaType, AVPixelFormat,
    AVRational, av_dict_free, av_dict_set, av_mallocz, av_packet_ref, av_write_frame, av_write_trailer,
    avformat_free_context, avformat_new_stream, avformat_write_header, avio_closep, avio_flush,
};

use super::audio::Track;
use super::{Container, Plan};
use crate::MediaError;
use crate::av::{check_file, create_output, out_of_memory, rescale};
use crate::encode::{color_codes, nominal_rate};
use crate::index::FrameIndex;
use crate::packets::PacketsHeader;

/// FFmpeg asks whether to give up before every read and write; that is when progress can be told while it
/// closes the file, which for a long MP4 moves all of it.
struct Heartbeat {
    count: u64,
    progress: Option<*mut dyn FnMut(u64)>,
}

unsafe extern "C" fn beat(heartbeat: *mut libc::c_void) -> libc::c_int {
    // SAFETY: FFmpeg passes the pointer given in `Output::create`, which lives as long as the output; the
    // closure is set only while `Output::finish`, which borrows it, is running.
    unsafe {
        let heartbeat = heartbeat.cast::<Heartbeat>();
        if let Some(progress) = (*heartbeat).progress {
            (*heartbeat).count += 1;
            (*progress)((*heartbeat).count);
        }
    }
    0
}

pub(super) struct Output {
    context: *mut AVFormatContext,
    heartbeat: *mut Heartbeat,
    path: PathBuf,
    container: Container,
    packet: Packet,
    /// What each stream's times are given in; the muxer may have chosen otherwise.
    declared: Vec<AVRational>,
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: both were allocated in `create` and are freed once; the context's last I/O happens in
        // `avio_closep`, before the heartbeat goes.
        unsafe {
            if !self.context.is_null() {
                avio_closep(&raw mut (*self.context).pb);
                avformat_free_context(self.context);
            }
            drop(Box::from_raw(self.heartbeat));
        }
    }
}

impl Output {
    pub(super) fn create(path: &Path, container: Container) -> Result<Self, MediaError> {
        let heartbeat = Box::into_raw(Box::new(Heartbeat { count: 0, progress: None }));
        let mut output = Self {
            context: ptr::null_mut(),
            heartbeat,
            path: path.to_owned(),
            container,
            packet: Packet::empty(),
            declared: Vec::new(),
        };
        let format = match container {
            Container::Mp4 => c"mp4",
            Container::Avi => c"avi",
        };
        let interrupt = AVIOInterruptCB { callback: Some(beat), opaque: heartbeat.cast() };
        output.context = create_output(path, format, Some(interrupt))?;
        // SAFETY: the context was made just now and is owned by `output`.
        unsafe {
            // FLAC and Opus in MP4 are called experimental by some versions.
            (*output.context).strict_std_compliance = -2;
            // Times below zero are meant: they prime decoders.
            (*output.context).avoid_negative_ts = 0;
        }
        Ok(output)
    }

    pub(super) fn add_video(
        &mut self,
        index: &FrameIndex,
        header: &PacketsHeader,
        plan: &Plan,
    ) -> Result<(), MediaError> {
        let video = &index.video;
        let side = |pixels: u32| {
            i32::try_from(pixels).map_err(|_| MediaError::Input("The video is too large.".to_owned()))
        };
        // SAFETY: the context is live; the new stream and its parameters are checked and filled before the
        // header is written. Colour codes are values of their enums, as `color_codes` promises.
        unsafe {
            let stream = avformat_new_stream(self.context, ptr::null());
            if stream.is_null() {
                return Err(out_of_memory());
            }
            let par = (*stream).codecpar;
            (*par).codec_type = AVMediaType::AVMEDIA_TYPE_VIDEO;
            (*par).width = side(header.width)?;
            (*par).height = side(header.height)?;
            (*par).format = AVPixelFormat::AV_PIX_FMT_YUV420P as i32;
            let aspect = AVRational { num: video.sample_aspect.num, den: video.sample_aspect.den };
            (*par).sample_aspect_ratio = aspect;
            (*stream).sample_aspect_ratio = aspect;
            let (matrix, primaries, transfer) = color_codes(video.color);
            (&raw mut (*par).color_space).cast::<i32>().write(matrix as i32);
            (&raw mut (*par).color_primaries).cast::<i32>().write(primaries as i32);
            (&raw mut (*par).color_trc).cast::<i32>().write(transfer as i32);
            (&raw mut (*par).color_range).cast::<i32>().write(1);
            match self.container {
                Container::Mp4 => {
                    (*par).codec_id = AVCodecID::AV_CODEC_ID_H264;
                    let sets = &header.parameter_sets;
                    let room = sets.len() + AV_INPUT_BUFFER_PADDING_SIZE as usize;
                    let extradata = av_mallocz(room).cast::<u8>();
                    if extradata.is_null() {
                        return Err(out_of_memory());
                    }
                    ptr::copy_nonoverlapping(sets.as_ptr(), extradata, sets.len());
                    (*par).extradata = extradata;
                    (*par).extradata_size = side(sets.len() as u32)?;
                }
                Container::Avi => {
                    (*par).codec_id = AVCodecID::AV_CODEC_ID_MPEG4;
                    // Known to more players than FFmpeg's own FMP4.
                    (*par).codec_tag = u32::from_le_bytes(*b"XVID");
                }
            }
            let rate = nominal_rate(video.frame_rate);
            (*stream).avg_frame_rate = AVRational { num: rate.num, den: rate.den };
            (*stream).time_base = plan.video;
        }
        self.declared.push(plan.video);
        Ok(())
    }

    pub(super) fn add_audio(&mut self, track: &Track) -> Result<(), MediaError> {
        // SAFETY: the context is live and its header not yet written.
        unsafe {
            let stream = avformat_new_stream(self.context, ptr::null());
            if stream.is_null() {
                return Err(out_of_memory());
            }
            track.describe(stream)?;
        }
        self.declared.push(AVRational { num: 1, den: track.rate });
        Ok(())
    }

    pub(super) fn begin(&mut self, plan: &Plan) -> Result<(), MediaError> {
        let mut options = ptr::null_mut();
        let mut set = |name: &std::ffi::CStr, value: String| {
            let value = CString::new(value).unwrap_or_default();
            // SAFETY: both strings are NUL-terminated and copied.
            unsafe { av_dict_set(&raw mut options, name.as_ptr(), value.as_ptr(), 0) };
        };
        if self.container == Container::Mp4 {
            set(c"movflags", "+faststart".to_owned());
            set(c"video_track_timescale", plan.video.den.to_string());
            set(c"movie_timescale", plan.movie.to_string());
        }
        // SAFETY: the context is live and has its streams; what is left of the options is freed.
        let code = unsafe {
            let code = avformat_write_header(self.context, &raw mut options);
            av_dict_free(&raw mut options);
            code
        };
        check_file("write", &self.path, code)?;
        Ok(())
    }

    /// Writes `data`, possibly none, as a packet whose times are in ticks of [`Plan::video`].
    pub(super) fn write(
        &mut self,
        stream: usize,
        data: &[u8],
        time: i64,
        duration: i64,
        flags: i32,
    ) -> Result<(), MediaError> {
        self.packet = Packet::empty();
        let size = i32::try_from(data.len())
            .map_err(|_| MediaError::Internal("a packet is beyond 2 GiB".to_owned()))?;
        // SAFETY: the packet only lends `data` for the call: it has no buffer to be kept by, so the muxer
        // copies what it keeps.
        unsafe {
            let packet = self.packet.as_mut_ptr();
            (*packet).data = data.as_ptr().cast_mut();
            (*packet).size = size;
            (*packet).pts = time;
            (*packet).dts = time;
            (*packet).duration = duration;
            (*packet).flags = flags;
        }
        self.send(stream)
    }

    /// Writes an audio packet, `zero` samples earlier.
    pub(super) fn write_packet(
        &mut self,
        stream: usize,
        packet: &Packet,
        zero: i64,
    ) -> Result<(), MediaError> {
        self.packet = Packet::empty();
        // SAFETY: both packets are live, ours empty; the reference shares the bytes.
        unsafe {
            let ours = self.packet.as_mut_ptr();
            check_file("copy the audio of", &self.path, av_packet_ref(ours, packet.as_ptr()))?;
            (*ours).pts -= zero;
            (*ours).dts = (*ours).pts;
        }
        self.send(stream)
    }

    fn send(&mut self, stream: usize) -> Result<(), MediaError> {
        // SAFETY: context and packet are live; `stream` is one we added, in the order we added them. An AVI
        // counts audio in its own units, hence the rescaling from what the stream was declared in.
        let code = unsafe {
            let packet = self.packet.as_mut_ptr();
            (*packet).stream_index = i32::try_from(stream).unwrap_or(i32::MAX);
            let av_stream = *(*self.context).streams.add(stream);
            let (declared, actual) = (self.declared[stream], (*av_stream).time_base);
            (*packet).pts = rescale((*packet).pts, declared, actual);
            (*packet).dts = rescale((*packet).dts, declared, actual);
            (*packet).duration = rescale((*packet).duration, declared, actual);
            (*packet).pos = -1;
            let code = av_write_frame(self.context, packet);
            (*packet).data = if (*packet).buf.is_null() { ptr::null_mut() } else { (*packet).data };
            code
        };
        self.packet = Packet::empty();
        check_file("write", &self.path, code)?;
        Ok(())
    }

    /// Writes what closes the file.
    pub(super) fn finish(
        mut self,
        frames: u64,
        progress: &mut (dyn FnMut(u64) + '_),
    ) -> Result<(), MediaError> {
        // SAFETY: the closure outlives this call, and is forgotten before it returns; only its lifetime is cast
        // away.
        unsafe {
            let progress: *mut (dyn FnMut(u64) + 'static) =
                std::mem::transmute::<*mut (dyn FnMut(u64) + '_), _>(&raw mut *progress);
            (*self.heartbeat).count = frames;
            (*self.heartbeat).progress = Some(progress);
        }
        let done = self.close();
        // SAFETY: the heartbeat is ours.
        unsafe { (*self.heartbeat).progress = None };
        done
    }

    fn close(&mut self) -> Result<(), MediaError> {
        // SAFETY: the header was written; muxers note some write errors in `pb->error` only.
        unsafe {
            check_file("write", &self.path, av_write_trailer(self.context))?;
            avio_flush((*self.context).pb);
            check_file("write", &self.path, (*(*self.context).pb).error)?;
            check_file("write", &self.path, avio_closep(&raw mut (*self.context).pb))?;
        }
        Ok(())
    }
}
