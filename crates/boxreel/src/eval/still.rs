//! The pictures that a model is measured on, as the network wants them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use image::RgbImage;
use infer::ssd300::FRAME_BYTES;
use infer::still::{self, squash};

use super::truth::Picture;

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
    Ok(still::decode(BufReader::new(File::open(path)?))?)
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
