//! What a file holds: its container, its video stream, its audio.

use std::ffi::CStr;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use ffmpeg_next::ffi;
use ffmpeg_next::format::context::Input;
use serde::{Deserialize, Serialize};

use crate::MediaError;
use crate::av::codec_name;
use crate::input::{READABLE, READING, input_error, is_cut_off, open_input, stream_pointers};

/// A fraction, as FFmpeg writes time bases, frame rates and aspect ratios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ratio {
    /// Numerator.
    pub num: i32,
    /// Denominator, positive.
    pub den: i32,
}

/// How the coded picture must be turned to stand upright: the eight orientations of a display matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Orientation {
    /// Clockwise quarter turns, 0 to 3, applied first.
    pub quarter_turns: u8,
    /// Mirrored left to right, applied after the turn.
    pub mirrored: bool,
}

/// The luma-chroma matrix of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Matrix {
    /// ITU-R BT.601 (standard definition).
    Bt601,
    /// ITU-R BT.709 (high definition).
    Bt709,
    /// ITU-R BT.2020 non-constant luminance.
    Bt2020,
}

/// Colour of the pictures this crate hands out and encodes: always 8-bit 4:2:0, limited range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Color {
    /// Luma-chroma matrix.
    pub matrix: Matrix,
    /// Primaries, as the code point of ITU-T H.273; 2 when unknown.
    pub primaries: u8,
    /// Transfer characteristics, as the code point of ITU-T H.273; 2 when unknown.
    pub transfer: u8,
}

/// How an HDR source codes light (ITU-R BT.2100).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Hdr {
    /// Perceptual quantiser (SMPTE ST 2084).
    Pq,
    /// Hybrid log-gamma (ARIB STD-B67).
    Hlg,
}

/// The video stream a job works on, as every stage must see it: it is part of the frame index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoInfo {
    /// Index of the stream in its container.
    pub stream: usize,
    /// FFmpeg's name of the codec, such as `h264`.
    pub codec: String,
    /// Coded picture width in pixels, before [`VideoInfo::orientation`].
    pub coded_width: u32,
    /// Coded picture height in pixels.
    pub coded_height: u32,
    /// How to turn it upright.
    pub orientation: Orientation,
    /// Width of the upright picture in pixels; may be odd.
    pub width: u32,
    /// Height of the upright picture in pixels; may be odd.
    pub height: u32,
    /// Sample aspect ratio of the upright picture; 1:1 when unknown.
    pub sample_aspect: Ratio,
    /// Seconds in one tick of every PTS.
    pub time_base: Ratio,
    /// Nominal frame rate, frames a second.
    pub frame_rate: Ratio,
    /// Colour after conversion to 8-bit 4:2:0 limited range.
    pub color: Color,
    /// What is decoded is HDR, and tone-mapped on the way to [`VideoInfo::color`].
    pub hdr: Option<Hdr>,
}

/// One audio stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AudioInfo {
    /// Index of the stream in its container.
    pub stream: usize,
    /// FFmpeg's name of the codec.
    pub codec: String,
}

/// What a video may measure at most (and at least). Beyond, it is refused with a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Smallest width and height of the picture in pixels.
    pub min_side: u32,
    /// Largest width and height of the picture in pixels.
    pub max_side: u32,
    /// Most pixels in one picture.
    pub max_pixels: u64,
    /// Most frames.
    pub max_frames: u32,
    /// Longest time from the first frame to the last.
    pub max_duration: Duration,
}

impl Default for Limits {
    /// 8K either way round, and a day at 60 frames a second.
    fn default() -> Self {
        Self {
            min_side: 16,
            max_side: 8192,
            max_pixels: 8192 * 4352,
            max_frames: 5_200_000,
            max_duration: Duration::from_secs(24 * 3600),
        }
    }
}

/// What [`probe`] found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// FFmpeg's name of the container, such as `matroska,webm`.
    pub container: String,
    /// The stream a job works on.
    pub video: VideoInfo,
    /// The audio streams.
    pub audio: Vec<AudioInfo>,
    /// What the result leaves out, each as a phrase ("subtitles (mov_text)"): further streams, and the rest of a
    /// video that was cut off.
    pub dropped: Vec<String>,
    /// Length in seconds by the container's word, where it gives one.
    pub duration: Option<f64>,
}

fn ratio(r: ffi::AVRational) -> Ratio {
    Ratio { num: r.num, den: r.den }
}

/// Reads what the file at `path` holds. Opens no decoder beyond what recognising the streams takes.
///
/// # Errors
/// [`MediaError::Input`] says why the file is no video that is accepted, [`MediaError::Storage`] that it
/// could not be read.
pub fn probe(path: &Path, limits: &Limits) -> Result<Source, MediaError> {
    let input = open_input(path)?;
    describe(&input, path, limits)
}

/// [`probe`] for a file that is open already.
pub(crate) fn describe(input: &Input, path: &Path, limits: &Limits) -> Result<Source, MediaError> {
    // SAFETY: an open input has a format with a name.
    let container =
        unsafe { CStr::from_ptr((*(*input.as_ptr()).iformat).name) }.to_string_lossy().into_owned();
    let streams = stream_pointers(input);
    let Some(chosen) = choose_video(streams) else {
        let sound = streams.iter().any(|&s| medium(s) == ffi::AVMediaType::AVMEDIA_TYPE_AUDIO);
        return input_error(if sound {
            format!("The file holds sound but no video: {READABLE} that shows pictures.")
        } else {
            format!("The file holds no video: {READABLE} that shows pictures.")
        });
    };
    let video = describe_video(input, streams[chosen], chosen)?;
    check_size(&video, limits)?;
    let missing = samples_beyond_end(path, streams[chosen])?;
    if let Some((missing, all)) = missing {
        // Only MP4's table names every frame; the others name places to seek to.
        let how_much = if container.starts_with("mov") {
            format!(" ({missing} of {all} frames are missing)")
        } else {
            String::new()
        };
        return input_error(format!(
            "The video was cut off before its end{how_much}: copy or upload the whole file again."
        ));
    }

    let mut audio = Vec::new();
    let mut dropped = Vec::new();
    for (i, &stream) in streams.iter().enumerate().filter(|&(i, _)| i != chosen) {
        // SAFETY: streams of an open input have parameters.
        let (codec, disposition) = unsafe { (coding_name(&*(*stream).codecpar), (*stream).disposition) };
        use ffi::AVMediaType as M;
        match medium(stream) {
            M::AVMEDIA_TYPE_AUDIO => audio.push(AudioInfo { stream: i, codec }),
            M::AVMEDIA_TYPE_VIDEO if disposition & ffi::AV_DISPOSITION_ATTACHED_PIC != 0 => {
                dropped.push(format!("a cover picture ({codec})"));
            }
            M::AVMEDIA_TYPE_VIDEO => dropped.push(format!("a further video stream ({codec})")),
            M::AVMEDIA_TYPE_SUBTITLE => dropped.push(format!("subtitles ({codec})")),
            M::AVMEDIA_TYPE_ATTACHMENT => dropped.push(format!("an attachment ({codec})")),
            _ => dropped.push(format!("data ({codec})")),
        }
    }
    if is_cut_off(path)? {
        dropped.push("all that came after the place where the file was cut off".to_owned());
    }
    // SAFETY: the context is open.
    let duration = unsafe { (*input.as_ptr()).duration };
    let duration = (duration > 0).then(|| duration as f64 / f64::from(ffi::AV_TIME_BASE));
    Ok(Source { container, video, audio, dropped, duration })
}

/// The name of a stream's coding, or the container's own for what FFmpeg has no name for (such as `tmcd`).
fn coding_name(parameters: &ffi::AVCodecParameters) -> String {
    let tag = parameters.codec_tag.to_le_bytes();
    match str::from_utf8(&tag) {
        Ok(tag)
            if parameters.codec_id == ffi::AVCodecID::AV_CODEC_ID_NONE
                && tag.chars().all(|c| c.is_ascii_alphanumeric()) =>
        {
            tag.to_owned()
        }
        _ => codec_name(parameters.codec_id),
    }
}

fn medium(stream: *mut ffi::AVStream) -> ffi::AVMediaType {
    // SAFETY: called with streams of an open input, which have parameters.
    unsafe { (*(*stream).codecpar).codec_type }
}

/// The moving picture to work on: one that can be decoded, the default one, the largest, the first.
fn choose_video(streams: &[*mut ffi::AVStream]) -> Option<usize> {
    let rank = |&(i, &stream): &(usize, &*mut ffi::AVStream)| {
        // SAFETY: as in `medium`.
        unsafe {
            let par = &*(*stream).codecpar;
            let decodable = !ffi::avcodec_find_decoder(par.codec_id).is_null();
            let default = (*stream).disposition & ffi::AV_DISPOSITION_DEFAULT != 0;
            (decodable, default, i64::from(par.width) * i64::from(par.height), std::cmp::Reverse(i))
        }
    };
    let still = ffi::AV_DISPOSITION_ATTACHED_PIC | ffi::AV_DISPOSITION_TIMED_THUMBNAILS;
    streams
        .iter()
        .enumerate()
        .filter(|&(_, &s)| medium(s) == ffi::AVMediaType::AVMEDIA_TYPE_VIDEO)
        // SAFETY: as in `medium`.
        .filter(|&(_, &s)| unsafe { (*s).disposition } & still == 0)
        .max_by_key(rank)
        .map(|(i, _)| i)
}

fn describe_video(input: &Input, stream: *mut ffi::AVStream, index: usize) -> Result<VideoInfo, MediaError> {
    // SAFETY: a stream of the open input has parameters; both are only read.
    let (par, st) = unsafe { (&*(*stream).codecpar, &*stream) };
    let codec = codec_name(par.codec_id);
    // SAFETY: a plain look-up by value.
    if unsafe { ffi::avcodec_find_decoder(par.codec_id) }.is_null() {
        return input_error(if par.codec_id == ffi::AVCodecID::AV_CODEC_ID_NONE {
            "The video is in a coding that is not known here, or it is encrypted: convert it to H.264.".into()
        } else {
            format!("The video is coded as {codec}, which can't be decoded here: convert it to H.264.")
        });
    }
    let (Ok(coded_width), Ok(coded_height)) = (u32::try_from(par.width), u32::try_from(par.height)) else {
        return input_error("The size of the picture is damaged: convert or upload the video again.");
    };
    if coded_width == 0 || coded_height == 0 {
        return input_error(
            "The video shows no picture: its width or height is zero, or no frame of it can be decoded. Convert or \
             upload it again.",
        );
    }
    let orientation = stream_orientation(stream);
    let turned = orientation.quarter_turns % 2 == 1;
    let (width, height) = if turned { (coded_height, coded_width) } else { (coded_width, coded_height) };
    // SAFETY: the stream belongs to the input; no frame is needed.
    let aspect =
        unsafe { ffi::av_guess_sample_aspect_ratio(input.as_ptr().cast_mut(), stream, ptr::null_mut()) };
    let sample_aspect = match ratio(aspect) {
        Ratio { num, den } if num <= 0 || den <= 0 => Ratio { num: 1, den: 1 },
        Ratio { num, den } if turned => Ratio { num: den, den: num },
        upright => upright,
    };
    if st.time_base.num <= 0 || st.time_base.den <= 0 {
        return input_error("The video's clock is damaged: convert or upload the video again.");
    }
    // SAFETY: as above.
    let rate = unsafe { ffi::av_guess_frame_rate(input.as_ptr().cast_mut(), stream, ptr::null_mut()) };
    let hdr = match par.color_trc {
        ffi::AVColorTransferCharacteristic::AVCOL_TRC_SMPTE2084 => Some(Hdr::Pq),
        ffi::AVColorTransferCharacteristic::AVCOL_TRC_ARIB_STD_B67 => Some(Hdr::Hlg),
        _ => None,
    };
    let frame_rate = if rate.num > 0 && rate.den > 0 { ratio(rate) } else { Ratio { num: 25, den: 1 } };
    Ok(VideoInfo {
        stream: index,
        codec,
        coded_width,
        coded_height,
        orientation,
        width,
        height,
        sample_aspect,
        time_base: ratio(st.time_base),
        frame_rate,
        color: match hdr {
            Some(_) => Color { matrix: Matrix::Bt709, primaries: 1, transfer: 1 },
            None => Color {
                matrix: matrix_of(par.color_space, coded_height),
                primaries: code_point(par.color_primaries as u32),
                transfer: code_point(par.color_trc as u32),
            },
        },
        hdr,
    })
}

/// A code point of H.273 as a byte; what is reserved or out of range is "unknown" (2).
fn code_point(value: u32) -> u8 {
    match u8::try_from(value) {
        Ok(v @ 1..=22) if v != 3 => v,
        _ => 2,
    }
}

/// The matrix the pictures are handed out in: that of the source, or by its size where it names none (or one
/// that no player of H.264 would expect).
fn matrix_of(space: ffi::AVColorSpace, coded_height: u32) -> Matrix {
    use ffi::AVColorSpace as S;
    match space {
        S::AVCOL_SPC_BT709 | S::AVCOL_SPC_SMPTE240M => Matrix::Bt709,
        S::AVCOL_SPC_BT470BG | S::AVCOL_SPC_SMPTE170M | S::AVCOL_SPC_FCC => Matrix::Bt601,
        S::AVCOL_SPC_BT2020_NCL | S::AVCOL_SPC_BT2020_CL => Matrix::Bt2020,
        _ if coded_height >= 720 => Matrix::Bt709,
        _ => Matrix::Bt601,
    }
}

fn stream_orientation(stream: *mut ffi::AVStream) -> Orientation {
    let mut size = 0;
    // SAFETY: the stream is valid; the side data, if any, holds `size` bytes and lives as long as the stream.
    unsafe {
        let kind = ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX;
        let data = ffi::av_stream_get_side_data(stream, kind, &raw mut size);
        if data.is_null() || size < 36 {
            return Orientation::default();
        }
        let value = |i: usize| data.cast::<i32>().add(i).read_unaligned();
        Orientation::of_matrix([value(0), value(1), value(3), value(4)])
    }
}

impl Orientation {
    /// From the left upper part `[a, b, c, d]` of a display matrix, by which a point (x, y), y growing downwards,
    /// is shown at (a·x + c·y, b·x + d·y). Angles between are rounded to the nearest quarter.
    #[must_use]
    pub fn of_matrix([a, b, c, d]: [i32; 4]) -> Self {
        let straight = i64::from(a).abs() + i64::from(d).abs();
        let turned = i64::from(b).abs() + i64::from(c).abs();
        let (quarter_turns, mirrored) = if straight >= turned {
            if d >= 0 { (0, a < 0) } else { (2, a > 0) }
        } else if b > 0 {
            (1, c > 0)
        } else {
            (3, c < 0)
        };
        Self { quarter_turns, mirrored }
    }
}

fn check_size(video: &VideoInfo, limits: &Limits) -> Result<(), MediaError> {
    let VideoInfo { coded_width: w, coded_height: h, .. } = *video;
    if w < limits.min_side || h < limits.min_side {
        return input_error(format!(
            "The picture measures {w}×{h} pixels, and at least {0}×{0} are needed: choose a larger video.",
            limits.min_side
        ));
    }
    if w > limits.max_side || h > limits.max_side || u64::from(w) * u64::from(h) > limits.max_pixels {
        return input_error(format!(
            "The picture measures {w}×{h} pixels; at most {0} a side and {1} million in all are accepted: scale \
             the video down.",
            limits.max_side,
            limits.max_pixels / 1_000_000
        ));
    }
    Ok(())
}

/// How many of the samples that the container's table names lie beyond the end of the file, and of how many;
/// `None` when all are there, or the container has no such table before the data is read.
fn samples_beyond_end(path: &Path, stream: *mut ffi::AVStream) -> Result<Option<(usize, usize)>, MediaError> {
    let size = std::fs::metadata(path).map_err(|e| MediaError::storage(READING, &e))?.len();
    // SAFETY: the stream is valid; entries up to the count exist.
    let (missing, all) = unsafe {
        let all = ffi::avformat_index_get_entries_count(stream);
        let missing = (0..all)
            .map(|i| ffi::avformat_index_get_entry(stream, i))
            .filter(|e| !e.is_null())
            .filter(|&e| {
                let bytes = u64::try_from((*e).size()).unwrap_or(0);
                u64::try_from((*e).pos).is_ok_and(|pos| pos.saturating_add(bytes) > size)
            })
            .count();
        (missing, usize::try_from(all).unwrap_or(0))
    };
    Ok((missing > 0).then_some((missing, all)))
}
