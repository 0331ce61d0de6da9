//! A detected object, and the file one segment's detections travel in.
//!
//! Layout of that file, little-endian: magic `BXDT`, version (u16), zero (u16), number of the first frame
//! (u32), frame count (u32), xxh3-64 of the two numbers and of all that follows the header (u64); then for
//! every frame its detection count (u16) and its detections, [`RECORD_BYTES`] each: min_x, min_y, max_x,
//! max_y, score (f32 each), class (u16). Numbers come back bit for bit.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// Bytes before the first frame's detections.
pub const HEADER_BYTES: usize = 24;
/// Bytes of one detection.
pub const RECORD_BYTES: usize = 22;

const MAGIC: &[u8; 4] = b"BXDT";
const VERSION: u16 = 1;

/// A box in fractions of the frame (0 = left or top edge, 1 = right or bottom edge).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BoundingBox {
    /// Left edge.
    pub min_x: f32,
    /// Top edge.
    pub min_y: f32,
    /// Right edge.
    pub max_x: f32,
    /// Bottom edge.
    pub max_y: f32,
}

/// One object found in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Where it is.
    pub bbox: BoundingBox,
    /// Softmax probability of the class, 0 to 1.
    pub score: f32,
    /// 0-based index into the model's names (background is not among them).
    pub class: u16,
}

/// What was found in the frames of one segment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SegmentDetections {
    /// Number of the first frame in the video.
    pub first: u32,
    /// One list for each frame from [`SegmentDetections::first`] on, in the order detect found best; for a
    /// frame that was not detected itself, the list of the frame it holds.
    pub frames: Vec<Vec<Detection>>,
}

impl SegmentDetections {
    /// The detections of frame `n` of the video; none when the segment does not hold that frame.
    #[must_use]
    pub fn frame(&self, n: u32) -> &[Detection] {
        let offset = n.checked_sub(self.first).and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| self.frames.get(offset)).map_or(&[], Vec::as_slice)
    }

    /// The frames' numbers in the video, each with its detections.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &[Detection])> {
        (self.first..).zip(self.frames.iter().map(Vec::as_slice))
    }
}

/// Writes the detections of the consecutive frames from number `first` on.
///
/// # Errors
/// When `writer` does; [`io::ErrorKind::InvalidInput`] for more frames, or more detections in a frame, than
/// the layout can count.
pub fn write_detections(mut writer: impl Write, first: u32, frames: &[Vec<Detection>]) -> io::Result<()> {
    let too_many = |_| io::Error::new(io::ErrorKind::InvalidInput, "too many detections for one file");
    let detections: usize = frames.iter().map(Vec::len).sum();
    let mut body = Vec::with_capacity(frames.len() * 2 + detections * RECORD_BYTES);
    for frame in frames {
        body.extend_from_slice(&u16::try_from(frame.len()).map_err(too_many)?.to_le_bytes());
        for Detection { bbox, score, class } in frame {
            for number in [bbox.min_x, bbox.min_y, bbox.max_x, bbox.max_y, *score] {
                body.extend_from_slice(&number.to_le_bytes());
            }
            body.extend_from_slice(&class.to_le_bytes());
        }
    }
    let mut numbers = [0; 8];
    numbers[..4].copy_from_slice(&first.to_le_bytes());
    numbers[4..].copy_from_slice(&u32::try_from(frames.len()).map_err(too_many)?.to_le_bytes());

    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&[0; 2]);
    header.extend_from_slice(&numbers);
    header.extend_from_slice(&checksum(&numbers, &body).to_le_bytes());
    writer.write_all(&header)?;
    writer.write_all(&body)
}

/// Reads and verifies the file at `path`.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it holds no detections, is cut short or fails its checksum; else what
/// reading said.
pub fn read_detections(path: &Path) -> io::Result<SegmentDetections> {
    parse(&fs::read(path)?).map_err(|what| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the file of detections {what}: {}", path.display()),
        )
    })
}

fn parse(bytes: &[u8]) -> Result<SegmentDetections, &'static str> {
    let mut rest = bytes;
    if take(&mut rest)? != *MAGIC || take(&mut rest)? != VERSION.to_le_bytes() || take(&mut rest)? != [0; 2] {
        return Err("is of a kind this program does not know");
    }
    let numbers: [u8; 8] = take(&mut rest)?;
    if checksum(&numbers, &rest[rest.len().min(8)..]).to_le_bytes() != take(&mut rest)? {
        return Err("fails its checksum");
    }
    let mut fields = numbers.as_slice();
    let first = u32::from_le_bytes(take(&mut fields)?);
    let count = u32::from_le_bytes(take(&mut fields)?);
    let mut frames = Vec::new();
    for _ in 0..count {
        let detections = u16::from_le_bytes(take(&mut rest)?);
        frames.push((0..detections).map(|_| record(&mut rest)).collect::<Result<_, _>>()?);
    }
    if rest.is_empty() { Ok(SegmentDetections { first, frames }) } else { Err("is longer than it says") }
}

fn record(rest: &mut &[u8]) -> Result<Detection, &'static str> {
    let mut number = || take(rest).map(f32::from_le_bytes);
    let bbox = BoundingBox { min_x: number()?, min_y: number()?, max_x: number()?, max_y: number()? };
    let score = number()?;
    Ok(Detection { bbox, score, class: u16::from_le_bytes(take(rest)?) })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], &'static str> {
    let (taken, left) = rest.split_first_chunk().ok_or("is cut short")?;
    *rest = left;
    Ok(*taken)
}

fn checksum(numbers: &[u8; 8], body: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(numbers);
    hash.update(body);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detection(class: u16, score: f32) -> Detection {
        Detection {
            bbox: BoundingBox { min_x: 0.1, min_y: -0.01, max_x: 1.0 / 3.0, max_y: 1.02 },
            score,
            class,
        }
    }

    fn sample() -> Vec<Vec<Detection>> {
        vec![vec![detection(0, 0.987_654_3), detection(79, 0.05)], vec![], vec![detection(u16::MAX, 1.0)]]
    }

    fn bytes() -> Vec<u8> {
        let mut bytes = Vec::new();
        write_detections(&mut bytes, 640, &sample()).unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("5.token");
        fs::write(&path, bytes()).unwrap();
        let found = read_detections(&path).unwrap();
        assert_eq!(found, SegmentDetections { first: 640, frames: sample() });
        assert_eq!(bytes().len(), HEADER_BYTES + 3 * 2 + 3 * RECORD_BYTES);
    }

    #[test]
    fn frames_are_found_by_their_number_in_the_video() {
        let found = parse(&bytes()).unwrap();
        assert_eq!(found.frame(640), sample()[0]);
        assert_eq!(found.frame(642), sample()[2]);
        assert!(found.frame(639).is_empty() && found.frame(641).is_empty() && found.frame(643).is_empty());
        assert_eq!(
            found.numbered().map(|(n, d)| (n, d.len())).collect::<Vec<_>>(),
            [(640, 2), (641, 0), (642, 1)]
        );
    }

    #[test]
    fn a_segment_without_any_detection_is_a_valid_file() {
        let mut bytes = Vec::new();
        write_detections(&mut bytes, 0, &[vec![], vec![]]).unwrap();
        assert_eq!(parse(&bytes), Ok(SegmentDetections { first: 0, frames: vec![vec![], vec![]] }));
    }

    #[test]
    fn every_flipped_bit_and_every_missing_or_added_byte_is_noticed() {
        let whole = bytes();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(parse(&damaged).is_err(), "byte {at} flipped");
            assert!(parse(&whole[..at]).is_err(), "cut to {at} bytes");
        }
        assert!(parse(&[whole.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn a_damaged_file_is_invalid_data_and_a_missing_one_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("5.token");
        assert_eq!(read_detections(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        for content in [&b""[..], b"BXDT", b"not detections at all, but long enough", &bytes()[..40]] {
            fs::write(&path, content).unwrap();
            assert_eq!(read_detections(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn more_detections_than_a_frame_can_count_are_refused() {
        let crowd = vec![detection(0, 0.5); usize::from(u16::MAX) + 1];
        let error = write_detections(io::sink(), 0, &[crowd]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
