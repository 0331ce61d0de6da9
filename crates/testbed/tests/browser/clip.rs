//! Clips in which something is found.

use std::path::{Path, PathBuf};

use testbed::cluster::ffmpeg;

/// A clip of `frames` frames, 25 a second, with a tone, in which the network that ships finds objects from the first frame on: a
/// fractal that it takes for kites and potted plants.
pub fn clip(folder: &Path, name: &str, frames: u32) -> PathBuf {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i mandelbrot=size=320x240:rate=25:start_scale=0.5 -f lavfi -i sine=frequency=220 \
             -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p -c:a aac -shortest -frames:v {frames} \
             -t {} {name}",
            f64::from(frames) / 25.0
        ),
    )
    .unwrap();
    folder.join(name)
}
