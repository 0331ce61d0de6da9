//! What all ways of taking bytes in have in common: room, patience, and what is said when either ends.

use std::io;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use common::files::Volume;
use common::http_error::HttpError;
use common::input::blocking;
use common::segment::Stage;
use common::store::{Job, NewJob, Offer};
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::app::App;

/// How long an upload may be silent.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// The space on the volume is looked at again after so many bytes.
pub(super) const LOOK_EVERY: u64 = 64 << 20;
/// When to come back to a pre that takes no more uploads.
const BUSY: Duration = Duration::from_secs(5);
/// What is read of an upload that was refused, so that its sender hears why: who still sends when the connection
/// closes may never see the answer.
pub(super) const DRAINED: u64 = 32 << 20;
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A place among the uploads that are taken at once.
///
/// # Errors
/// 503 when there is none.
pub(super) fn place(app: &App) -> Result<OwnedSemaphorePermit, HttpError> {
    app.uploads.clone().try_acquire_owned().map_err(|_| {
        HttpError::unavailable("Too many uploads are under way; try again in a few seconds.", BUSY)
    })
}

/// The model that a job is made with now.
///
/// # Errors
/// 503 until there is one.
pub(super) async fn offer(app: &App) -> Result<Offer, HttpError> {
    app.store().offer().await?.ok_or_else(|| {
        HttpError::unavailable(
            "No detection worker has come up yet, so the model is not known; try again in a few seconds.",
            BUSY,
        )
    })
}

/// Makes the job of an upload that is whole on the volume, and wakes who works on it.
pub(super) async fn enqueue(app: &App, new: NewJob) -> Result<Job, HttpError> {
    let job = app.store().create_job(new).await?;
    app.service.hints.notify(Stage::Index);
    Ok(job)
}

/// Reads at most `most` bytes of a body and throws them away.
pub(super) async fn drain(body: &mut BodyDataStream, most: u64) {
    let mut read = 0;
    while let Ok(Some(Ok(bytes))) = timeout(IDLE, body.next()).await {
        read += bytes.len() as u64;
        if read > most {
            return;
        }
    }
}

/// Counts an upload as under way while it lives.
pub(super) struct Uploading(prometheus::IntGauge);

impl Uploading {
    pub(super) fn begin(app: &App) -> Self {
        app.metrics.uploading.inc();
        Self(app.metrics.uploading.clone())
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Refuses when less than the reserve would be left on the volume after `coming` more bytes.
pub(super) async fn check_space(app: &App, coming: u64) -> Result<(), HttpError> {
    let free = free_space(app.volume()).await.map_err(not_stored)?;
    if free < app.settings.disk_reserve.saturating_add(coming) {
        return Err(full());
    }
    Ok(())
}

/// Bytes that are free on the volume.
///
/// # Errors
/// When the volume does not tell.
pub(crate) async fn free_space(volume: &Volume) -> io::Result<u64> {
    let root = volume.root().to_owned();
    blocking(move || {
        let space = rustix::fs::statvfs(&root)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    })
    .await
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn not_stored(error: io::Error) -> HttpError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => full(),
        _ => HttpError::internal(format!("an upload cannot be stored: {error}")),
    }
}

fn full() -> HttpError {
    HttpError::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "insufficient_storage",
        "There is no room for this upload on the server; delete jobs that are no longer needed, or try again later.",
    )
}

pub(super) fn too_large(app: &App) -> HttpError {
    HttpError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "payload_too_large",
        format!("The upload is larger than the {} bytes that are taken.", app.settings.max_upload),
    )
}

pub(super) fn too_slow() -> HttpError {
    HttpError::new(
        StatusCode::REQUEST_TIMEOUT,
        "request_timeout",
        format!("Nothing of the upload came for {} seconds; send it again.", IDLE.as_secs()),
    )
}

pub(super) fn broken_off() -> HttpError {
    HttpError::bad_request("The upload broke off, or its form is malformed; send it again.")
}
