//! Many small files as one: zip archives, written as they are sent.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::PathBuf;

use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use common::http_error::HttpError;
use common::job::JobId;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::extract::{Id, Params};
use super::files::{disposition, finished};
use super::stream::written;
use super::view::ErrorAnswer;
use crate::app::App;

/// Which pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Pictures {
    /// With boxes: `tar_frame/tar_{n}.jpg`.
    #[default]
    Annotated,
    /// As they came: `src_frame/frame_{n}.jpg`.
    Source,
    /// Both.
    Both,
}

/// Which pictures to send.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PictureParams {
    /// With boxes (the default), as they came, or both.
    #[param(nullable = false, inline)]
    of: Option<Pictures>,
}

/// The text files of all frames: five lines for each detection, minX, minY, maxX, maxY (fractions of the frame) and
/// the class's number.
#[utoipa::path(
    get, operation_id = "get_txts_zip",
    path = "/v1/jobs/{id}/txts.zip", tag = "results", security(("api_token" = [])),
    params(("id" = String, Path, description = "The job.")),
    responses(
        (status = 200, content_type = "application/zip", body = Vec<u8>),
        (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It is not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn txts(State(app): State<App>, Id(id): Id) -> Result<Response, HttpError> {
    let job = app.job(id).await?;
    finished(&job, |job| job.settings.save_txt)?;
    let folder = app.volume().job(id);
    let frames = job.plan.as_ref().map_or(0, |plan| plan.frames);
    let files = (0..frames).map(move |n| (format!("txts/infer{n}.txt"), folder.txt(n)));
    archive(&app, id, "txts", files)
}

/// The frames as pictures.
#[utoipa::path(
    get, operation_id = "get_frames_zip",
    path = "/v1/jobs/{id}/frames.zip", tag = "results", security(("api_token" = [])),
    params(("id" = String, Path, description = "The job."), PictureParams),
    responses(
        (status = 200, content_type = "application/zip", body = Vec<u8>),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer),
        (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "It is not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn frames(
    State(app): State<App>,
    Id(id): Id,
    Params(params): Params<PictureParams>,
) -> Result<Response, HttpError> {
    let job = app.job(id).await?;
    finished(&job, |job| job.settings.keep_frames)?;
    let folder = app.volume().job(id);
    let frames = job.plan.as_ref().map_or(0, |plan| plan.frames);
    let which = params.of.unwrap_or_default();
    let files = (0..frames).flat_map(move |n| {
        let source = (format!("src_frame/frame_{n}.jpg"), folder.src_frame(n));
        let annotated = (format!("tar_frame/tar_{n}.jpg"), folder.tar_frame(n));
        match which {
            Pictures::Annotated => vec![annotated],
            Pictures::Source => vec![source],
            Pictures::Both => vec![source, annotated],
        }
    });
    archive(&app, id, "frames", files)
}

/// An archive of files, each with its name in there.
fn archive(
    app: &App,
    id: JobId,
    what: &str,
    files: impl Iterator<Item = (String, PathBuf)> + Send + 'static,
) -> Result<Response, HttpError> {
    let body = written(app, move |outlet| {
        let mut archive = ZipWriter::new_stream(BufWriter::with_capacity(1 << 16, outlet));
        // Pictures do not get smaller, and texts are too short to matter.
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, path) in files {
            archive.start_file(name, options)?;
            io::copy(&mut File::open(path)?, &mut archive)?;
        }
        let rest = archive.finish()?.into_inner();
        rest.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(())
    })?;
    let headers: [(HeaderName, String); 3] = [
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (header::CONTENT_DISPOSITION, disposition("attachment", &format!("{what}_{id}.zip"))),
        (header::CACHE_CONTROL, "private, no-cache".to_owned()),
    ];
    Ok((headers, body).into_response())
}
