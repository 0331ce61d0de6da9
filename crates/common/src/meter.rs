//! Frames that stages have worked on, live: for progress displays and metrics.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::job::JobId;
use crate::segment::Stage;

/// Pairs of job and stage that are counted at once.
const REMEMBERED: usize = 1 << 16;

/// Counts what the worker loops of this process tick. Work that is done again is counted again.
#[derive(Debug, Default)]
pub struct Meter(Mutex<HashMap<(JobId, Stage), u64>>);

impl Meter {
    /// Adds `units` to what `stage` did for `job`.
    pub fn add(&self, job: JobId, stage: Stage, units: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A service that runs for months must not remember every job it ever touched.
        if counts.len() >= REMEMBERED {
            counts.clear();
        }
        *counts.entry((job, stage)).or_default() += units;
    }

    /// What `stage` did for `job` so far.
    #[must_use]
    pub fn get(&self, job: JobId, stage: Stage) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(job, stage)).copied().unwrap_or(0)
    }
}
