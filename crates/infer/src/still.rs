//! Still pictures: decoded, squashed to what the network wants, drawn on, encoded.
//!
//! A video's frames are squashed by swscale's area filter: each small pixel is the mean of the area it covers,
//! weighted by how far each large pixel lies in it; along an axis that has to grow, it is linear between pixels'
//! centres. The same is computed here on RGB. What is left between the two ways is rounding, and that a video's
//! colour has half the resolution.

use std::io::{BufRead, Cursor, Seek};

use common::detection::Detection;
use draw::label::Mask;
use draw::layout::Rect;
use draw::palette::Rgb;
use draw::{Canvas, Painter};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageError, ImageReader, Limits, RgbImage};

use crate::ssd300::SIDE;

/// The largest side of a picture, and the most memory that decoding one may take.
const MAX_SIDE: u32 = 20_000;
const MAX_BYTES: u64 = 1 << 29;

/// Of 100.
const JPEG_QUALITY: u8 = 90;

/// Decodes a JPEG, PNG or WebP. Its pixels are taken as they lie in the file, as COCO's tools do; an EXIF
/// orientation is not applied.
///
/// # Errors
/// When it is none of these, is damaged, or larger than this program takes.
pub fn decode(bytes: impl BufRead + Seek) -> Result<RgbImage, ImageError> {
    let mut reader = ImageReader::new(bytes).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    Ok(reader.decode()?.into_rgb8())
}

/// Draws detections and encodes the picture as JPEG.
///
/// # Errors
/// When the picture cannot be encoded.
pub fn annotate(
    mut image: RgbImage,
    names: &[String],
    detections: &[Detection],
) -> Result<Vec<u8>, ImageError> {
    let painter = Painter::new(names, image.width(), image.height());
    painter.draw(&mut Pixels(&mut image), detections);
    let mut bytes = Cursor::new(Vec::new());
    image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
    Ok(bytes.into_inner())
}

struct Pixels<'a>(&'a mut RgbImage);

impl Canvas for Pixels<'_> {
    fn width(&self) -> usize {
        self.0.width() as usize
    }

    fn height(&self) -> usize {
        self.0.height() as usize
    }

    fn fill(&mut self, rect: Rect, color: Rgb, opacity: u8) {
        for y in rect.y0..rect.y1.min(self.height()) {
            for x in rect.x0..rect.x1.min(self.width()) {
                self.mix(x, y, color, opacity);
            }
        }
    }

    fn blend(&mut self, mask: &Mask, x: usize, y: usize, color: Rgb) {
        for j in 0..mask.height().min(self.height().saturating_sub(y)) {
            for (i, &coverage) in mask.row(j).iter().take(self.width().saturating_sub(x)).enumerate() {
                self.mix(x + i, y + j, color, coverage);
            }
        }
    }
}

impl Pixels<'_> {
    fn mix(&mut self, x: usize, y: usize, color: Rgb, opacity: u8) {
        let pixel = self.0.get_pixel_mut(x as u32, y as u32);
        let opacity = u32::from(opacity);
        for (below, above) in pixel.0.iter_mut().zip([color.r, color.g, color.b]) {
            let sum = u32::from(*below) * (255 - opacity) + u32::from(above) * opacity;
            *below = ((sum + 127) / 255) as u8;
        }
    }
}

/// Squashes a picture to 300×300 into `out` (270,000 bytes): rows from the top, R G B.
pub fn squash(image: &RgbImage, out: &mut [u8]) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels = image.as_raw();
    let across = spans(width);
    let row = SIDE * 3;
    let mut narrow = vec![0.0f32; height * row];
    for (narrow, wide) in narrow.chunks_exact_mut(row).zip(pixels.chunks_exact(width * 3)) {
        for (pixel, Span { first, weights }) in narrow.chunks_exact_mut(3).zip(&across) {
            for (weight, source) in weights.iter().zip(wide[first * 3..].chunks_exact(3)) {
                for (sum, value) in pixel.iter_mut().zip(source) {
                    *sum += weight * f32::from(*value);
                }
            }
        }
    }
    let mut sums = vec![0.0f32; row];
    for (small, Span { first, weights }) in out.chunks_exact_mut(row).zip(spans(height)) {
        sums.fill(0.0);
        for (weight, source) in weights.iter().zip(narrow[first * row..].chunks_exact(row)) {
            for (sum, value) in sums.iter_mut().zip(source) {
                *sum += weight * value;
            }
        }
        for (pixel, sum) in small.iter_mut().zip(&sums) {
            *pixel = sum.round() as u8;
        }
    }
}

/// Which of an axis's pixels a small pixel is made of, and their shares.
struct Span {
    first: usize,
    weights: Vec<f32>,
}

/// The spans of the 300 small pixels over an axis of `size` pixels.
fn spans(size: usize) -> Vec<Span> {
    let scale = size as f64 / SIDE as f64;
    let span = |at: usize| {
        if scale < 1.0 {
            let centre = ((at as f64 + 0.5) * scale - 0.5).clamp(0.0, (size - 1) as f64);
            let first = centre.floor() as usize;
            let share = (centre - centre.floor()) as f32;
            let weights = if first + 1 < size { vec![1.0 - share, share] } else { vec![1.0] };
            return Span { first, weights };
        }
        let (start, end) = (at as f64 * scale, (at + 1) as f64 * scale);
        let first = start.floor() as usize;
        let last = (end.ceil() as usize).clamp(first + 1, size);
        let covered = |pixel: usize| (end.min((pixel + 1) as f64) - start.max(pixel as f64)).max(0.0);
        let weights = (first..last).map(|pixel| (covered(pixel) / scale) as f32).collect();
        Span { first, weights }
    };
    (0..SIDE).map(span).collect()
}

#[cfg(test)]
mod tests {
    use common::detection::BoundingBox;

    use super::*;
    use crate::ssd300::FRAME_BYTES;

    #[test]
    fn a_picture_of_the_right_size_stays_as_it_is() {
        let image = RgbImage::from_fn(300, 300, |x, y| image::Rgb([x as u8, y as u8, (x + y) as u8]));
        let mut out = vec![0; FRAME_BYTES];
        squash(&image, &mut out);
        assert_eq!(out, *image.as_raw());
        squash(&RgbImage::from_pixel(7, 1000, image::Rgb([200, 30, 0])), &mut out);
        assert!(out.chunks_exact(3).all(|pixel| pixel == [200, 30, 0]));
    }

    #[test]
    fn boxes_are_drawn_in_their_classes_colour() {
        let image = RgbImage::from_pixel(400, 300, image::Rgb([120, 120, 120]));
        let bbox = BoundingBox { min_x: 0.25, min_y: 0.4, max_x: 0.75, max_y: 0.8 };
        let found = [Detection { bbox, score: 0.9, class: 0 }];
        let drawn = annotate(image, &["person".to_owned()], &found).unwrap();
        let drawn = decode(Cursor::new(drawn)).unwrap();
        let color = draw::palette::class_color(0);
        let near = |x, y| {
            let pixel: [u8; 3] = drawn.get_pixel(x, y).0;
            pixel.iter().zip([color.r, color.g, color.b]).all(|(a, b)| a.abs_diff(b) < 40)
        };
        assert!(near(100, 200) && near(200, 120), "on the box");
        assert!(!near(200, 180) && !near(20, 20), "inside and outside");
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        assert!(decode(Cursor::new(b"Dear reader".as_slice())).is_err());
    }
}
