//! The file a rendered segment's encoded packets travel in, from render to assemble.
//!
//! Segments have no B-frames, so packet `i` of a segment shows frame `first + i`, and no timestamp is
//! stored: assemble takes them from the frame index. All integers are little-endian.
//!
//! ```text
//! header   "BXPK", version u16, codec u8, 0u8, first frame u32, width u32, height u32,
//!          length of the parameter sets u32, the parameter sets
//! packet   offset of its frame in the segment u32, length u32 (top bit: keyframe), the bytes
//! trailer  0xffff_ffff u32, packets u32, XXH3-64 of everything before it u64
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::MediaError;

const MAGIC: &[u8; 4] = b"BXPK";
const VERSION: u16 = 1;
const END: u32 = u32::MAX;
const KEYFRAME: u32 = 1 << 31;
/// No parameter sets of ours come near; a damaged length must not become an allocation.
const MAX_PARAMETER_SETS: u32 = 1 << 16;

/// What a segment is encoded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// H.264, for the MP4.
    H264,
    /// MPEG-4 part 2, for the AVI.
    Mpeg4,
}

impl Codec {
    fn code(self) -> u8 {
        match self {
            Self::H264 => 1,
            Self::Mpeg4 => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::H264, Self::Mpeg4].into_iter().find(|codec| codec.code() == code)
    }
}

/// What a packet file says before its packets. All segments of one job agree on everything but `first`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketsHeader {
    /// What the packets are.
    pub codec: Codec,
    /// Number, in the whole video, of the frame in the first packet.
    pub first: u32,
    /// Coded width in pixels, even.
    pub width: u32,
    /// Coded height in pixels, even.
    pub height: u32,
    /// H.264: sequence and picture parameter sets in Annex B form, which no packet repeats. MPEG-4: the
    /// headers every keyframe begins with, here for comparison only.
    pub parameter_sets: Vec<u8>,
}

/// One encoded frame, lent by [`PacketReader::read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its place in the segment, from 0.
    pub offset: u32,
    /// Decoding can begin here.
    pub keyframe: bool,
    /// The coded bytes, never empty.
    pub data: &'a [u8],
}

/// Why a packet file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PacketsError {
    /// It is not what [`PacketWriter`] finished: cut short, changed, or something else altogether.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// Reading it failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// [`MediaError::storage`] for the file at `path`.
pub(crate) fn storage(doing: &str, path: &Path, error: &io::Error) -> MediaError {
    MediaError::storage(&format!("{doing} {}", path.display()), error)
}

/// Writes a packet file; it is whole once [`PacketWriter::finish`] returned.
pub struct PacketWriter {
    file: BufWriter<File>,
    hash: Xxh3,
    count: u32,
    bytes: u64,
}

impl PacketWriter {
    /// Creates (or empties) the file at `path` and writes the header.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub fn create(path: &Path, header: &PacketsHeader) -> io::Result<Self> {
        Self::new(OpenOptions::new().write(true).create(true).truncate(true).open(path)?, header)
    }

    /// Writes the header to `file`, which must be empty.
    ///
    /// # Errors
    /// When it cannot be written, or the parameter sets are longer than any real ones.
    pub fn new(file: File, header: &PacketsHeader) -> io::Result<Self> {
        let length = u32::try_from(header.parameter_sets.len())
            .ok()
            .filter(|&length| length <= MAX_PARAMETER_SETS)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "oversized parameter sets"))?;
        let mut writer =
            Self { file: BufWriter::with_capacity(1 << 18, file), hash: Xxh3::new(), count: 0, bytes: 0 };
        writer.put(MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.put(&[header.codec.code(), 0])?;
        for number in [header.first, header.width, header.height, length] {
            writer.put(&number.to_le_bytes())?;
        }
        writer.put(&header.parameter_sets)?;
        Ok(writer)
    }

    /// Appends the next frame's packet.
    ///
    /// # Errors
    /// When it cannot be written, or is empty or beyond 2 GiB.
    pub fn push(&mut self, keyframe: bool, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len())
            .ok()
            .filter(|length| (1..KEYFRAME).contains(length))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a packet of impossible size"))?;
        self.put(&self.count.to_le_bytes())?;
        self.put(&(length | if keyframe { KEYFRAME } else { 0 }).to_le_bytes())?;
        self.put(data)?;
        self.count += 1;
        Ok(())
    }

    /// Writes the trailer and hands everything to the operating system (syncing is up to the caller, who
    /// publishes the file). Returns the number of packets and of bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<(u32, u64)> {
        self.put(&END.to_le_bytes())?;
        self.put(&self.count.to_le_bytes())?;
        let digest = self.hash.digest();
        self.put(&digest.to_le_bytes())?;
        self.file.flush()?;
        Ok((self.count, self.bytes))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

/// Reads a packet file front to back, holding one packet at a time.
pub struct PacketReader {
    file: BufReader<File>,
    hash: Xxh3,
    /// Bytes of the file not yet read: no length in it may claim more.
    left: u64,
    header: PacketsHeader,
    count: u32,
    finished: bool,
    buffer: Vec<u8>,
}

impl PacketReader {
    /// Opens the file at `path` and reads its header.
    ///
    /// # Errors
    /// [`PacketsError::Io`] when it cannot be opened, [`PacketsError::Damaged`] when it is no packet file.
    pub fn open(path: &Path) -> Result<Self, PacketsError> {
        let file = File::open(path)?;
        let left = file.metadata()?.len();
        let placeholder =
            PacketsHeader { codec: Codec::H264, first: 0, width: 0, height: 0, parameter_sets: Vec::new() };
        let mut reader = Self {
            file: BufReader::with_capacity(1 << 18, file),
            hash: Xxh3::new(),
            left,
            header: placeholder,
            count: 0,
            finished: false,
            buffer: Vec::new(),
        };
        let start: [u8; 8] = reader.array()?;
        if start[..4] != *MAGIC {
            return Err(damaged("it does not begin like a packet file"));
        }
        let version = u16::from_le_bytes([start[4], start[5]]);
        if version != VERSION {
            return Err(damaged(format!("it is of version {version}, not {VERSION}")));
        }
        let codec = Codec::from_code(start[6]).ok_or_else(|| damaged("its codec is unknown"))?;
        let [first, width, height, length] =
            [reader.number()?, reader.number()?, reader.number()?, reader.number()?];
        if length > MAX_PARAMETER_SETS {
            return Err(damaged("its parameter sets are too long"));
        }
        reader.fill(length)?;
        let parameter_sets = std::mem::take(&mut reader.buffer);
        reader.header = PacketsHeader { codec, first, width, height, parameter_sets };
        Ok(reader)
    }

    /// What the file says of itself.
    #[must_use]
    pub fn header(&self) -> &PacketsHeader {
        &self.header
    }

    /// Packets read so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The next packet; `None` after the last, once count and checksum were found right. What was handed
    /// out before that is to be used only provisionally.
    ///
    /// # Errors
    /// [`PacketsError::Damaged`] when the file is not what was written; [`PacketsError::Io`] when reading fails.
    pub fn read(&mut self) -> Result<Option<Packet<'_>>, PacketsError> {
        if self.finished {
            return Ok(None);
        }
        let offset = self.number()?;
        if offset == END {
            self.close()?;
            return Ok(None);
        }
        if offset != self.count {
            return Err(damaged(format!("packet {offset} stands where {} belongs", self.count)));
        }
        let length = self.number()?;
        let keyframe = length & KEYFRAME != 0;
        let length = length & !KEYFRAME;
        if length == 0 {
            return Err(damaged(format!("packet {offset} is empty")));
        }
        self.fill(length)?;
        self.count += 1;
        Ok(Some(Packet { offset, keyframe, data: &self.buffer }))
    }

    fn close(&mut self) -> Result<(), PacketsError> {
        let count = self.number()?;
        let expected = self.hash.digest();
        let found = u64::from_le_bytes(self.array()?);
        if count != self.count || found != expected {
            return Err(damaged("its checksum does not match"));
        }
        if self.left != 0 {
            return Err(damaged("something follows its end"));
        }
        self.finished = true;
        Ok(())
    }

    fn number(&mut self) -> Result<u32, PacketsError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PacketsError> {
        let mut bytes = [0; N];
        self.spend(N as u64)?;
        self.file.read_exact(&mut bytes).map_err(cut_short)?;
        self.hash.update(&bytes);
        Ok(bytes)
    }

    fn fill(&mut self, length: u32) -> Result<(), PacketsError> {
        self.spend(u64::from(length))?;
        self.buffer.resize(length as usize, 0);
        self.file.read_exact(&mut self.buffer).map_err(cut_short)?;
        self.hash.update(&self.buffer);
        Ok(())
    }

    fn spend(&mut self, bytes: u64) -> Result<(), PacketsError> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| damaged("it is cut short"))?;
        Ok(())
    }
}

fn damaged(how: impl Into<String>) -> PacketsError {
    PacketsError::Damaged(how.into())
}

fn cut_short(error: io::Error) -> PacketsError {
    if error.kind() == io::ErrorKind::UnexpectedEof { damaged("it is cut short") } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> PacketsHeader {
        PacketsHeader { codec: Codec::H264, first: 64, width: 32, height: 16, parameter_sets: vec![1, 2, 3] }
    }

    fn write(path: &Path) {
        let mut writer = PacketWriter::create(path, &header()).unwrap();
        writer.push(true, b"first").unwrap();
        writer.push(false, b"second one").unwrap();
        assert_eq!(writer.finish().unwrap(), (2, std::fs::metadata(path).unwrap().len()));
    }

    fn read(path: &Path) -> Result<Vec<(u32, bool, Vec<u8>)>, PacketsError> {
        let mut reader = PacketReader::open(path)?;
        let mut packets = Vec::new();
        while let Some(packet) = reader.read()? {
            packets.push((packet.offset, packet.keyframe, packet.data.to_vec()));
        }
        assert!(reader.read()?.is_none());
        Ok(packets)
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        write(&path);
        assert_eq!(PacketReader::open(&path).unwrap().header(), &header());
        assert_eq!(read(&path).unwrap(), [(0, true, b"first".to_vec()), (1, false, b"second one".to_vec())]);
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        write(&path);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x41;
            std::fs::write(&path, &changed).unwrap();
            assert!(matches!(read(&path), Err(PacketsError::Damaged(_))), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(matches!(read(&path), Err(PacketsError::Damaged(_))), "cut at {at}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(matches!(read(&path), Err(PacketsError::Damaged(_))));
    }

    #[test]
    fn a_full_disk_is_a_storage_error_that_says_so() {
        let error = storage("write", Path::new("out.mp4"), &io::Error::from_raw_os_error(libc::ENOSPC));
        let MediaError::Storage(text) = error else { panic!("{error:?}") };
        assert!(text.contains("full") && text.contains("out.mp4"), "{text}");
    }
}
