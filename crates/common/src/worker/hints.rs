//! Hints between the loops of one process.

use std::sync::Arc;

use tokio::sync::watch;

use crate::segment::Stage;

/// Tells the loops of this process that there may be work, so that they need not wait for their next poll.
/// Losing a hint costs a poll's pause, never work.
#[derive(Debug)]
pub struct Hints {
    stages: [watch::Sender<u64>; Stage::ALL.len()],
    any: watch::Sender<u64>,
}

impl Default for Hints {
    fn default() -> Self {
        Self { stages: std::array::from_fn(|_| watch::Sender::new(0)), any: watch::Sender::new(0) }
    }
}

impl Hints {
    /// No hint given yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Says that `stage` may have something to claim, and that something changed.
    pub fn notify(&self, stage: Stage) {
        self.stages[stage as usize].send_modify(|n| *n = n.wrapping_add(1));
        self.changed();
    }

    /// Says that something changed (a claim, an advance, a cancellation), without new work for anybody.
    pub fn changed(&self) {
        self.any.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Waits for the next hint for `stage`. A hint given before the call is missed: use
    /// [`Hints::listen`] where that matters.
    pub async fn wait(&self, stage: Stage) {
        let _ = self.listen(stage).changed().await;
    }

    /// A listener that has seen every hint for `stage` so far, and misses none from now on.
    #[must_use]
    pub fn listen(&self, stage: Stage) -> watch::Receiver<u64> {
        self.stages[stage as usize].subscribe()
    }

    /// A listener for any change at all: for the reconciler and for whoever shows progress.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.any.subscribe()
    }
}
