//! The document of the interface, and a page to try it. Both are open: they tell nothing about jobs.

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::Redirect;
use axum::routing::get;
use utoipa::openapi::OpenApi;

use crate::app::App;

const PAGE: &str = include_str!("document/page.html");
const SCRIPT: &str = include_str!("document/page.js");
const STYLE: &str = include_str!("document/page.css");

/// Nothing from elsewhere: the page works without the internet, and nobody else's script runs in it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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
