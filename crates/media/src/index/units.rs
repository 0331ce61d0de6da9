//! What a packet says about itself, where the container's flags don't suffice.

use ffmpeg_next::ffi::{self, AVCodecID};

/// How to look into the packets of one stream.
pub(super) enum Units {
    /// H.264: the size of NAL units' length fields, 0 for start codes.
    H264(usize),
    /// HEVC, likewise.
    Hevc(usize),
    Vp8,
    Vp9,
    Other,
}

/// NAL unit types of H.264 (ITU-T H.264, table 7-1).
const H264_IDR: u8 = 5;
const H264_SEI: u8 = 6;
/// Payload type of a recovery point (ITU-T H.264, D.1.8).
const SEI_RECOVERY_POINT: u8 = 6;

impl Units {
    /// For a stream with these parameters.
    pub(super) fn of(parameters: &ffi::AVCodecParameters) -> Self {
        let extra = if parameters.extradata.is_null() {
            &[]
        } else {
            // SAFETY: FFmpeg keeps `extradata_size` bytes there.
            unsafe {
                std::slice::from_raw_parts(
                    parameters.extradata.cast_const(),
                    usize::try_from(parameters.extradata_size).unwrap_or(0),
                )
            }
        };
        // Configuration records begin with their version, 1; start codes with 0.
        let length_size = |at: usize| match extra {
            [1, ..] => extra.get(at).map_or(4, |b| usize::from(b & 3) + 1),
            _ => 0,
        };
        match parameters.codec_id {
            AVCodecID::AV_CODEC_ID_H264 => Self::H264(length_size(4)),
            AVCodecID::AV_CODEC_ID_HEVC => Self::Hevc(length_size(21)),
            AVCodecID::AV_CODEC_ID_VP8 => Self::Vp8,
            AVCodecID::AV_CODEC_ID_VP9 => Self::Vp9,
            _ => Self::Other,
        }
    }

    /// Whether the packet makes a frame that is shown: alternate references are not.
    pub(super) fn is_shown(&self, data: &[u8]) -> bool {
        match self {
            // RFC 6386, 9.1: bit 4 of the first byte is show_frame.
            Self::Vp8 => data.first().is_none_or(|b| b & 0x10 != 0),
            Self::Vp9 => vp9_frames(data).iter().any(|frame| vp9_is_shown(frame)),
            _ => true,
        }
    }

    /// Whether decoding can begin at this packet, which the container calls a keyframe: not where the picture
    /// only recovers gradually, or where nothing tells the decoder that it may begin. A packet without any
    /// picture data is damaged, and gets the benefit of the doubt.
    pub(super) fn is_sync(&self, data: &[u8]) -> bool {
        let mut pictures = false;
        match *self {
            Self::H264(length_size) => {
                nal_units(data, length_size).any(|unit| {
                    let kind = unit.first().map_or(0, |b| b & 0x1f);
                    pictures |= (1..=H264_IDR).contains(&kind);
                    kind == H264_IDR || kind == H264_SEI && recovers_at_once(&unit[1..])
                }) || !pictures
            }
            // Pictures are types 0 to 31, IRAP pictures 16 to 21 (ITU-T H.265, table 7-1).
            Self::Hevc(length_size) => {
                nal_units(data, length_size).filter(|unit| unit.len() > 2).any(|unit| {
                    let kind = unit[0] >> 1 & 0x3f;
                    pictures |= kind < 32;
                    (16..=21).contains(&kind)
                }) || !pictures
            }
            _ => true,
        }
    }
}

/// The NAL units of a packet.
fn nal_units(data: &[u8], length_size: usize) -> Box<dyn Iterator<Item = &[u8]> + '_> {
    let mut rest = data;
    if length_size > 0 {
        return Box::new(std::iter::from_fn(move || {
            let (length, after) = rest.split_at_checked(length_size)?;
            let length = length.iter().fold(0usize, |n, &b| n << 8 | usize::from(b));
            let (unit, after) = after.split_at_checked(length)?;
            rest = after;
            Some(unit)
        }));
    }
    Box::new(std::iter::from_fn(move || {
        let start = rest.windows(3).position(|w| w == [0, 0, 1])?;
        let unit = &rest[start + 3..];
        // Only the kind and the first bytes matter: the end is left at the packet's, the next search goes on here.
        rest = unit;
        Some(unit)
    }))
}

/// Whether an SEI unit holds a recovery point whose `recovery_frame_cnt` is 0.
fn recovers_at_once(mut payload: &[u8]) -> bool {
    loop {
        let (Some(kind), Some(size)) = (sei_number(&mut payload), sei_number(&mut payload)) else {
            return false;
        };
        if kind == usize::from(SEI_RECOVERY_POINT) {
            // ue(v): zero is a single one bit.
            return payload.first().is_some_and(|b| b & 0x80 != 0);
        }
        let Some(next) = payload.get(size..) else { return false };
        payload = next;
        // A trailing one bit ends the unit.
        if payload.len() < 3 {
            return false;
        }
    }
}

/// A number in an SEI message: bytes of 255 continue it (ITU-T H.264, 7.3.2.3.1).
fn sei_number(payload: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    loop {
        let (&byte, rest) = payload.split_first()?;
        *payload = rest;
        number += usize::from(byte);
        if byte != 255 {
            return Some(number);
        }
    }
}

/// The frames of a VP9 packet: several when it is a superframe (VP9 bitstream specification, annex B).
fn vp9_frames(data: &[u8]) -> Vec<&[u8]> {
    let whole = vec![data];
    let Some(&marker) = data.last() else { return whole };
    if marker & 0xe0 != 0xc0 {
        return whole;
    }
    let frames = usize::from(marker & 7) + 1;
    let size_bytes = usize::from(marker >> 3 & 3) + 1;
    let index_size = 2 + frames * size_bytes;
    let Some(index_at) = data.len().checked_sub(index_size) else { return whole };
    if data[index_at] != marker {
        return whole;
    }
    let mut rest = &data[..index_at];
    let mut parts = Vec::with_capacity(frames);
    for size in data[index_at + 1..data.len() - 1].chunks_exact(size_bytes) {
        let size = size.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
        let Some((part, after)) = rest.split_at_checked(size) else { return whole };
        parts.push(part);
        rest = after;
    }
    parts
}

/// Reads `show_existing_frame` and `show_frame` (VP9 bitstream specification, 6.2).
fn vp9_is_shown(frame: &[u8]) -> bool {
    let Some(&first) = frame.first() else { return false };
    let bits = u16::from(first) << 8 | u16::from(frame.get(1).copied().unwrap_or(0));
    let bit = |i: u32| bits >> (15 - i) & 1 == 1;
    // Two bits of marker, two of profile, and a reserved one in profile 3.
    let at = if bit(2) && bit(3) { 5 } else { 4 };
    bit(at) || bit(at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sync_points_of_h264_are_accepted() {
        let idr = [0, 0, 0, 1, 0x67, 1, 0, 0, 1, 0x65, 0x88];
        let at_once = [0, 0, 1, 0x06, 0x06, 0x01, 0xc4, 0x80, 0, 0, 1, 0x41, 0x9a];
        let gradual = [0, 0, 1, 0x06, 0x06, 0x01, 0x24, 0x80, 0, 0, 1, 0x41, 0x9a];
        let bare = [0, 0, 1, 0x41, 0x9a];
        let sync = |data: &[u8]| Units::H264(0).is_sync(data);
        assert_eq!([sync(&idr), sync(&at_once), sync(&gradual), sync(&bare)], [true, true, false, false]);
        assert!(Units::H264(4).is_sync(&[0, 0, 0, 2, 0x65, 0x88]));
        assert!(!Units::H264(4).is_sync(&[0, 0, 0, 2, 0x41, 0x9a]));
    }

    #[test]
    fn hidden_frames_of_vp8_and_vp9() {
        assert!(Units::Vp8.is_shown(&[0x10]));
        assert!(!Units::Vp8.is_shown(&[0x00]));
        // Marker 10, profile 00, show_existing 0, key 0, show_frame.
        let (shown, hidden) = (0b1000_0010, 0b1000_0000);
        assert!(Units::Vp9.is_shown(&[shown, 0]));
        assert!(!Units::Vp9.is_shown(&[hidden, 0]));
        // A superframe of a hidden and a shown frame of one byte each.
        assert!(Units::Vp9.is_shown(&[hidden, shown, 0b1100_0001, 1, 1, 0b1100_0001]));
        assert!(!Units::Vp9.is_shown(&[hidden, hidden, 0b1100_0001, 1, 1, 0b1100_0001]));
    }
}
