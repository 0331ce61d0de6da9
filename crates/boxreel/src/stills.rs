//! Still pictures, many of them, as the network wants them.

mod progress;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use image::RgbImage;
use infer::ssd300::FRAME_BYTES;
use infer::still::{self, squash};

pub use progress::Progress;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Pictures read ahead at once: enough for every thread of a processor, or a batch of a GPU.
pub const CHUNK: usize = 64;

/// Reads pictures chunk by chunk ([`CHUNK`]), on a thread of its own: one chunk is read while the one before is worked on,
/// and a third waits, so that memory stays bounded. The first that can't be read is the last that comes. `path` and
/// `check` are those of [`read`].
pub fn ahead<P: Send + Sync + 'static>(
    pictures: Vec<P>,
    path: impl Fn(&P) -> &Path + Send + Sync + 'static,
    check: impl Fn(&P, &RgbImage) -> Result<()> + Send + Sync + 'static,
) -> (mpsc::Receiver<Result<Vec<u8>>>, JoinHandle<()>) {
    let (sender, chunks) = mpsc::channel(1);
    let reader = tokio::task::spawn_blocking(move || {
        for chunk in pictures.chunks(CHUNK) {
            let read = read(chunk, &path, &check);
            let stop = read.is_err();
            if sender.blocking_send(read).is_err() || stop {
                return;
            }
        }
    });
    (chunks, reader)
}

/// Reads pictures on all cores: one after the other as [`FRAME_BYTES`] bytes each. `path` says where each lies, and
/// `check` whether it is the one that is wanted.
///
/// # Errors
/// When one can't be read, is none of the kinds known, or fails the check; the sentence names it.
fn read<P: Sync>(
    pictures: &[P],
    path: impl Fn(&P) -> &Path + Sync,
    check: impl Fn(&P, &RgbImage) -> Result<()> + Sync,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; pictures.len() * FRAME_BYTES];
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = pictures.len().div_ceil(cores).max(1);
    let read_one = |picture: &P, out: &mut [u8]| {
        let path = path(picture);
        let image = decode(path).with_context(|| format!("The picture {} cannot be read", path.display()))?;
        check(picture, &image)?;
        squash(&image, out);
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = pictures
            .chunks(share)
            .zip(bytes.chunks_mut(share * FRAME_BYTES))
            .map(|(pictures, bytes)| {
                scope.spawn(|| {
                    let mut places = pictures.iter().zip(bytes.chunks_exact_mut(FRAME_BYTES));
                    places.try_for_each(|(picture, out)| read_one(picture, out))
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

fn decode(path: &Path) -> Result<RgbImage> {
    Ok(still::decode(BufReader::new(File::open(path)?))?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        waves(40, 30).save(path("wide.png")).unwrap();
        std::fs::write(path("letter.jpg"), "Dear reader").unwrap();
        let read = |names: &[&str]| {
            let paths: Vec<_> = names.iter().map(|name| path(name)).collect();
            super::read(&paths, PathBuf::as_path, |_, _| Ok(()))
        };
        assert_eq!(read(&["wide.png", "wide.png"]).unwrap().len(), 2 * FRAME_BYTES);
        for name in ["letter.jpg", "none.png"] {
            let refusal = format!("{:#}", read(&["wide.png", name]).unwrap_err());
            assert!(refusal.contains(&format!("{name} cannot be read")), "{refusal}");
        }
        assert_eq!(read(&[]).unwrap(), Vec::<u8>::new());
    }
}
