//! Answers that are written as they are sent, by code that writes to a file.

use std::io::{self, Write};
use std::time::Duration;

use axum::body::{Body, Bytes};
use common::http_error::HttpError;
use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use crate::app::App;

/// How long a reader may take for the next part: each of these answers holds a thread.
const PATIENCE: Duration = Duration::from_secs(60);
/// When to come back to a pre that makes no more of them.
const BUSY: Duration = Duration::from_secs(5);

/// A body of what `write` writes, on a thread of its own. When that fails the body breaks off, so that the reader
/// does not take it for whole.
///
/// # Errors
/// 503 when too many are under way.
pub(super) fn written(
    app: &App,
    write: impl FnOnce(Outlet) -> io::Result<()> + Send + 'static,
) -> Result<Body, HttpError> {
    let place = app.streams.clone().try_acquire_owned().map_err(|_| {
        HttpError::unavailable("Too many downloads of this kind are under way; try again soon.", BUSY)
    })?;
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let outlet = Outlet { sender: sender.clone(), runtime: Handle::current() };
    let work = tokio::task::spawn_blocking(move || {
        let _place = place;
        write(outlet)
    });
    tokio::spawn(async move {
        let ended = work.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = ended
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            warn!("a download breaks off: {error}");
            let _ = timeout(PATIENCE, sender.send(Err(error))).await;
        }
    });
    let parts = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    // Compression asks again after the end.
    Ok(Body::from_stream(parts.fuse()))
}

/// Where to write. What is written in small pieces is to be gathered before.
pub(super) struct Outlet {
    sender: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = timeout(PATIENCE, self.sender.send(Ok(Bytes::copy_from_slice(bytes))));
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(bytes.len()),
            // Its reader has gone, or has fallen asleep.
            Ok(Err(_)) | Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
