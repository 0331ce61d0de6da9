//! Workers' reports of a job's status to pre (`PUT /requestid/{id}/status/{STATUS}`).
//!
//! A report only hastens what pre's reconciler would find by itself, so one that cannot be delivered is dropped.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::{ConfigError, Secret};
use crate::job::{JobId, Status};
use crate::segment::Stage;
use crate::store::{JobStore, Reported};

/// How long pre may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Tries of one report, the pause between them doubled each time.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// Reports that may wait to be sent.
const WAITING: usize = 1024;
/// Jobs whose beginnings are remembered as reported.
const REMEMBERED: usize = 10_000;

/// Why a report did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// pre does not answer, or not at the moment: another try may do.
    #[error("pre does not answer: {0}")]
    Unreachable(String),
    /// pre refuses; repeating it is of no use.
    #[error("pre refuses the report: {0}")]
    Refused(StatusCode),
}

/// A client of pre's timeline route.
#[derive(Debug, Clone)]
pub struct TimelineClient {
    http: reqwest::Client,
    base: String,
    token: Option<Secret>,
}

impl TimelineClient {
    /// A client of the pre at `base` (`http://host:port`), which authenticates itself with `token`.
    ///
    /// # Errors
    /// When `base` is no such URL.
    pub fn new(base: &str, token: Option<Secret>) -> Result<Self, ConfigError> {
        crate::service::crypto();
        let url = reqwest::Url::parse(base).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if url.is_none() {
            return Err(ConfigError(format!(
                "{base:?} is no address of pre: set BOXREEL_PRE_URL, such as http://pre:8080."
            )));
        }
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .build()
            .map_err(|error| ConfigError(format!("HTTP cannot be used: {error}")))?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), token })
    }

    /// Reports that job `id` has come to `status`.
    ///
    /// # Errors
    /// When the report did not arrive, or pre refuses it for another reason than the job's state.
    pub async fn put(&self, id: JobId, status: Status) -> Result<Reported, TimelineError> {
        let mut request = self.http.put(format!("{}/requestid/{id}/status/{status}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        let answer = request.send().await.map_err(|error| TimelineError::Unreachable(error.to_string()))?;
        match answer.status() {
            StatusCode::OK => Ok(Reported::Stamped),
            StatusCode::CONFLICT => Ok(Reported::NotBorneOut),
            StatusCode::NOT_FOUND => Ok(Reported::Unknown),
            busy if busy.is_server_error() || busy == StatusCode::TOO_MANY_REQUESTS => {
                Err(TimelineError::Unreachable(busy.to_string()))
            }
            other => Err(TimelineError::Refused(other)),
        }
    }
}

/// What a worker loop tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A piece of work was claimed.
    Claimed,
    /// Its output is recorded.
    Advanced,
}

/// Where worker loops put what is to be reported. Putting never waits: what finds no room is dropped.
#[derive(Debug, Clone)]
pub struct Reports(mpsc::Sender<(JobId, Stage, Moment)>);

impl Reports {
    /// Notes a moment of a job.
    pub fn note(&self, job: JobId, stage: Stage, moment: Moment) {
        let _ = self.0.try_send((job, stage, moment));
    }
}

/// Starts the task that sends reports until `stop`; loops put them into what is returned.
#[must_use]
pub fn start(client: TimelineClient, store: Arc<dyn JobStore>, stop: CancellationToken) -> Reports {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        tokio::select! {
            () = send_all(client, store, receiver) => {}
            () = stop.cancelled() => {}
        }
    });
    Reports(sender)
}

async fn send_all(
    client: TimelineClient,
    store: Arc<dyn JobStore>,
    mut receiver: mpsc::Receiver<(JobId, Stage, Moment)>,
) {
    let mut begun = HashSet::new();
    while let Some((job, stage, moment)) = receiver.recv().await {
        if moment == Moment::Claimed && !begun.insert((job, stage)) {
            continue;
        }
        if begun.len() > REMEMBERED {
            begun.clear();
        }
        if let Some(status) = status(store.as_ref(), job, stage, moment).await {
            send(&client, job, status).await;
        }
    }
}

/// What a moment says of the job, if it says anything.
async fn status(store: &dyn JobStore, job: JobId, stage: Stage, moment: Moment) -> Option<Status> {
    match (stage, moment) {
        (Stage::Index, Moment::Claimed) => Some(Status::Preprocessing),
        (Stage::Detect, Moment::Claimed) => Some(Status::Inference),
        (Stage::Render, Moment::Claimed) => Some(Status::Postprocessing),
        (Stage::Assemble, Moment::Advanced) => Some(Status::PostprocessingComplete),
        (Stage::Decode | Stage::Detect, Moment::Advanced) => {
            let counts = store.counts(job).await.ok()?;
            let decoded = counts.held + counts.decode + counts.failed == 0;
            match stage {
                Stage::Decode => decoded.then_some(Status::PreprocessingComplete),
                _ => (decoded && counts.detect == 0).then_some(Status::InferenceComplete),
            }
        }
        _ => None,
    }
}

async fn send(client: &TimelineClient, job: JobId, status: Status) {
    let mut pause = PAUSE;
    for _ in 0..TRIES {
        match client.put(job, status).await {
            Ok(taken) => {
                debug!(job.id = %job, "reported {status}: {taken:?}");
                return;
            }
            Err(error @ TimelineError::Refused(_)) => {
                warn!(job.id = %job, "{status} is not reported: {error}; check BOXREEL_WORKER_TOKEN");
                return;
            }
            Err(TimelineError::Unreachable(why)) => {
                debug!(job.id = %job, "{status} is not reported yet: {why}");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
    }
    warn!(job.id = %job, "{status} is not reported: pre does not answer; it finds out by itself");
}
