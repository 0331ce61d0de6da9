//! Who is at work, what waits, and how many replicas there are.

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use common::http_error::HttpError;
use common::segment::Stage;
use common::service::GONE_AFTER;
use common::service::auth::Gate;
use common::store::{Queue, Seen};
use scale::{Deployment, Replicas};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::media_type;
use super::view::ErrorAnswer;
use crate::app::App;
use crate::replicas::{deployment, least};

/// The longest body that a number of replicas comes in.
const BODY: usize = 4096;

/// Workers, queues and replicas.
#[derive(Serialize, ToSchema)]
pub(crate) struct House {
    /// The three services, each with its workers and, in a cluster, its replicas.
    pub services: Vec<ServiceView>,
    /// Whether and how replicas can be changed.
    pub scaling: ScalingView,
    /// Worker processes that were heard of within the last half minute, by name.
    pub workers: Vec<WorkerView>,
    /// What waits, for every stage in order.
    pub queues: Vec<QueueView>,
}

/// A service.
#[derive(Serialize, ToSchema)]
pub(crate) struct ServiceView {
    /// Also the name of its Deployment.
    #[schema(value_type = DeploymentName)]
    pub name: &'static str,
    /// The stages it works on.
    pub stages: Vec<&'static str>,
    /// Worker processes that were heard of lately.
    pub workers: usize,
    /// Pieces of work that they hold at once.
    pub slots: u32,
    /// Its Deployment's replicas; absent outside of a cluster, and where the cluster does not tell.
    pub replicas: Option<ReplicasView>,
}

/// Replicas of a Deployment.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReplicasView {
    /// How many there should be.
    pub desired: u32,
    /// How many are ready.
    pub ready: u32,
    /// How many run what the Deployment says now.
    pub up_to_date: u32,
    /// How many have been ready for long enough to count on.
    pub available: u32,
    /// Whether all is as it should be.
    pub settled: bool,
}

impl From<&Replicas> for ReplicasView {
    fn from(replicas: &Replicas) -> Self {
        let &Replicas { desired, ready, up_to_date, available, settled, .. } = replicas;
        Self { desired, ready, up_to_date, available, settled }
    }
}

/// Whether and how replicas can be changed.
#[derive(Serialize, ToSchema)]
pub(crate) struct ScalingView {
    /// Where this service runs: in a cluster, in none, or as the one process that does everything.
    #[schema(value_type = PlaceName)]
    pub place: &'static str,
    /// Why replicas are not told, or not all; absent when there is nothing to say.
    pub message: Option<&'static str>,
    /// The most replicas that a Deployment may be given.
    pub max_replicas: u32,
}

/// Where a service runs.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "for the document")]
enum PlaceName {
    Cluster,
    NoCluster,
    OneProcess,
}

/// A service, and its Deployment.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "for the document")]
enum DeploymentName {
    Pre,
    Infer,
    Post,
}

/// A worker process.
#[derive(Serialize, ToSchema)]
pub(crate) struct WorkerView {
    pub name: String,
    /// The stages it works on.
    pub stages: Vec<&'static str>,
    /// Pieces of work it holds at once.
    pub slots: u32,
    /// Whether it takes work.
    pub ready: bool,
    /// Its program's version.
    pub version: String,
    /// The model it has loaded.
    pub model: Option<ModelView>,
    /// When it was last heard of.
    #[schema(format = DateTime)]
    pub seen: String,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelView {
    /// SHA-256 of the weights.
    digest: String,
    /// Arithmetic of the network.
    precision: String,
    /// Number of its classes.
    classes: usize,
}

/// What waits for a stage.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueView {
    pub stage: &'static str,
    /// The service that works on it.
    #[schema(value_type = DeploymentName)]
    pub service: &'static str,
    /// Pieces of work that could be claimed now.
    pub waiting: u32,
    /// Pieces that are tried again a little later.
    pub delayed: u32,
    /// Pieces in work.
    pub working: u32,
    /// How long the piece that has waited longest could have been claimed.
    pub oldest_seconds: Option<f64>,
}

/// Who is at work, what waits, and how many replicas there are.
#[utoipa::path(
    get, operation_id = "list_workers",
    path = "/v1/workers", tag = "workers", security(("api_token" = [])),
    responses((status = 200, body = House), (status = 401, body = ErrorAnswer), (status = 503, body = ErrorAnswer))
)]
pub(super) async fn list(State(app): State<App>) -> Result<Json<House>, HttpError> {
    Ok(Json(house(&app).await?))
}

/// Everything about who is at work.
///
/// # Errors
/// When the store does not answer. A cluster that does not is a message in what is returned.
pub(crate) async fn house(app: &App) -> Result<House, HttpError> {
    let outlook = app.scaling.look().await;
    let workers = app.store().workers(GONE_AFTER).await?;
    let queues = app.store().queues().await?;
    Ok(House {
        services: Deployment::ALL.map(|service| service_view(service, &workers, &outlook.replicas)).into(),
        scaling: ScalingView {
            place: outlook.place,
            message: outlook.message,
            max_replicas: app.settings.max_replicas,
        },
        workers: workers.into_iter().map(worker_view).collect(),
        queues: queues.into_iter().map(queue_view).collect(),
    })
}

fn service_view(service: Deployment, workers: &[Seen], replicas: &[Replicas]) -> ServiceView {
    let stages = || Stage::ALL.into_iter().filter(move |&stage| deployment(stage) == service);
    // One process may be several services at once.
    let theirs = workers.iter().filter(|seen| stages().any(|stage| seen.worker.stages.contains(&stage)));
    ServiceView {
        name: service.as_str(),
        stages: stages().map(Stage::as_str).collect(),
        workers: theirs.clone().count(),
        slots: theirs.map(|seen| seen.worker.slots).sum(),
        replicas: replicas.iter().find(|replicas| replicas.deployment == service).map(ReplicasView::from),
    }
}

fn worker_view(seen: Seen) -> WorkerView {
    WorkerView {
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
    }
}

fn queue_view(queue: Queue) -> QueueView {
    QueueView {
        stage: queue.stage.as_str(),
        service: deployment(queue.stage).as_str(),
        waiting: queue.waiting,
        delayed: queue.delayed,
        working: queue.working,
        oldest_seconds: queue.oldest.map(|oldest| oldest.as_secs_f64()),
    }
}

/// How many replicas there should be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// From 0 (for pre, from 1) to the service's `max_replicas`.
    #[schema(minimum = 0, example = 3)]
    replicas: u32,
}

/// Change how many replicas of a service run in the cluster, which starts or ends them after this answer.
#[utoipa::path(
    put, operation_id = "scale_workers",
    path = "/v1/workers/{deployment}", tag = "workers", security(("admin_token" = [])),
    params(("deployment" = DeploymentName, Path, description = "The service.")),
    request_body = Wanted,
    responses(
        (status = 200, body = ReplicasView), (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer),
        (status = 403, body = ErrorAnswer,
            description = "The cluster forbids it, or this service has no admin token."),
        (status = 404, body = ErrorAnswer), (status = 409, body = ErrorAnswer, description = "The cluster did not take it, or there is none."),
        (status = 413, body = ErrorAnswer), (status = 415, body = ErrorAnswer),
        (status = 422, body = ErrorAnswer, description = "It is no number of replicas, or more than is allowed."),
        (status = 503, body = ErrorAnswer, description = "The cluster does not answer."),
    )
)]
pub(super) async fn scale(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<ReplicasView>, HttpError> {
    let deployment: Deployment = name.parse().map_err(|_| {
        HttpError::not_found("There is no such service: replicas are those of pre, infer or post.")
    })?;
    let Wanted { replicas } = wanted(request).await?;
    let max = app.settings.max_replicas;
    let least = least(deployment);
    if !(least..=max).contains(&replicas) {
        return Err(unprocessable(format!(
            "{deployment} can be given from {least} to {max} replicas (BOXREEL_MAX_REPLICAS)."
        )));
    }
    let replicas = app.scaling.set(deployment, replicas).await?;
    Ok(Json(ReplicasView::from(&replicas)))
}

/// Reads `{"replicas": 3}`.
async fn wanted(request: Request) -> Result<Wanted, HttpError> {
    if media_type(request.headers()).is_some_and(|kind| kind != "application/json") {
        return Err(HttpError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Send the number as JSON (Content-Type: application/json): {\"replicas\": 3}.",
        ));
    }
    let body = to_bytes(Body::new(request.into_body()), BODY).await.map_err(|_| {
        HttpError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "That is too long for a number: send {\"replicas\": 3}.",
        )
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        if error.is_data() {
            unprocessable("The number is not understood: send {\"replicas\": 3}, a whole number from 0 up.")
        } else {
            HttpError::bad_request("This is no JSON: send {\"replicas\": 3}.")
        }
    })
}

fn unprocessable(message: impl Into<String>) -> HttpError {
    HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", message)
}

/// Lets only requests with the admin token pass, and none where there is no such token: an open door is no place for
/// this, not even on loopback.
pub(super) async fn guard(
    State(gate): State<Gate>,
    request: Request,
    next: Next,
) -> Result<Response, HttpError> {
    if !gate.is_closed() {
        return Err(HttpError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "Numbers of replicas cannot be changed here, because this service has no admin token: set \
             BOXREEL_ADMIN_TOKEN, or use `pre scale` in one of its pods.",
        ));
    }
    if gate.admits_request(request.headers()) {
        Ok(next.run(request).await)
    } else {
        Err(HttpError::unauthorized())
    }
}
