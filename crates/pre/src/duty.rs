//! Duties that one process at a time should do, whichever it is.

use std::sync::Arc;
use std::time::Duration;

use common::store::{Store, StoreError};
use tokio::time::Instant;
use tracing::debug;

/// One such duty, as this process sees it.
pub(crate) struct Duty {
    store: Arc<dyn Store>,
    name: &'static str,
    holder: String,
    time: Duration,
    /// When it was last taken or kept.
    held: Option<Instant>,
}

impl Duty {
    /// The duty `name`; a holder that says nothing for `time` loses it to another.
    pub(crate) fn new(store: Arc<dyn Store>, name: &'static str, holder: String, time: Duration) -> Self {
        Self { store, name, holder, time, held: None }
    }

    /// Whether it is this process's now. Asks the store only every third of the time.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn mine(&mut self) -> Result<bool, StoreError> {
        if self.held.is_none_or(|since| since.elapsed() >= self.time / 3) {
            let asked = Instant::now();
            let held = self.store.hold(self.name, &self.holder, self.time).await?;
            self.held = held.then_some(asked);
        }
        Ok(self.held.is_some())
    }

    /// Lets it go, so that the others need not wait for it to lapse.
    pub(crate) async fn release(self) {
        if self.held.is_some()
            && let Err(error) = self.store.hold(self.name, &self.holder, Duration::ZERO).await
        {
            debug!(%error, "a duty lapses by itself");
        }
    }
}
