//! Uploads in one request: a video comes in, a job begins.
//!
//! The file is written aside and renamed when it is whole; only then there is a job. So half an upload is no job,
//! and a process that is killed leaves nothing but a file aside, which is swept.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::multipart::Field;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::files::Draft;
use common::http_error::HttpError;
use common::input::blocking;
use common::job::{JobId, Source};
use common::store::{Job, NewJob};
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::extract::{Params, media_type};
use super::intake::{
    self, DRAIN_TIME, DRAINED, IDLE, LOOK_EVERY, Uploading, broken_off, check_space, not_stored, too_large,
    too_slow,
};
use super::options::{UploadOptions, check_callback, shown_name};
use super::view::{ErrorAnswer, JobView, view};
use crate::app::App;
use crate::metrics::Upload;

/// How long an idempotency key is remembered.
const KEY_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a form's field that is no file, and how many of them there may be.
const FIELD_BYTES: usize = 4096;
const FIELDS: usize = 32;

/// A form with a video.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct UploadForm {
    /// The video.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    file: String,
    #[schema(inline)]
    #[serde(flatten)]
    options: UploadOptions,
}

/// Upload a video; a job begins once it is whole.
///
/// As a form (`multipart/form-data`) with the file and, as further fields, the options; or as the body itself, with
/// the options in the query and the name in `Content-Disposition` or `filename`. An upload that is repeated with the
/// same `Idempotency-Key` within a day leads to the same job.
#[utoipa::path(
    post, operation_id = "create_job",
    path = "/v1/jobs", tag = "jobs", security(("api_token" = [])),
    params(
        UploadOptions,
        ("Idempotency-Key" = Option<String>, Header, description = "Names this upload, 1 to 255 visible characters.")
    ),
    request_body(content(
        (UploadForm = "multipart/form-data"), (Vec<u8> = "application/octet-stream"), (Vec<u8> = "video/*")
    )),
    responses(
        (status = 202, body = JobView, headers(("Location" = String, description = "Where the job is."))),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer),
        (status = 408, body = ErrorAnswer, description = "Nothing came for too long."),
        (status = 409, body = ErrorAnswer, description = "The job of that Idempotency-Key was deleted."),
        (status = 413, body = ErrorAnswer), (status = 415, body = ErrorAnswer), (status = 503, body = ErrorAnswer),
        (status = 507, body = ErrorAnswer, description = "The volume is full."),
    )
)]
pub(super) async fn create(
    State(app): State<App>,
    Params(query): Params<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, HttpError> {
    let _uploading = Uploading::begin(&app);
    let mut body = Incoming::of(request)?;
    let outcome = take(&app, &query, &mut body).await;
    app.metrics.uploaded(match &outcome {
        Ok((_, false)) => Upload::Accepted,
        Ok((_, true)) => Upload::Repeated,
        Err(_) => Upload::Refused,
    });
    // A repeat is read to its end, for its sender does nothing wrong.
    let (most, time) =
        if outcome.is_ok() { (app.settings.max_upload, None) } else { (DRAINED, Some(DRAIN_TIME)) };
    match time {
        Some(time) => drop(timeout(time, body.drain(most)).await),
        None => body.drain(most).await,
    }
    let (job, repeated) = outcome?;
    let location = format!("/v1/jobs/{}", job.id);
    let mut answer =
        (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(view(app.store(), &job).await?))
            .into_response();
    if repeated {
        let name = HeaderName::from_static("idempotency-replayed");
        answer.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    Ok(answer)
}

/// The request's body, in either form.
enum Incoming {
    Form(Box<Form>),
    Raw(RawUpload),
}

struct Form {
    request: Option<Request>,
    parts: Option<Multipart>,
    headers: HeaderMap,
}

struct RawUpload {
    headers: HeaderMap,
    body: axum::body::BodyDataStream,
}

impl Incoming {
    fn of(request: Request) -> Result<Self, HttpError> {
        let kind = media_type(request.headers()).unwrap_or_else(|| "application/octet-stream".to_owned());
        let headers = request.headers().clone();
        if kind == "multipart/form-data" {
            return Ok(Self::Form(Box::new(Form { request: Some(request), parts: None, headers })));
        }
        if kind.starts_with("video/")
            || matches!(kind.as_str(), "application/octet-stream" | "application/mp4")
        {
            return Ok(Self::Raw(RawUpload { headers, body: request.into_body().into_data_stream() }));
        }
        Err(HttpError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Send the video as multipart/form-data, or as the body with Content-Type video/mp4 or \
             application/octet-stream.",
        ))
    }

    fn headers(&self) -> &HeaderMap {
        match self {
            Self::Form(form) => &form.headers,
            Self::Raw(raw) => &raw.headers,
        }
    }

    /// Reads on and throws away.
    async fn drain(&mut self, most: u64) {
        match self {
            Self::Raw(raw) => intake::drain(&mut raw.body, most).await,
            Self::Form(form) => {
                if let Some(request) = form.request.take() {
                    intake::drain(&mut request.into_body().into_data_stream(), most).await;
                }
                let Some(parts) = &mut form.parts else { return };
                let mut read = 0;
                while let Ok(Ok(Some(mut field))) = timeout(IDLE, parts.next_field()).await {
                    while let Ok(Ok(Some(bytes))) = timeout(IDLE, field.chunk()).await {
                        read += bytes.len() as u64;
                        if read > most {
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// Takes an upload in, down to the job; true when there was such a job before.
async fn take(app: &App, query: &[(String, String)], body: &mut Incoming) -> Result<(Job, bool), HttpError> {
    let mut options = UploadOptions::default();
    for (name, value) in query {
        options.set(name, value)?;
    }
    let key = idempotency_key(body.headers())?;
    let fresh = JobId::new(app.store().now().await?);
    let id = match &key {
        Some(key) => app.store().tie(key, fresh, KEY_KEPT).await?,
        None => fresh,
    };
    // Whoever was first may have come to the end, or to nothing.
    if id != fresh
        && let Some(job) = existing(app, id).await?
    {
        return Ok((job, true));
    }
    let _place = intake::place(app)?;
    let offer = intake::offer(app).await?;
    let announced =
        body.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut receiver = Receiver::open(app, id, announced).await?;
    match body {
        Incoming::Raw(raw) => {
            if options.filename.is_none() {
                let disposition = raw.headers.get(header::CONTENT_DISPOSITION);
                options.filename =
                    disposition.and_then(|value| disposed_name(&String::from_utf8_lossy(value.as_bytes())));
            }
            options.settings(offer.clone())?;
            receiver.take(&mut raw.body).await?;
        }
        Incoming::Form(form) => read_form(form, &mut options, &mut receiver).await?,
    }
    let settings = options.settings(offer)?;
    check_callback(app, options.callback_url.as_deref())?;
    if id != fresh
        && let Some(job) = existing(app, id).await?
    {
        return Ok((job, true));
    }
    let source = receiver.publish().await?;
    let new = NewJob {
        id,
        filename: shown_name(options.filename.as_deref().unwrap_or_default()),
        source,
        settings,
        priority: 0,
        callback_url: options.callback_url,
    };
    Ok((intake::enqueue(app, new).await?, false))
}

/// The job that an idempotency key led to before.
async fn existing(app: &App, id: JobId) -> Result<Option<Job>, HttpError> {
    match app.store().job(id).await? {
        Some(job) if job.deleted.is_some() => {
            Err(HttpError::conflict("The job of this Idempotency-Key was deleted; upload with another key."))
        }
        job => Ok(job),
    }
}

/// The key by which a repeated upload is known.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, HttpError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().map(str::trim);
    let key = key.filter(|key| !key.is_empty() && key.len() <= 255).ok_or_else(|| {
        HttpError::bad_request("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    })?;
    let digest = Sha256::digest(key.as_bytes());
    Ok(Some(digest.iter().fold("upload-".to_owned(), |text, byte| format!("{text}{byte:02x}"))))
}

/// Reads a form: options as they come, and one file.
async fn read_form(
    form: &mut Form,
    options: &mut UploadOptions,
    receiver: &mut Receiver<'_>,
) -> Result<(), HttpError> {
    let Some(mut request) = form.request.take() else { return Ok(()) };
    // Of its own accord axum takes forms of 2 MB; how large a video may be is our own limit.
    DefaultBodyLimit::disable().apply(&mut request);
    let parts = Multipart::from_request(request, &()).await.map_err(|_| {
        HttpError::bad_request("The form's Content-Type names no boundary between its fields.")
    })?;
    let parts = form.parts.insert(parts);
    let mut had_file = false;
    for _ in 0..FIELDS {
        let field = timeout(IDLE, parts.next_field()).await.map_err(|_| too_slow())?;
        let Some(field) = field.map_err(|_| broken_off())? else {
            return if had_file { Ok(()) } else { Err(no_file()) };
        };
        let name = field.name().unwrap_or_default().to_owned();
        if field.file_name().is_some() || name == "file" {
            if had_file {
                return Err(HttpError::bad_request(
                    "The form holds more than one file; send one upload for each.",
                ));
            }
            had_file = true;
            if let (Some(file), None) = (field.file_name(), &options.filename) {
                options.filename = Some(file.to_owned());
            }
            receiver.take(&mut chunks(field)).await?;
        } else {
            let value = text(field).await?;
            options.set(&name, &value)?;
        }
    }
    Err(HttpError::bad_request(format!("The form has more than {FIELDS} fields.")))
}

fn chunks(
    field: Field<'_>,
) -> impl Stream<Item = Result<Bytes, axum::extract::multipart::MultipartError>> + Unpin {
    field
}

async fn text(mut field: Field<'_>) -> Result<String, HttpError> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        timeout(IDLE, field.chunk()).await.map_err(|_| too_slow())?.map_err(|_| broken_off())?
    {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > FIELD_BYTES {
            return Err(HttpError::bad_request("A field of the form is too long."));
        }
    }
    String::from_utf8(bytes).map_err(|_| HttpError::bad_request("A field of the form is no UTF-8 text."))
}

/// Writes an upload aside.
struct Receiver<'a> {
    app: &'a App,
    id: JobId,
    draft: Draft,
    file: File,
    size: u64,
    looked_at: u64,
}

impl<'a> Receiver<'a> {
    async fn open(app: &'a App, id: JobId, announced: Option<u64>) -> Result<Self, HttpError> {
        // A form is a little longer than its file.
        if announced.is_some_and(|length| length > app.settings.max_upload.saturating_add(1 << 20)) {
            return Err(too_large(app));
        }
        check_space(app, announced.unwrap_or(0)).await?;
        let volume = app.volume().clone();
        let (draft, file) = blocking(move || {
            std::fs::create_dir_all(volume.uploads())?;
            let draft = Draft::new(&volume.upload(id));
            let file = draft.create()?;
            Ok((draft, file))
        })
        .await
        .map_err(not_stored)?;
        Ok(Self { app, id, draft, file: File::from_std(file), size: 0, looked_at: 0 })
    }

    async fn take<E>(
        &mut self,
        stream: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
    ) -> Result<(), HttpError> {
        while let Some(chunk) = timeout(IDLE, stream.next()).await.map_err(|_| too_slow())? {
            let chunk = chunk.map_err(|_| broken_off())?;
            self.size += chunk.len() as u64;
            self.app.metrics.received.inc_by(chunk.len() as u64);
            if self.size > self.app.settings.max_upload {
                return Err(too_large(self.app));
            }
            if self.size - self.looked_at > LOOK_EVERY {
                self.looked_at = self.size;
                check_space(self.app, 0).await?;
            }
            self.file.write_all(&chunk).await.map_err(not_stored)?;
        }
        if self.size == 0 { Err(no_file()) } else { Ok(()) }
    }

    /// Puts the whole file in its place.
    async fn publish(mut self) -> Result<Source, HttpError> {
        self.file.flush().await.map_err(not_stored)?;
        let (folder, draft) = (self.app.volume().job(self.id), self.draft);
        let path = blocking(move || {
            folder.create()?;
            draft.publish()
        })
        .await
        .map_err(not_stored)?;
        Ok(Source { path, size: self.size })
    }
}

fn no_file() -> HttpError {
    HttpError::bad_request(
        "The upload holds no video: send the file as the field \"file\" of a form, or as the body.",
    )
}

/// The name in a `Content-Disposition` header: `filename*` before `filename`.
fn disposed_name(header: &str) -> Option<String> {
    let mut plain = None;
    for part in parameters(header) {
        let Some((name, value)) = part.split_once('=') else { continue };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        match name.as_str() {
            "filename*" => {
                let (charset, rest) = value.split_once('\'')?;
                let (_, encoded) = rest.split_once('\'')?;
                if charset.eq_ignore_ascii_case("utf-8") {
                    return String::from_utf8(percent_decoded(encoded)).ok();
                }
            }
            "filename" => {
                let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                plain = Some(unquoted.unwrap_or(value).replace("\\\"", "\""));
            }
            _ => {}
        }
    }
    plain
}

/// The parts of a header's value between semicolons, but not between those in quotes.
fn parameters(header: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let mut escaped = false;
    header.split(move |c| {
        let ends = c == ';' && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.filter(|_| byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_headers_of_all_kinds() {
        for (header, name) in [
            ("attachment; filename=bikes.mp4", Some("bikes.mp4")),
            ("attachment; filename=\"two; words.mp4\"", Some("two; words.mp4")),
            ("attachment; filename=\"R_der.mp4\"; filename*=UTF-8''R%C3%A4der.mp4", Some("Räder.mp4")),
            ("attachment; filename=\"a \\\"b\\\"; c.mp4\"", Some("a \"b\"; c.mp4")),
            ("attachment", None),
            ("attachment; filename*=nonsense", None),
        ] {
            assert_eq!(disposed_name(header).as_deref(), name, "{header}");
        }
    }
}
