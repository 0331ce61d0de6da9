//! A file from elsewhere: opened with the few demuxers that are allowed, its packets read.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::ptr;

use ffmpeg_next::codec::packet::Mut as _;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::{Packet, ffi};

use crate::MediaError;
use crate::av;

/// Demuxers a stranger's file may reach. None of them opens a second file: no playlists, no scripts.
const DEMUXERS: &CStr = c"mov,matroska,avi,mpegts,mpeg,flv,ogg,gif,asf,h264,hevc";

/// What is being done when a video can't be read, for [`av::failure`].
pub(crate) const READING: &str = "read the video";

/// What to do about a file that is no video.
pub(crate) const READABLE: &str = "upload an MP4, MOV, MKV, WebM, AVI, MPEG or FLV file";

/// Damaged stretches are read over, but not for ever: a demuxer that fails this often in a row is at its end.
pub(crate) const MOST_READ_ERRORS: u32 = 10_000;

pub(crate) fn input_error<T>(sentence: impl Into<String>) -> Result<T, MediaError> {
    Err(MediaError::Input(sentence.into()))
}

/// Says what a file is that can't be a video, judging by its first bytes and, for MP4, its boxes.
///
/// Runs before FFmpeg sees the file, so that scripts and playlists are named for what they are.
fn refuse_by_content(path: &Path) -> Result<(), MediaError> {
    let unreadable = |e: std::io::Error| MediaError::storage(READING, &e);
    let mut file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    if size == 0 {
        return input_error("The file is empty: choose a video that has content.");
    }
    let mut head = Vec::with_capacity(4096);
    file.by_ref().take(4096).read_to_end(&mut head).map_err(unreadable)?;
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head).trim_ascii_start();
    if text.starts_with(b"#EXTM3U") || text.starts_with(b"ffconcat") || text.starts_with(b"[playlist]") {
        return input_error(format!(
            "The file is a playlist that points to other files, not a video: {READABLE}."
        ));
    }
    if std::str::from_utf8(&head).or_else(|e| std::str::from_utf8(&head[..e.valid_up_to()])).is_ok_and(|t| {
        t.len() + 3 >= head.len() && !t.chars().any(|c| c.is_control() && !c.is_ascii_whitespace())
    }) {
        return input_error(format!("The file is text, not a video: {READABLE}."));
    }
    if head.get(4..8) == Some(b"ftyp") {
        refuse_cut_off_boxes(&mut file, size).map_err(unreadable)??;
    }
    Ok(())
}

/// Walks the top-level boxes of an MP4: without `moov` nothing in it can be played.
fn refuse_cut_off_boxes(file: &mut File, size: u64) -> std::io::Result<Result<(), MediaError>> {
    let mut at = 0;
    while at + 8 <= size {
        file.seek(SeekFrom::Start(at))?;
        let mut header = [0; 16];
        let got = if at + 16 <= size { 16 } else { 8 };
        file.read_exact(&mut header[..got])?;
        let short = u64::from(u32::from_be_bytes([header[0], header[1], header[2], header[3]]));
        let is_moov = &header[4..8] == b"moov";
        let length = match short {
            0 if is_moov => return Ok(Ok(())),
            0 => break,
            1 if got == 16 => u64::from_be_bytes([
                header[8], header[9], header[10], header[11], header[12], header[13], header[14], header[15],
            ]),
            short => short,
        };
        if length < 8 {
            break;
        }
        at = at.saturating_add(length);
        if is_moov && at <= size {
            return Ok(Ok(()));
        }
    }
    Ok(input_error(
        "The video was cut off before its end, and the part that says how to play it (moov) is missing: \
         copy or upload the whole file again.",
    ))
}

/// Whether the file says itself that it is longer than it is: a copy or an upload that broke off. Only Matroska and
/// AVI say so at their beginning (unless written live) and can still be played; an MP4 can't, and is refused.
pub(crate) fn is_cut_off(path: &Path) -> Result<bool, MediaError> {
    let unreadable = |e: std::io::Error| MediaError::storage(READING, &e);
    let mut file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let mut head = Vec::with_capacity(4096);
    file.by_ref().take(4096).read_to_end(&mut head).map_err(unreadable)?;
    let end = riff_end(&head).or_else(|| matroska_end(&head));
    Ok(end.is_some_and(|end| end > size.saturating_add(LENGTH_TOLERANCE)))
}

/// Some writers count the header in, or the padding.
const LENGTH_TOLERANCE: u64 = 16;

/// Where the (first) RIFF chunk of an AVI ends; `None` for other files, and where a live writer left it open.
fn riff_end(head: &[u8]) -> Option<u64> {
    let rest = head.strip_prefix(b"RIFF")?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    (rest.starts_with(b"AVI ") && length != u32::MAX).then_some(8 + u64::from(length))
}

/// Where the segment of a Matroska or WebM file ends (RFC 8794, section 4 and RFC 9559, section 5.1); `None` for
/// other files, and where a live writer left the length unknown.
fn matroska_end(head: &[u8]) -> Option<u64> {
    let mut rest = head.strip_prefix(b"\x1a\x45\xdf\xa3")?;
    let header = ebml_length(&mut rest)?;
    let mut rest = rest.get(usize::try_from(header).ok()?..)?.strip_prefix(b"\x18\x53\x80\x67")?;
    let length = ebml_length(&mut rest)?;
    Some((head.len() - rest.len()) as u64 + length)
}

/// A length as EBML writes it: as many leading zero bits as bytes follow the first. `None` for the unknown one.
fn ebml_length(rest: &mut &[u8]) -> Option<u64> {
    let more = rest.first()?.leading_zeros() as usize;
    let (bytes, after) = rest.split_at_checked(more + 1).filter(|_| more < 8)?;
    *rest = after;
    let bits = 7 * (more + 1);
    let value = bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b)) & ((1 << bits) - 1);
    (value != (1 << bits) - 1).then_some(value)
}

/// Opens a file with the allowed demuxers only, and the `file` protocol only.
pub(crate) fn open_input(path: &Path) -> Result<Input, MediaError> {
    av::quiet();
    refuse_by_content(path)?;
    let url = av::file_url(path)?;
    let mut options = ptr::null_mut();
    let mut context = ptr::null_mut();
    // SAFETY: all strings are NUL-terminated and outlive the calls; avformat_open_input frees the context
    // on failure, and the options are freed here whatever came of it.
    let code = unsafe {
        ffi::av_dict_set(&raw mut options, c"protocol_whitelist".as_ptr(), c"file".as_ptr(), 0);
        ffi::av_dict_set(&raw mut options, c"format_whitelist".as_ptr(), DEMUXERS.as_ptr(), 0);
        let code = ffi::avformat_open_input(&raw mut context, url.as_ptr(), ptr::null(), &raw mut options);
        ffi::av_dict_free(&raw mut options);
        code
    };
    if code < 0 {
        // Demuxers use the code of a failing disk for damaged content too.
        let by_content = code == -libc::EIO && reads_well(path);
        return Err(match av::failure(READING, code) {
            // Anything FFmpeg makes of the content itself is the content's fault.
            error if !by_content && (matches!(error, MediaError::Storage(_)) || code == -libc::ENOMEM) => {
                error
            }
            _ => MediaError::Input(format!(
                "The file is not a video in a format that can be read here, or it is damaged: {READABLE}."
            )),
        });
    }
    // SAFETY: the context was opened just above, and is owned from here on.
    let mut input = unsafe { Input::wrap(context) };
    // SAFETY: the context is valid; null asks for no options per stream.
    let code = unsafe { ffi::avformat_find_stream_info(input.as_mut_ptr(), ptr::null_mut()) };
    if code < 0 {
        return Err(match av::failure(READING, code) {
            error if disk_failed(&input) || lacks_memory(code) => error,
            _ => MediaError::Input(format!("The file is damaged and its streams can't be read: {READABLE}.")),
        });
    }
    Ok(input)
}

/// Whether the system can read the file's beginning, as far as a demuxer looks to open it.
fn reads_well(path: &Path) -> bool {
    let beginning =
        File::open(path).and_then(|file| std::io::copy(&mut file.take(8 << 20), &mut std::io::sink()));
    beginning.is_ok()
}

/// Whether a code means that memory ran out, not that a damaged table claims more entries than any memory holds.
fn lacks_memory(code: std::ffi::c_int) -> bool {
    code == -libc::ENOMEM && memory_is_short()
}

/// Whether as much as a large packet takes is not to be had.
fn memory_is_short() -> bool {
    // SAFETY: the memory is given back at once, untouched; null is fine.
    unsafe {
        let memory = ffi::av_malloc(16 << 20);
        ffi::av_free(memory);
        memory.is_null()
    }
}

/// Whether reading from the open file failed, rather than making sense of what was read.
fn disk_failed(input: &Input) -> bool {
    // SAFETY: the context is open; its stream of bytes, if any, lives as long.
    unsafe {
        let bytes = (*input.as_ptr()).pb;
        !bytes.is_null() && (*bytes).error < 0 && (*bytes).error != ffi::AVERROR_EOF
    }
}

/// The streams of an open file. Borrowed from `input`; the pointers live as long as it does.
pub(crate) fn stream_pointers(input: &Input) -> &[*mut ffi::AVStream] {
    // SAFETY: FFmpeg keeps `nb_streams` valid pointers there for as long as the context lives; they change
    // only while packets are read, which needs `&mut Input`.
    unsafe {
        let context = &*input.as_ptr();
        if context.nb_streams == 0 {
            return &[];
        }
        std::slice::from_raw_parts(context.streams, context.nb_streams as usize)
    }
}

/// Reads the next packet of stream `wanted`; `false` at the end of the file.
pub(crate) fn read_packet(input: &mut Input, packet: &mut Packet, wanted: usize) -> Result<bool, MediaError> {
    let mut failures = 0;
    loop {
        // SAFETY: both are valid; the packet is emptied before it is filled again.
        let code = unsafe {
            ffi::av_packet_unref(packet.as_mut_ptr());
            ffi::av_read_frame(input.as_mut_ptr(), packet.as_mut_ptr())
        };
        match code {
            0.. if packet.stream() == wanted && packet.size() > 0 => return Ok(true),
            0.. => failures = 0,
            // Some demuxers take a packet there was no memory for for a damaged one, and look on for a whole one.
            ffi::AVERROR_EOF if memory_is_short() => return Err(av::failure(READING, -libc::ENOMEM)),
            ffi::AVERROR_EOF => return Ok(false),
            code => {
                failures += 1;
                // Neither is the end of the file, which would only seem to be shorter.
                if lacks_memory(code) || disk_failed(input) {
                    return Err(av::failure(READING, code));
                }
                if ![ffi::AVERROR_INVALIDDATA, -libc::ENOMEM].contains(&code) || failures > MOST_READ_ERRORS {
                    return Ok(false);
                }
            }
        }
    }
}

/// Leaves the other streams unread where the container allows it.
pub(crate) fn ignore_other_streams(input: &mut Input, wanted: usize) {
    for (i, &stream) in stream_pointers(input).iter().enumerate() {
        if i != wanted {
            // SAFETY: a stream of an open input; this field is the caller's to set.
            unsafe { (*stream).discard = ffi::AVDiscard::AVDISCARD_ALL };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_ebml() {
        let of = |mut bytes: &[u8]| ebml_length(&mut bytes);
        assert_eq!(of(&[0x9f]), Some(31));
        assert_eq!(of(&[0x40, 0x02]), Some(2));
        assert_eq!(of(&[0x01, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(of(&[0xff]), None, "unknown");
        assert_eq!(of(&[0x01, 255, 255, 255, 255, 255, 255, 255]), None, "unknown");
        assert_eq!(of(&[0x00, 1, 1, 1, 1, 1, 1, 1, 1]), None, "no length at all");
        assert_eq!(of(&[0x40]), None, "cut short");
    }

    #[test]
    fn the_end_a_file_claims() {
        let matroska = [b"\x1a\x45\xdf\xa3\x82ab\x18\x53\x80\x67\x81".as_slice(), b"x"].concat();
        assert_eq!(matroska_end(&matroska), Some(13));
        assert_eq!(riff_end(b"RIFF\x10\0\0\0AVI LIST"), Some(24));
        assert_eq!(riff_end(b"RIFF\x10\0\0\0WAVE"), None);
        assert_eq!(riff_end(b"RIFF\xff\xff\xff\xffAVI "), None);
    }
}
