//! A picture as every stage sees it: upright, 8-bit 4:2:0, limited range, even-sized planes.

pub(crate) mod convert;
mod jpeg;
mod scale;
mod shrink;
mod tone;
mod turn;

use ffmpeg_next::ffi;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame::Video;
use xxhash_rust::xxh3::Xxh3Default;

pub use jpeg::{JPEG_QUALITY, JpegWriter};
pub use shrink::{SMALL_BYTES, SMALL_SIDE, Shrinker};

/// One upright picture. Its planes are padded to even sizes by repeating the last column and row.
pub struct Picture {
    pub(crate) frame: Video,
    width: u32,
    height: u32,
}

/// One plane of a picture, to be drawn on.
pub struct PlaneMut<'a> {
    /// Rows of `stride` bytes, of which the first `width` are pixels.
    pub data: &'a mut [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// One plane of a picture, to be read.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a> {
    /// Rows of `stride` bytes, of which the first `width` are pixels; the last row ends with its last pixel.
    pub data: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Plane<'_> {
    /// Row `y`, its pixels only.
    #[must_use]
    pub fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.stride..][..self.width]
    }
}

impl Picture {
    /// A picture of `width` × `height` visible pixels, its content not yet defined.
    #[must_use]
    pub fn new(width: u32, height: u32) -> Self {
        Self {
            frame: Video::new(Pixel::YUV420P, width.next_multiple_of(2), height.next_multiple_of(2)),
            width,
            height,
        }
    }

    /// Wraps a 4:2:0 frame whose planes are even-sized already.
    pub(crate) fn from_frame(frame: Video, width: u32, height: u32) -> Self {
        debug_assert_eq!(
            (frame.width(), frame.height()),
            (width.next_multiple_of(2), height.next_multiple_of(2))
        );
        Self { frame, width, height }
    }

    /// Visible width in pixels; may be odd.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Visible height in pixels; may be odd.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Width, height and stride of plane `i`.
    fn plane_size(&self, i: usize) -> (usize, usize, usize) {
        let half = u32::from(i > 0);
        ((self.frame.width() >> half) as usize, (self.frame.height() >> half) as usize, self.frame.stride(i))
    }

    /// The Y, U and V planes, to be read (limited range: Y 16 to 235, U and V 16 to 240 around 128).
    #[must_use]
    pub fn planes(&self) -> [Plane<'_>; 3] {
        [0, 1, 2].map(|i| {
            let (width, height, stride) = self.plane_size(i);
            // SAFETY: the frame owns `height` rows of at least `width` bytes, `stride` apart, for each plane
            // (strides are positive: `convert` copies what isn't), borrowed with `self`.
            let data = unsafe {
                std::slice::from_raw_parts(
                    (*self.frame.as_ptr()).data[i].cast_const(),
                    stride * (height - 1) + width,
                )
            };
            Plane { data, stride, width, height }
        })
    }

    /// The Y, U and V planes (limited range: Y 16 to 235, U and V 16 to 240 around 128).
    ///
    /// The picture may share its pixels with the decoder, which still predicts from them; they are copied
    /// here, the first time somebody wants to draw.
    pub fn planes_mut(&mut self) -> [PlaneMut<'_>; 3] {
        // SAFETY: the frame is valid and reference-counted; on failure it is unchanged.
        if unsafe { ffi::av_frame_make_writable(self.frame.as_mut_ptr()) } < 0 {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<Video>());
        }
        let sizes = [0, 1, 2].map(|i| self.plane_size(i));
        // SAFETY: only pointers are read.
        let pointers = unsafe { (*self.frame.as_ptr()).data };
        [0, 1, 2].map(|i| {
            let (width, height, stride) = sizes[i];
            // SAFETY: as in `planes`; the planes are distinct buffers, this frame alone refers to them, and
            // `self` stays borrowed as long as the result lives.
            let data = unsafe { std::slice::from_raw_parts_mut(pointers[i], stride * (height - 1) + width) };
            PlaneMut { data, stride, width, height }
        })
    }

    /// A hash (XXH3) of the visible pixels: equal for equal pictures, whatever their strides and padding.
    #[must_use]
    pub fn content_hash(&self) -> u64 {
        let mut hash = Xxh3Default::new();
        hash.update(&self.width.to_le_bytes());
        hash.update(&self.height.to_le_bytes());
        for (i, plane) in self.planes().iter().enumerate() {
            let half = u32::from(i > 0);
            let (width, height) = (self.width.div_ceil(1 << half), self.height.div_ceil(1 << half));
            for y in 0..height as usize {
                hash.update(&plane.row(y)[..width as usize]);
            }
        }
        hash.digest()
    }
}

/// A second reference to the same pixels: no copy.
pub(crate) fn share(frame: &Video) -> Result<Video, crate::MediaError> {
    let mut shared = Video::empty();
    // SAFETY: both frames are valid; the target is empty.
    let code = unsafe { ffi::av_frame_ref(shared.as_mut_ptr(), frame.as_ptr()) };
    if code < 0 {
        return Err(crate::av::failure("hold a picture in memory", code));
    }
    Ok(shared)
}
