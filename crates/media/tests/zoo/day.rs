//! A day of video: 24 hours at 30 frames a second.

use std::fs;

use media::child::{Access, Pool, PoolSettings};
use tokio_util::sync::CancellationToken;

use crate::bits;
use crate::shown::ffmpeg;
use crate::tasks::{Day, Files, Took};

/// Frames of a day.
pub const FRAMES: u32 = 24 * 3600 * 30;

/// Indexes a Matroska file of a day, whose pictures are 16×16 and nearly all repeat the one before.
pub fn index() -> Took {
    let folder = tempfile::tempdir().unwrap();
    let ivf = folder.path().join("a.ivf");
    let size = ["-f", "lavfi"];
    let coding =
        ["-frames:v", "2", "-c:v", "libvpx", "-auto-alt-ref", "0", "-g", "99", ivf.to_str().unwrap()];
    ffmpeg(&size, "color=gray:s=16x16:r=30".as_ref(), &coding);
    let ivf = fs::read(ivf).unwrap();
    // A header of 32 bytes, then each frame after its size and its time.
    let length = |at: usize| u32::from_le_bytes(ivf[at..at + 4].try_into().unwrap()) as usize;
    let key = &ivf[44..44 + length(32)];
    let second = 44 + key.len();
    let same = &ivf[second + 12..second + 12 + length(second)];

    let source = folder.path().join("day.mkv");
    let packets = (0..FRAMES).map(|n| {
        let keyframe = n.is_multiple_of(30);
        (i64::from(n) * 1000 / 30, keyframe, if keyframe { key } else { same })
    });
    fs::write(&source, bits::matroska("V_VP8", &[], (16, 16), packets)).unwrap();
    let job = folder.path().join("job");
    fs::create_dir(&job).unwrap();
    let access = Access { read: vec![source.clone()], write: vec![job.clone()] };
    let files = Files { source, index: job.join("index"), mezzanine: job.join("mezzanine") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let pool = Pool::new(PoolSettings::new(1));
    runtime.block_on(pool.call::<Day>(&files, &access, &CancellationToken::new(), |_| {})).unwrap()
}
