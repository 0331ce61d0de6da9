//! What the worker loops count, for Prometheus.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use crate::segment::Stage;

/// Counters of the worker loops of this process. [`LoopMetrics::default`] counts too, for nobody.
#[derive(Debug, Clone)]
pub struct LoopMetrics {
    claims: IntCounterVec,
    ended: IntCounterVec,
    lost: IntCounterVec,
    frames: IntCounterVec,
    duration: HistogramVec,
}

/// How a piece of work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its output is recorded.
    Done,
    /// It failed, and is tried again.
    Retry,
    /// It failed for good.
    Failed,
    /// It goes back to an earlier stage.
    SentBack,
    /// Handed back: the worker stops.
    HandedBack,
    /// The lease was lost, or the job is over.
    Lost,
}

impl Outcome {
    const ALL: [Self; 6] =
        [Self::Done, Self::Retry, Self::Failed, Self::SentBack, Self::HandedBack, Self::Lost];

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retry => "retry",
            Self::Failed => "failed",
            Self::SentBack => "sent_back",
            Self::HandedBack => "handed_back",
            Self::Lost => "lost",
        }
    }
}

/// Upper bounds, in seconds, of the duration histogram.
const SECONDS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

impl LoopMetrics {
    /// Counters that `registry` exposes, with a line for each of `stages` from the start.
    ///
    /// # Errors
    /// When the registry holds such counters already.
    pub fn registered(registry: &Registry, stages: &[Stage]) -> Result<Self, prometheus::Error> {
        let metrics = Self::new()?;
        let collectors: [Box<dyn Collector>; 5] = [
            Box::new(metrics.claims.clone()),
            Box::new(metrics.ended.clone()),
            Box::new(metrics.lost.clone()),
            Box::new(metrics.frames.clone()),
            Box::new(metrics.duration.clone()),
        ];
        for collector in collectors {
            registry.register(collector)?;
        }
        for stage in stages.iter().map(|stage| stage.as_str()) {
            metrics.claims.with_label_values(&[stage]);
            metrics.lost.with_label_values(&[stage]);
            metrics.frames.with_label_values(&[stage]);
            metrics.duration.with_label_values(&[stage]);
            for outcome in Outcome::ALL {
                metrics.ended.with_label_values(&[stage, outcome.as_str()]);
            }
        }
        Ok(metrics)
    }

    fn new() -> Result<Self, prometheus::Error> {
        let counter =
            |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        Ok(Self {
            claims: counter("boxreel_claims_total", "Pieces of work claimed.", &["stage"])?,
            ended: counter("boxreel_work_total", "Pieces of work ended, by how.", &["stage", "outcome"])?,
            lost: counter(
                "boxreel_leases_lost_total",
                "Leases that were lost while the work went on.",
                &["stage"],
            )?,
            frames: counter(
                "boxreel_frames_total",
                "Frames worked on; what is done again is counted again.",
                &["stage"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "boxreel_work_duration_seconds",
                    "Time from the claim of a piece of work to its end.",
                )
                .buckets(SECONDS.to_vec()),
                &["stage"],
            )?,
        })
    }

    /// A piece of work was claimed.
    pub fn claimed(&self, stage: Stage) {
        self.claims.with_label_values(&[stage.as_str()]).inc();
    }

    /// A piece of work ended after `time`.
    pub fn ended(&self, stage: Stage, outcome: Outcome, time: Duration) {
        self.ended.with_label_values(&[stage.as_str(), outcome.as_str()]).inc();
        self.duration.with_label_values(&[stage.as_str()]).observe(time.as_secs_f64());
        if outcome == Outcome::Lost {
            self.lost.with_label_values(&[stage.as_str()]).inc();
        }
    }

    /// Work moved on by `frames`.
    pub fn frames(&self, stage: Stage, frames: u64) {
        self.frames.with_label_values(&[stage.as_str()]).inc_by(frames);
    }
}

impl Default for LoopMetrics {
    #[expect(clippy::expect_used, reason = "the names are constants, and valid")]
    fn default() -> Self {
        Self::new().expect("valid names")
    }
}
