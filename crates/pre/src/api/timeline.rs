//! The timeline: workers report here how far a job has come.

use axum::Json;
use axum::extract::{Path, State};
use common::clock::Stamp;
use common::http_error::HttpError;
use common::job::{Status, Timeline};
use common::store::{Job, Reported};
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::job_id;
use super::view::{ErrorAnswer, StatusName};
use crate::app::App;

/// Where a job stands, and whether it has come to the status that was asked about.
#[derive(Serialize, ToSchema)]
pub(super) struct Standing {
    #[schema(pattern = "^[0-9a-f]{24}$")]
    id: String,
    /// The job's present status.
    #[schema(value_type = StatusName)]
    status: &'static str,
    /// When the job came to the status in the path; absent until it does.
    #[schema(format = DateTime)]
    stamped: Option<String>,
}

/// Whether and when a job came to a status.
#[utoipa::path(
    get, operation_id = "get_status",
    path = "/requestid/{id}/status/{status}", tag = "workers", security(("worker_token" = [])),
    params(("id" = String, Path, description = "The job."), ("status" = StatusName, Path, description = "The status.")),
    responses(
        (status = 200, body = Standing), (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer),
        (status = 404, body = ErrorAnswer), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn show(
    State(app): State<App>,
    Path((id, status)): Path<(String, String)>,
) -> Result<Json<Standing>, HttpError> {
    let status = parse(&status)?;
    standing(&app.job(job_id(&id)?).await?, status)
}

/// Report that a job has come to a status. It is stamped when the job's segments bear it out.
#[utoipa::path(
    put, operation_id = "put_status",
    path = "/requestid/{id}/status/{status}", tag = "workers", security(("worker_token" = [])),
    params(("id" = String, Path, description = "The job."), ("status" = StatusName, Path, description = "The status.")),
    responses(
        (status = 200, body = Standing), (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer),
        (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It has not come to that."),
        (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn put(
    State(app): State<App>,
    Path((id, status)): Path<(String, String)>,
) -> Result<Json<Standing>, HttpError> {
    let status = parse(&status)?;
    let id = job_id(&id)?;
    match app.store().report(id, status).await? {
        Reported::Unknown => Err(HttpError::not_found(format!("There is no job {id}."))),
        Reported::NotBorneOut => {
            Err(HttpError::conflict(format!("Job {id} has not come to {status}, by what its segments say.")))
        }
        Reported::Stamped => {
            app.service.hints.changed();
            standing(&app.job(id).await?, status)
        }
        Reported::Repeat => standing(&app.job(id).await?, status),
    }
}

/// The same as PUT.
#[utoipa::path(
    post, operation_id = "post_status",
    path = "/requestid/{id}/status/{status}", tag = "workers", security(("worker_token" = [])),
    params(("id" = String, Path, description = "The job."), ("status" = StatusName, Path, description = "The status.")),
    responses(
        (status = 200, body = Standing), (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer),
        (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It has not come to that."),
        (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn post(
    state: State<App>,
    path: Path<(String, String)>,
) -> Result<Json<Standing>, HttpError> {
    put(state, path).await
}

fn parse(status: &str) -> Result<Status, HttpError> {
    status.parse().map_err(|_| {
        let known: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
        HttpError::bad_request(format!("{status:?} is no status; there are {}.", known.join(", ")))
    })
}

fn standing(job: &Job, status: Status) -> Result<Json<Standing>, HttpError> {
    Ok(Json(Standing {
        id: job.id.to_string(),
        status: job.timeline.status().as_str(),
        stamped: stamp(&job.timeline, status).map(Stamp::rfc3339),
    }))
}

/// When a job came to `status`.
fn stamp(timeline: &Timeline, status: Status) -> Option<Stamp> {
    match status {
        Status::Enqueue => Some(timeline.process_start),
        Status::Preprocessing => timeline.preprocessing_start,
        Status::PreprocessingComplete => timeline.preprocessing_end,
        Status::Inference => timeline.inference_start,
        Status::InferenceComplete => timeline.inference_end,
        Status::Postprocessing => timeline.postprocessing_start,
        Status::PostprocessingComplete => timeline.postprocessing_end,
        Status::EnqueueError
        | Status::FrameConvertError
        | Status::InferenceError
        | Status::PostprocessingError
        | Status::Cancelled => timeline.process_end.filter(|_| timeline.status() == status),
    }
}
