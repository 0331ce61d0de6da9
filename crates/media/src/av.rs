//! FFmpeg's ways made ours: error codes as [`MediaError`], paths as its addresses, files it writes, its clock.

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use ffmpeg_next::ffi;

use crate::MediaError;

/// FFmpeg and the encoders in it write their opinions to stderr, about a stranger's broken file a line for every
/// picture; the errors of this crate say it better.
pub(crate) fn quiet() {
    ffmpeg_next::log::set_level(ffmpeg_next::log::Level::Fatal);
}

/// Whether a negative code means the operating system, rather than what is in a file: demuxers and codecs
/// use some of the system's numbers for themselves.
fn is_of_the_system(code: c_int) -> bool {
    matches!(
        -code,
        libc::ENOSPC
            | libc::EDQUOT
            | libc::EFBIG
            | libc::EACCES
            | libc::EROFS
            | libc::EIO
            | libc::ENOENT
            | libc::ENOTDIR
            | libc::EISDIR
            | libc::ENXIO
            | libc::ENODEV
            | libc::ESTALE
            | libc::ETIMEDOUT
            | libc::EMFILE
            | libc::ENFILE
    )
}

/// What a negative code of FFmpeg means: `doing` completes "could not …".
pub(crate) fn failure(doing: &str, code: c_int) -> MediaError {
    if is_of_the_system(code) {
        return MediaError::storage(doing, &io::Error::from_raw_os_error(-code));
    }
    if code == -libc::ENOMEM {
        return MediaError::Internal(format!(
            "There is not enough memory to {doing}: free some, raise the memory limit, or scale the video down."
        ));
    }
    MediaError::Internal(format!("Could not {doing}: {}.", ffmpeg_next::Error::from(code)))
}

/// [`failure`] for codes below zero; the others are passed on.
pub(crate) fn check(doing: &str, code: c_int) -> Result<c_int, MediaError> {
    if code < 0 { Err(failure(doing, code)) } else { Ok(code) }
}

/// [`check`] for something done to the file at `path`.
pub(crate) fn check_file(doing: &str, path: &Path, code: c_int) -> Result<c_int, MediaError> {
    if code < 0 { Err(failure(&format!("{doing} {}", path.display()), code)) } else { Ok(code) }
}

pub(crate) fn out_of_memory() -> MediaError {
    MediaError::Internal("Out of memory.".to_owned())
}

/// `path` as an address of FFmpeg's file protocol, so that no colon in a name means another protocol.
pub(crate) fn file_url(path: &Path) -> Result<CString, MediaError> {
    let mut url = b"file:".to_vec();
    url.extend_from_slice(path.as_os_str().as_bytes());
    CString::new(url)
        .map_err(|_| MediaError::Input("The file's name holds a NUL byte: rename the file.".to_owned()))
}

/// Creates the file at `path`, to be written in the muxer `format`. The caller owns the context and its open
/// file. `interrupt` is asked before every read and write of it.
pub(crate) fn create_output(
    path: &Path,
    format: &CStr,
    interrupt: Option<ffi::AVIOInterruptCB>,
) -> Result<*mut ffi::AVFormatContext, MediaError> {
    let url = file_url(path)?;
    let mut context = ptr::null_mut();
    // SAFETY: strings are NUL-terminated and outlive the calls; a context without its file is freed here.
    unsafe {
        let code =
            ffi::avformat_alloc_output_context2(&raw mut context, ptr::null(), format.as_ptr(), url.as_ptr());
        check_file("write", path, code)?;
        if let Some(interrupt) = interrupt {
            (*context).interrupt_callback = interrupt;
        }
        let code = ffi::avio_open2(
            &raw mut (*context).pb,
            url.as_ptr(),
            ffi::AVIO_FLAG_WRITE,
            &raw const (*context).interrupt_callback,
            ptr::null_mut(),
        );
        if code < 0 {
            ffi::avformat_free_context(context);
        }
        check_file("write", path, code)?;
    }
    Ok(context)
}

/// FFmpeg's name of a codec.
pub(crate) fn codec_name(id: ffi::AVCodecID) -> String {
    // SAFETY: avcodec_get_name always returns a static string.
    unsafe { CStr::from_ptr(ffi::avcodec_get_name(id)) }.to_string_lossy().into_owned()
}

/// `value` × `from` / `to`, to the nearest (halves away from zero); all terms positive but `value`.
pub(crate) fn rescale(value: i64, from: ffi::AVRational, to: ffi::AVRational) -> i64 {
    let num = i128::from(value) * i128::from(from.num) * i128::from(to.den);
    let den = (i128::from(from.den) * i128::from(to.num)).max(1);
    let half = if num < 0 { -(den / 2) } else { den / 2 };
    i64::try_from((num + half) / den).unwrap_or(if num < 0 { i64::MIN / 2 } else { i64::MAX / 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_the_storages_fault_and_nonsense_is_not() {
        let full = check_file("write", Path::new("out.mp4"), -libc::ENOSPC).unwrap_err();
        let MediaError::Storage(text) = full else { panic!("{full:?}") };
        assert!(text.contains("full") && text.contains("out.mp4"), "{text}");
        for code in [ffi::AVERROR_INVALIDDATA, ffi::AVERROR(libc::ENOSYS), ffi::AVERROR(libc::ENOMEM)] {
            assert!(matches!(failure("read the video", code), MediaError::Internal(_)), "{code}");
        }
    }

    #[test]
    fn times_are_rounded_to_the_nearest_tick() {
        let of = |num, den| ffi::AVRational { num, den };
        assert_eq!(rescale(3003, of(1, 90_000), of(1001, 30_000)), 1);
        assert_eq!(rescale(-3, of(1, 2), of(1, 1)), -2);
        assert_eq!(rescale(i64::MAX, of(1000, 1), of(1, 1000)), i64::MAX / 2);
    }
}
