//! From what a decoder gives to a [`Picture`].

use std::ffi::c_int;

use ffmpeg_next::ffi;
use ffmpeg_next::frame::Video;

use super::scale::{Scaler, Side, sws_matrix};
use super::tone::ToneMapper;
use super::turn::{pad, turn};
use super::{Picture, Plane, share};
use crate::MediaError;
use crate::probe::{Orientation, VideoInfo};

/// Converts the decoded frames of one video; costs nothing where they are upright limited-range 8-bit 4:2:0.
pub(crate) struct Converter {
    coded: (u32, u32),
    visible: (u32, u32),
    orientation: Orientation,
    matrix: c_int,
    scaler: Scaler,
    tone: Option<ToneMapper>,
}

impl Converter {
    pub(crate) fn new(video: &VideoInfo) -> Self {
        Self {
            coded: (video.coded_width, video.coded_height),
            visible: (video.width, video.height),
            orientation: video.orientation,
            matrix: sws_matrix(video.color.matrix),
            // Rounding exactly keeps greys grey; bicubic only matters where chroma is thinned out or the size
            // changes on the way. Chroma is made from all pixels of RGB, not from pairs: the last pair of an odd
            // width reaches beyond the row.
            scaler: Scaler::new(ffi::SWS_BICUBIC | ffi::SWS_ACCURATE_RND | ffi::SWS_FULL_CHR_H_INP),
            tone: video.hdr.map(ToneMapper::new),
        }
    }

    /// The upright picture of a decoded frame; shares the frame's pixels where it can.
    pub(crate) fn convert(&mut self, decoded: &Video) -> Result<Picture, MediaError> {
        let mapped = self.tone.as_mut().map(|tone| tone.map(decoded)).transpose()?;
        let decoded = mapped.as_ref().unwrap_or(decoded);
        let source = self.side_of(decoded)?;
        let wanted = Side {
            width: self.coded.0,
            height: self.coded.1,
            format: ffi::AVPixelFormat::AV_PIX_FMT_YUV420P,
            matrix: self.matrix,
            full: false,
        };
        // SAFETY: the frame is valid; only numbers are read.
        let forward = unsafe { (&(*decoded.as_ptr()).linesize)[..3].iter().all(|&stride| stride > 0) };
        let even = self.coded.0.is_multiple_of(2) && self.coded.1.is_multiple_of(2);
        let upright = self.orientation == Orientation::default();
        let (width, height) = self.visible;

        let mut flat =
            if source == wanted && forward { share(decoded)? } else { self.scale(decoded, source, wanted)? };
        if upright && even {
            strip(&mut flat);
            return Ok(Picture::from_frame(flat, width, height));
        }
        let mut picture = Picture::new(width, height);
        let halves = [0, 1, 1];
        for (i, plane) in picture.planes_mut().iter_mut().enumerate() {
            let w = (self.coded.0 as usize).div_ceil(1 << halves[i]);
            let h = (self.coded.1 as usize).div_ceil(1 << halves[i]);
            // SAFETY: `flat` holds 4:2:0 planes of the coded size with positive strides.
            let from = unsafe {
                let frame = &*flat.as_ptr();
                let stride = frame.linesize[i] as usize;
                let data = std::slice::from_raw_parts(frame.data[i].cast_const(), stride * (h - 1) + w);
                Plane { data, stride, width: w, height: h }
            };
            turn(from, plane, self.orientation);
            let (w, h) = if self.orientation.quarter_turns % 2 == 1 { (h, w) } else { (w, h) };
            pad(plane, w, h);
        }
        Ok(picture)
    }

    fn side_of(&self, decoded: &Video) -> Result<Side, MediaError> {
        use ffi::AVPixelFormat as P;
        // SAFETY: the frame is valid, and a decoder of the same FFmpeg wrote its fields.
        let frame = unsafe { &*decoded.as_ptr() };
        if frame.width <= 0 || frame.height <= 0 || frame.data[0].is_null() {
            return Err(MediaError::Internal("A decoded picture holds no pixels.".into()));
        }
        let format = P::from(decoded.format());
        let (format, full) = match format {
            P::AV_PIX_FMT_YUVJ420P => (P::AV_PIX_FMT_YUV420P, true),
            P::AV_PIX_FMT_YUVJ422P => (P::AV_PIX_FMT_YUV422P, true),
            P::AV_PIX_FMT_YUVJ444P => (P::AV_PIX_FMT_YUV444P, true),
            P::AV_PIX_FMT_YUVJ440P => (P::AV_PIX_FMT_YUV440P, true),
            P::AV_PIX_FMT_YUVJ411P => (P::AV_PIX_FMT_YUV411P, true),
            format => (format, frame.color_range == ffi::AVColorRange::AVCOL_RANGE_JPEG),
        };
        // SAFETY: a look-up in a static table; FFmpeg describes every format it decodes to.
        let rgb = unsafe {
            let description = ffi::av_pix_fmt_desc_get(format);
            !description.is_null() && (*description).flags & u64::from(ffi::AV_PIX_FMT_FLAG_RGB as u32) != 0
        };
        use ffi::AVColorSpace as S;
        let matrix = match frame.colorspace {
            S::AVCOL_SPC_BT709 => ffi::SWS_CS_ITU709,
            S::AVCOL_SPC_BT470BG | S::AVCOL_SPC_SMPTE170M => ffi::SWS_CS_ITU601,
            S::AVCOL_SPC_FCC => ffi::SWS_CS_FCC,
            S::AVCOL_SPC_SMPTE240M => ffi::SWS_CS_SMPTE240M,
            S::AVCOL_SPC_BT2020_NCL | S::AVCOL_SPC_BT2020_CL => ffi::SWS_CS_BT2020,
            _ => self.matrix,
        };
        Ok(Side {
            width: frame.width as u32,
            height: frame.height as u32,
            format,
            matrix: if rgb { self.matrix } else { matrix },
            full: rgb || full,
        })
    }

    fn scale(&mut self, decoded: &Video, from: Side, to: Side) -> Result<Video, MediaError> {
        let flat = Picture::new(to.width, to.height).frame;
        // SAFETY: both frames are valid and hold planes of their sides' sizes; the target is new and its
        // planes are padded to even sizes.
        unsafe {
            let (read, write) = (&*decoded.as_ptr(), &*flat.as_ptr());
            self.scaler.run(from, (&read.data, &read.linesize), to, (&write.data, &write.linesize))?;
        }
        Ok(flat)
    }
}

/// Forgets what came with a decoded frame (picture type, captions, encoder's letters): an encoder would act on it.
fn strip(frame: &mut Video) {
    // SAFETY: the frame is valid, and the reference is this function's own.
    unsafe {
        let f = &mut *frame.as_mut_ptr();
        f.format = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as c_int;
        f.pict_type = ffi::AVPictureType::AV_PICTURE_TYPE_NONE;
        f.key_frame = 0;
        f.interlaced_frame = 0;
        f.top_field_first = 0;
        f.repeat_pict = 0;
        f.flags = 0;
        f.decode_error_flags = 0;
        f.pts = ffi::AV_NOPTS_VALUE;
        f.pkt_dts = ffi::AV_NOPTS_VALUE;
        f.pkt_duration = 0;
        f.color_range = ffi::AVColorRange::AVCOL_RANGE_MPEG;
        f.sample_aspect_ratio = ffi::AVRational { num: 0, den: 1 };
        while f.nb_side_data > 0 {
            let kind = (**f.side_data).type_;
            ffi::av_frame_remove_side_data(f, kind);
        }
        ffi::av_dict_free(&raw mut f.metadata);
    }
}
