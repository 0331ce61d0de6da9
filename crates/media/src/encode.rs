//! Encoding a segment: drawn pictures in, a packet file ([`crate::packets`]) out.
//!
//! What every segment of a job must share for the join: size, parameter sets, no B-frames, and exactly one
//! keyframe, the first. All of it follows from [`VideoInfo`] and [`EncoderSettings`] alone, never from the
//! pictures, the machine or the number of threads.
//!
//! Which *bytes* come out is a function of the pictures, the settings, the versions of FFmpeg and x264 and,
//! for H.264, the number of threads: x264 is deterministic for a given number of frame threads (1 and 2 were
//! seen to make the same pictures, 3 and more others) and names the number in a comment in the first packet.
//! MPEG-4 always runs on one thread.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::ptr;

use ffmpeg_next::Packet;
use ffmpeg_next::codec::context::Context;
use ffmpeg_next::codec::packet::Mut as _;
use ffmpeg_next::encoder::find_by_name;
use ffmpeg_next::ffi::{
    AV_CODEC_FLAG_CLOSED_GOP, AV_CODEC_FLAG_GLOBAL_HEADER, AV_CODEC_FLAG_QSCALE, AV_OPT_SEARCH_CHILDREN,
    AVCodecContext, AVERROR, AVERROR_EOF, AVPictureType, AVPixelFormat, AVRational, av_frame_ref,
    av_frame_remove_side_data, av_frame_unref, av_opt_set, av_opt_set_int, av_reduce, avcodec_open2,
    avcodec_receive_packet, avcodec_send_frame,
};
use ffmpeg_next::frame::Video;
use serde::{Deserialize, Serialize};

use crate::MediaError;
use crate::av::{check, out_of_memory};
pub use crate::packets::Codec;
use crate::packets::{PacketWriter, PacketsHeader, storage};
use crate::picture::Picture;
use crate::probe::{Color, Matrix, Ratio, VideoInfo};

/// The largest width and height MPEG-4 part 2 can write.
const MPEG4_MAX_SIDE: u32 = 8191;
/// Lambda units in one step of a quantiser (`FF_QP2LAMBDA`).
const LAMBDA: i32 = 118;
/// Keyframes come at segment starts only; FFmpeg's MPEG-4 encoder allows no longer distance than this.
const MPEG4_GOP: i32 = 600;

/// The encoder settings a job is frozen with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderSettings {
    /// x264's preset, `ultrafast` to `slower`.
    pub preset: String,
    /// x264's constant rate factor, 0 (best) to 51.
    pub crf: f64,
    /// The quantiser of every MPEG-4 part 2 frame, 1 (best) to 31.
    pub mpeg4_qscale: u8,
}

impl Default for EncoderSettings {
    fn default() -> Self {
        Self { preset: "superfast".to_owned(), crf: 23.0, mpeg4_qscale: 4 }
    }
}

impl EncoderSettings {
    /// Reference frames: the preset's own, but never more than 3 so that the level stays where players are.
    /// `None` for a preset that is not offered.
    fn references(&self) -> Option<u32> {
        match self.preset.as_str() {
            "ultrafast" | "superfast" | "veryfast" => Some(1),
            "faster" | "fast" => Some(2),
            "medium" | "slow" | "slower" => Some(3),
            _ => None,
        }
    }

    /// Checks that an encoder can honour these settings.
    ///
    /// # Errors
    /// One sentence naming the setting that is wrong, as [`MediaError::Input`].
    pub fn check(&self) -> Result<(), MediaError> {
        if self.references().is_none() {
            return Err(MediaError::Input(format!(
                "There is no encoder preset `{}`: choose ultrafast, superfast, veryfast, faster, fast, \
                 medium, slow or slower.",
                self.preset
            )));
        }
        if !(0.0..=51.0).contains(&self.crf) {
            return Err(MediaError::Input(format!(
                "The rate factor {} is out of range: choose 0 (best) to 51.",
                self.crf
            )));
        }
        if !(1..=31).contains(&self.mpeg4_qscale) {
            return Err(MediaError::Input(format!(
                "The MPEG-4 quantiser {} is out of range: choose 1 (best) to 31.",
                self.mpeg4_qscale
            )));
        }
        Ok(())
    }
}

/// What to encode a segment as.
#[derive(Debug, Clone, Copy)]
pub struct SegmentSpec<'a> {
    /// The codec.
    pub codec: Codec,
    /// The stream the pictures come from: upright size, aspect, colour and rate are taken from it.
    pub video: &'a VideoInfo,
    /// The job's settings.
    pub settings: &'a EncoderSettings,
    /// Number of the segment's first frame in the whole video.
    pub first: u32,
    /// Threads H.264 may use, at least 1.
    pub threads: u32,
}

/// What [`SegmentEncoder::finish`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedSegment {
    /// Frames, one packet each.
    pub frames: u32,
    /// Size of the packet file in bytes.
    pub bytes: u64,
}

/// Encodes one segment, a picture at a time.
pub struct SegmentEncoder {
    codec: Codec,
    first: u32,
    width: u32,
    height: u32,
    quality: i32,
    encoder: Context,
    frame: Video,
    pushed: u32,
    written: u32,
    path: PathBuf,
    sink: Sink,
}

/// MPEG-4 tells its headers only with the first packet, the file's own header needs them.
enum Sink {
    Waiting(File),
    Open(Box<PacketWriter>),
    Failed,
}

impl SegmentEncoder {
    /// Opens the encoder and creates (or empties) the packet file at `out`.
    ///
    /// # Errors
    /// [`MediaError::Input`] for settings or sizes that cannot be encoded, [`MediaError::Storage`] when the
    /// file cannot be created, [`MediaError::Internal`] when FFmpeg lacks the encoder.
    pub fn create(spec: &SegmentSpec<'_>, out: &Path) -> Result<Self, MediaError> {
        spec.settings.check()?;
        let (width, height) = coded_size(spec.video);
        if spec.codec == Codec::Mpeg4 && width.max(height) > MPEG4_MAX_SIDE {
            return Err(MediaError::Input(format!(
                "The video is {width}×{height}, and an AVI with MPEG-4 can be at most {MPEG4_MAX_SIDE} pixels \
                 wide or high: scale it down, or ask for the MP4 only."
            )));
        }
        let opened = open(spec, width, height)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(out)
            .map_err(|error| storage("create", out, &error))?;
        let mut encoder = Self {
            codec: spec.codec,
            first: spec.first,
            width,
            height,
            quality: i32::from(spec.settings.mpeg4_qscale) * LAMBDA,
            encoder: opened,
            frame: Video::empty(),
            pushed: 0,
            written: 0,
            path: out.to_owned(),
            sink: Sink::Waiting(file),
        };
        if spec.codec == Codec::H264 {
            // SAFETY: an opened encoder with AV_CODEC_FLAG_GLOBAL_HEADER has `extradata_size` bytes there.
            let extradata = unsafe {
                let context = encoder.encoder.as_ptr();
                bytes((*context).extradata, (*context).extradata_size).to_vec()
            };
            encoder.begin_file(extradata)?;
        }
        Ok(encoder)
    }

    /// Encodes the next frame. The picture may be drawn on again afterwards.
    ///
    /// # Errors
    /// [`MediaError::Storage`] when the file cannot be written, [`MediaError::Internal`] when the picture has
    /// another size than the video or the encoder fails.
    pub fn push(&mut self, picture: &Picture) -> Result<(), MediaError> {
        let (width, height) = (picture.frame.width(), picture.frame.height());
        if (width, height) != (self.width, self.height) {
            return Err(MediaError::Internal(format!(
                "a picture of {width}×{height} was given to an encoder of {}×{}",
                self.width, self.height
            )));
        }
        // SAFETY: `frame` is ours and empty; `av_frame_ref` makes it share the picture's pixels. Both encoders
        // have read them when `avcodec_send_frame` returns: libx264 copies them, mpeg4 codes at once as it has
        // neither B-frames nor threads. Whatever decoding left on the frame must not steer the encoder.
        let sent = unsafe {
            let frame = self.frame.as_mut_ptr();
            let mut code = av_frame_ref(frame, picture.frame.as_ptr());
            if code >= 0 {
                for _ in 0..(*frame).nb_side_data {
                    // Removing one may remove others of its kind.
                    if (*frame).nb_side_data > 0 {
                        av_frame_remove_side_data(frame, (**(*frame).side_data).type_);
                    }
                }
                (*frame).pts = i64::from(self.first) + i64::from(self.pushed);
                (*frame).pict_type = AVPictureType::AV_PICTURE_TYPE_NONE;
                (*frame).quality = self.quality;
                (*frame).interlaced_frame = 0;
                (*frame).repeat_pict = 0;
                code = avcodec_send_frame(self.encoder.as_mut_ptr(), frame);
            }
            av_frame_unref(frame);
            code
        };
        check("encode a picture", sent)?;
        self.pushed += 1;
        self.drain()
    }

    /// Encodes what is still inside and completes the file. Syncing and renaming it are up to the caller.
    ///
    /// # Errors
    /// As [`SegmentEncoder::push`]; [`MediaError::Internal`] when the encoder left a frame out.
    pub fn finish(mut self) -> Result<EncodedSegment, MediaError> {
        // SAFETY: a null frame asks an open encoder to hand out the rest.
        check("finish encoding", unsafe { avcodec_send_frame(self.encoder.as_mut_ptr(), ptr::null()) })?;
        self.drain()?;
        if self.written != self.pushed {
            return Err(MediaError::Internal(format!(
                "the encoder made {} packets of {} pictures",
                self.written, self.pushed
            )));
        }
        match std::mem::replace(&mut self.sink, Sink::Failed) {
            Sink::Open(writer) => {
                let (frames, bytes) =
                    writer.finish().map_err(|error| storage("write", &self.path, &error))?;
                Ok(EncodedSegment { frames, bytes })
            }
            Sink::Waiting(_) | Sink::Failed => {
                Err(MediaError::Internal("a segment without pictures was to be encoded".to_owned()))
            }
        }
    }

    fn begin_file(&mut self, parameter_sets: Vec<u8>) -> Result<(), MediaError> {
        let header = PacketsHeader {
            codec: self.codec,
            first: self.first,
            width: self.width,
            height: self.height,
            parameter_sets,
        };
        if let Sink::Waiting(file) = std::mem::replace(&mut self.sink, Sink::Failed) {
            let writer =
                PacketWriter::new(file, &header).map_err(|error| storage("write", &self.path, &error))?;
            self.sink = Sink::Open(Box::new(writer));
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), MediaError> {
        loop {
            // The bytes are lent while `self` is written to, hence a packet of its own.
            let mut packet = Packet::empty();
            // SAFETY: context and packet are open and ours.
            let code = unsafe { avcodec_receive_packet(self.encoder.as_mut_ptr(), packet.as_mut_ptr()) };
            if code == AVERROR(libc::EAGAIN) || code == AVERROR_EOF {
                return Ok(());
            }
            check("encode a picture", code)?;
            let pts = packet.pts().unwrap_or(i64::MIN);
            self.write(packet.data().unwrap_or_default(), pts, packet.is_key())?;
        }
    }

    fn write(&mut self, data: &[u8], pts: i64, keyframe: bool) -> Result<(), MediaError> {
        // The whole join stands on packet i being frame first + i.
        if pts != i64::from(self.first) + i64::from(self.written) || (self.written == 0) != keyframe {
            return Err(MediaError::Internal(format!(
                "the encoder put out the packet of frame {pts} (keyframe: {keyframe}) as number {}",
                self.written
            )));
        }
        if matches!(self.sink, Sink::Waiting(_)) {
            self.begin_file(mpeg4_headers(data).to_vec())?;
        }
        let Sink::Open(writer) = &mut self.sink else {
            return Err(MediaError::Internal("the packet file could not be begun".to_owned()));
        };
        writer.push(keyframe, data).map_err(|error| storage("write", &self.path, &error))?;
        self.written += 1;
        Ok(())
    }
}

/// Size of the planes, which is what is encoded: the upright picture padded to even sides.
pub(crate) fn coded_size(video: &VideoInfo) -> (u32, u32) {
    (video.width.next_multiple_of(2), video.height.next_multiple_of(2))
}

/// The nominal frame rate with both terms at most 65535, as MPEG-4 and AVI need it.
pub(crate) fn nominal_rate(rate: Ratio) -> Ratio {
    let (mut num, mut den) = (0, 0);
    // SAFETY: only writes its two results.
    unsafe { av_reduce(&raw mut num, &raw mut den, i64::from(rate.num), i64::from(rate.den), 65535) };
    if num > 0 && den > 0 { Ratio { num, den } } else { Ratio { num: 25, den: 1 } }
}

/// Code points of [`Color`] as FFmpeg's numbers: matrix, primaries, transfer. Those H.273 reserves become
/// "unspecified", as FFmpeg has no value for them.
pub(crate) fn color_codes(color: Color) -> (i64, i64, i64) {
    let matrix = match color.matrix {
        Matrix::Bt601 => 6,
        Matrix::Bt709 => 1,
        Matrix::Bt2020 => 9,
    };
    let primaries = match color.primaries {
        known @ (1 | 4..=12 | 22) => i64::from(known),
        _ => 2,
    };
    let transfer = match color.transfer {
        known @ (1 | 4..=18) => i64::from(known),
        _ => 2,
    };
    (matrix, primaries, transfer)
}

/// What an MPEG-4 keyframe begins with, up to the group of pictures or the picture itself.
fn mpeg4_headers(data: &[u8]) -> &[u8] {
    let end = data.windows(4).position(|code| matches!(code, [0, 0, 1, 0xb3 | 0xb6]));
    &data[..end.unwrap_or(0)]
}

/// The H.264 level (times ten) for a size, a rate and a number of reference frames: ITU-T H.264 table A-1.
/// Not below 3.0, as the bit rates of the levels below are too small for a constant rate factor; `None` beyond
/// the largest.
fn h264_level(width: u32, height: u32, rate: Ratio, references: u32) -> Option<u32> {
    /// Level, macroblocks a second, macroblocks a frame, macroblocks in the decoder's store.
    const LEVELS: [(u32, u64, u64, u64); 11] = [
        (30, 40_500, 1_620, 8_100),
        (31, 108_000, 3_600, 18_000),
        (32, 216_000, 5_120, 20_480),
        (40, 245_760, 8_192, 32_768),
        (42, 522_240, 8_704, 34_816),
        (50, 589_824, 22_080, 110_400),
        (51, 983_040, 36_864, 184_320),
        (52, 2_073_600, 36_864, 184_320),
        (60, 4_177_920, 139_264, 696_320),
        (61, 8_355_840, 139_264, 696_320),
        (62, 16_711_680, 139_264, 696_320),
    ];
    let (columns, rows) = (u64::from(width.div_ceil(16)), u64::from(height.div_ceil(16)));
    let frame = columns * rows;
    let num = u64::try_from(rate.num).ok()?;
    let den = u64::try_from(rate.den).ok()?.max(1);
    LEVELS
        .into_iter()
        .find(|&(_, second, largest, store)| {
            frame <= largest
                && columns.pow(2).max(rows.pow(2)) <= 8 * largest
                && frame * num <= second * den
                && frame * u64::from(references) <= store
        })
        .map(|(level, ..)| level)
}

fn open(spec: &SegmentSpec<'_>, width: u32, height: u32) -> Result<Context, MediaError> {
    let name = match spec.codec {
        Codec::H264 => "libx264",
        Codec::Mpeg4 => "mpeg4",
    };
    let encoder = find_by_name(name).ok_or_else(|| {
        MediaError::Internal(format!("This FFmpeg has no encoder {name}: install one that has it."))
    })?;
    let too_large = || MediaError::Input(format!("The video is {width}×{height}: scale it down."));
    let rate = nominal_rate(spec.video.frame_rate);
    // SAFETY: the context is checked before use and owned by `opened`, which frees it on every way out.
    unsafe {
        let mut opened = Context::new_with_codec(encoder);
        let context = opened.as_mut_ptr();
        if context.is_null() {
            return Err(out_of_memory());
        }
        (*context).width = i32::try_from(width).map_err(|_| too_large())?;
        (*context).height = i32::try_from(height).map_err(|_| too_large())?;
        (*context).pix_fmt = AVPixelFormat::AV_PIX_FMT_YUV420P;
        // The real timestamps may be irregular and would steer the rate control; one tick a frame makes a
        // segment's bytes depend on its pictures alone.
        (*context).time_base = AVRational { num: rate.den, den: rate.num };
        (*context).framerate = AVRational { num: rate.num, den: rate.den };
        (*context).sample_aspect_ratio =
            AVRational { num: spec.video.sample_aspect.num, den: spec.video.sample_aspect.den };
        (*context).max_b_frames = 0;
        (*context).flags |= AV_CODEC_FLAG_CLOSED_GOP as i32;
        let (matrix, primaries, transfer) = color_codes(spec.video.color);
        set_number(context, "colorspace", matrix)?;
        set_number(context, "color_primaries", primaries)?;
        set_number(context, "color_trc", transfer)?;
        set_number(context, "color_range", 1)?;
        match spec.codec {
            Codec::H264 => {
                let references = spec.settings.references().unwrap_or(1);
                (*context).flags |= AV_CODEC_FLAG_GLOBAL_HEADER as i32;
                (*context).gop_size = 1 << 30;
                (*context).thread_count = i32::try_from(spec.threads.clamp(1, 64)).unwrap_or(1);
                set_text(context, "preset", &spec.settings.preset)?;
                set_text(context, "profile", "high")?;
                set_text(context, "crf", &spec.settings.crf.to_string())?;
                set_text(context, "a53cc", "0")?;
                if let Some(level) = h264_level(width, height, rate, references) {
                    set_text(context, "level", &format!("{}.{}", level / 10, level % 10))?;
                }
                // Slices would depend on the number of threads, keyframes at cuts on the pictures.
                set_text(context, "x264-params", &format!("scenecut=0:sliced-threads=0:ref={references}"))?;
            }
            Codec::Mpeg4 => {
                (*context).flags |= AV_CODEC_FLAG_QSCALE as i32;
                (*context).global_quality = i32::from(spec.settings.mpeg4_qscale) * LAMBDA;
                (*context).gop_size = MPEG4_GOP;
                (*context).thread_count = 1;
                set_number(context, "sc_threshold", 1_000_000_000)?;
            }
        }
        check("open the encoder", avcodec_open2(context, encoder.as_ptr(), ptr::null_mut()))?;
        Ok(opened)
    }
}

/// Sets an option of the encoder; FFmpeg ignores unknown ones when they come in a dictionary, here they fail.
unsafe fn set_text(context: *mut AVCodecContext, name: &str, value: &str) -> Result<(), MediaError> {
    let no_nul = |_| MediaError::Internal(format!("the encoder option {name} holds a NUL"));
    let (name, value) = (CString::new(name).map_err(no_nul)?, CString::new(value).map_err(no_nul)?);
    // SAFETY: the caller passes a live context, which begins with its AVClass as `av_opt_set` expects.
    let code = unsafe { av_opt_set(context.cast(), name.as_ptr(), value.as_ptr(), AV_OPT_SEARCH_CHILDREN) };
    check(&format!("set the encoder's {}", name.to_string_lossy()), code).map(|_| ())
}

/// As [`set_text`], for numbers.
unsafe fn set_number(context: *mut AVCodecContext, name: &str, value: i64) -> Result<(), MediaError> {
    let c_name =
        CString::new(name).map_err(|_| MediaError::Internal("an option's name holds a NUL".to_owned()))?;
    // SAFETY: as in `set_text`.
    let code = unsafe { av_opt_set_int(context.cast(), c_name.as_ptr(), value, AV_OPT_SEARCH_CHILDREN) };
    check(&format!("set the encoder's {name}"), code).map(|_| ())
}

/// The bytes at `data`, none for a null pointer.
///
/// # Safety
/// `data` is null or points to `size` bytes that outlive `'a`.
unsafe fn bytes<'a>(data: *const u8, size: i32) -> &'a [u8] {
    match usize::try_from(size) {
        // SAFETY: what the caller promises.
        Ok(size) if !data.is_null() => unsafe { std::slice::from_raw_parts(data, size) },
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_follows_size_and_rate() {
        let at = |width, height, num, den| h264_level(width, height, Ratio { num, den }, 1);
        assert_eq!(at(640, 480, 30, 1), Some(30));
        assert_eq!(at(1280, 720, 30, 1), Some(31));
        assert_eq!(at(1920, 1080, 30000, 1001), Some(40));
        assert_eq!(at(1920, 1080, 60, 1), Some(42));
        assert_eq!(at(3840, 2160, 30, 1), Some(51));
        assert_eq!(at(7680, 4320, 30, 1), Some(60));
        assert_eq!(at(16384, 16384, 30, 1), None);
        // Long and thin: few macroblocks, but a side no lower level allows.
        assert_eq!(at(8192, 16, 10, 1), Some(51));
        assert_eq!(h264_level(1920, 1080, Ratio { num: 30, den: 1 }, 3), Some(40));
    }

    #[test]
    fn rates_are_reduced_to_what_mpeg4_can_write() {
        let rate = |num, den| {
            let Ratio { num, den } = nominal_rate(Ratio { num, den });
            (num, den)
        };
        assert_eq!(rate(30000, 1001), (30000, 1001));
        assert_eq!(rate(90000, 3003), (30000, 1001));
        assert_eq!(rate(0, 1), (25, 1));
        let (num, den) = rate(12_345_678, 1_000_003);
        assert!(num <= 65535 && den <= 65535);
        assert!((f64::from(num) / f64::from(den) - 12_345_678.0 / 1_000_003.0).abs() < 1e-6);
    }

    #[test]
    fn wrong_settings_are_refused_with_a_sentence() {
        let preset = EncoderSettings { preset: "placebo".to_owned(), ..EncoderSettings::default() };
        let crf = EncoderSettings { crf: f64::NAN, ..EncoderSettings::default() };
        let qscale = EncoderSettings { mpeg4_qscale: 0, ..EncoderSettings::default() };
        for settings in [preset, crf, qscale] {
            assert!(matches!(settings.check(), Err(MediaError::Input(_))), "{settings:?}");
        }
        EncoderSettings::default().check().unwrap();
    }
}
