//! Hints between the loops of one process, and between processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::segment::Stage;

/// Tells the loops of this process that there may be work, so that they need not wait for their next poll.
/// Losing a hint costs a poll's pause, never work.
///
/// A hint is given here ([`Hints::notify`]), or heard from another process ([`Hints::hear`]) by a bridge, which
/// carries those given here to the others ([`Hints::given`]). What was heard is not given: or two bridges would
/// send it to and fro for ever.
#[derive(Debug)]
pub struct Hints {
    stages: [watch::Sender<u64>; Stage::ALL.len()],
    any: watch::Sender<u64>,
    given: watch::Sender<[u64; Stage::ALL.len()]>,
    heard: AtomicU64,
}

impl Default for Hints {
    fn default() -> Self {
        Self {
            stages: std::array::from_fn(|_| watch::Sender::new(0)),
            any: watch::Sender::new(0),
            given: watch::Sender::new([0; Stage::ALL.len()]),
            heard: AtomicU64::new(0),
        }
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
        self.wake(stage);
        self.given.send_modify(|given| given[stage as usize] = given[stage as usize].wrapping_add(1));
    }

    /// Passes on that another process said so.
    pub fn hear(&self, stage: Stage) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        self.wake(stage);
    }

    fn wake(&self, stage: Stage) {
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

    /// How many hints were given in this process for each stage (in the order of [`Stage::ALL`]), to be carried
    /// to others.
    #[must_use]
    pub fn given(&self) -> watch::Receiver<[u64; Stage::ALL.len()]> {
        self.given.subscribe()
    }

    /// How many hints were heard from other processes.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_heard_wakes_and_is_not_carried_on() {
        let hints = Hints::new();
        let (mut woken, mut given) = (hints.listen(Stage::Detect), hints.given());
        hints.hear(Stage::Detect);
        assert!(woken.has_changed().unwrap() && !given.has_changed().unwrap());
        woken.mark_unchanged();
        hints.notify(Stage::Detect);
        hints.notify(Stage::Render);
        assert!(woken.has_changed().unwrap());
        assert_eq!(*given.borrow_and_update(), [0, 0, 1, 1, 0]);
        assert_eq!(hints.heard(), 1);
    }
}
