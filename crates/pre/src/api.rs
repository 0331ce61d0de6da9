//! The REST interface: one file a resource. What the handlers say about themselves becomes `/openapi.json`.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use common::http_error::HttpError;
use common::service::auth::Gate;
use common::store::{Job, Store};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;

mod archives;
mod detect;
mod detections;
mod document;
mod events;
mod extract;
mod files;
mod intake;
mod jobs;
mod options;
mod stream;
mod timeline;
mod tus;
mod upload;
mod view;
mod workers;

pub(crate) use events::Feed;
pub(crate) use extract::media_type;
pub(crate) use intake::free_space;
pub(crate) use jobs::{JobPage, page};
pub(crate) use tus::make_job;
pub(crate) use view::{JobView, view};
pub(crate) use workers::{House, ServiceView, house};

/// What the document says of the interface as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Boxreel",
        description = "Upload a video, get it back with every object boxed and named, and the detections as data."
    ),
    tags(
        (name = "jobs", description = "From an upload to its end."),
        (name = "uploads", description = "Uploads that may be interrupted and go on, by the tus protocol (https://tus.io)."),
        (name = "results", description = "What came of it."),
        (name = "pictures", description = "Single pictures, answered at once."),
        (name = "workers", description = "For workers, and about them."),
    ),
    modifiers(&Tokens)
)]
struct Document;

/// The tokens that the operations ask for.
struct Tokens;

impl Modify for Tokens {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        for (name, description) in [
            ("api_token", "The service's BOXREEL_API_TOKEN; any, where it has none."),
            ("worker_token", "The service's BOXREEL_WORKER_TOKEN; any, where it has none."),
            ("admin_token", "The service's BOXREEL_ADMIN_TOKEN; where it has none, none will do."),
        ] {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description));
            components.add_security_scheme(name, SecurityScheme::Http(scheme.build()));
        }
    }
}

/// All routes.
pub(crate) fn router(app: App) -> Router {
    let users = OpenApiRouter::new()
        .routes(routes!(jobs::list, upload::create))
        .routes(routes!(jobs::show, jobs::remove))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(events::follow))
        .routes(routes!(files::mp4))
        .routes(routes!(files::avi))
        .routes(routes!(files::poster))
        .routes(routes!(files::source))
        .routes(routes!(detections::negotiated))
        .routes(routes!(detections::coco))
        .routes(routes!(detections::csv))
        .routes(routes!(detections::lines))
        .routes(routes!(archives::txts))
        .routes(routes!(archives::frames))
        .routes(routes!(detect::forward))
        .routes(routes!(workers::list))
        .route_layer(middleware::from_fn_with_state(app.gates.api.clone(), guard));
    let uploads = OpenApiRouter::new()
        .routes(routes!(tus::options, tus::create))
        .routes(routes!(tus::head, tus::patch, tus::terminate, tus::overridden))
        .route_layer(middleware::from_fn(tus::of_this_version))
        .route_layer(middleware::from_fn_with_state(app.gates.api.clone(), guard))
        .route_layer(middleware::map_response(tus::with_version));
    let workers = OpenApiRouter::new()
        .routes(routes!(timeline::show, timeline::put, timeline::post))
        .route_layer(middleware::from_fn_with_state(app.gates.worker.clone(), guard));
    let admins = OpenApiRouter::new()
        .routes(routes!(workers::scale))
        .route_layer(middleware::from_fn_with_state(app.gates.admin.clone(), workers::guard));
    let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .merge(users)
        .merge(uploads)
        .merge(workers)
        .merge(admins)
        .split_for_parts();
    document::complete(&mut document);
    router
        .merge(document::routes(&document))
        .fallback(nothing_there)
        .method_not_allowed_fallback(not_this_way)
        .with_state(app)
}

/// Lets only requests with the right token pass.
async fn guard(State(gate): State<Gate>, request: Request, next: Next) -> Result<Response, HttpError> {
    if gate.admits_request(request.headers()) {
        Ok(next.run(request).await)
    } else {
        Err(HttpError::unauthorized())
    }
}

async fn nothing_there(request: Request) -> HttpError {
    HttpError::not_found(format!("There is nothing at {}.", request.uri().path()))
}

async fn not_this_way(method: Method, request: Request) -> HttpError {
    HttpError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{method} is not for {}.", request.uri().path()),
    )
}

/// A client for services of the house, such as infer.
pub(crate) fn client(infer: Option<&str>) -> anyhow::Result<reqwest::Client> {
    if let Some(url) = infer {
        let sound = reqwest::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        anyhow::ensure!(
            sound,
            "{url:?} is no address of infer: set BOXREEL_INFER_URL, such as http://infer:8081."
        );
    }
    common::service::crypto();
    Ok(reqwest::Client::builder().connect_timeout(std::time::Duration::from_secs(3)).build()?)
}

/// What a callback tells of a job's end.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn ended(store: &dyn Store, job: &Job) -> Result<String, String> {
    let view = view::view(store, job).await.map_err(|error| error.to_string())?;
    let word = serde_json::json!({ "event": "job.ended", "job": view });
    Ok(word.to_string())
}
