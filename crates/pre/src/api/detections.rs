//! What was found, as data: COCO JSON, a table, JSON lines.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::detection::{Detection, SegmentDetections, read_detections};
use common::files::JobFolder;
use common::http_error::HttpError;
use common::job::{JobId, Settings};
use common::outputs::{CocoWriter, CsvWriter, LinesWriter, VideoFacts};
use common::segment::Segment;
use common::store::Job;
use media::index::FrameIndex;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Id, Params};
use super::files::{disposition, finished, send};
use super::options::classes;
use super::stream::{Outlet, written};
use super::view::ErrorAnswer;
use crate::app::App;

/// Which detections to send; all unless told.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DetectionParams {
    /// Only those of at least this score. What was found with less than 0.05 is not kept at all.
    #[param(nullable = false, minimum = 0, maximum = 1)]
    min_score: Option<f32>,
    /// Only those of these classes, by name or number, separated by commas.
    #[param(nullable = false, example = "person,car")]
    class: Option<String>,
    /// From this frame on, counted from 0.
    #[param(nullable = false, value_type = Option<i64>, minimum = 0, maximum = 4294967295_u32)]
    first_frame: Option<u32>,
    /// Up to this frame, included.
    #[param(nullable = false, value_type = Option<i64>, minimum = 0, maximum = 4294967295_u32)]
    last_frame: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Coco,
    Csv,
    Lines,
}

impl Format {
    fn ending(self) -> &'static str {
        match self {
            Self::Coco => "json",
            Self::Csv => "csv",
            Self::Lines => "jsonl",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Coco => "application/json",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Lines => "application/jsonl",
        }
    }

    /// The one that a client would like best.
    fn accepted(headers: &HeaderMap) -> Option<Self> {
        let mut wanted: Vec<(f32, &str)> = Vec::new();
        for value in headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()) {
            for range in value.split(',') {
                let mut parts = range.split(';').map(str::trim);
                let kind = parts.next().unwrap_or_default();
                let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
                wanted.push((weight, kind));
            }
        }
        if wanted.is_empty() {
            return Some(Self::Coco);
        }
        wanted.sort_by(|a, b| b.0.total_cmp(&a.0));
        wanted.into_iter().filter(|(weight, _)| *weight > 0.0).find_map(|(_, kind)| {
            match kind.to_ascii_lowercase().as_str() {
                "application/json" | "application/*" | "*/*" => Some(Self::Coco),
                "text/csv" | "text/*" => Some(Self::Csv),
                "application/jsonl" | "application/x-ndjson" | "application/jsonlines" => Some(Self::Lines),
                _ => None,
            }
        })
    }
}

/// The detections, in the format the client accepts: COCO JSON (`application/json`), a table (`text/csv`) or JSON lines
/// (`application/jsonl`).
#[utoipa::path(
    get, operation_id = "get_detections",
    path = "/v1/jobs/{id}/detections", tag = "results", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The job."), DetectionParams,
        ("Range" = Option<String>, Header, description = "The part that is wanted, if nothing is filtered.")
    ),
    responses(
        (status = 200, content((Object = "application/json"), (String = "text/csv"), (String = "application/jsonl"))),
        (status = 206, content((String = "application/json"), (String = "text/csv"))),
        (status = 304), (status = 412), (status = 416),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 406, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "They are not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn negotiated(
    State(app): State<App>,
    Id(id): Id,
    Params(params): Params<DetectionParams>,
    request: Request,
) -> Result<Response, HttpError> {
    let format = Format::accepted(request.headers()).ok_or_else(|| {
        HttpError::new(
            StatusCode::NOT_ACCEPTABLE,
            "not_acceptable",
            "Detections come as application/json, text/csv or application/jsonl.",
        )
    })?;
    let mut answer = answer(&app, id, params, format, request).await?;
    answer.headers_mut().insert(header::VARY, header::HeaderValue::from_static("accept"));
    Ok(answer)
}

/// The detections as COCO JSON.
#[utoipa::path(
    get, operation_id = "get_detections_json",
    path = "/v1/jobs/{id}/detections.json", tag = "results", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The job."), DetectionParams,
        ("Range" = Option<String>, Header, description = "The part that is wanted, if nothing is filtered.")
    ),
    responses(
        (status = 200, content_type = "application/json", body = Object),
        (status = 206, content_type = "application/json", body = String),
        (status = 304), (status = 412), (status = 416),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "They are not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn coco(
    State(app): State<App>,
    Id(id): Id,
    Params(params): Params<DetectionParams>,
    request: Request,
) -> Result<Response, HttpError> {
    answer(&app, id, params, Format::Coco, request).await
}

/// The detections as a table.
#[utoipa::path(
    get, operation_id = "get_detections_csv",
    path = "/v1/jobs/{id}/detections.csv", tag = "results", security(("api_token" = [])),
    params(
        ("id" = String, Path, description = "The job."), DetectionParams,
        ("Range" = Option<String>, Header, description = "The part that is wanted, if nothing is filtered.")
    ),
    responses(
        (status = 200, content_type = "text/csv", body = String),
        (status = 206, content_type = "text/csv", body = String),
        (status = 304), (status = 412), (status = 416),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "They are not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn csv(
    State(app): State<App>,
    Id(id): Id,
    Params(params): Params<DetectionParams>,
    request: Request,
) -> Result<Response, HttpError> {
    answer(&app, id, params, Format::Csv, request).await
}

/// The detections as JSON lines, one object each.
#[utoipa::path(
    get, operation_id = "get_detections_jsonl",
    path = "/v1/jobs/{id}/detections.jsonl", tag = "results", security(("api_token" = [])),
    params(("id" = String, Path, description = "The job."), DetectionParams),
    responses(
        (status = 200, content_type = "application/jsonl", body = String),
        (status = 400, body = ErrorAnswer), (status = 401, body = ErrorAnswer), (status = 404, body = ErrorAnswer),
        (status = 409, body = ErrorAnswer, description = "They are not there, or not yet."), (status = 503, body = ErrorAnswer),
    )
)]
pub(super) async fn lines(
    State(app): State<App>,
    Id(id): Id,
    Params(params): Params<DetectionParams>,
    request: Request,
) -> Result<Response, HttpError> {
    answer(&app, id, params, Format::Lines, request).await
}

async fn answer(
    app: &App,
    id: JobId,
    params: DetectionParams,
    format: Format,
    request: Request,
) -> Result<Response, HttpError> {
    let job = app.job(id).await?;
    let filter = Filter::new(&params, &job)?;
    finished(&job, |_| true)?;
    let filter = filter.ok_or_else(|| HttpError::internal(format!("job {id} is finished without a plan")))?;
    let folder = app.volume().job(id);
    let name = disposition("attachment", &format!("detections_{id}.{}", format.ending()));
    if filter.passes_all(&job) {
        // Just this lies on the volume.
        match format {
            Format::Coco => return send(request, folder.detections_json(), format.kind(), &name).await,
            Format::Csv => return send(request, folder.detections_csv(), format.kind(), &name).await,
            Format::Lines => {}
        }
    }
    let segments = app.store().segments(id).await?;
    let body = written(app, move |outlet| write(outlet, format, &job, &folder, &segments, &filter))?;
    let headers: [(HeaderName, String); 3] = [
        (header::CONTENT_TYPE, format.kind().to_owned()),
        (header::CONTENT_DISPOSITION, name),
        (header::CACHE_CONTROL, "private, no-cache".to_owned()),
    ];
    Ok((headers, body).into_response())
}

/// What is wanted of a job's detections.
struct Filter {
    min_score: f32,
    /// Empty: all.
    classes: Vec<u16>,
    frames: Range<u32>,
}

impl Filter {
    /// None while the frames are not counted.
    fn new(params: &DetectionParams, job: &Job) -> Result<Option<Self>, HttpError> {
        let min_score = params.min_score.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&min_score) {
            return Err(HttpError::bad_request("min_score must be a number from 0 to 1."));
        }
        let classes = classes(params.class.as_deref().unwrap_or_default(), &job.settings.names)?;
        let Some(plan) = &job.plan else { return Ok(None) };
        let first = params.first_frame.unwrap_or(0);
        let last = params.last_frame.unwrap_or(u32::MAX).min(plan.frames.saturating_sub(1));
        if first > last {
            return Err(HttpError::bad_request(format!(
                "There are no frames from first_frame to last_frame; the video's are numbered 0 to {}.",
                plan.frames.saturating_sub(1)
            )));
        }
        Ok(Some(Self { min_score, classes, frames: first..last + 1 }))
    }

    fn passes_all(&self, job: &Job) -> bool {
        let frames = job.plan.as_ref().map_or(0, |plan| plan.frames);
        self.min_score <= 0.0 && self.classes.is_empty() && self.frames == (0..frames)
    }

    fn passes(&self, detection: &Detection) -> bool {
        detection.score >= self.min_score
            && (self.classes.is_empty() || self.classes.contains(&detection.class))
    }

    /// The part of a segment that is wanted.
    fn of(&self, segment: &SegmentDetections) -> SegmentDetections {
        let wanted = segment.numbered().filter(|(n, _)| self.frames.contains(n));
        let frames: Vec<Vec<Detection>> = wanted
            .map(|(_, found)| found.iter().filter(|found| self.passes(found)).copied().collect())
            .collect();
        SegmentDetections { first: segment.first.max(self.frames.start), frames }
    }
}

/// Writes what is wanted, segment by segment: memory does not grow with the video.
fn write(
    outlet: Outlet,
    format: Format,
    job: &Job,
    folder: &JobFolder,
    segments: &[Segment],
    filter: &Filter,
) -> io::Result<()> {
    let gone = |what: String| io::Error::new(io::ErrorKind::NotFound, what);
    let plan = job.plan.as_ref().ok_or_else(|| gone("the job has no plan".to_owned()))?;
    let index = FrameIndex::read(&folder.named(&plan.index)).map_err(io::Error::other)?;
    let video = VideoFacts {
        name: &job.filename,
        width: plan.width,
        height: plan.height,
        frames: plan.frames,
        told: filter.frames.clone(),
    };
    let mut parts = Vec::new();
    for segment in segments {
        if segment.first < filter.frames.end && segment.last >= filter.frames.start {
            let record = segment.files.detections.as_ref();
            let record =
                record.ok_or_else(|| gone(format!("segment {} names no detections", segment.index)))?;
            parts.push(folder.named(record));
        }
    }
    let settings: &Settings = &job.settings;
    let seconds = |n: u32| index.seconds(n);
    let each = |push: &mut dyn FnMut(&SegmentDetections) -> io::Result<()>| -> io::Result<()> {
        parts.iter().try_for_each(|part: &PathBuf| push(&filter.of(&read_detections(part)?)))
    };
    match format {
        Format::Coco => {
            let mut writer = CocoWriter::new(outlet, video, settings, seconds)?;
            each(&mut |segment| writer.push(segment))?;
            writer.finish()?;
        }
        Format::Csv => {
            let mut writer = CsvWriter::new(outlet, video, settings, seconds)?;
            each(&mut |segment| writer.push(segment))?;
            writer.finish()?;
        }
        Format::Lines => {
            let mut writer = LinesWriter::new(outlet, video, settings, seconds);
            each(&mut |segment| writer.push(segment))?;
            writer.finish()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_the_client_likes_best() {
        let accepted = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, header::HeaderValue::from_static(value));
            Format::accepted(&headers)
        };
        assert_eq!(Format::accepted(&HeaderMap::new()), Some(Format::Coco));
        assert_eq!(accepted("*/*"), Some(Format::Coco));
        assert_eq!(accepted("text/csv"), Some(Format::Csv));
        assert_eq!(accepted("application/json;q=0.5, application/x-ndjson"), Some(Format::Lines));
        assert_eq!(accepted("text/html, text/csv;q=0.2, */*;q=0.1"), Some(Format::Csv));
        assert_eq!(accepted("image/png"), None);
        assert_eq!(accepted("application/json;q=0"), None);
    }
}
