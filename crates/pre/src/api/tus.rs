//! Uploads that may break off and go on: the tus protocol 1.0 (<https://tus.io/protocols/resumable-upload>), with its
//! extensions creation, creation-with-upload, expiration, checksum and termination.
//!
//! An upload has the id of the job that it becomes. What counts of it is in the store, its bytes are on the volume:
//! the next request may go to any pre.

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use common::http_error::HttpError;
use common::input::blocking;
use common::job::{JobId, Source};
use common::segment::Token;
use common::store::{LockRequest, Locking, NewUpload, Upload, UploadLock, UploadState};
use tokio::time::timeout;
use utoipa::ToSchema;

use self::headers::{ALGORITHMS, BYTES, Checksum, carries_bytes, metadata, number, required};
use self::receive::{Chunk, receive};
use super::intake::{self, DRAIN_TIME, DRAINED, check_space, not_stored, too_large};
use super::options::{check_callback, shown_name};
use super::view::ErrorAnswer;
use crate::app::App;
use crate::metrics;

mod headers;
mod receive;

const VERSION: &str = "1.0.0";
const EXTENSIONS: &str = "creation,creation-with-upload,expiration,checksum,termination";

/// Bytes of a file, as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct FileBytes(Vec<u8>);

/// The upload named in the path. What is no id names none.
pub(super) struct UploadId(JobId);

impl<S: Send + Sync> FromRequestParts<S> for UploadId {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok();
        id.and_then(|Path(id)| id.parse().ok()).map(Self).ok_or_else(unknown)
    }
}

/// Refuses requests of another version of the protocol.
pub(super) async fn of_this_version(request: Request, next: Next) -> Response {
    if *request.method() == Method::OPTIONS
        || request.headers().get("tus-resumable").is_some_and(|version| version == VERSION)
    {
        return next.run(request).await;
    }
    let error = HttpError::new(
        StatusCode::PRECONDITION_FAILED,
        "precondition_failed",
        format!("This is for tus {VERSION}: send the header \"Tus-Resumable: {VERSION}\"."),
    );
    ([("tus-version", VERSION)], error).into_response()
}

/// Says in every answer, a refusal too, which version of the protocol this is.
pub(super) async fn with_version(mut answer: Response) -> Response {
    answer.headers_mut().insert("tus-resumable", HeaderValue::from_static(VERSION));
    answer
}

/// Tell what uploads may be like.
#[utoipa::path(
    options, operation_id = "upload_options",
    path = "/v1/uploads", tag = "uploads", security(("api_token" = [])),
    responses(
        (status = 204, headers(
            ("Tus-Version" = String), ("Tus-Extension" = String), ("Tus-Checksum-Algorithm" = String),
            ("Tus-Max-Size" = u64, description = "The largest upload, in bytes."),
        )),
        (status = 401, body = ErrorAnswer),
    )
)]
pub(super) async fn options(State(app): State<App>) -> Response {
    let headers = [
        ("tus-version", HeaderValue::from_static(VERSION)),
        ("tus-extension", HeaderValue::from_static(EXTENSIONS)),
        ("tus-checksum-algorithm", HeaderValue::from_static(ALGORITHMS)),
        ("tus-max-size", HeaderValue::from(app.settings.max_upload)),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// Begin an upload that may be interrupted.
///
/// Its bytes follow with PATCH to the address in `Location`, in any number of pieces; a job begins with the last one. The
/// first bytes may come with this request, as `application/offset+octet-stream`.
#[utoipa::path(
    post, operation_id = "create_upload",
    path = "/v1/uploads", tag = "uploads", security(("api_token" = [])),
    params(
        ("Tus-Resumable" = String, Header, description = "1.0.0", pattern = "^1\\.0\\.0$", example = "1.0.0"),
        ("Upload-Length" = u64, Header, description = "Bytes of the file.", minimum = 1),
        ("Upload-Metadata" = Option<String>, Header,
         description = "filename and the options of create_job: each a key and its value in base64, separated by commas.",
         example = "filename aG9saWRheS5tcDQ=,every Mg=="),
        ("Upload-Checksum" = Option<String>, Header, description = "Of the bytes that come with this request."),
    ),
    request_body(content((FileBytes = "application/offset+octet-stream"))),
    responses(
        (status = 201, headers(
            ("Location" = String, description = "Where the upload is."),
            ("Upload-Offset" = u64, description = "Bytes that have come."),
            ("Upload-Expires" = String, description = "When it is given up if nothing more comes."),
            ("Boxreel-Job" = String, description = "The job it became, if it is whole."),
        )),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer),
        (status = 408, body = ErrorAnswer, description = "Nothing came for too long."),
        (status = 412, body = ErrorAnswer, description = "Another version of tus."),
        (status = 413, body = ErrorAnswer),
        (status = 460, body = ErrorAnswer, description = "The bytes are not those of the checksum."),
        (status = 503, body = ErrorAnswer), (status = 507, body = ErrorAnswer, description = "The volume is full."),
    )
)]
pub(super) async fn create(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    let upload = match begin(&app, &parts.headers).await {
        Ok(upload) => upload,
        Err(error) => {
            app.metrics.uploaded(metrics::Upload::Refused);
            drain(body.into_data_stream()).await;
            return Err(error);
        }
    };
    let id = upload.id;
    if carries_bytes(&parts.headers)
        && let Err(error) = async {
            let chunk = chunk_of(&parts.headers)?;
            let (lock, upload) = lock(&app, id, 0).await?;
            take(&app, lock, upload, chunk, body).await
        }
        .await
    {
        // Its sender does not know where it is. But what is whole becomes a job, even if that has to wait.
        if remove(&app, id).await? {
            return Err(error);
        }
    }
    let upload = find(&app, id).await?;
    let location = [(header::LOCATION, format!("/v1/uploads/{id}"))];
    Ok((StatusCode::CREATED, location, progress(&upload), Body::empty()).into_response())
}

/// Ask how far an upload is.
#[utoipa::path(
    head, operation_id = "get_upload",
    path = "/v1/uploads/{id}", tag = "uploads", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The upload."),
        ("Tus-Resumable" = String, Header, description = "1.0.0", pattern = "^1\\.0\\.0$", example = "1.0.0"),
    ),
    responses(
        (status = 200, headers(
            ("Upload-Offset" = u64, description = "Bytes that have come: where to go on."),
            ("Upload-Length" = u64, description = "Bytes of the file."),
            ("Upload-Metadata" = String, description = "As it was sent."),
            ("Upload-Expires" = String, description = "When it is given up if nothing more comes."),
            ("Boxreel-Job" = String, description = "The job it became, if it is whole."),
        )),
        (status = 401), (status = 404), (status = 410, description = "It has expired."),
        (status = 412, description = "Another version of tus."), (status = 503),
    )
)]
pub(super) async fn head(State(app): State<App>, UploadId(id): UploadId) -> Result<Response, HttpError> {
    let mut upload = find(&app, id).await?;
    if upload.state == UploadState::Whole {
        make_job(&app, id).await?;
        upload = find(&app, id).await?;
    }
    let mut headers = progress(&upload);
    headers.insert("upload-length", HeaderValue::from(upload.length));
    if let Some(metadata) = HeaderValue::from_str(&upload.metadata).ok().filter(|text| !text.is_empty()) {
        headers.insert("upload-metadata", metadata);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(headers.into_response())
}

/// Send the next bytes of an upload.
///
/// What has come counts even if the connection breaks, unless it came with a checksum: then all of it counts or nothing.
/// With the last byte a job begins; `Boxreel-Job` is its id.
#[utoipa::path(
    patch, operation_id = "append_to_upload",
    path = "/v1/uploads/{id}", tag = "uploads", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The upload."),
        ("Tus-Resumable" = String, Header, description = "1.0.0", pattern = "^1\\.0\\.0$", example = "1.0.0"),
        ("Upload-Offset" = u64, Header, description = "Where the bytes belong: as many as have come before."),
        ("Upload-Checksum" = Option<String>, Header,
         description = "sha1, sha256 or sha512, and the checksum of these bytes in base64."),
    ),
    request_body(content((FileBytes = "application/offset+octet-stream"))),
    responses(
        (status = 204, headers(
            ("Upload-Offset" = u64, description = "Bytes that have come."),
            ("Upload-Expires" = String, description = "When it is given up if nothing more comes."),
            ("Boxreel-Job" = String, description = "The job it became, if it is whole."),
        )),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 408, body = ErrorAnswer, description = "Nothing came for too long."),
        (status = 409, body = ErrorAnswer, description = "The bytes belong elsewhere: ask how far the upload is."),
        (status = 410, body = ErrorAnswer, description = "It has expired."),
        (status = 412, body = ErrorAnswer, description = "Another version of tus."),
        (status = 413, body = ErrorAnswer), (status = 415, body = ErrorAnswer),
        (status = 423, body = ErrorAnswer, description = "Another request sends bytes of it."),
        (status = 460, body = ErrorAnswer, description = "The bytes are not those of the checksum."),
        (status = 503, body = ErrorAnswer), (status = 507, body = ErrorAnswer, description = "The volume is full."),
    )
)]
pub(super) async fn patch(
    State(app): State<App>,
    UploadId(id): UploadId,
    request: Request,
) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    let locked = async {
        if !carries_bytes(&parts.headers) {
            return Err(HttpError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                format!("Send the bytes with Content-Type {BYTES}."),
            ));
        }
        let offset = required(&parts.headers, "upload-offset")?;
        let chunk = chunk_of(&parts.headers)?;
        let upload = find(&app, id).await?;
        if upload.is_whole() && offset == upload.length {
            return Ok(None);
        }
        let (lock, upload) = lock(&app, id, offset).await?;
        Ok(Some((lock, upload, chunk)))
    };
    match locked.await {
        Ok(Some((lock, upload, chunk))) => take(&app, lock, upload, chunk, body).await?,
        // The answer to the last bytes was lost.
        Ok(None) => make_job(&app, id).await?,
        Err(error) => {
            drain(body.into_data_stream()).await;
            return Err(error);
        }
    }
    let upload = find(&app, id).await?;
    Ok((StatusCode::NO_CONTENT, progress(&upload)).into_response())
}

/// Give an upload up.
#[utoipa::path(
    delete, operation_id = "terminate_upload",
    path = "/v1/uploads/{id}", tag = "uploads", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The upload."),
        ("Tus-Resumable" = String, Header, description = "1.0.0", pattern = "^1\\.0\\.0$", example = "1.0.0"),
    ),
    responses(
        (status = 204), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It became a job."),
        (status = 410, body = ErrorAnswer, description = "It has expired."),
        (status = 412, body = ErrorAnswer, description = "Another version of tus."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn terminate(
    State(app): State<App>,
    UploadId(id): UploadId,
) -> Result<StatusCode, HttpError> {
    find(&app, id).await?;
    if !remove(&app, id).await? {
        return Err(HttpError::conflict(format!("The upload is whole and became job {id}; delete that.")));
    }
    app.metrics.uploaded(metrics::Upload::Refused);
    Ok(StatusCode::NO_CONTENT)
}

/// PATCH, HEAD or DELETE, for clients that cannot send these: named in `X-HTTP-Method-Override`.
#[utoipa::path(
    post, operation_id = "override_upload_method",
    path = "/v1/uploads/{id}", tag = "uploads", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The upload."),
        ("Tus-Resumable" = String, Header, description = "1.0.0", pattern = "^1\\.0\\.0$", example = "1.0.0"),
        ("X-HTTP-Method-Override" = String, Header, description = "The method.", pattern = "^(PATCH|HEAD|DELETE)$",
         example = "PATCH"),
    ),
    request_body(content((FileBytes = "application/offset+octet-stream"))),
    responses(
        (status = 200, description = "As of HEAD."), (status = 204, description = "As of PATCH and DELETE."),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 405, body = ErrorAnswer, description = "The header names none of these methods."),
        (status = 408, body = ErrorAnswer, description = "Nothing came for too long."),
        (status = 409, body = ErrorAnswer), (status = 410, body = ErrorAnswer),
        (status = 412, body = ErrorAnswer, description = "Another version of tus."),
        (status = 413, body = ErrorAnswer), (status = 415, body = ErrorAnswer), (status = 423, body = ErrorAnswer),
        (status = 460, body = ErrorAnswer, description = "The bytes are not those of the checksum."),
        (status = 503, body = ErrorAnswer), (status = 507, body = ErrorAnswer, description = "The volume is full."),
    )
)]
pub(super) async fn overridden(
    app: State<App>,
    id: UploadId,
    request: Request,
) -> Result<Response, HttpError> {
    let method = request.headers().get("x-http-method-override").map_or(&b""[..], HeaderValue::as_bytes);
    match method {
        b"PATCH" => patch(app, id, request).await,
        b"HEAD" => head(app, id).await,
        b"DELETE" => Ok(terminate(app, id).await?.into_response()),
        _ => Err(HttpError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "POST is for an upload only with X-HTTP-Method-Override: PATCH, HEAD or DELETE.",
        )),
    }
}

/// Notes an upload, and makes its file.
async fn begin(app: &App, headers: &HeaderMap) -> Result<Upload, HttpError> {
    if headers.contains_key("upload-defer-length") {
        return Err(HttpError::bad_request("The length must be known at the beginning: send Upload-Length."));
    }
    let length = required(headers, "upload-length")?;
    if length == 0 {
        return Err(HttpError::bad_request("The file is empty, so it is no video."));
    }
    if length > app.settings.max_upload {
        return Err(too_large(app));
    }
    let (options, metadata) = metadata(headers)?;
    check_callback(app, options.callback_url.as_deref())?;
    let settings = options.settings(intake::offer(app).await?)?;
    check_space(app, length).await?;
    let id = JobId::new(app.store().now().await?);
    let volume = app.volume().clone();
    blocking(move || volume.begin_partial(id)).await.map_err(not_stored)?;
    let new = NewUpload {
        id,
        filename: shown_name(options.filename.as_deref().unwrap_or_default()),
        length,
        settings,
        callback_url: options.callback_url,
        metadata,
    };
    Ok(app.store().create_upload(new).await?)
}

/// The upload, for somebody who asks for it.
async fn find(app: &App, id: JobId) -> Result<Upload, HttpError> {
    let upload = app.store().upload(id).await?.ok_or_else(unknown)?;
    if upload.expires <= app.store().now().await? {
        return Err(gone());
    }
    Ok(upload)
}

/// The right to write from `offset` on.
async fn lock(app: &App, id: JobId, offset: u64) -> Result<(UploadLock, Upload), HttpError> {
    let request = LockRequest {
        id,
        worker: app.service.worker.clone(),
        token: Token::random(),
        lease: app.service.lease(),
    };
    let elsewhere = |upload: &Upload| {
        HttpError::conflict(format!(
            "{} bytes of this upload have come, so that none belong at {offset}; ask again how far it is.",
            upload.offset()
        ))
    };
    match app.store().lock_upload(&request).await? {
        Locking::Held(lock, upload) if upload.offset() == offset => Ok((lock, upload)),
        Locking::Held(lock, upload) => {
            app.store().unlock_upload(lock).await?;
            Err(elsewhere(&upload))
        }
        Locking::Busy => Err(locked()),
        Locking::Over(upload) if upload.is_whole() => Err(elsewhere(&upload)),
        Locking::Over(_) => Err(gone()),
        Locking::Unknown => Err(unknown()),
    }
}

/// Takes the bytes of a request in.
async fn take(
    app: &App,
    lock: UploadLock,
    upload: Upload,
    chunk: Chunk,
    body: Body,
) -> Result<(), HttpError> {
    let body = body.into_data_stream();
    let refused = match chunk.fits(&upload).and_then(|()| intake::place(app)) {
        Ok(_place) => receive(app.clone(), lock, upload, chunk, body).await,
        Err(error) => {
            app.store().unlock_upload(lock).await?;
            Err((error, Some(body)))
        }
    };
    let Err((error, body)) = refused else { return Ok(()) };
    if let Some(body) = body {
        drain(body).await;
    }
    Err(error)
}

fn chunk_of(headers: &HeaderMap) -> Result<Chunk, HttpError> {
    Ok(Chunk { checksum: Checksum::of(headers)?, announced: number(headers, "content-length")? })
}

/// Makes the job of an upload whose last byte is in. Repeating it is fine, and so is doing it in several places.
///
/// # Errors
/// When the store does not answer or the volume cannot be written.
pub(crate) async fn make_job(app: &App, id: JobId) -> Result<(), HttpError> {
    let Some(upload) = app.store().upload(id).await? else { return Ok(()) };
    if upload.state != UploadState::Whole {
        return Ok(());
    }
    let (volume, length) = (app.volume().clone(), upload.length);
    let path = blocking(move || volume.complete_partial(id, length)).await.map_err(not_stored)?;
    let mut new = upload.into_job(Source { path, size: length });
    // It may have taken hours: workers with other weights may have come up.
    if let Some(offer) = app.store().offer().await?
        && offer.names == new.settings.names
    {
        new.settings.model = offer.key;
    }
    intake::enqueue(app, new).await?;
    app.store().upload_queued(id).await?;
    app.metrics.uploaded(metrics::Upload::Accepted);
    Ok(())
}

/// Removes an upload that is not whole; false if it is.
async fn remove(app: &App, id: JobId) -> Result<bool, HttpError> {
    // The document first: without it, nobody's bytes count any more.
    if !app.store().remove_upload(id).await? {
        return Ok(false);
    }
    match tokio::fs::remove_file(app.volume().partial(id)).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(not_stored(error)),
        _ => Ok(true),
    }
}

/// How far an upload is, as headers.
fn progress(upload: &Upload) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("upload-offset", HeaderValue::from(upload.offset()));
    let text = |text: &str| HeaderValue::from_str(text).ok();
    if let Some(expires) = text(&upload.expires.http_date()) {
        headers.insert("upload-expires", expires);
    }
    if upload.state == UploadState::Queued
        && let Some(job) = text(&upload.id.to_string())
    {
        headers.insert("boxreel-job", job);
    }
    headers
}

async fn drain(mut body: BodyDataStream) {
    let _ = timeout(DRAIN_TIME, intake::drain(&mut body, DRAINED)).await;
}

fn unknown() -> HttpError {
    HttpError::not_found("There is no such upload; begin a new one.")
}

fn gone() -> HttpError {
    HttpError::new(StatusCode::GONE, "gone", "This upload has expired or was given up; begin a new one.")
}

fn locked() -> HttpError {
    HttpError::new(
        StatusCode::LOCKED,
        "locked",
        "Another request sends bytes of this upload; try again in a few seconds.",
    )
}
