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
        Self::Storage(common::files::trouble(doing, error))
    }
}
