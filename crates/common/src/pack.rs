//! The pack: one segment's frames as the network wants them, on their way from decode to detect.
//!
//! Layout, little-endian: magic `BXPK`, version (u16), pixel format (u16: 1 = RGB24 of
//! [`SIDE`]×[`SIDE`]), frame count (u32), xxh3-64 of all that follows the header (u64); then the frames,
//! rows top to bottom, 3 bytes a pixel.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

/// Pixels along each side of a packed frame.
pub const SIDE: usize = 300;
/// Bytes of a packed frame.
pub const FRAME_BYTES: usize = SIDE * SIDE * 3;
/// Bytes before the first frame.
pub const HEADER_BYTES: usize = 20;

const MAGIC: &[u8; 4] = b"BXPK";
const VERSION: u16 = 1;
const RGB24: u16 = 1;

/// Writes a pack frame by frame; the header is filled in by [`PackWriter::finish`].
pub struct PackWriter {
    file: File,
    hash: Xxh3,
    count: u32,
}

impl PackWriter {
    /// Starts a pack in `file`, which must be empty.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(mut file: File) -> io::Result<Self> {
        file.write_all(&[0; HEADER_BYTES])?;
        Ok(Self { file, hash: Xxh3::new(), count: 0 })
    }

    /// Adds one frame, [`FRAME_BYTES`] long.
    ///
    /// # Errors
    /// When the file cannot be written, or the frame has another length.
    pub fn push(&mut self, frame: &[u8]) -> io::Result<()> {
        if frame.len() != FRAME_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a packed frame has another size"));
        }
        self.hash.update(frame);
        self.count += 1;
        self.file.write_all(frame)
    }

    /// Completes the header and hands the file back, for syncing and publishing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self) -> io::Result<File> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&RGB24.to_le_bytes());
        header.extend_from_slice(&self.count.to_le_bytes());
        header.extend_from_slice(&self.hash.digest().to_le_bytes());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header)?;
        Ok(self.file)
    }
}

/// A pack read whole into memory and verified: at most 128 frames, 35 MB.
pub struct Pack {
    frames: Vec<u8>,
}

impl Pack {
    /// Reads and verifies the pack at `path`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it is no pack, is cut short or fails its checksum; else what
    /// reading said.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the pack {what}"));
        let mut file = File::open(path)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header)?;
        let (magic, rest) = header.split_at(4);
        if magic != MAGIC || rest[..2] != VERSION.to_le_bytes() || rest[2..4] != RGB24.to_le_bytes() {
            return Err(bad("is of a kind this program does not know"));
        }
        let count = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        let length = file.metadata()?.len();
        if length != (HEADER_BYTES + count * FRAME_BYTES) as u64 {
            return Err(bad("has the wrong length"));
        }
        let mut frames = Vec::with_capacity(count * FRAME_BYTES);
        file.read_to_end(&mut frames)?;
        let mut hash = Xxh3::new();
        hash.update(&frames);
        if hash.digest().to_le_bytes() != rest[8..16] {
            return Err(bad("fails its checksum"));
        }
        Ok(Self { frames })
    }

    /// Frames in the pack.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len() / FRAME_BYTES
    }

    /// Whether the pack holds no frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// All frames, one after the other: `len × 300 × 300 × 3` bytes.
    #[must_use]
    pub fn frames(&self) -> &[u8] {
        &self.frames
    }
}
