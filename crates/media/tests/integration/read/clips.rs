//! Clips made by FFmpeg's command line, and what is asked of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use media::decode::{decode_all, decode_segment};
use media::index::{FrameIndex, Prepared, prepare};
use media::probe::Limits;
use tempfile::TempDir;

/// A folder of its own for one test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `ffmpeg` with `arguments`, its output being `name` in this folder.
    pub fn ffmpeg(&self, name: &str, arguments: &str) -> PathBuf {
        let path = self.path(name);
        let out = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-y"])
            .args(arguments.split_whitespace())
            .arg(&path)
            .output()
            .expect("ffmpeg is installed");
        assert!(out.status.success(), "ffmpeg {arguments}: {}", String::from_utf8_lossy(&out.stderr));
        path
    }

    /// A clip of moving test pictures: `frames` of them, 160×120 at 25 a second, coded as `coding` says.
    pub fn clip(&self, name: &str, frames: u32, coding: &str) -> PathBuf {
        self.ffmpeg(
            name,
            &format!("-f lavfi -i testsrc2=s=160x120:r=25 -frames:v {frames} -pix_fmt yuv420p {coding}"),
        )
    }
}

/// Frames by FFmpeg's own count, decoded.
pub fn counted(path: &Path) -> usize {
    let out = Command::new("ffprobe")
        .args(["-v", "quiet", "-select_streams", "V:0", "-count_frames"])
        .args(["-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"])
        .arg(path)
        .output()
        .expect("ffprobe is installed");
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().next().unwrap_or("").trim().trim_matches(',').parse().expect("ffprobe counted frames")
}

/// The pictures as FFmpeg's command line shows them: raw 4:2:0, one after the other.
pub fn shown_by_ffmpeg(path: &Path) -> Vec<u8> {
    let out = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "quiet", "-i"])
        .arg(path)
        .args(["-map", "0:V:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"])
        .output()
        .expect("ffmpeg is installed");
    out.stdout
}

/// The same layout from our pictures.
pub fn shown_by_us(path: &Path, index: &FrameIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    decode_all(path, index, 1, &mut |_, picture| {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        for (i, plane) in picture.planes().iter().enumerate() {
            let (w, h) = if i == 0 { (width, height) } else { (width.div_ceil(2), height.div_ceil(2)) };
            for y in 0..h {
                bytes.extend_from_slice(&plane.row(y)[..w]);
            }
        }
        Ok(())
    })
    .unwrap();
    bytes
}

/// Hash and number of every frame of a stretch, and the concealed ones.
pub fn hashes(
    path: &Path,
    index: &FrameIndex,
    first: u32,
    last: u32,
    threads: usize,
) -> (Vec<(u32, u64)>, Vec<u32>) {
    let mut seen = Vec::new();
    let concealed = decode_segment(path, index, first, last, threads, &mut |n, picture| {
        seen.push((n, picture.content_hash()));
        Ok(())
    })
    .unwrap();
    (seen, concealed)
}

/// What [`prepare`] makes of `path`, and the file its pictures come from.
pub fn prepared(folder: &Folder, path: &Path) -> (Prepared, PathBuf) {
    let mezzanine = folder.path("mezzanine");
    let prepared = prepare(path, &Limits::default(), &mezzanine, &mut |_| {}).unwrap();
    let pictures = if prepared.mezzanine.is_some() { mezzanine } else { path.to_owned() };
    (prepared, pictures)
}

/// All segments' frames, one after the other, are those of one straight decode; nothing is missing.
pub fn assert_exact(folder: &Folder, path: &Path) -> Prepared {
    let (prepared, pictures) = prepared(folder, path);
    let index = &prepared.index;
    assert_eq!(index.frames.len(), counted(path), "frames of {}", path.display());
    assert!(index.frames.windows(2).all(|w| w[0].pts < w[1].pts), "times rise");

    let last = index.frames.len() as u32 - 1;
    let (straight, concealed) = hashes(&pictures, index, 0, last, 2);
    assert_eq!(concealed, Vec::<u32>::new(), "a healthy file has nothing to conceal");
    let mut in_segments = Vec::new();
    let mut next = 0;
    for &(first, last) in &prepared.segments {
        assert_eq!(first, next, "segments follow each other");
        assert!(last - first < 128);
        next = last + 1;
        let (seen, concealed) = hashes(&pictures, index, first, last, 1);
        assert_eq!(concealed, Vec::<u32>::new(), "segment {first} to {last}");
        in_segments.extend(seen);
    }
    assert_eq!(next, last + 1, "segments cover the video");
    assert!(straight.iter().map(|&(n, _)| n).eq(0..=last), "every frame once, in order");
    assert_eq!(in_segments.len(), straight.len());
    for (segment, straight) in in_segments.iter().zip(&straight) {
        assert_eq!(segment, straight, "a frame of {}", path.display());
    }
    prepared
}
