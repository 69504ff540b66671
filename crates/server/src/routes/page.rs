//! The chat page at `/`. Its files are part of the binary, and it loads nothing from elsewhere.
//!
//! It can be fetched without a key, so that it can ask for one. The policy lets no script run but its own,
//! and no text become HTML, whatever a model writes.
use super::Shared;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

/// Path, type and text of each file.
macro_rules! files {
    ($($path:literal: $kind:literal = $file:literal),* $(,)?) => {
        &[$(($path, $kind, include_str!(concat!("../../page/", $file)))),*]
    };
}

const FILES: &[(&str, &str, &str)] = files! {
    "/": "text/html" = "index.html",
    "/page/style.css": "text/css" = "style.css",
    "/page/icon.svg": "image/svg+xml" = "icon.svg",
    "/page/theme.js": "text/javascript" = "theme.js",
    "/page/app.js": "text/javascript" = "app.js",
    "/page/api.js": "text/javascript" = "api.js",
    "/page/conversation.js": "text/javascript" = "conversation.js",
    "/page/dom.js": "text/javascript" = "dom.js",
    "/page/markdown.js": "text/javascript" = "markdown.js",
    "/page/message.js": "text/javascript" = "message.js",
    "/page/store.js": "text/javascript" = "store.js",
    "/page/vendor/marked.js": "text/javascript" = "vendor/marked.js",
    "/page/vendor/marked-license.txt": "text/plain" = "vendor/marked-license.txt",
};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

pub(super) fn routes() -> Router<Arc<Shared>> {
    let mut router = Router::new();
    for &(path, kind, text) in FILES {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let etag = format!("\"{:016x}\"", hasher.finish());
        let handler = async move |headers: HeaderMap| file(&headers, &etag, kind, text);
        router = router.route(path, get(handler));
    }
    router
}

/// The file, unless the browser has it. A browser asks each time, so that page and server fit together.
fn file(headers: &HeaderMap, etag: &str, kind: &str, text: &'static str) -> Response {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        let tags = value.to_str().unwrap_or_default().split(',');
        tags.map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == etag || tag == "*")
    });
    let kind = format!("{kind}; charset=utf-8");
    let headers = [
        (header::ETAG, etag),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_TYPE, &kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    if known {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else {
        (headers, text).into_response()
    }
}
