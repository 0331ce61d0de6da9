//! The small picture that detection looks at.

use ffmpeg_next::ffi;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame::Video;

use super::Picture;
use super::scale::{Scaler, Side, sws_matrix};
use crate::MediaError;
use crate::probe::Color;

/// Width and height of the small picture in pixels.
pub const SMALL_SIDE: u32 = 300;

/// Bytes of the small picture: packed rows of RGB triples.
pub const SMALL_BYTES: usize = (SMALL_SIDE * SMALL_SIDE * 3) as usize;

/// Squashes pictures to 300×300 RGB by averaging areas, whatever their shape.
pub struct Shrinker {
    scaler: Scaler,
    matrix: i32,
    small: Video,
    packed: Vec<u8>,
}

impl Shrinker {
    /// For pictures of this colour.
    #[must_use]
    pub fn new(color: &Color) -> Self {
        Self {
            scaler: Scaler::new(ffi::SWS_AREA | ffi::SWS_FULL_CHR_H_INT | ffi::SWS_ACCURATE_RND),
            matrix: sws_matrix(color.matrix),
            small: Video::new(Pixel::RGB24, SMALL_SIDE, SMALL_SIDE),
            packed: vec![0; SMALL_BYTES],
        }
    }

    /// The visible pixels of `picture` as [`SMALL_BYTES`] bytes, rows from the top, R G B.
    ///
    /// # Errors
    /// [`MediaError::Internal`] when FFmpeg lacks the conversion.
    pub fn shrink(&mut self, picture: &Picture) -> Result<&[u8], MediaError> {
        let from = Side {
            width: picture.width(),
            height: picture.height(),
            format: ffi::AVPixelFormat::AV_PIX_FMT_YUV420P,
            matrix: self.matrix,
            full: false,
        };
        let to = Side {
            width: SMALL_SIDE,
            height: SMALL_SIDE,
            format: ffi::AVPixelFormat::AV_PIX_FMT_RGB24,
            matrix: self.matrix,
            full: true,
        };
        // SAFETY: a picture's planes cover its visible size; `small` was made for the target.
        unsafe {
            let (read, write) = (&*picture.frame.as_ptr(), &*self.small.as_ptr());
            self.scaler.run(from, (&read.data, &read.linesize), to, (&write.data, &write.linesize))?;
        }
        let row = (SMALL_SIDE * 3) as usize;
        let stride = self.small.stride(0);
        let small = self.small.data(0);
        for (y, out) in self.packed.chunks_exact_mut(row).enumerate() {
            out.copy_from_slice(&small[y * stride..][..row]);
        }
        Ok(&self.packed)
    }
}
