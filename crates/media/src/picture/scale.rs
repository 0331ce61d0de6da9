//! A swscale context that is made when sizes or formats change, and kept otherwise.

use std::ffi::c_int;
use std::ptr;

use ffmpeg_next::ffi;

use crate::MediaError;
use crate::probe::Matrix;

/// One side of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Side {
    pub width: u32,
    pub height: u32,
    pub format: ffi::AVPixelFormat,
    /// One of FFmpeg's `SWS_CS_*`: the coefficients of the matrix.
    pub matrix: c_int,
    /// Full range rather than limited.
    pub full: bool,
}

/// The coefficients swscale knows a matrix by.
pub(crate) fn sws_matrix(matrix: Matrix) -> c_int {
    match matrix {
        Matrix::Bt601 => ffi::SWS_CS_ITU601,
        Matrix::Bt709 => ffi::SWS_CS_ITU709,
        Matrix::Bt2020 => ffi::SWS_CS_BT2020,
    }
}

/// A scaler and converter of pictures.
pub(crate) struct Scaler {
    context: *mut ffi::SwsContext,
    made_for: Option<(Side, Side)>,
    flags: c_int,
}

// SAFETY: the context is owned, and swscale keeps no thread-local state in it.
unsafe impl Send for Scaler {}

impl Scaler {
    pub(crate) fn new(flags: c_int) -> Self {
        Self { context: ptr::null_mut(), made_for: None, flags }
    }

    /// Converts one whole picture.
    ///
    /// # Safety
    /// `data` and `strides` must describe planes as `from` and `to` say, readable and writable respectively.
    pub(crate) unsafe fn run(
        &mut self,
        from: Side,
        source: (&[*mut u8; 8], &[c_int; 8]),
        to: Side,
        target: (&[*mut u8; 8], &[c_int; 8]),
    ) -> Result<(), MediaError> {
        self.prepare(from, to)?;
        let read: [*const u8; 8] = source.0.map(<*mut u8>::cast_const);
        // SAFETY: the context was made for these sides, and the caller vouches for the planes.
        let rows = unsafe {
            ffi::sws_scale(
                self.context,
                read.as_ptr(),
                source.1.as_ptr(),
                0,
                from.height as c_int,
                target.0.as_ptr(),
                target.1.as_ptr(),
            )
        };
        if rows <= 0 {
            return Err(MediaError::Internal("FFmpeg could not convert a picture.".into()));
        }
        Ok(())
    }

    fn prepare(&mut self, from: Side, to: Side) -> Result<(), MediaError> {
        if self.made_for == Some((from, to)) {
            return Ok(());
        }
        self.made_for = None;
        // SAFETY: the old context is freed once; null is fine. Filters and parameters may be null. The
        // coefficient tables are static.
        unsafe {
            ffi::sws_freeContext(self.context);
            self.context = ffi::sws_alloc_context();
            let flags = i64::from(self.flags);
            // Ranges must be known before the context is made: it chooses its fastest way by them.
            let options = [
                (c"srcw", i64::from(from.width)),
                (c"srch", i64::from(from.height)),
                (c"src_format", i64::from(from.format as c_int)),
                (c"src_range", i64::from(from.full)),
                (c"dstw", i64::from(to.width)),
                (c"dsth", i64::from(to.height)),
                (c"dst_format", i64::from(to.format as c_int)),
                (c"dst_range", i64::from(to.full)),
                (c"sws_flags", flags),
            ];
            let usable = !self.context.is_null()
                && options.iter().all(|(name, value)| {
                    ffi::av_opt_set_int(self.context.cast(), name.as_ptr(), *value, 0) >= 0
                })
                && ffi::sws_init_context(self.context, ptr::null_mut(), ptr::null_mut()) >= 0;
            if !usable {
                return Err(MediaError::Input(
                    "The pictures are in a pixel format that can't be converted here: convert the video to H.264 with \
                     8-bit 4:2:0 pictures."
                        .into(),
                ));
            }
            // A refusal (-1) means that neither side is YUV, where there is nothing to set.
            ffi::sws_setColorspaceDetails(
                self.context,
                ffi::sws_getCoefficients(from.matrix),
                c_int::from(from.full),
                ffi::sws_getCoefficients(to.matrix),
                c_int::from(to.full),
                0,
                1 << 16,
                1 << 16,
            );
        }
        self.made_for = Some((from, to));
        Ok(())
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; null is fine.
        unsafe { ffi::sws_freeContext(self.context) };
    }
}
