//! Messages between parent and child: a length, a kind, and JSON.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Access, Limits};

/// First argument of a program that is to serve as a child.
pub(super) const CHILD_WORD: &str = "boxreel-media-child";

/// Longest body of a message. Larger things travel in files.
pub(super) const MAX_BODY: usize = 16 << 20;

/// Bytes before the body: its length (u32, little endian) and its kind.
pub(super) const HEADER: usize = 5;

/// Parent to child, once: a [`Start`].
pub(super) const START: u8 = b's';
/// Parent to child: name of a task, a line feed, its request.
pub(super) const CALL: u8 = b'c';
/// Child to parent, once: a [`Hello`].
pub(super) const HELLO: u8 = b'h';
/// Child to parent: units of work done since the last such message.
pub(super) const PROGRESS: u8 = b'p';
/// Child to parent: the response.
pub(super) const DONE: u8 = b'd';
/// Child to parent: the task's [`crate::MediaError`].
pub(super) const FAILED: u8 = b'e';
/// Child to parent: the task panicked, with what it said.
pub(super) const PANICKED: u8 = b'x';
/// Child to parent: a path of the access has come, gone or been replaced since the fence was bound to it.
pub(super) const OUTDATED: u8 = b'o';

/// What a child is told before its first task.
#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    pub read: Vec<RawPath>,
    pub write: Vec<RawPath>,
    pub limits: Limits,
}

/// Which fences stand; empty reasons mean they do.
#[derive(Serialize, Deserialize)]
pub(super) struct Hello {
    pub missing: Vec<String>,
}

/// A path as its bytes: names of files need not be UTF-8, JSON must be.
#[derive(Serialize, Deserialize)]
pub(super) struct RawPath(Vec<u8>);

impl From<&PathBuf> for RawPath {
    fn from(path: &PathBuf) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl From<RawPath> for PathBuf {
    fn from(path: RawPath) -> Self {
        Self::from(OsString::from_vec(path.0))
    }
}

impl Start {
    pub(super) fn new(access: &Access, limits: Limits) -> Self {
        Self {
            read: access.read.iter().map(RawPath::from).collect(),
            write: access.write.iter().map(RawPath::from).collect(),
            limits,
        }
    }

    pub(super) fn into_parts(self) -> (Access, Limits) {
        let paths = |raw: Vec<RawPath>| raw.into_iter().map(PathBuf::from).collect();
        (Access { read: paths(self.read), write: paths(self.write) }, self.limits)
    }
}

/// A whole message; `None` when the body is too long.
pub(super) fn message(kind: u8, body: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(body);
    Some(bytes)
}

/// Length of the body and kind, from the first [`HEADER`] bytes; `None` when no message begins like that.
pub(super) fn header(bytes: [u8; HEADER]) -> Option<(usize, u8)> {
    let [a, b, c, d, kind] = bytes;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    (length <= MAX_BODY).then_some((length, kind))
}

/// Reads one message, blocking; an error at the end of the stream.
pub(super) fn read(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; HEADER];
    from.read_exact(&mut head)?;
    let (length, kind) = header(head).ok_or(io::ErrorKind::InvalidData)?;
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok((kind, body))
}

/// Takes one message off the front of what has arrived; `Ok(None)` when it is not whole yet.
pub(super) fn take(arrived: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, &'static str> {
    let Some(head) = arrived.first_chunk::<HEADER>() else { return Ok(None) };
    let (length, kind) = header(*head).ok_or("it sent something that is no message")?;
    if arrived.len() < HEADER + length {
        return Ok(None);
    }
    let rest = arrived.split_off(HEADER + length);
    let body = std::mem::replace(arrived, rest).split_off(HEADER);
    Ok(Some((kind, body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_off_one_by_one() {
        let mut arrived = [message(DONE, b"12").unwrap(), message(PROGRESS, b"").unwrap()].concat();
        let tail = arrived.split_off(9);
        assert_eq!(take(&mut arrived), Ok(Some((DONE, b"12".to_vec()))));
        assert_eq!(take(&mut arrived), Ok(None));
        arrived.extend(tail);
        assert_eq!(take(&mut arrived), Ok(Some((PROGRESS, Vec::new()))));
        assert!(arrived.is_empty());
    }

    #[test]
    fn an_absurd_length_is_refused_before_anything_is_allocated() {
        assert!(take(&mut vec![0xff; 9]).is_err());
        assert!(read(&mut [0xff_u8; 9].as_slice()).is_err());
    }

    #[test]
    fn paths_that_are_not_utf8_cross_unchanged() {
        let path = PathBuf::from(OsString::from_vec(b"/videos/caf\xe9.mp4".to_vec()));
        let json = serde_json::to_vec(&RawPath::from(&path)).unwrap();
        assert_eq!(PathBuf::from(serde_json::from_slice::<RawPath>(&json).unwrap()), path);
    }
}
