//! Jobs: listed, shown, cancelled, begun again, deleted.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use common::http_error::HttpError;
use common::job::{JobId, Status};
use common::segment::Stage;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Id, Params, job_id};
use super::view::{ErrorAnswer, JobView, view};
use crate::app::App;
use crate::models::{self, Choice};

/// Jobs in a page, unless told.
const PAGE: u32 = 20;
/// Jobs in a page, at most.
const MAX_PAGE: u32 = 100;

/// Which jobs to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// How many at most.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 20)]
    page_size: Option<u32>,
    /// `next_page_token` of the page before.
    #[param(nullable = false, pattern = "^[0-9a-f]{24}$")]
    page_token: Option<String>,
    /// Only jobs of these statuses, separated by commas.
    #[param(nullable = false, example = "INFERENCE,POSTPROCESSING")]
    status: Option<String>,
}

/// A page of jobs, newest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct JobPage {
    pub jobs: Vec<JobView>,
    /// Where the next page begins; absent on the last one.
    pub next_page_token: Option<String>,
}

/// List jobs, newest first.
#[utoipa::path(
    get, operation_id = "list_jobs",
    path = "/v1/jobs", tag = "jobs", params(ListParams), security(("api_token" = [])),
    responses(
        (status = 200, body = JobPage), (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer),
        (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn list(
    State(app): State<App>,
    Params(params): Params<ListParams>,
) -> Result<Json<JobPage>, HttpError> {
    let size = params.page_size.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&size) {
        return Err(HttpError::bad_request(format!("page_size must be from 1 to {MAX_PAGE}.")));
    }
    let before: Option<JobId> = params.page_token.as_deref().map(job_id).transpose().map_err(|_| {
        HttpError::bad_request("page_token must be the next_page_token of the page before.".to_owned())
    })?;
    let statuses: Vec<Status> = params
        .status
        .as_deref()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|status| !status.is_empty())
        .map(|status| status.parse().map_err(|_| HttpError::bad_request(format!("{status:?} is no status."))))
        .collect::<Result<_, _>>()?;
    Ok(Json(page(&app, before, size, &statuses).await?))
}

/// `size` jobs of `statuses` (empty: all) before `before`, newest first.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn page(
    app: &App,
    before: Option<JobId>,
    size: u32,
    statuses: &[Status],
) -> Result<JobPage, HttpError> {
    // One more than asked for tells whether there is a next page.
    let mut jobs = app.store().jobs(before, size + 1, statuses).await?;
    let more = jobs.len() > size as usize;
    jobs.truncate(size as usize);
    let next_page_token = jobs.last().filter(|_| more).map(|job| job.id.to_string());
    let mut views = Vec::with_capacity(jobs.len());
    for job in &jobs {
        views.push(view(app.store(), job).await?);
    }
    Ok(JobPage { jobs: views, next_page_token })
}

/// Show a job.
#[utoipa::path(
    get, operation_id = "get_job",
    path = "/v1/jobs/{id}", tag = "jobs", security(("api_token" = [])),
    params(("id" = String, Path, description = "The job.")),
    responses(
        (status = 200, body = JobView), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn show(State(app): State<App>, Id(id): Id) -> Result<Json<JobView>, HttpError> {
    Ok(Json(view(app.store(), &app.job(id).await?).await?))
}

/// Cancel a job. What is in work stops within seconds.
#[utoipa::path(
    post, operation_id = "cancel_job",
    path = "/v1/jobs/{id}/cancel", tag = "jobs", security(("api_token" = [])),
    params(("id" = String, Path, description = "The job.")),
    responses(
        (status = 200, body = JobView), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It had ended before."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn cancel(State(app): State<App>, Id(id): Id) -> Result<Json<JobView>, HttpError> {
    // A result that is there, but not stamped yet, is not to be thrown away.
    app.store().reconcile(id).await?;
    let cancelled = app.store().cancel(id).await?;
    app.service.hints.changed();
    let job = app.job(id).await?;
    if !cancelled {
        let status = job.timeline.status();
        return Err(HttpError::conflict(format!("The job cannot be cancelled, it has ended: {status}.")));
    }
    Ok(Json(view(app.store(), &job).await?))
}

/// Run a job again that failed or was cancelled. Only what is unfinished is done again; all of it where no worker has the
/// job's model any more, with one that is there.
#[utoipa::path(
    post, operation_id = "retry_job",
    path = "/v1/jobs/{id}/retry", tag = "jobs", security(("api_token" = [])),
    params(("id" = String, Path, description = "The job.")),
    responses(
        (status = 202, body = JobView), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It neither failed nor was cancelled; or the models that are there know other classes."),
        (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn retry(
    State(app): State<App>,
    Id(id): Id,
) -> Result<(StatusCode, Json<JobView>), HttpError> {
    let again = match models::choose(app.store(), &app.job(id).await?).await? {
        Choice::Same => app.store().retry(id).await?,
        Choice::Other(model) => app.store().retry_with(id, model).await?,
        Choice::None => {
            return Err(HttpError::conflict(
                "No worker has the model that this job was begun with, and those that are there know other classes. \
                 Upload the video again, or bring that model back.",
            ));
        }
    };
    let job = app.job(id).await?;
    if !again {
        let status = job.timeline.status();
        return Err(HttpError::conflict(format!(
            "Only a job that failed or was cancelled can be retried; this one is at {status}."
        )));
    }
    Stage::ALL.into_iter().for_each(|stage| app.service.hints.notify(stage));
    Ok((StatusCode::ACCEPTED, Json(view(app.store(), &job).await?)))
}

/// Delete a job, its files and its results. One that is in work is cancelled.
#[utoipa::path(
    delete, operation_id = "delete_job",
    path = "/v1/jobs/{id}", tag = "jobs", security(("api_token" = [])),
    params(("id" = String, Path, description = "The job.")),
    responses(
        (status = 204), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn remove(State(app): State<App>, Id(id): Id) -> Result<StatusCode, HttpError> {
    // Its files go later, when nobody can be at work on it any more: see `sweep`.
    if !app.store().tombstone(id).await? {
        return Err(HttpError::not_found(format!("There is no job {id}.")));
    }
    app.service.hints.changed();
    Ok(StatusCode::NO_CONTENT)
}
