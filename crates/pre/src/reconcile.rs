//! The reconciler: visits every unsettled job, so that no stamp and no hand-over depends on a message arriving.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::job::JobId;
use common::segment::{Stage, State};
use common::store::{JobStore, Store, StoreError};
use common::worker::Hints;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::duty::Duty;

/// How often every unsettled job is visited when nothing hints that it changed.
const INTERVAL: Duration = Duration::from_secs(5);
/// The shortest pause between two rounds: hints may come by the hundred.
const PAUSE: Duration = Duration::from_millis(50);
/// A round is followed by a pause of this many times its length, so that many jobs don't wear the store out.
const REST: u32 = 4;
/// How long the duty is held without a word; another process takes it after that.
const HELD: Duration = Duration::from_secs(15);

/// Visits all unsettled jobs, again whenever something changed or [`INTERVAL`] has passed, until `shutdown`.
pub async fn run(store: Arc<dyn JobStore>, hints: Arc<Hints>, shutdown: CancellationToken) {
    go(store, &hints, &shutdown, None).await;
}

/// [`run`], for many processes on one store: one of them at a time visits, the others stand by. What a report
/// says is stamped by whoever hears it; this is for what nobody reported.
pub async fn run_shared(
    store: Arc<dyn Store>,
    holder: String,
    hints: Arc<Hints>,
    shutdown: CancellationToken,
) {
    let mut duty = Duty::new(store.clone(), "reconcile", holder, HELD);
    go(store, &hints, &shutdown, Some(&mut duty)).await;
    duty.release().await;
}

async fn go(
    store: Arc<dyn JobStore>,
    hints: &Hints,
    shutdown: &CancellationToken,
    mut duty: Option<&mut Duty>,
) {
    let mut changed = hints.watch();
    let mut states = HashMap::new();
    loop {
        let began = Instant::now();
        let mine = match &mut duty {
            Some(duty) => duty.mine().await,
            None => Ok(true),
        };
        let visited = match mine {
            Ok(true) => visit_all(store.as_ref(), hints, &mut states).await.map(|()| true),
            other => other,
        };
        let mine = visited.unwrap_or_else(|error| {
            warn!(%error, "the reconciler cannot reach the store; it tries again");
            false
        });
        let rest = (began.elapsed() * REST).max(PAUSE);
        let next = async {
            tokio::time::sleep(rest).await;
            if mine {
                let _ = tokio::time::timeout(INTERVAL, changed.changed()).await;
            } else {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = next => {}
        }
    }
}

/// Visits every unsettled job once. `states` is where each stood at the visit before.
async fn visit_all(
    store: &dyn JobStore,
    hints: &Hints,
    states: &mut HashMap<JobId, State>,
) -> Result<(), StoreError> {
    let mut seen = HashMap::new();
    let mut moved = false;
    for id in store.unsettled().await? {
        let Some(job) = store.reconcile(id).await? else { continue };
        moved |= states.get(&id) != Some(&job.state);
        seen.insert(id, job.state);
    }
    *states = seen;
    if moved {
        Stage::ALL.into_iter().for_each(|stage| hints.notify(stage));
    }
    Ok(())
}
