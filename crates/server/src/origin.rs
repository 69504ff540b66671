//! Which web pages may use the server.
//!
//! A browser sends what any page asks for to any address, this machine's included, and only keeps the reply from
//! the page. So that no page can have models fetched, deleted or run, what changes something is refused if it
//! comes from a page of another origin; `--cors-origin` lets origins in, and has their pages read replies.
use crate::error::{ApiError, ErrorKind};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, Request, Uri, header};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

/// Which origins are let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// Only the server's own.
    #[default]
    Own,
    /// These, as browsers write them: `https://example.com`.
    Listed(Vec<String>),
    /// All.
    All,
}

impl Origins {
    /// The origins of these names; `*` stands for all.
    ///
    /// # Errors
    /// If one is no origin.
    pub fn of(names: &[String]) -> Result<Self, String> {
        if names.iter().any(|name| name == "*") {
            return Ok(Self::All);
        }
        for name in names {
            let uri: Option<Uri> = name.parse().ok();
            let origin = uri
                .as_ref()
                .and_then(|uri| Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?)));
            if origin.as_ref() != Some(name) {
                return Err(format!(
                    "'{name}' is no origin: expected scheme, host and perhaps port, as in https://example.com:8443, or *"
                ));
            }
        }
        Ok(if names.is_empty() { Self::Own } else { Self::Listed(names.to_vec()) })
    }

    /// What lets pages of these origins read replies; `None` if there are none.
    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        let allowed: AllowOrigin = match self {
            Self::Own => return None,
            Self::Listed(origins) => {
                let values = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
                AllowOrigin::list(values)
            }
            Self::All => Any.into(),
        };
        let methods = [Method::GET, Method::POST, Method::DELETE];
        Some(
            CorsLayer::new()
                .allow_origin(allowed)
                .allow_methods(methods)
                .allow_headers(Any)
                .expose_headers(Any),
        )
    }

    /// Refuses what a page of a foreign origin wants to change. Programs that are no browsers send no origin, or
    /// one with a scheme of their own.
    pub(crate) fn check<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        let (method, headers) = (request.method(), request.headers());
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or_default();
        let is_page = ["http://", "https://"].iter().any(|scheme| origin.starts_with(scheme))
            || origin == "null";
        let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
        let own = || {
            // HTTP/2 has it in the address.
            let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
            let host = host.or_else(|| request.uri().authority().map(Authority::as_str));
            host.is_some_and(|host| origin.split_once("://").is_some_and(|(_, rest)| rest == host))
        };
        let listed = match self {
            Self::All => true,
            Self::Own => false,
            Self::Listed(origins) => origins.iter().any(|listed| listed == origin),
        };
        if !is_page || reads || listed || own() {
            return Ok(());
        }
        let message = format!(
            "pages of {origin} may not use this server\nhint: start it with --cors-origin {origin}"
        );
        Err(ApiError::new(ErrorKind::Forbidden, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_others_change_nothing() {
        let listed = Origins::of(&["https://a.example".to_owned()]).expect("origins");
        let check = |origins: &Origins,
                     method: Method,
                     origin: Option<&'static str>,
                     allowed: bool| {
            for (address, host) in [("/", Some("127.0.0.1:8080")), ("http://127.0.0.1:8080/", None)]
            {
                let headers = [(header::HOST, host), (header::ORIGIN, origin)];
                let mut request = Request::builder().method(&method).uri(address);
                for (name, value) in headers {
                    request = value.into_iter().fold(request, |r, value| r.header(&name, value));
                }
                let request = request.body(()).expect("a request");
                let found = origins.check(&request).is_ok();
                assert_eq!(found, allowed, "{method} {origin:?} {host:?}");
            }
        };
        let own = Origins::Own;
        check(&own, Method::POST, None, true);
        check(&own, Method::POST, Some("http://127.0.0.1:8080"), true);
        check(&own, Method::POST, Some("http://127.0.0.1:9090"), false);
        check(&own, Method::POST, Some("https://a.example"), false);
        check(&own, Method::DELETE, Some("null"), false);
        check(&own, Method::GET, Some("https://a.example"), true);
        check(&own, Method::POST, Some("tauri://localhost"), true);
        check(&listed, Method::POST, Some("https://a.example"), true);
        check(&listed, Method::POST, Some("https://b.example"), false);
        check(&Origins::All, Method::POST, Some("https://b.example"), true);
    }

    #[test]
    fn origins_are_read() {
        let of = |name: &str| Origins::of(&[name.to_owned()]);
        assert_eq!(of("*"), Ok(Origins::All));
        assert_eq!(Origins::of(&[]), Ok(Origins::Own));
        assert!(of("http://localhost:3000").is_ok());
        for wrong in ["localhost", "https://a.example/", "https://a.example/x", "", "a b"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
