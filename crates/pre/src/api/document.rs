//! The document of the interface, and a page to try it. Both are open: they tell nothing about jobs.

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::Redirect;
use axum::routing::get;
use utoipa::openapi::{OpenApi, RefOr};

use crate::app::App;

const PAGE: &str = include_str!("document/page.html");
const SCRIPT: &str = include_str!("document/page.js");
const STYLE: &str = include_str!("document/page.css");

/// Nothing from elsewhere: the page works without the internet, and nobody else's script runs in it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Describes the answers that say no more than their status.
pub(super) fn complete(document: &mut OpenApi) {
    let operations = document.paths.paths.values_mut().flat_map(|path| {
        let path = [
            &mut path.get,
            &mut path.put,
            &mut path.post,
            &mut path.delete,
            &mut path.options,
            &mut path.head,
            &mut path.patch,
        ];
        path.into_iter().flatten()
    });
    for (status, response) in operations.flat_map(|operation| operation.responses.responses.iter_mut()) {
        let status = status.parse().ok().and_then(|code: u16| StatusCode::from_u16(code).ok());
        if let (RefOr::T(response), Some(status)) = (response, status)
            && response.description.is_empty()
        {
            response.description = status.canonical_reason().unwrap_or_default().to_owned();
        }
    }
}

pub(super) fn routes(document: &OpenApi) -> Router<App> {
    // It was made by this program and consists of strings and numbers.
    let json = document.to_json().unwrap_or_default();
    let file = |kind: &'static str, text: &'static str| get(move || async move { (headers(kind), text) });
    Router::new()
        .route("/openapi.json", get(move || async move { (headers("application/json"), json) }))
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/", file("text/html; charset=utf-8", PAGE))
        .route("/docs/page.js", file("text/javascript; charset=utf-8", SCRIPT))
        .route("/docs/page.css", file("text/css; charset=utf-8", STYLE))
}

fn headers(kind: &'static str) -> [(HeaderName, &'static str); 4] {
    [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ]
}
