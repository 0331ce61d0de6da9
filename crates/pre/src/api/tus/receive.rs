//! Bytes of an upload come in, under its lock.
//!
//! They are written behind those that count, synced, and only then counted. So whatever is killed at whatever
//! moment, the recorded offset is never beyond what is there, and what lies beyond the offset is written over.

use std::io::{ErrorKind, SeekFrom};
use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::http::StatusCode;
use common::http_error::HttpError;
use common::store::{Recorded, Upload, UploadLock};
use futures_util::StreamExt;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::debug;

use super::headers::Checksum;
use super::{gone, locked};
use crate::api::intake::{IDLE, LOOK_EVERY, Uploading, broken_off, check_space, not_stored, too_slow};
use crate::app::App;

/// How often bytes are counted while they come, and the lock prolonged. Also how long a sender that came back over
/// another connection waits, at most twice, for the writer of the first to give way.
const BEAT: Duration = Duration::from_secs(3);

/// What bytes come with.
pub(super) struct Chunk {
    pub checksum: Option<Checksum>,
    /// How many there are, if that is said.
    pub announced: Option<u64>,
}

impl Chunk {
    /// Refuses more bytes than belong to `upload`.
    pub(super) fn fits(&self, upload: &Upload) -> Result<(), HttpError> {
        if self.announced.is_some_and(|announced| announced > upload.length - upload.offset()) {
            return Err(too_long());
        }
        Ok(())
    }
}

/// Takes bytes in, down to the end of `body` or as far as they come. What is left of a body
/// that was refused comes back with the refusal.
///
/// In a task of its own: what arrived counts even if nobody waits for the answer any more.
pub(super) async fn receive(
    app: App,
    lock: UploadLock,
    upload: Upload,
    chunk: Chunk,
    body: BodyDataStream,
) -> Result<(), (HttpError, Option<BodyDataStream>)> {
    let task = tokio::spawn(async move {
        let mut body = body;
        let uploading = Uploading::begin(&app);
        let outcome = match Receiver::open(&app, &lock, &upload, chunk.announced).await {
            Ok(receiver) => receiver.take(chunk.checksum, &mut body).await,
            Err(error) => Err(error),
        };
        drop(uploading);
        // A whole upload has no lock any more; then this changes nothing.
        if let Err(error) = app.store().unlock_upload(lock).await {
            debug!(%error, "the lock of an upload lapses by itself");
        }
        if matches!(outcome, Ok(offset) if offset == upload.length) {
            // Whoever asks next, or the sweeper, makes the job if this fails.
            super::make_job(&app, upload.id).await.map_err(|error| (error, None))?;
        }
        outcome.map_err(|error| (error, Some(body))).map(drop)
    });
    task.await.unwrap_or_else(|panic| Err((HttpError::internal(panic), None)))
}

struct Receiver<'a> {
    app: &'a App,
    lock: &'a UploadLock,
    length: u64,
    file: File,
    /// Bytes that count.
    counted: u64,
    /// Bytes that are written.
    written: u64,
    /// When the lock was last prolonged, or asked for.
    kept: Instant,
}

/// Why no more bytes are taken.
enum End {
    /// That was all of them.
    Complete,
    /// More would have come.
    Early(HttpError),
}

impl<'a> Receiver<'a> {
    async fn open(
        app: &'a App,
        lock: &'a UploadLock,
        upload: &Upload,
        announced: Option<u64>,
    ) -> Result<Self, HttpError> {
        let kept = Instant::now();
        check_space(app, announced.unwrap_or(0)).await?;
        // Not created here: it was made with the upload, and goes with it.
        let file = OpenOptions::new().write(true).open(app.volume().partial(upload.id)).await;
        let mut file = file.map_err(|error| match error.kind() {
            ErrorKind::NotFound => gone(),
            _ => not_stored(error),
        })?;
        let offset = upload.offset();
        let there = file.metadata().await.map_err(not_stored)?.len();
        if there < offset {
            return Err(HttpError::internal(format!(
                "upload {} has {there} bytes on the volume, and {offset} were counted",
                upload.id
            )));
        }
        file.seek(SeekFrom::Start(offset)).await.map_err(not_stored)?;
        Ok(Self { app, lock, length: upload.length, file, counted: offset, written: offset, kept })
    }

    async fn take(mut self, checksum: Option<Checksum>, body: &mut BodyDataStream) -> Result<u64, HttpError> {
        let Some(mut checksum) = checksum else {
            let end = self.read(None, body).await?;
            self.count().await?;
            return match end {
                End::Early(error) if self.counted < self.length => Err(error),
                _ => Ok(self.counted),
            };
        };
        match self.read(Some(&mut checksum), body).await? {
            End::Complete => checksum.check()?,
            End::Early(error) => return Err(error),
        }
        self.count().await?;
        Ok(self.counted)
    }

    /// Writes what comes. With a checksum nothing counts before it was compared.
    async fn read(
        &mut self,
        mut checksum: Option<&mut Checksum>,
        body: &mut BodyDataStream,
    ) -> Result<End, HttpError> {
        let stop = self.app.service.stop.clone();
        let pause = BEAT.min(self.app.service.lease() / 3).max(Duration::from_millis(100));
        let mut beat = interval(pause);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        let (mut heard, mut looked_at) = (Instant::now(), self.written);
        loop {
            tokio::select! {
                chunk = body.next() => {
                    let Some(chunk) = chunk else { return Ok(End::Complete) };
                    let Ok(bytes) = chunk else { return Ok(End::Early(broken_off())) };
                    if bytes.len() as u64 > self.length - self.written {
                        return Ok(End::Early(too_long()));
                    }
                    self.fence().await?;
                    if self.written - looked_at > LOOK_EVERY {
                        looked_at = self.written;
                        if let Err(full) = check_space(self.app, 0).await {
                            return Ok(End::Early(full));
                        }
                    }
                    if let Some(sum) = &mut checksum {
                        sum.update(&bytes);
                    }
                    self.write(&bytes).await?;
                    heard = Instant::now();
                }
                _ = beat.tick() => {
                    let recorded = match &checksum {
                        None => self.count().await,
                        Some(_) => self.record(self.counted).await,
                    };
                    let wanted = self.patient(recorded)?;
                    if heard.elapsed() >= IDLE {
                        return Ok(End::Early(too_slow()));
                    }
                    if wanted && heard.elapsed() >= pause {
                        return Ok(End::Early(locked()));
                    }
                }
                () = stop.cancelled() => {
                    return Ok(End::Early(HttpError::unavailable(
                        "This server is about to stop; what has come counts, go on in a few seconds.",
                        Duration::from_secs(5),
                    )));
                }
            }
        }
    }

    async fn write(&mut self, bytes: &Bytes) -> Result<(), HttpError> {
        self.file.write_all(bytes).await.map_err(not_stored)?;
        self.written += bytes.len() as u64;
        self.app.metrics.received.inc_by(bytes.len() as u64);
        Ok(())
    }

    /// Sees to it that nothing is written after the lock may have lapsed: by the monotonic clock of this process,
    /// which may have stood still in between.
    async fn fence(&mut self) -> Result<(), HttpError> {
        if self.kept.elapsed() >= self.app.service.lease() {
            self.record(self.counted).await?;
        }
        Ok(())
    }

    /// Makes light of a store that does not answer at the moment: it may before the lock lapses.
    fn patient(&self, recorded: Result<bool, HttpError>) -> Result<bool, HttpError> {
        let silent = |error: &HttpError| error.status() == StatusCode::SERVICE_UNAVAILABLE;
        if recorded.as_ref().is_err_and(silent) && self.kept.elapsed() < self.app.service.lease() / 2 {
            return Ok(false);
        }
        recorded
    }

    /// Syncs what was written and counts it. True when somebody else wants the lock.
    async fn count(&mut self) -> Result<bool, HttpError> {
        if self.written > self.counted {
            self.file.flush().await.map_err(not_stored)?;
            self.file.sync_all().await.map_err(not_stored)?;
        }
        let wanted = self.record(self.written).await?;
        self.counted = self.written;
        Ok(wanted)
    }

    async fn record(&mut self, offset: u64) -> Result<bool, HttpError> {
        let asked = Instant::now();
        match self.app.store().record_offset(self.lock, offset, self.app.service.lease()).await? {
            Recorded::Held { wanted } => {
                self.kept = asked;
                Ok(wanted)
            }
            Recorded::Whole => Ok(false),
            Recorded::Lost => Err(match self.app.store().upload(self.lock.id).await? {
                Some(_) => locked(),
                None => gone(),
            }),
        }
    }
}

fn too_long() -> HttpError {
    HttpError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "payload_too_large",
        "There are more bytes than Upload-Length said.",
    )
}
