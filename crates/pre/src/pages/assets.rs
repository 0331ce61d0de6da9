//! Style, modules and icon, embedded. Their address carries a digest of all of them, so that a browser may keep
//! them for good, modules find each other beside themselves, and a new version is never mixed with an old one.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($name:literal, $kind:expr) => {
        ($name, $kind, include_str!(concat!("../../assets/", $name)))
    };
}

const FILES: [(&str, &str, &str); 9] = [
    asset!("style.css", CSS),
    asset!("icon.svg", "image/svg+xml"),
    asset!("live.js", JS),
    asset!("tus.js", JS),
    asset!("upload.js", JS),
    asset!("result.js", JS),
    asset!("details.js", JS),
    asset!("player.js", JS),
    asset!("workers.js", JS),
];

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut digest = Sha256::new();
    for (name, _, text) in FILES {
        digest.update(name.as_bytes());
        digest.update(text.as_bytes());
    }
    digest.finalize().iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
});

static BASE: LazyLock<String> = LazyLock::new(|| format!("/assets/{}", *VERSION));

/// The address of the folder they lie in.
pub(super) fn base() -> &'static str {
    &BASE
}

pub(super) async fn serve(Path((version, name)): Path<(String, String)>) -> Response {
    let file = FILES.iter().find(|(known, ..)| *known == name);
    // An old version's page may still ask during a change of versions: it gets what there is, but must not keep it.
    let kept = if version == *VERSION { "public, max-age=31536000, immutable" } else { "no-store" };
    match file {
        Some((_, kind, text)) => {
            let headers = [
                (header::CONTENT_TYPE, *kind),
                (header::CACHE_CONTROL, kept),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (headers, *text).into_response()
        }
        None => (StatusCode::NOT_FOUND, [(header::CACHE_CONTROL, "no-store")]).into_response(),
    }
}
