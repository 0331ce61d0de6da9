//! `POST /v1/detect`: one picture in, its detections out, as data or drawn.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use common::detection::Detection;
use common::http_error::HttpError;
use common::service::auth::Gate;
use serde::{Deserialize, Serialize};

use crate::ssd300::FRAME_BYTES;
use crate::still;
use crate::stills::{StillError, Stills};

/// The largest body taken, in bytes.
pub const MAX_BODY: usize = 32 << 20;
/// The usual threshold.
const CONF: f32 = 0.3;
/// How long a picture may wait for its turn to be decoded.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the handler needs.
#[derive(Clone)]
pub struct DetectApi {
    /// The way to the network.
    pub stills: Stills,
    /// Names of the classes.
    pub names: Arc<[String]>,
    /// Tokens, one of which must be sent.
    pub gates: Arc<[Gate]>,
}

/// Options in the query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    conf: Option<f32>,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    width: u32,
    height: u32,
    detections: Vec<Found<'a>>,
}

/// One object; the box is in pixels of the picture: left, top, width, height.
#[derive(Debug, Serialize)]
struct Found<'a> {
    class: u16,
    name: &'a str,
    score: f32,
    bbox: [f32; 4],
}

/// The route.
pub fn router(api: DetectApi) -> Router {
    Router::new().route("/v1/detect", post(detect)).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(api)
}

async fn detect(
    State(api): State<DetectApi>,
    headers: HeaderMap,
    options: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, HttpError> {
    if !api.gates.iter().any(|gate| gate.admits_request(&headers)) {
        return Err(HttpError::unauthorized());
    }
    let conf = match options {
        Ok(Query(Options { conf })) => conf.unwrap_or(CONF),
        Err(_) => {
            return Err(HttpError::bad_request(
                "The query cannot be used: the only option is conf, a number from 0 to 1, as in ?conf=0.5.",
            ));
        }
    };
    if !(0.0..=1.0).contains(&conf) {
        return Err(HttpError::bad_request("conf must be a number from 0 to 1."));
    }
    let Some(drawn) = wanted(&headers) else {
        return Err(HttpError::new(
            StatusCode::NOT_ACCEPTABLE,
            "not_acceptable",
            "The answer can be application/json or image/jpeg; ask for one of them in Accept.",
        ));
    };
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => HttpError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("The picture is larger than {} MiB; send a smaller one.", MAX_BODY >> 20),
        ),
        _ => HttpError::bad_request("The body was not received whole; send the picture again."),
    })?;
    let room = api.stills.room(PATIENCE).await.map_err(refuse)?;
    let (image, pixels) = blocking(move || {
        let image = still::decode(Cursor::new(body)).map_err(|_| {
            HttpError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "no_picture",
                "The body is no JPEG, PNG or WebP that can be read; send one of these.",
            )
        })?;
        let mut pixels = vec![0; FRAME_BYTES];
        still::squash(&image, &mut pixels);
        Ok((image, pixels))
    })
    .await?;
    let mut found = api.stills.detect(pixels).await.map_err(refuse)?;
    found.retain(|detection| detection.score >= conf);
    if !drawn {
        drop(room);
        return Ok(Json(answer(&api.names, image.width(), image.height(), &found)).into_response());
    }
    let names = api.names.clone();
    let jpeg = blocking(move || {
        let jpeg = still::annotate(image, &names, &found);
        drop(room);
        jpeg.map_err(HttpError::internal)
    })
    .await?;
    Ok(([(header::CONTENT_TYPE, "image/jpeg")], jpeg).into_response())
}

/// Whether the picture with boxes is asked for (true) or the data; none when it is neither.
fn wanted(headers: &HeaderMap) -> Option<bool> {
    let Some(accept) = headers.get(header::ACCEPT) else { return Some(false) };
    let accept = accept.to_str().ok()?;
    accept.split(',').map(|part| part.split(';').next().unwrap_or_default().trim()).find_map(
        |kind| match kind {
            "application/json" | "application/*" | "*/*" => Some(false),
            "image/jpeg" | "image/*" => Some(true),
            _ => None,
        },
    )
}

fn answer<'a>(names: &'a [String], width: u32, height: u32, found: &[Detection]) -> Answer<'a> {
    let (w, h) = (width as f32, height as f32);
    let detections = found
        .iter()
        .map(|Detection { bbox, score, class }| Found {
            class: *class,
            name: names.get(usize::from(*class)).map_or("", String::as_str),
            score: *score,
            bbox: [
                bbox.min_x * w,
                bbox.min_y * h,
                (bbox.max_x - bbox.min_x) * w,
                (bbox.max_y - bbox.min_y) * h,
            ],
        })
        .collect();
    Answer { width, height, detections }
}

fn refuse(error: StillError) -> HttpError {
    match error {
        StillError::Busy => HttpError::unavailable(
            "Too many pictures are waiting; try again in a second.",
            Duration::from_secs(1),
        ),
        StillError::Detect(error) => HttpError::internal(error),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HttpError> + Send + 'static,
) -> Result<T, HttpError> {
    tokio::task::spawn_blocking(work).await.map_err(HttpError::internal)?
}
