//! The process boundary: tasks that touch a stranger's file run in copies of this program, fenced in.
//!
//! libavcodec may crash, hang or be attacked by the file it reads. So the program executes itself again:
//! [`Pool`] (in the parent) keeps one child a slot and sends it requests, [`Registry::serve_if_child`]
//! (first thing in `main`) answers them in the child. A child has no network, no environment worth
//! stealing, no file but those its [`Access`] names, and [`Limits`] on memory and file size. Killing it is
//! how cancelling, stalls and crashes are handled: the parent always lives on.
//!
//! Only small messages cross. Pixels stay in files or inside the child.
//!
//! Fences the running kernel lacks (landlock came with Linux 5.13) are left out, which is logged once.
//! Never in here: what the tasks do.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::MediaError;

mod fence;
mod pool;
mod process;
mod serve;
mod wire;

pub use pool::{Pool, PoolSettings};
pub use serve::{Progress, Registry};

/// Work that runs in a child. The implementor is only a name for the pair of types and the function.
pub trait Task {
    /// How the two sides name the task; unique among the tasks of one [`Registry`].
    const NAME: &'static str;
    /// What the child needs to know. It crosses as JSON, so it should stay small.
    type Request: Serialize + DeserializeOwned + Send;
    /// What comes back, by the same way.
    type Response: Serialize + DeserializeOwned + Send;

    /// Does the work, in the child.
    ///
    /// # Errors
    /// Whatever keeps the work from being done; it reaches the caller as [`ChildError::Media`]. A panic
    /// reaches it as [`ChildError::Crashed`].
    fn run(request: Self::Request, progress: &Progress) -> Result<Self::Response, MediaError>;
}

/// Files a task may touch; any other is refused by the kernel where it can.
///
/// Paths name folders (with all that is in them) or files, absolute, for the child has no folder of its
/// own. A path that does not exist grants nothing, and using it fails as it would without a fence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// May be read.
    pub read: Vec<PathBuf>,
    /// May be read, written, created, renamed and removed.
    pub write: Vec<PathBuf>,
}

/// What one child may use up. `None` leaves a limit as the parent has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Limits {
    /// Bytes of writable memory of its own (`RLIMIT_DATA`; shared libraries' code does not count).
    pub memory_bytes: Option<u64>,
    /// Size in bytes of any file it writes (`RLIMIT_FSIZE`); a write beyond it fails with `EFBIG`.
    pub file_bytes: Option<u64>,
    /// Files it may hold open (`RLIMIT_NOFILE`).
    pub open_files: Option<u64>,
}

impl Default for Limits {
    /// 8 GiB of memory (8K video with frame threads stays below it), any file size, 256 open files.
    fn default() -> Self {
        Self { memory_bytes: Some(8 << 30), file_bytes: None, open_files: Some(256) }
    }
}

/// Why a call brought no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChildError {
    /// The task itself said so.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The child died of the task, or stopped making sense.
    #[error("the media process failed on this file ({how})")]
    Crashed {
        /// In words, such as `signal 11 (segmentation fault)`.
        how: String,
    },
    /// The caller cancelled. The child is gone: it writes no more.
    #[error("cancelled")]
    Cancelled,
    /// No child could be started; the file is not at fault.
    #[error("the media process could not be started: {0}")]
    Spawn(String),
}
