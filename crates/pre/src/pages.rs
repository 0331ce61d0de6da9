//! The pages: upload, watch it work, look at what was found. They stand on the REST interface as any other client
//! does, and work without JavaScript; what the modules in `assets/` add is convenience.

use askama::Template;
use axum::Router;
use axum::extract::{Form, Path, Query, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use common::http_error::HttpError;
use common::job::{JobId, Status};
use serde::Deserialize;

use self::job::{Chart, JobModel, Piece};
use self::rest::Rest;
use self::session::{FormToken, SessionKey};
use crate::api::{self, JobPage};
use crate::app::App;

mod assets;
mod job;
mod rest;
mod session;
mod workers;

/// What the pages may load and do: only what this service itself serves, and no code or style within the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// Requests on a page.
const PAGE: u32 = 20;
/// Squares of segments that are drawn; a film of a day has more than anybody looks at.
const SQUARES: usize = 2000;

/// What the handlers share.
#[derive(Clone)]
struct Pages {
    app: App,
    rest: Rest,
    /// Absent where no token is asked for.
    key: Option<SessionKey>,
    /// Absent where there is no admin token.
    admin_key: Option<SessionKey>,
}

impl Pages {
    async fn job(&self, id: JobId) -> Result<JobModel, HttpError> {
        Ok(JobModel::new(api::view(self.app.store(), &self.app.job(id).await?).await?))
    }

    /// Has the REST interface do something to a job that one of our forms is about.
    async fn act(
        &self,
        token: Option<&FormToken>,
        id: &str,
        form: &Signed,
        method: Method,
        what: &str,
    ) -> Result<JobId, HttpError> {
        session::ours(token, &form.form_token)?;
        let id = job_id(id)?;
        self.rest.act(method, &format!("/v1/jobs/{id}{what}")).await?;
        Ok(id)
    }
}

/// The pages and `api`, whose door then also opens to the session of a browser.
pub(crate) fn around(app: App, api: Router) -> Router {
    let key = app.api_token.as_ref().map(SessionKey::new);
    let admin_key = app.admin_token.as_ref().map(SessionKey::new);
    let state = Pages { rest: Rest::new(api.clone(), app.api_token.as_ref()), key, admin_key, app };
    let closed = Router::new()
        .route("/", get(async || Redirect::to("/upload")))
        .route("/upload", get(upload))
        .route("/fileUpload", post(file_upload))
        .route("/result", get(result))
        .route("/result/{id}", get(details))
        .route("/result/{id}/cancel", post(cancel))
        .route("/result/{id}/retry", post(retry))
        .route("/resdelete/{id}", get(ask).post(delete))
        .route("/workers", get(workers::show))
        .route("/workers/unlock", post(workers::unlock))
        .route("/workers/lock", post(workers::lock))
        .route("/workers/{deployment}", post(workers::scale))
        .route("/logout", post(sign_out))
        .route_layer(middleware::from_fn_with_state(state.clone(), session::required));
    let open = Router::new().route("/login", get(login).post(sign_in));
    let pages = closed.merge(open).route_layer(middleware::from_fn(sealed));
    let files = Router::new().route("/assets/{version}/{name}", get(assets::serve));
    api.merge(pages.with_state(state.clone()))
        .merge(files)
        .layer(middleware::from_fn_with_state(state, session::admit))
}

/// Adds the headers that hold a browser to what the pages are.
async fn sealed(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Forms need their Origin, which `no-referrer` would take from them.
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// What every page has.
struct Frame {
    assets: &'static str,
    /// Empty where nobody signs in.
    form_token: String,
}

impl Frame {
    fn of(token: Option<&FormToken>) -> Self {
        Self { assets: assets::base(), form_token: token.map(|token| token.0.clone()).unwrap_or_default() }
    }
}

fn render(page: &impl Template) -> Result<Response, Failed> {
    Ok(Html(page.render().map_err(HttpError::internal)?).into_response())
}

/// An error as a page.
struct Failed(HttpError);

impl<E: Into<HttpError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorTemplate<'a> {
    frame: Frame,
    message: &'a str,
    lost: bool,
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let lost = self.0.status() == StatusCode::NOT_FOUND;
        let page = ErrorTemplate { frame: Frame::of(None), message: self.0.message(), lost };
        let Ok(text) = page.render() else { return self.0.into_response() };
        let mut answer = (self.0.status(), Html(text)).into_response();
        if let Some(after) = self.0.into_response().headers().get(header::RETRY_AFTER) {
            answer.headers_mut().insert(header::RETRY_AFTER, after.clone());
        }
        answer
    }
}

type Answer = Result<Response, Failed>;

#[derive(Template)]
#[template(path = "upload.html")]
struct UploadTemplate {
    frame: Frame,
    max_upload: u64,
    max_upload_text: String,
}

async fn upload(State(pages): State<Pages>, token: Option<axum::Extension<FormToken>>) -> Answer {
    let max_upload = pages.app.settings.max_upload;
    render(&UploadTemplate {
        frame: Frame::of(token.as_deref()),
        max_upload,
        max_upload_text: job::bytes(max_upload),
    })
}

#[derive(Template)]
#[template(path = "resorback.html")]
struct ResorbackTemplate {
    frame: Frame,
    job: JobModel,
}

/// The form of the original: it is what `POST /v1/jobs` takes, answered with a page.
async fn file_upload(
    State(pages): State<Pages>,
    token: Option<axum::Extension<FormToken>>,
    Query(query): Query<Signed>,
    request: Request,
) -> Answer {
    // In the query, because what is in the body comes when the file has been taken already.
    session::ours(token.as_deref(), &query.form_token)?;
    let job = pages.job(pages.rest.upload(request).await?).await?;
    render(&ResorbackTemplate { frame: Frame::of(token.as_deref()), job })
}

/// A group of statuses that is looked at together.
struct Filter {
    name: &'static str,
    label: &'static str,
    /// Empty: all.
    statuses: &'static [Status],
}

const FILTERS: [Filter; 5] = [
    Filter { name: "", label: "All", statuses: &[] },
    Filter {
        name: "running",
        label: "Running",
        statuses: &[
            Status::Enqueue,
            Status::Preprocessing,
            Status::PreprocessingComplete,
            Status::Inference,
            Status::InferenceComplete,
            Status::Postprocessing,
        ],
    },
    Filter { name: "complete", label: "Complete", statuses: &[Status::PostprocessingComplete] },
    Filter {
        name: "failed",
        label: "Failed",
        statuses: &[
            Status::EnqueueError,
            Status::FrameConvertError,
            Status::InferenceError,
            Status::PostprocessingError,
        ],
    },
    Filter { name: "cancelled", label: "Cancelled", statuses: &[Status::Cancelled] },
];

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    status: String,
    before: Option<String>,
}

#[derive(Template)]
#[template(path = "result.html")]
struct ResultTemplate {
    frame: Frame,
    jobs: Vec<JobModel>,
    filters: &'static [Filter],
    filter: &'static Filter,
    first_page: bool,
    older: Option<String>,
    live: bool,
}

async fn result(
    State(pages): State<Pages>,
    token: Option<axum::Extension<FormToken>>,
    Query(query): Query<ListQuery>,
) -> Answer {
    let filter = FILTERS.iter().find(|filter| filter.name == query.status).ok_or_else(|| {
        HttpError::bad_request(
            "There is no such group of requests: choose all, running, complete, failed or cancelled.",
        )
    })?;
    // What names a page is an id; anything else would only spoil the path.
    let before: Option<JobId> = match query.before.as_deref() {
        Some(id) => Some(id.parse().map_err(|_| {
            HttpError::bad_request("There is no such page of results: start from the newest.")
        })?),
        None => None,
    };
    let JobPage { jobs, next_page_token } = api::page(&pages.app, before, PAGE, filter.statuses).await?;
    let jobs: Vec<JobModel> = jobs.into_iter().map(JobModel::new).collect();
    render(&ResultTemplate {
        frame: Frame::of(token.as_deref()),
        live: jobs.iter().any(|job| !job.is_final),
        jobs,
        filters: &FILTERS,
        filter,
        first_page: before.is_none(),
        older: next_page_token,
    })
}

#[derive(Template)]
#[template(path = "details.html")]
struct DetailsTemplate {
    frame: Frame,
    job: JobModel,
    chart: Chart,
    pieces: Vec<Piece>,
    more_pieces: usize,
    colours: String,
}

async fn details(
    State(pages): State<Pages>,
    token: Option<axum::Extension<FormToken>>,
    Path(id): Path<String>,
) -> Answer {
    let id = job_id(&id)?;
    let stored = pages.app.job(id).await?;
    let job = JobModel::new(api::view(pages.app.store(), &stored).await?);
    let now = pages.app.store().now().await?;
    let segments = if job.is_final { vec![] } else { pages.app.store().segments(id).await? };
    render(&DetailsTemplate {
        frame: Frame::of(token.as_deref()),
        chart: Chart::of(&stored.timeline, now),
        more_pieces: segments.len().saturating_sub(SQUARES),
        pieces: segments.iter().take(SQUARES).map(|segment| Piece::of(segment, now)).collect(),
        colours: job::colours(&stored.settings.names),
        job,
    })
}

async fn cancel(
    State(pages): State<Pages>,
    token: Option<axum::Extension<FormToken>>,
    Path(id): Path<String>,
    Form(form): Form<Signed>,
) -> Answer {
    let id = pages.act(token.as_deref(), &id, &form, Method::POST, "/cancel").await?;
    Ok(Redirect::to(&format!("/result/{id}")).into_response())
}

async fn retry(
    State(pages): State<Pages>,
    token: Option<axum::Extension<FormToken>>,
    Path(id): Path<String>,
    Form(form): Form<Signed>,
) -> Answer {
    let id = pages.act(token.as_deref(), &id, &form, Method::POST, "/retry").await?;
    Ok(Redirect::to(&format!("/result/{id}")).into_response())
}

#[derive(Template)]
#[template(path = "resdelete.html")]
struct ResdeleteTemplate {
    frame: Frame,
    job: JobModel,
}

async fn ask(
    State(pages): State<Pages>,
    token: Option<axum::Extension<FormToken>>,
    Path(id): Path<String>,
) -> Answer {
    let job = pages.job(job_id(&id)?).await?;
    render(&ResdeleteTemplate { frame: Frame::of(token.as_deref()), job })
}

async fn delete(
    State(pages): State<Pages>,
    token: Option<axum::Extension<FormToken>>,
    Path(id): Path<String>,
    Form(form): Form<Signed>,
) -> Answer {
    pages.act(token.as_deref(), &id, &form, Method::DELETE, "").await?;
    Ok(Redirect::to("/result").into_response())
}

/// The proof, in a form, that the form is ours.
#[derive(Deserialize)]
struct Signed {
    #[serde(default)]
    form_token: String,
}

fn job_id(id: &str) -> Result<JobId, HttpError> {
    id.parse().map_err(|_| HttpError::not_found("There is no such request; it may have been deleted."))
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginTemplate {
    frame: Frame,
    next: String,
    wrong: bool,
}

#[derive(Deserialize)]
struct LoginQuery {
    #[serde(default)]
    next: String,
}

async fn login(State(pages): State<Pages>, Query(query): Query<LoginQuery>) -> Answer {
    if pages.key.is_none() {
        return Ok(Redirect::to("/upload").into_response());
    }
    render(&LoginTemplate { frame: Frame::of(None), next: session::local(&query.next), wrong: false })
}

#[derive(Deserialize)]
struct LoginForm {
    token: String,
    #[serde(default)]
    next: String,
}

async fn sign_in(State(pages): State<Pages>, Form(form): Form<LoginForm>) -> Answer {
    let next = session::local(&form.next);
    let Some(key) = &pages.key else { return Ok(Redirect::to(&next).into_response()) };
    if !pages.app.gates.api.admits(form.token.trim()) {
        let page = LoginTemplate { frame: Frame::of(None), next, wrong: true };
        return Ok((StatusCode::FORBIDDEN, render(&page)?).into_response());
    }
    let cookie = session::USER.begin(key, pages.app.store().now().await?);
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to(&next)).into_response())
}

async fn sign_out(token: Option<axum::Extension<FormToken>>, Form(form): Form<Signed>) -> Answer {
    session::ours(token.as_deref(), &form.form_token)?;
    let cookie = session::USER.end();
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response())
}
