//! What pre counts beyond the worker loops.

use common::store::Queue;
use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Counters and gauges of pre.
#[derive(Debug, Clone)]
pub struct PreMetrics {
    uploads: IntCounterVec,
    callbacks: IntCounterVec,
    /// Bytes of uploads as they come in.
    pub received: IntCounter,
    /// Uploads under way.
    pub uploading: IntGauge,
    /// Space left on the volume.
    pub free: IntGauge,
    pieces: IntGaugeVec,
    oldest: GaugeVec,
}

/// How an upload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// It became a job.
    Accepted,
    /// The job was there already.
    Repeated,
    /// It was not taken, or broke off.
    Refused,
}

impl Upload {
    const ALL: [Self; 3] = [Self::Accepted, Self::Repeated, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Repeated => "repeated",
            Self::Refused => "refused",
        }
    }
}

/// How a callback went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Its receiver has it.
    Delivered,
    /// It failed, and is tried again.
    Retry,
    /// It is given up.
    GivenUp,
}

impl Call {
    const ALL: [Self; 3] = [Self::Delivered, Self::Retry, Self::GivenUp];

    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::GivenUp => "given_up",
        }
    }
}

impl PreMetrics {
    /// Counters that `registry` exposes.
    ///
    /// # Errors
    /// When the registry holds such counters already.
    pub fn registered(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters =
            |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let metrics = Self {
            uploads: counters("boxreel_uploads_total", "Uploads, by how they ended.", "outcome")?,
            callbacks: counters("boxreel_callbacks_total", "Callbacks sent, by how that went.", "outcome")?,
            received: IntCounter::new("boxreel_upload_received_bytes_total", "Bytes of uploads received.")?,
            uploading: IntGauge::new("boxreel_uploads_in_progress", "Uploads under way.")?,
            free: IntGauge::new("boxreel_volume_free_bytes", "Space left on the shared volume.")?,
            pieces: IntGaugeVec::new(
                Opts::new("boxreel_queue_pieces", "Pieces of work that wait for a stage or are in it."),
                &["stage", "state"],
            )?,
            oldest: GaugeVec::new(
                Opts::new(
                    "boxreel_queue_oldest_age_seconds",
                    "How long the piece that waits longest has waited.",
                ),
                &["stage"],
            )?,
        };
        let collectors: [Box<dyn Collector>; 7] = [
            Box::new(metrics.uploads.clone()),
            Box::new(metrics.callbacks.clone()),
            Box::new(metrics.received.clone()),
            Box::new(metrics.uploading.clone()),
            Box::new(metrics.free.clone()),
            Box::new(metrics.pieces.clone()),
            Box::new(metrics.oldest.clone()),
        ];
        for collector in collectors {
            registry.register(collector)?;
        }
        for outcome in Upload::ALL {
            metrics.uploads.with_label_values(&[outcome.as_str()]);
        }
        for outcome in Call::ALL {
            metrics.callbacks.with_label_values(&[outcome.as_str()]);
        }
        Ok(metrics)
    }

    /// An upload ended.
    pub fn uploaded(&self, outcome: Upload) {
        self.uploads.with_label_values(&[outcome.as_str()]).inc();
    }

    /// A callback was tried.
    pub fn called(&self, outcome: Call) {
        self.callbacks.with_label_values(&[outcome.as_str()]).inc();
    }

    /// Takes in what waits where.
    pub fn queues(&self, queues: &[Queue]) {
        for queue in queues {
            let stage = queue.stage.as_str();
            for (state, pieces) in
                [("waiting", queue.waiting), ("delayed", queue.delayed), ("working", queue.working)]
            {
                self.pieces.with_label_values(&[stage, state]).set(i64::from(pieces));
            }
            let oldest = queue.oldest.unwrap_or_default().as_secs_f64();
            self.oldest.with_label_values(&[stage]).set(oldest);
        }
    }
}
