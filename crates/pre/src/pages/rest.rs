//! The REST interface as the pages use it: without a network between, but by nothing else than its requests.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use common::config::Secret;
use common::http_error::HttpError;
use common::job::JobId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt;

/// The largest answer that is read.
const LIMIT: usize = 16 << 20;

#[derive(Clone)]
pub(super) struct Rest {
    router: Router,
    bearer: Option<HeaderValue>,
}

/// A page of jobs.
#[derive(Deserialize)]
pub(super) struct JobPage {
    pub jobs: Vec<Job>,
    pub next_page_token: Option<String>,
}

/// A job, as the interface shows it.
#[derive(Deserialize)]
pub(super) struct Job {
    pub id: String,
    pub filename: String,
    pub size: u64,
    pub status: String,
    pub is_final: bool,
    pub timeline: Timeline,
    pub progress: Progress,
    pub eta_seconds: Option<u64>,
    pub frames: Option<u32>,
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub error: Option<ErrorDetail>,
    pub options: Options,
    pub summary: Option<Summary>,
    pub links: Links,
}

#[derive(Deserialize)]
pub(super) struct Timeline {
    pub process_start: Option<String>,
    pub preprocessing_start: Option<String>,
    pub preprocessing_end: Option<String>,
    pub inference_start: Option<String>,
    pub inference_end: Option<String>,
    pub postprocessing_start: Option<String>,
    pub postprocessing_end: Option<String>,
    pub total: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Progress {
    pub overall: f64,
    pub decode: f64,
    pub detect: f64,
    pub render: f64,
}

#[derive(Deserialize)]
pub(super) struct Options {
    pub conf: f64,
    pub classes: Vec<String>,
    pub every: u32,
    pub precision: String,
}

#[derive(Deserialize)]
pub(super) struct Summary {
    pub duration_seconds: f64,
    pub counts: Vec<ClassCount>,
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct ClassCount {
    pub class: String,
    pub count: u64,
}

#[derive(Deserialize)]
pub(super) struct Links {
    pub source: String,
    pub video_mp4: Option<String>,
    pub video_avi: Option<String>,
    pub poster: Option<String>,
    pub detections_json: Option<String>,
    pub detections_csv: Option<String>,
    pub txts: Option<String>,
    pub frames: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ErrorDetail {
    pub message: String,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: ErrorDetail,
}

impl Rest {
    pub(super) fn new(router: Router, token: Option<Secret>) -> Self {
        let bearer = token.and_then(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal())).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Self { router, bearer }
    }

    /// What the interface takes for the token.
    pub(super) fn bearer(&self) -> Option<HeaderValue> {
        self.bearer.clone()
    }

    pub(super) async fn job(&self, id: JobId) -> Result<Job, HttpError> {
        read(self.send(request(Method::GET, &format!("/v1/jobs/{id}"))?).await?).await
    }

    pub(super) async fn list(
        &self,
        before: Option<JobId>,
        size: u32,
        statuses: &str,
    ) -> Result<JobPage, HttpError> {
        let from = before.map(|id| format!("&page_token={id}")).unwrap_or_default();
        let path = format!("/v1/jobs?page_size={size}&status={statuses}{from}");
        read(self.send(request(Method::GET, &path)?).await?).await
    }

    /// Does what has no answer worth reading.
    pub(super) async fn act(&self, method: Method, path: &str) -> Result<(), HttpError> {
        self.send(request(method, path)?).await.map(drop)
    }

    /// Passes a form on.
    pub(super) async fn upload(&self, mut form: Request) -> Result<Job, HttpError> {
        *form.uri_mut() = Uri::from_static("/v1/jobs");
        read(self.send(form).await?).await
    }

    /// The answer, if it is a success.
    async fn send(&self, mut request: Request) -> Result<Response, HttpError> {
        if let Some(bearer) = self.bearer() {
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
        }
        let answer = self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let ErrorAnswer { error } = read(answer).await?;
        Err(match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                HttpError::unavailable(error.message, std::time::Duration::from_secs(5))
            }
            status => HttpError::new(status, "page", error.message),
        })
    }
}

fn request(method: Method, path: &str) -> Result<Request, HttpError> {
    Request::builder().method(method).uri(path).body(Body::empty()).map_err(HttpError::internal)
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, HttpError> {
    let body = to_bytes(answer.into_body(), LIMIT).await.map_err(HttpError::internal)?;
    serde_json::from_slice(&body).map_err(HttpError::internal)
}
