//! What the pages have done by the REST interface: without a network between, but by nothing else than its requests.

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

/// What is read of a job that was made.
#[derive(Deserialize)]
struct Made {
    id: JobId,
}

#[derive(Deserialize)]
struct ErrorDetail {
    message: String,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: ErrorDetail,
}

impl Rest {
    pub(super) fn new(router: Router, token: Option<&Secret>) -> Self {
        Self { router, bearer: token.and_then(bearer) }
    }

    /// What the interface takes for the token.
    pub(super) fn bearer(&self) -> Option<HeaderValue> {
        self.bearer.clone()
    }

    /// Does what has no answer worth reading.
    pub(super) async fn act(&self, method: Method, path: &str) -> Result<(), HttpError> {
        self.send(request(method, path)?).await.map(drop)
    }

    /// Sets a number of replicas, as the bearer of `admin`.
    pub(super) async fn scale(
        &self,
        deployment: &str,
        replicas: u32,
        admin: Option<&Secret>,
    ) -> Result<(), HttpError> {
        let mut request = request(Method::PUT, &format!("/v1/workers/{deployment}"))?;
        *request.body_mut() = Body::from(format!("{{\"replicas\": {replicas}}}"));
        self.send_as(request, admin.and_then(bearer)).await.map(drop)
    }

    /// Passes a form on; the job it made.
    pub(super) async fn upload(&self, mut form: Request) -> Result<JobId, HttpError> {
        *form.uri_mut() = Uri::from_static("/v1/jobs");
        let made: Made = read(self.send(form).await?).await?;
        Ok(made.id)
    }

    /// The answer, if it is a success.
    async fn send(&self, request: Request) -> Result<Response, HttpError> {
        self.send_as(request, self.bearer()).await
    }

    async fn send_as(
        &self,
        mut request: Request,
        bearer: Option<HeaderValue>,
    ) -> Result<Response, HttpError> {
        if let Some(bearer) = bearer {
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

fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn request(method: Method, path: &str) -> Result<Request, HttpError> {
    Request::builder().method(method).uri(path).body(Body::empty()).map_err(HttpError::internal)
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, HttpError> {
    let body = to_bytes(answer.into_body(), LIMIT).await.map_err(HttpError::internal)?;
    serde_json::from_slice(&body).map_err(HttpError::internal)
}
