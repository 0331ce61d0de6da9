//! What requests carry, read with our own sentences when it makes no sense.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use common::http_error::HttpError;
use common::job::JobId;
use serde::de::DeserializeOwned;

/// What a message says its body is, without parameters and in lower case: `video/mp4`.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The job named in the path. What is no id names no job, so it is not found.
pub(super) struct Id(pub JobId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let id: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        let text = id.map_err(|_| HttpError::not_found("There is no such job."))?.0;
        job_id(&text).map(Self)
    }
}

/// Reads an id.
///
/// # Errors
/// 404: there is no job of that name.
pub(super) fn job_id(text: &str) -> Result<JobId, HttpError> {
    text.parse().map_err(|_| {
        HttpError::not_found("There is no such job: a job's id is 24 hexadecimal digits.".to_owned())
    })
}

/// The parameters of the query.
pub(super) struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => Err(HttpError::bad_request(format!(
                "The query is not understood: {}.",
                std::error::Error::source(&rejection)
                    .map_or_else(|| rejection.body_text(), ToString::to_string)
            ))),
        }
    }
}
