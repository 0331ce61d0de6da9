//! A job's changes as they come: server-sent events.
//!
//! An event carries the whole job, and its id is a digest of that. So a client that missed changes gets the
//! present state, one that is up to date gets nothing, and it does not matter which pre it asks.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use common::http_error::HttpError;
use common::job::JobId;
use common::store::{Store, StoreError};
use common::worker::Hints;
use futures_util::stream;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use utoipa::ToSchema;

use super::extract::Id;
use super::view::{ErrorAnswer, JobView, view};
use crate::app::App;

/// How often a job that somebody follows is looked at when nothing hints that it changed.
const INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a silent connection is shown to be alive.
const ALIVE: Duration = Duration::from_secs(15);

/// The jobs that somebody follows. However many follow one, the store is asked once.
#[derive(Clone)]
pub(crate) struct Feed(Arc<Parts>);

struct Parts {
    store: Arc<dyn Store>,
    hints: Arc<Hints>,
    stop: CancellationToken,
    followed: Mutex<HashMap<JobId, watch::Sender<Sight>>>,
}

/// What was seen of a job.
#[derive(Debug, Clone)]
enum Sight {
    /// Nothing yet.
    Unseen,
    /// This.
    Seen(Snapshot),
    /// It was deleted.
    Gone,
}

/// A job at a moment.
#[derive(Debug, Clone)]
struct Snapshot {
    id: String,
    json: Arc<str>,
    is_final: bool,
}

impl Feed {
    pub(crate) fn new(store: Arc<dyn Store>, hints: Arc<Hints>, stop: CancellationToken) -> Self {
        Self(Arc::new(Parts { store, hints, stop, followed: Mutex::default() }))
    }

    fn follow(&self, job: JobId) -> watch::Receiver<Sight> {
        let mut followed = self.0.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followed.get(&job) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(Sight::Unseen);
        followed.insert(job, sender.clone());
        tokio::spawn(look(self.0.clone(), job, sender));
        receiver
    }
}

/// Looks at a job as long as somebody follows it.
async fn look(parts: Arc<Parts>, job: JobId, sender: watch::Sender<Sight>) {
    let mut changed = parts.hints.watch();
    loop {
        match sight(parts.store.as_ref(), job).await {
            Ok(now) => {
                sender.send_if_modified(|seen| {
                    let same = match (&*seen, &now) {
                        (Sight::Seen(before), Sight::Seen(now)) => before.id == now.id,
                        (Sight::Gone, Sight::Gone) => true,
                        _ => false,
                    };
                    if !same {
                        *seen = now;
                    }
                    !same
                });
            }
            Err(error) => warn!(job.id = %job, "a job that is followed cannot be read: {error}"),
        }
        let next = async {
            tokio::time::sleep(PAUSE).await;
            let _ = tokio::time::timeout(INTERVAL, changed.changed()).await;
        };
        tokio::select! {
            () = parts.stop.cancelled() => {}
            () = sender.closed() => {}
            () = next => continue,
        }
        // Under the lock that new followers need, so that none is left behind.
        let mut followed = parts.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.stop.is_cancelled() || sender.is_closed() {
            followed.remove(&job);
            return;
        }
    }
}

async fn sight(store: &dyn Store, id: JobId) -> Result<Sight, StoreError> {
    match store.job(id).await?.filter(|job| job.deleted.is_none()) {
        Some(job) => Ok(snapshot(view(store, &job).await?).map_or(Sight::Unseen, Sight::Seen)),
        None => Ok(Sight::Gone),
    }
}

fn snapshot(view: JobView) -> Option<Snapshot> {
    let is_final = view.is_final;
    let json = serde_json::to_string(&view).ok()?;
    // The estimate moves by itself: that is no change of the job.
    let still = serde_json::to_vec(&JobView { eta_seconds: None, ..view }).ok()?;
    let id = Sha256::digest(still).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    Some(Snapshot { id, json: json.into(), is_final })
}

/// An event of a job.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct EventView {
    /// `job`, or `gone` when the job was deleted.
    event: String,
    /// For `Last-Event-ID`.
    #[schema(nullable = false)]
    id: Option<String>,
    /// The job as `GET /v1/jobs/{id}` shows it, as JSON text.
    data: String,
}

/// Follow a job: an event `job` with the job as it stands for every change, until it has ended, or an event `gone`
/// when it is deleted.
///
/// Sent with the `Last-Event-ID` of the last event received, it goes on from there. It is answered with 204 when
/// there is nothing more to come, which ends a browser's EventSource.
#[utoipa::path(
    get, operation_id = "follow_job",
    path = "/v1/jobs/{id}/events", tag = "jobs", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The job."),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event received.")
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = EventView), (status = 204),
        (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn follow(
    State(app): State<App>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let now = snapshot(view(app.store(), &app.job(id).await?).await?);
    if now.is_some_and(|now| now.is_final && last.as_ref() == Some(&now.id)) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let state = (app.feed.follow(id), last, app.service.stop.clone());
    let events = stream::unfold(Some(state), |state| async {
        let (mut sights, last, stop) = state?;
        loop {
            let sight = sights.borrow_and_update().clone();
            match sight {
                Sight::Seen(now) if last.as_ref() != Some(&now.id) => {
                    let event = Event::default().event("job").id(&now.id).data(&*now.json);
                    let state = (!now.is_final).then_some((sights, Some(now.id), stop));
                    return Some((Ok::<_, Infallible>(event), state));
                }
                Sight::Seen(now) if now.is_final => return None,
                Sight::Gone => {
                    return Some((Ok(Event::default().event("gone").data("{}")), None));
                }
                Sight::Seen(_) | Sight::Unseen => {}
            }
            // At the end of this pre the client turns to another one.
            let changed = stop.run_until_cancelled(sights.changed()).await;
            if !matches!(changed, Some(Ok(()))) {
                return None;
            }
        }
    });
    let mut answer = Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response();
    // Proxies that gather answers would hold events back.
    answer.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(answer)
}
