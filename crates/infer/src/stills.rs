//! Single pictures on their way to the network: batched among themselves, bounded in number.
//!
//! They share the model's threads with the segments of videos, batch by batch in turn, and never a batch: what
//! is found in a video does not depend on this traffic.

use std::sync::Arc;
use std::time::Duration;

use common::detection::Detection;
use prometheus::{Histogram, HistogramOpts, Registry};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{DetectError, Detector, Frames, NmsOptions};

/// Pictures that may wait, decoded: 300 × 300 × 3 bytes each.
const WAITING: usize = 64;
/// Pictures in a batch.
const MAX_BATCH: usize = 8;
/// How long the first picture of a batch waits for company.
const MAX_DELAY: Duration = Duration::from_millis(5);

/// What [`Stills::detect`] says of a picture it does not take or finish.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StillError {
    /// Too many wait already.
    #[error("too many pictures wait")]
    Busy,
    /// The network failed.
    #[error(transparent)]
    Detect(#[from] DetectError),
}

struct Waiting {
    pixels: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<Detection>, DetectError>>,
}

/// The queue before the network for single pictures. Clones share it.
#[derive(Clone)]
pub struct Stills {
    queue: mpsc::Sender<Waiting>,
    decoding: Arc<Semaphore>,
}

impl Stills {
    /// Starts the task that makes batches, until `stop`. `registry` gets the sizes of batches.
    ///
    /// # Errors
    /// When the registry has such a metric already.
    pub fn start(
        detector: Detector,
        registry: &Registry,
        stop: CancellationToken,
    ) -> Result<Self, prometheus::Error> {
        let sizes = Histogram::with_opts(
            HistogramOpts::new("boxreel_still_batch_pictures", "Single pictures computed together.")
                .buckets((1..=MAX_BATCH).map(|n| n as f64).collect()),
        )?;
        registry.register(Box::new(sizes.clone()))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            tokio::select! {
                () = serve(&detector, receiver, &sizes) => {}
                () = stop.cancelled() => {}
            }
        });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { queue: sender, decoding: Arc::new(Semaphore::new(cores)) })
    }

    /// Room to decode a picture in; held while that goes on, so that memory stays bounded.
    ///
    /// # Errors
    /// When there is none within `patience`.
    pub async fn room(&self, patience: Duration) -> Result<tokio::sync::OwnedSemaphorePermit, StillError> {
        match tokio::time::timeout(patience, self.decoding.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(StillError::Busy),
        }
    }

    /// Everything found in one picture of 300 × 300 × 3 bytes, best first, from a score of 0.05 up.
    ///
    /// # Errors
    /// [`StillError::Busy`] at once when too many wait; otherwise what went wrong.
    pub async fn detect(&self, pixels: Vec<u8>) -> Result<Vec<Detection>, StillError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Waiting { pixels, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StillError::Busy,
            mpsc::error::TrySendError::Closed(_) => StillError::Detect(DetectError::Dead),
        })?;
        Ok(answered.await.map_err(|_| DetectError::Dead)??)
    }
}

async fn serve(detector: &Detector, mut receiver: mpsc::Receiver<Waiting>, sizes: &Histogram) {
    while let Some(first) = receiver.recv().await {
        let mut batch = vec![first];
        let deadline = tokio::time::Instant::now() + MAX_DELAY;
        while batch.len() < MAX_BATCH {
            match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        // Whoever has hung up need not be computed.
        batch.retain(|one| !one.answer.is_closed());
        if batch.is_empty() {
            continue;
        }
        sizes.observe(batch.len() as f64);
        let pixels = batch.iter().flat_map(|one| one.pixels.iter().copied()).collect();
        let (options, never) = (NmsOptions::default(), CancellationToken::new());
        let found = detector.detect(Frames::of_bytes(pixels), options, &never, &|_| {}).await;
        for (at, Waiting { answer, .. }) in batch.into_iter().enumerate() {
            let one = match &found {
                Ok(found) => found.get(at).cloned().ok_or(DetectError::Dead),
                Err(error) => Err(error.clone()),
            };
            let _ = answer.send(one);
        }
    }
}
