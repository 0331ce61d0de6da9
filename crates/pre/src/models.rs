//! Jobs whose model no worker has any more: they would wait for ever, so they end with a sentence, and a retry
//! begins them anew with the model that is there.

use std::collections::HashMap;
use std::time::Duration;

use common::job::{ErrorCode, Failure, JobId, ModelKey};
use common::segment::State;
use common::service::GONE_AFTER;
use common::store::{Job, Offer, Store, StoreError};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::app::App;
use crate::duty::Duty;

/// How often this is looked at.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long a job's model may be away while workers with others are there: a roll-out takes its time, and may be
/// taken back.
pub const AWAY: Duration = Duration::from_secs(600);

/// What workers that are there have loaded.
async fn offers(store: &dyn Store) -> Result<Vec<Offer>, StoreError> {
    let workers = store.workers(GONE_AFTER).await?;
    Ok(workers.into_iter().filter_map(|seen| seen.worker.offer).collect())
}

/// What a job is to be detected with when it is retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// What it was begun with.
    Same,
    /// No worker has that one; this one knows the same classes.
    Other(ModelKey),
    /// No worker has that one, and the models that are there know other classes.
    None,
}

/// What `job` is to be detected with when it is retried.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn choose(store: &dyn Store, job: &Job) -> Result<Choice, StoreError> {
    if job.timeline.inference_end.is_some() {
        return Ok(Choice::Same);
    }
    Ok(choice(&offers(store).await?, job))
}

/// What `job` can be detected with by workers that offer `offers`; where there are none, it waits for its own.
fn choice(offers: &[Offer], job: &Job) -> Choice {
    if offers.is_empty() || offers.iter().any(|offer| offer.key == job.settings.model) {
        return Choice::Same;
    }
    let fits = offers.iter().find(|offer| offer.names == job.settings.names);
    fits.map_or(Choice::None, |offer| Choice::Other(offer.key.clone()))
}

/// Ends what waits in vain, again and again until [`common::service::Service::stop`]; one process at a time does.
pub(crate) async fn run(app: App) {
    let store = app.service.store.clone();
    let mut duty = Duty::new(store.clone(), "models", app.service.worker.clone(), INTERVAL * 3);
    let mut waiting = Waiting::default();
    while app.service.stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let ended = match duty.mine().await {
            Ok(true) => waiting.end(store.as_ref(), AWAY).await,
            Ok(false) => continue,
            Err(error) => Err(error),
        };
        match ended {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => {
                app.service.hints.changed();
                for id in ended {
                    info!(job = %id, "no worker has the job's model any more: it ended");
                }
            }
            Err(error) => {
                warn!(%error, "whether jobs wait for a model that is gone is looked at again later");
            }
        }
    }
    duty.release().await;
}

/// Since when jobs have been waiting for a model that no worker has.
#[derive(Debug, Default)]
pub struct Waiting {
    since: HashMap<JobId, Instant>,
}

impl Waiting {
    /// Looks once; ends jobs that were found waiting in vain for `patience`, and returns them. Where no worker with
    /// any model is there, all wait for one to come.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn end(&mut self, store: &dyn Store, patience: Duration) -> Result<Vec<JobId>, StoreError> {
        let offers = offers(store).await?;
        let mut found = HashMap::new();
        let mut ended = Vec::new();
        for id in store.unsettled().await? {
            let Some(job) = store.job(id).await? else { continue };
            let choice = choice(&offers, &job);
            if choice == Choice::Same || !job.is_live() || job.state != State::Segments {
                continue;
            }
            let counts = store.counts(id).await?;
            if counts.held + counts.decode + counts.detect == 0 {
                continue;
            }
            let since = self.since.get(&id).copied().unwrap_or_else(Instant::now);
            if since.elapsed() < patience {
                found.insert(id, since);
            } else if store.fail(id, gone(&job, &choice)).await? {
                ended.push(id);
            }
        }
        self.since = found;
        Ok(ended)
    }
}

/// Why the job ends, and what to do.
fn gone(job: &Job, choice: &Choice) -> Failure {
    let ModelKey { digest, precision } = &job.settings.model;
    let short = digest.get(..12).unwrap_or(digest);
    let message = if matches!(choice, Choice::Other(_)) {
        format!(
            "The video was begun with the model {short} in {precision}, which no worker has any more. Retry it: it \
             is then done anew with the model that is there now."
        )
    } else {
        format!(
            "The video was begun with the model {short} in {precision}, which no worker has any more; those that are \
             there know other classes. Upload the video again, or bring that model back and retry."
        )
    };
    Failure { code: ErrorCode::InferenceError, message }
}
