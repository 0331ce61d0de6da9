//! A job's files, whole or in ranges.

use std::path::PathBuf;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::http_error::HttpError;
use common::job::JobId;
use common::store::Job;
use tower::ServiceExt;
use tower_http::services::ServeFile;

use super::extract::Id;
use super::view::ErrorAnswer;
use crate::app::App;

/// The annotated video as MP4.
#[utoipa::path(
    get, operation_id = "get_mp4",
    path = "/v1/jobs/{id}/video.mp4", tag = "results", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The job."),
        ("Range" = Option<String>, Header, description = "The part that is wanted, such as bytes=0-1023.")
    ),
    responses(
        (status = 200, content_type = "video/mp4", body = Vec<u8>),
        (status = 206, content_type = "video/mp4", body = Vec<u8>),
        (status = 304), (status = 412), (status = 416),
        (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It is not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn mp4(State(app): State<App>, Id(id): Id, request: Request) -> Result<Response, HttpError> {
    let job = finished(&app.job(id).await?, |job| job.settings.mp4)?;
    let path = app.volume().job(job).target_mp4();
    send(request, path, "video/mp4", &disposition("inline", &format!("target_{id}.mp4"))).await
}

/// The annotated video as AVI.
#[utoipa::path(
    get, operation_id = "get_avi",
    path = "/v1/jobs/{id}/video.avi", tag = "results", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The job."),
        ("Range" = Option<String>, Header, description = "The part that is wanted, such as bytes=0-1023.")
    ),
    responses(
        (status = 200, content_type = "video/x-msvideo", body = Vec<u8>),
        (status = 206, content_type = "video/x-msvideo", body = Vec<u8>),
        (status = 304), (status = 412), (status = 416),
        (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It is not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn avi(State(app): State<App>, Id(id): Id, request: Request) -> Result<Response, HttpError> {
    let job = finished(&app.job(id).await?, |job| job.settings.avi)?;
    let path = app.volume().job(job).target_avi();
    send(request, path, "video/x-msvideo", &disposition("attachment", &format!("target_{id}.avi"))).await
}

/// One annotated picture that stands for the video.
#[utoipa::path(
    get, operation_id = "get_poster",
    path = "/v1/jobs/{id}/poster.jpg", tag = "results", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The job."),
        ("Range" = Option<String>, Header, description = "The part that is wanted, such as bytes=0-1023.")
    ),
    responses(
        (status = 200, content_type = "image/jpeg", body = Vec<u8>),
        (status = 206, content_type = "image/jpeg", body = Vec<u8>),
        (status = 304), (status = 412), (status = 416),
        (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It is not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn poster(
    State(app): State<App>,
    Id(id): Id,
    request: Request,
) -> Result<Response, HttpError> {
    let job = finished(&app.job(id).await?, |_| true)?;
    let path = app.volume().job(job).poster();
    send(request, path, "image/jpeg", &disposition("inline", &format!("poster_{id}.jpg"))).await
}

/// The video as it was uploaded.
#[utoipa::path(
    get, operation_id = "get_source",
    path = "/v1/jobs/{id}/source", tag = "results", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The job."),
        ("Range" = Option<String>, Header, description = "The part that is wanted, such as bytes=0-1023.")
    ),
    responses(
        (status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 304), (status = 412), (status = 416),
        (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn source(
    State(app): State<App>,
    Id(id): Id,
    request: Request,
) -> Result<Response, HttpError> {
    let job = app.job(id).await?;
    let name = disposition("attachment", &job.filename);
    // Never under a type that a browser would show: what is in it was chosen by a stranger.
    send(request, job.source.path, "application/octet-stream", &name).await
}

/// The id of a job that has its result, if `made` says that such a file is part of it.
///
/// # Errors
/// 409; the code tells whether it makes sense to wait.
pub(super) fn finished(job: &Job, made: impl FnOnce(&Job) -> bool) -> Result<JobId, HttpError> {
    let conflict = |code, message| Err(HttpError::new(StatusCode::CONFLICT, code, message));
    let status = job.timeline.status();
    if !made(job) {
        return conflict("not_made", "The job was asked not to make this.".to_owned());
    }
    if job.timeline.postprocessing_end.is_some() {
        return Ok(job.id);
    }
    if status.is_final() {
        return conflict("no_result", format!("The job has no result; it ended with {status}."));
    }
    let message = format!("The job is not finished, it is at {status}; its events tell when it is.");
    conflict("not_ready", message)
}

/// Answers with a file, or the part of it that `request` asks for.
///
/// # Errors
/// 500 when it is not there.
pub(super) async fn send(
    mut request: Request,
    path: PathBuf,
    kind: &'static str,
    disposition: &str,
) -> Result<Response, HttpError> {
    // What is no range of bytes is to be ignored (RFC 9110, 14.2), and more than one may be.
    let range = request.headers().get(header::RANGE);
    if range.is_some_and(|range| !range.to_str().is_ok_and(is_one_range)) {
        request.headers_mut().remove(header::RANGE);
    }
    let served = ServeFile::new(&path).oneshot(request).await.map_err(HttpError::internal)?;
    if served.status() == StatusCode::NOT_FOUND {
        return Err(HttpError::internal(format!("{} is not there", path.display())));
    }
    let mut answer = served.map(Body::new).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Ok(value) = HeaderValue::from_str(disposition) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(answer)
}

/// Whether a `Range` header asks for one range of bytes: `bytes=0-99`, `bytes=100-`, `bytes=-100`.
fn is_one_range(range: &str) -> bool {
    let number = |text: &str| if text.is_empty() { Some(None) } else { text.parse::<u64>().ok().map(Some) };
    let ends = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    match ends.map(|(first, last)| (number(first), number(last))) {
        Some((Some(Some(first)), Some(Some(last)))) => first <= last,
        Some((Some(first), Some(last))) => first.is_some() || last.is_some(),
        _ => false,
    }
}

/// The header that names a file (RFC 6266): in ASCII for old readers, and exactly (RFC 8187).
pub(super) fn disposition(how: &str, name: &str) -> String {
    use std::fmt::Write;
    let plain: String =
        name.chars()
            .map(|c| {
                if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%' | '/') || c == ' ' { c } else { '_' }
            })
            .collect();
    let mut exact = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            exact.push(char::from(byte));
        } else {
            let _ = write!(exact, "%{byte:02X}");
        }
    }
    format!("{how}; filename=\"{plain}\"; filename*=UTF-8''{exact}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_told_from_nonsense() {
        for one in ["bytes=0-0", "bytes=5-", "bytes=-5"] {
            assert!(is_one_range(one), "{one}");
        }
        for other in
            ["bytes=-", "bytes=5-4", "bytes=0-1,3-4", "lines=1-2", "null", "bytes=a-b", "bytes=+1-2-"]
        {
            assert!(!is_one_range(other), "{other}");
        }
    }

    #[test]
    fn any_name_fits_into_the_header() {
        assert_eq!(
            disposition("attachment", "video_3.avi"),
            "attachment; filename=\"video_3.avi\"; filename*=UTF-8''video_3.avi"
        );
        assert_eq!(
            disposition("attachment", "Räder \"1\"\r\n.mp4"),
            "attachment; filename=\"R_der _1___.mp4\"; filename*=UTF-8''R%C3%A4der%20%221%22%0D%0A.mp4"
        );
    }
}
