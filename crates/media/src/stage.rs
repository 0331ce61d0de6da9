//! The one seam to the worker loop: a stage's work run in a child, its errors sorted into retry and fail.

use common::worker::{Assignment, JobError};

use crate::child::{Access, ChildError, Pool, Task};
use crate::error::MediaError;

/// Runs `T` in a child on behalf of `work`: its progress keeps the lease, losing the lease kills the child.
///
/// # Errors
/// A file at fault fails the job; a crash, a full disk or a child that would not start is tried again.
pub async fn run_in_child<T: Task>(
    pool: &Pool,
    work: &Assignment,
    request: &T::Request,
    access: &Access,
) -> Result<T::Response, JobError> {
    let control = work.control.clone();
    match pool.call::<T>(request, access, control.cancelled(), |units| control.tick(units)).await {
        Ok(response) => Ok(response),
        Err(ChildError::Cancelled) => Err(JobError::Stopped),
        Err(ChildError::Media(MediaError::Input(message))) => Err(JobError::fail(message)),
        Err(ChildError::Media(error)) => Err(JobError::retry(error.to_string())),
        Err(ChildError::Crashed { how }) => Err(JobError::retry(format!(
            "The process that reads and writes video crashed on this file ({how}); the file may be damaged: convert \
             it with another program, or use another copy."
        ))),
        Err(ChildError::Spawn(why)) => Err(JobError::retry(format!(
            "The process that reads and writes video could not be started ({why}); check this machine's memory and \
             limits, and try again."
        ))),
    }
}
