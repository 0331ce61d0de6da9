//! The reconciler: visits every unsettled job, so that no stamp and no hand-over depends on a message arriving.

use std::sync::Arc;
use std::time::Duration;

use common::segment::Stage;
use common::store::{JobStore, StoreError};
use common::worker::Hints;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often every unsettled job is visited when nothing hints that it changed.
const INTERVAL: Duration = Duration::from_secs(5);

/// Visits all unsettled jobs, again whenever something changed or [`INTERVAL`] has passed, until `shutdown`.
pub async fn run(store: Arc<dyn JobStore>, hints: Arc<Hints>, shutdown: CancellationToken) {
    let mut changed = hints.watch();
    loop {
        if let Err(error) = visit_all(store.as_ref(), &hints).await {
            warn!(%error, "the reconciler cannot reach the store; it tries again");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tokio::time::timeout(INTERVAL, changed.changed()) => {}
        }
    }
}

async fn visit_all(store: &dyn JobStore, hints: &Hints) -> Result<(), StoreError> {
    for id in store.unsettled().await? {
        let before = store.job(id).await?;
        let after = store.reconcile(id).await?;
        if before.map(|job| job.state) != after.map(|job| job.state) {
            Stage::ALL.into_iter().for_each(|stage| hints.notify(stage));
        }
    }
    Ok(())
}
