//! What can go wrong with media, in the three kinds that callers tell apart.

use serde::{Deserialize, Serialize};

/// An error of this crate. It crosses the process boundary, hence plain text inside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MediaError {
    /// The file is at fault and will be tomorrow: one sentence for the user, saying what is wrong and
    /// what to do.
    #[error("{0}")]
    Input(String),
    /// Something of ours could not be read or written (full disk, missing permission, a vanished
    /// volume): trying again later may help.
    #[error("{0}")]
    Storage(String),
    /// Neither the file nor the disk: a bug, or an FFmpeg that lacks what Boxreel needs.
    #[error("{0}")]
    Internal(String),
}

impl MediaError {
    /// The error for something of ours that could not be read or written: `doing` completes "could not …".
    #[must_use]
    pub fn storage(doing: &str, error: &std::io::Error) -> Self {
        Self::Storage(match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                format!("The disk is full: could not {doing}. Free some space and try again.")
            }
            Some(libc::EFBIG) => format!(
                "Could not {doing}: the file grew beyond the largest allowed here. Raise the file size limit, or \
                 split the video."
            ),
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                format!("No permission to {doing}. Check who owns the folder and whether it is read-only.")
            }
            _ => format!("Could not {doing}: {error}. Check the disk and try again."),
        })
    }
}
