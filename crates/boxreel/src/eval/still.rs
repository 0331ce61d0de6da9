//! Still pictures as the network wants them: decoded, and squashed to 300×300 as the video's frames are.
//!
//! Frames are squashed by swscale's area filter: each small pixel is the mean of the area it covers, weighted
//! by how far each large pixel lies in it; along an axis that has to grow, it is linear between pixels' centres. The
//! same is computed here on RGB. What is left between the two ways is rounding, and that a video's colour has half
//! the resolution.
//!
//! A picture's pixels are taken as they lie in the file, as COCO's tools do; an EXIF orientation is not applied.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use image::{ImageReader, Limits, RgbImage};
use infer::ssd300::{FRAME_BYTES, SIDE};

use super::truth::Picture;

/// The largest side of a picture, and the most memory that decoding one may take.
const MAX_SIDE: u32 = 20_000;
const MAX_BYTES: u64 = 1 << 30;

/// Reads pictures on all cores: one after the other as [`FRAME_BYTES`] bytes each.
///
/// # Errors
/// When one can't be read, or is none of the kinds known; the sentence names it.
pub fn read(pictures: &[Picture]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; pictures.len() * FRAME_BYTES];
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = pictures.len().div_ceil(cores).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = pictures
            .chunks(share)
            .zip(bytes.chunks_mut(share * FRAME_BYTES))
            .map(|(pictures, bytes)| {
                scope.spawn(move || {
                    for (picture, out) in pictures.iter().zip(bytes.chunks_exact_mut(FRAME_BYTES)) {
                        read_one(picture, out)?;
                    }
                    Ok(())
                })
            })
            .collect();
        // The first in order speaks, however many fail.
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(anyhow!("A picture could not be read.")))
        })
    })?;
    Ok(bytes)
}

fn read_one(picture: &Picture, out: &mut [u8]) -> Result<()> {
    let path = &picture.path;
    let image = decode(path).with_context(|| format!("The picture {} cannot be read", path.display()))?;
    // A resized copy will do, one of another shape is another picture.
    let (width, height) = image.dimensions();
    let off = f64::from(width) * f64::from(picture.height) / (f64::from(height) * f64::from(picture.width));
    if !(0.98..1.02).contains(&off) {
        bail!(
            "The picture {} has {width}×{height} pixels, and the annotations are of one of {}×{}.",
            path.display(),
            picture.width,
            picture.height
        );
    }
    squash(&image, out);
    Ok(())
}

fn decode(path: &Path) -> Result<RgbImage> {
    let mut reader = ImageReader::new(BufReader::new(File::open(path)?)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    Ok(reader.decode()?.into_rgb8())
}

/// Squashes a picture to 300×300, rows from the top, R G B.
fn squash(image: &RgbImage, out: &mut [u8]) {
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
    use media::picture::Shrinker;
    use media::probe::{Color, Matrix};

    use super::*;

    fn squashed(image: &RgbImage) -> Vec<u8> {
        let mut out = vec![0; FRAME_BYTES];
        squash(image, &mut out);
        out
    }

    /// Waves, coarse and fine, in grey: what chroma's resolution has no say in.
    fn waves(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
            let value = 0.5 + 0.3 * (x * 60.0 + y * 20.0).sin() + 0.2 * (x * 300.0).sin() * (y * 250.0).cos();
            image::Rgb([(value * 255.0).clamp(0.0, 255.0) as u8; 3])
        })
    }

    /// The same picture on the way that a video's frames go.
    fn as_a_frame(image: &RgbImage) -> Vec<u8> {
        let (width, height) = image.dimensions();
        let mut picture = media::picture::Picture::new(width, height);
        let [luma, chroma @ ..] = picture.planes_mut();
        for (x, y, pixel) in image.enumerate_pixels() {
            let grey = 16.0 + f32::from(pixel.0[0]) * 219.0 / 255.0;
            luma.data[y as usize * luma.stride + x as usize] = grey.round() as u8;
        }
        chroma.into_iter().for_each(|plane| plane.data.fill(128));
        let color = Color { matrix: Matrix::Bt601, primaries: 2, transfer: 2 };
        Shrinker::new(&color).shrink(&picture).unwrap().to_vec()
    }

    #[test]
    fn pictures_are_squashed_as_frames_are() {
        for (width, height) in [(640, 480), (500, 376), (304, 456), (1920, 1080), (300, 300), (200, 640)] {
            let image = waves(width, height);
            let (ours, theirs) = (squashed(&image), as_a_frame(&image));
            let differences = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
            let largest = differences.clone().max().unwrap();
            let mean = differences.map(f64::from).sum::<f64>() / ours.len() as f64;
            // Limited range alone costs a level each way.
            assert!(largest <= 3 && mean < 0.8, "{width}×{height}: up to {largest}, {mean:.2} on average");
        }
    }

    #[test]
    fn a_picture_of_the_right_size_stays_as_it_is() {
        let image = RgbImage::from_fn(300, 300, |x, y| image::Rgb([x as u8, y as u8, (x + y) as u8]));
        assert_eq!(squashed(&image), *image.as_raw());
        let red = RgbImage::from_pixel(7, 1000, image::Rgb([200, 30, 0]));
        assert!(squashed(&red).chunks_exact(3).all(|pixel| pixel == [200, 30, 0]));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let picture =
            |name: &str, width, height| Picture { id: 1, path: folder.path().join(name), width, height };
        waves(40, 30).save(folder.path().join("wide.png")).unwrap();
        std::fs::write(folder.path().join("letter.jpg"), "Dear reader").unwrap();
        // A copy of another size is the same picture.
        assert_eq!(read(&[picture("wide.png", 400, 300)]).unwrap().len(), FRAME_BYTES);
        for (picture, said) in [
            (picture("wide.png", 300, 400), "has 40×30 pixels, and the annotations are of one of 300×400"),
            (picture("letter.jpg", 40, 30), "letter.jpg cannot be read"),
            (picture("none.png", 40, 30), "none.png cannot be read"),
        ] {
            let refusal = format!("{:#}", read(&[picture]).unwrap_err());
            assert!(refusal.contains(said), "{refusal}");
        }
        assert_eq!(read(&[]).unwrap(), Vec::<u8>::new());
    }
}
