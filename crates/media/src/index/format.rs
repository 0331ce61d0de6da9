//! The frame index as a file: a few bytes a frame, and a checksum.
//!
//! Magic (8 bytes), length of the JSON header (u32), the header (stream infos and counts), then for each frame a
//! variable-length number: the PTS's distance from the frame before times two, plus one for a keyframe. The
//! last 8 bytes are the XXH3 of all before. Integers are little-endian.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{Frame, FrameIndex};
use crate::MediaError;
use crate::probe::{AudioInfo, VideoInfo};

/// Names the format and its version.
const MAGIC: &[u8; 8] = b"BXINDEX1";

#[derive(Serialize, Deserialize)]
struct Header {
    video: VideoInfo,
    audio: Vec<AudioInfo>,
    dropped: Vec<String>,
    frames: u32,
    first_pts: i64,
    last_duration: i64,
    numbered: bool,
}

impl FrameIndex {
    /// Writes the index as a file's whole content.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let first_pts = self.frames.first().map_or(0, |f| f.pts);
        let header = serde_json::to_vec(&Header {
            video: self.video.clone(),
            audio: self.audio.clone(),
            dropped: self.dropped.clone(),
            frames: u32::try_from(self.frames.len()).map_err(std::io::Error::other)?,
            first_pts,
            last_duration: self.last_duration,
            numbered: self.numbered,
        })?;
        let mut bytes = Vec::with_capacity(header.len() + self.frames.len() * 3 + 64);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&u32::try_from(header.len()).map_err(std::io::Error::other)?.to_le_bytes());
        bytes.extend_from_slice(&header);
        let mut previous = first_pts;
        for frame in &self.frames {
            let distance = frame.pts.wrapping_sub(previous).cast_unsigned();
            push_varint(&mut bytes, u128::from(distance) << 1 | u128::from(frame.keyframe));
            previous = frame.pts;
        }
        let sum = xxh3_64(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        out.write_all(&bytes)
    }

    /// Reads what [`FrameIndex::write`] wrote.
    ///
    /// # Errors
    /// [`MediaError::Storage`] when the file can't be read or is not what was written.
    pub fn read(path: &Path) -> Result<Self, MediaError> {
        let bytes = std::fs::read(path).map_err(|e| MediaError::storage("read the frame index", &e))?;
        parse(&bytes).ok_or_else(|| {
            MediaError::Storage("The frame index is damaged: it must be made again from the video.".into())
        })
    }
}

fn parse(bytes: &[u8]) -> Option<FrameIndex> {
    let (body, sum) = bytes.split_last_chunk::<8>()?;
    if xxh3_64(body) != u64::from_le_bytes(*sum) {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (header, mut rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let header: Header = serde_json::from_slice(header).ok()?;
    let mut frames = Vec::with_capacity((header.frames as usize).min(rest.len()));
    let mut pts = header.first_pts;
    for _ in 0..header.frames {
        let value = take_varint(&mut rest)?;
        pts = pts.wrapping_add(u64::try_from(value >> 1).ok()?.cast_signed());
        frames.push(Frame { pts, keyframe: value & 1 == 1 });
    }
    let Header { video, audio, dropped, last_duration, numbered, .. } = header;
    rest.is_empty().then_some(FrameIndex { video, audio, dropped, frames, last_duration, numbered })
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u128> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u128::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
