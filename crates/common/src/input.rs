//! Opening what an earlier stage made, on a volume whose caches may lag behind the documents.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::files::{FileRecord, JobFolder};
use crate::job::Plan;
use crate::segment::{Segment, Stage};
use crate::worker::{Assignment, JobError};

/// How long a named file may stay invisible or stale: NFS clients cache names and attributes.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The path of a file that a document names, once it is there and whole.
///
/// Waiting costs no attempt. A file that stays missing or damaged sends the segment back to `maker`, the stage
/// that makes it.
///
/// # Errors
/// [`JobError`] as described, or when the work was stopped meanwhile.
pub async fn named_file(
    work: &Assignment,
    folder: &JobFolder,
    record: &FileRecord,
    maker: Stage,
) -> Result<PathBuf, JobError> {
    let started = Instant::now();
    loop {
        let (checked, named) = (folder.clone(), record.clone());
        let error = match blocking(move || checked.verify(&named)).await {
            Ok(path) => return Ok(path),
            Err(error) => error,
        };
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) {
            return Err(JobError::storage(&format!("read {}", record.name), error));
        }
        if started.elapsed() >= PATIENCE {
            return Err(JobError::send_back(maker, format!("{}: {error}", record.name)));
        }
        work.control.tick(1);
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = work.control.cancelled().cancelled() => return Err(JobError::Stopped),
        }
    }
}

/// Runs file work off the async threads.
///
/// # Errors
/// What `work` says, or that it panicked.
pub fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = io::Result<T>> {
    let handle = tokio::task::spawn_blocking(work);
    async { handle.await.map_err(io::Error::other)? }
}

impl Assignment {
    /// What index froze for the job.
    ///
    /// # Errors
    /// When the store hands out work that cannot be done yet.
    pub fn plan(&self) -> Result<&Plan, JobError> {
        self.job.plan.as_ref().ok_or_else(|| JobError::retry("The job has no frame index yet."))
    }

    /// The plan, and the segment the work is on.
    ///
    /// # Errors
    /// When the store hands out work that cannot be done yet.
    pub fn planned(&self) -> Result<(&Plan, &Segment), JobError> {
        let segment = self.segment.as_ref();
        Ok((self.plan()?, segment.ok_or_else(|| JobError::retry("The work names no segment."))?))
    }
}
