//! Single pictures: passed on to infer, so that pre stays the only door.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::http_error::HttpError;
use futures_util::StreamExt;
use tokio::time::timeout;
use tracing::warn;

use super::view::ErrorAnswer;
use crate::app::App;

/// The largest picture that is passed on.
const MAX_PICTURE: u64 = 64 << 20;
/// How long infer may take to begin its answer, the picture's way there included.
const PATIENCE: Duration = Duration::from_secs(60);
/// When to try again.
const AWAY: Duration = Duration::from_secs(5);
/// What of a request goes on, and what of an answer comes back.
const ASKED: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::ACCEPT, header::ACCEPT_LANGUAGE];
const ANSWERED: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_DISPOSITION,
    header::RETRY_AFTER,
    header::VARY,
];

/// Detect the objects in one picture (JPEG, PNG or WebP). The answer is JSON, or the picture with boxes for a client
/// that accepts `image/jpeg`.
#[utoipa::path(
    post, operation_id = "detect",
    path = "/v1/detect", tag = "pictures", security(("api_token" = [])),
    request_body(content((Vec<u8> = "image/jpeg"), (Vec<u8> = "image/png"), (Vec<u8> = "image/webp"))),
    responses(
        (status = 200, content((Object = "application/json"), (Vec<u8> = "image/jpeg"))),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer), (status = 406, body = ErrorAnswer),
        (status = 413, body = ErrorAnswer), (status = 415, body = ErrorAnswer), (status = 422, body = ErrorAnswer),
        (status = 503, body = ErrorAnswer, description = "No infer is there, or it has too much to do.")
    )
)]
pub(super) async fn forward(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, HttpError> {
    let Some(infer) = app.settings.infer_url.as_deref() else {
        return Err(HttpError::unavailable("Detection of single pictures is not set up here.", AWAY * 12));
    };
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > MAX_PICTURE) {
        return Err(too_large());
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut asked = app.http.post(format!("{}/v1/detect{query}", infer.trim_end_matches('/')));
    for name in ASKED {
        if let Some(value) = request.headers().get(&name) {
            asked = asked.header(name, value);
        }
    }
    if let Some(token) = &app.api_token {
        asked = asked.bearer_auth(token.reveal());
    }
    let outgrown = Arc::new(AtomicBool::new(false));
    let (mut read, flag) = (0, outgrown.clone());
    let body = request.into_body().into_data_stream().map(move |chunk| {
        let chunk = chunk.map_err(std::io::Error::other)?;
        read += chunk.len() as u64;
        if read > MAX_PICTURE {
            flag.store(true, Ordering::Relaxed);
            return Err(std::io::Error::other("too large"));
        }
        Ok(chunk)
    });
    let sent = timeout(PATIENCE, asked.body(reqwest::Body::wrap_stream(body)).send()).await;
    let answer = match sent {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) if outgrown.load(Ordering::Relaxed) => return Err(too_large()),
        Ok(Err(error)) => {
            warn!("infer cannot be asked: {error}");
            return Err(away());
        }
        Err(_) => {
            warn!("infer does not answer within {} s", PATIENCE.as_secs());
            return Err(away());
        }
    };
    // What infer does not let in is our fault, not the client's.
    if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
        return Err(HttpError::internal(format!(
            "infer answers {}: check BOXREEL_INFER_URL and BOXREEL_API_TOKEN",
            answer.status()
        )));
    }
    let mut response = answer.status().into_response();
    for name in ANSWERED {
        if let Some(value) = answer.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    Ok(response)
}

fn away() -> HttpError {
    HttpError::unavailable("No detection worker answers at the moment; try again in a few seconds.", AWAY)
}

fn too_large() -> HttpError {
    HttpError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "payload_too_large",
        format!("The picture is larger than the {MAX_PICTURE} bytes that are taken."),
    )
}
