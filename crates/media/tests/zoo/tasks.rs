//! What runs in the children of these tests: index and decode, as the stages run them.

use std::fs::File;
use std::path::PathBuf;

use media::MediaError;
use media::child::{Progress, Registry, Task};
use media::decode::decode_segment;
use media::index::{FrameIndex, prepare};
use media::picture::{JPEG_QUALITY, JpegWriter, Shrinker};
use media::probe::Limits;
use serde::{Deserialize, Serialize};

pub fn registry() -> Registry {
    Registry::new().with::<Index>().with::<Decode>()
}

/// Files of one video.
#[derive(Clone, Serialize, Deserialize)]
pub struct Files {
    pub source: PathBuf,
    pub index: PathBuf,
    pub mezzanine: PathBuf,
}

/// Indexes a video; the segments, and whether there is a mezzanine.
pub struct Index;

impl Task for Index {
    const NAME: &'static str = "index";
    type Request = Files;
    type Response = (Vec<(u32, u32)>, bool);

    fn run(files: Files, progress: &Progress) -> Result<Self::Response, MediaError> {
        let prepared =
            prepare(&files.source, &Limits::default(), &files.mezzanine, &mut progress.of_totals())?;
        let stored = File::create(&files.index).and_then(|mut file| prepared.index.write(&mut file));
        stored.map_err(|error| MediaError::storage("store the frame index", &error))?;
        Ok((prepared.segments, prepared.mezzanine.is_some()))
    }
}

/// Decodes a stretch of frames to small pictures and JPEGs; how many came.
pub struct Decode;

#[derive(Serialize, Deserialize)]
pub struct Stretch {
    pub files: Files,
    pub has_mezzanine: bool,
    pub first: u32,
    pub last: u32,
}

impl Task for Decode {
    const NAME: &'static str = "decode";
    type Request = Stretch;
    type Response = u32;

    fn run(request: Stretch, progress: &Progress) -> Result<u32, MediaError> {
        let Stretch { files, has_mezzanine, first, last } = request;
        let index = FrameIndex::read(&files.index)?;
        let pictures = if has_mezzanine { &files.mezzanine } else { &files.source };
        let mut shrinker = Shrinker::new(&index.video.color);
        let mut jpeg = JpegWriter::new(&index.video.color, JPEG_QUALITY)?;
        let mut came = 0;
        decode_segment(pictures, &index, first, last, 1, &mut |_, picture| {
            shrinker.shrink(picture)?;
            if came == 0 {
                jpeg.encode(picture)?;
            }
            came += 1;
            progress.tick(1);
            Ok(())
        })?;
        Ok(came)
    }
}
