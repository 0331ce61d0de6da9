//! Whether the service is alive, and whether it can do its work.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::files::Draft;
use crate::store::Store;

/// How long a part may take to answer before it counts as not there.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long an answer holds, so that nobody can wear the volume out by asking.
const HOLDS: Duration = Duration::from_secs(1);

/// What readiness is judged by.
#[derive(Clone)]
pub struct Health(Arc<Parts>);

struct Parts {
    store: Arc<dyn Store>,
    volume: PathBuf,
    unwell: AtomicBool,
    last: Mutex<Option<(Instant, Readiness)>>,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether all is well.
    pub ready: bool,
    /// The database answers.
    pub database: bool,
    /// The volume can be written.
    pub volume: bool,
    /// The worker claims work; it stops doing so when it fails everything it touches.
    pub worker: bool,
}

impl Health {
    pub(super) fn new(store: Arc<dyn Store>, volume: PathBuf) -> Self {
        Self(Arc::new(Parts { store, volume, unwell: AtomicBool::new(false), last: Mutex::default() }))
    }

    /// Says that the worker has stopped claiming because it is not well.
    pub fn set_unwell(&self) {
        self.0.unwell.store(true, Ordering::Relaxed);
    }

    /// Whether the worker claims work.
    #[must_use]
    pub fn is_well(&self) -> bool {
        !self.0.unwell.load(Ordering::Relaxed)
    }

    /// Looks at every part.
    pub async fn check(&self) -> Readiness {
        let mut last = self.0.last.lock().await;
        if let Some((at, readiness)) = &*last
            && at.elapsed() < HOLDS
        {
            return readiness.clone();
        }
        let (database, volume) = tokio::join!(self.database(), self.volume());
        let worker = self.is_well();
        let readiness = Readiness { ready: database && volume && worker, database, volume, worker };
        *last = Some((Instant::now(), readiness.clone()));
        readiness
    }

    async fn database(&self) -> bool {
        match timeout(PATIENCE, self.0.store.now()).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                warn!("not ready: {error}");
                false
            }
            Err(_) => false,
        }
    }

    async fn volume(&self) -> bool {
        let draft = Draft::new(&self.0.volume.join("ready"));
        let path = self.0.volume.clone();
        let written = tokio::task::spawn_blocking(move || draft.create().map(drop));
        match timeout(PATIENCE, written).await {
            Ok(Ok(Ok(()))) => true,
            Ok(Ok(Err(error))) => {
                warn!("not ready: {} cannot be written: {error}", path.display());
                false
            }
            _ => {
                warn!("not ready: {} does not answer", path.display());
                false
            }
        }
    }
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(health): State<Health>) -> (StatusCode, Json<Readiness>) {
    let readiness = health.check().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
