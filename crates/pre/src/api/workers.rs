//! Who is at work, and what waits.

use axum::Json;
use axum::extract::State;
use common::http_error::HttpError;
use common::service::GONE_AFTER;
use serde::Serialize;
use utoipa::ToSchema;

use super::view::ErrorAnswer;
use crate::app::App;

/// Workers and queues.
#[derive(Serialize, ToSchema)]
pub(super) struct House {
    /// Worker processes that were heard of within the last half minute, by name.
    workers: Vec<WorkerView>,
    /// What waits, for every stage in order.
    queues: Vec<QueueView>,
}

/// A worker process.
#[derive(Serialize, ToSchema)]
pub(super) struct WorkerView {
    name: String,
    /// The stages it works on.
    stages: Vec<&'static str>,
    /// Pieces of work it holds at once.
    slots: u32,
    /// Whether it takes work.
    ready: bool,
    /// Its program's version.
    version: String,
    /// The model it has loaded.
    model: Option<ModelView>,
    /// When it was last heard of.
    #[schema(format = DateTime)]
    seen: String,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelView {
    /// SHA-256 of the weights.
    digest: String,
    /// Arithmetic of the network.
    precision: String,
    /// Number of its classes.
    classes: usize,
}

/// What waits for a stage.
#[derive(Serialize, ToSchema)]
pub(super) struct QueueView {
    stage: &'static str,
    /// Pieces of work that could be claimed now.
    waiting: u32,
    /// Pieces that are tried again a little later.
    delayed: u32,
    /// Pieces in work.
    working: u32,
    /// How long the piece that has waited longest could have been claimed.
    oldest_seconds: Option<f64>,
}

/// Who is at work, and what waits.
#[utoipa::path(
    get, operation_id = "list_workers",
    path = "/v1/workers", tag = "workers", security(("api_token" = [])),
    responses((status = 200, body = House), (status = 401, body = ErrorAnswer), (status = 503, body = ErrorAnswer))
)]
pub(super) async fn list(State(app): State<App>) -> Result<Json<House>, HttpError> {
    let workers = app.store().workers(GONE_AFTER).await?;
    let queues = app.store().queues().await?;
    Ok(Json(House {
        workers: workers
            .into_iter()
            .map(|seen| WorkerView {
                stages: seen.worker.stages.iter().map(|stage| stage.as_str()).collect(),
                name: seen.worker.name,
                slots: seen.worker.slots,
                ready: seen.worker.ready,
                version: seen.worker.version,
                model: seen.worker.offer.map(|offer| ModelView {
                    digest: offer.key.digest,
                    precision: offer.key.precision.to_string(),
                    classes: offer.names.len(),
                }),
                seen: seen.at.rfc3339(),
            })
            .collect(),
        queues: queues
            .into_iter()
            .map(|queue| QueueView {
                stage: queue.stage.as_str(),
                waiting: queue.waiting,
                delayed: queue.delayed,
                working: queue.working,
                oldest_seconds: queue.oldest.map(|oldest| oldest.as_secs_f64()),
            })
            .collect(),
    }))
}
