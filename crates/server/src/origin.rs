//! Which web pages may use the server, and under which names.
//!
//! A browser sends what any page asks for to any address, this machine's included, and only keeps the reply from
//! the page. So that no page can have models fetched, deleted or run, what changes something is refused if it
//! comes from a page of another origin; `--cors-origin` lets origins in, and has their pages read replies.
//!
//! A page can also give its own host's name this machine's address (DNS rebinding); the server is of the page's
//! origin then. What gives it away is the name that the request is addressed to, which [`Hosts`] checks.
use crate::error::{ApiError, ErrorKind};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, Request, Uri, header};
use std::net::IpAddr;
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

/// The hosts that requests may be addressed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hosts {
    /// Any.
    #[default]
    Any,
    /// `localhost`, loopback addresses, and those that are listed.
    Listed {
        /// The address that the server listens on; unspecified: all addresses of the machine.
        bound: IpAddr,
        /// Names without port.
        names: Vec<String>,
    },
}

impl Hosts {
    /// What a server that listens on `bound` lets in: on a loopback address, what is addressed to this machine or
    /// to one of `names`. On others, anything, unless there are names: then those, and what loopback has.
    pub fn of(bound: IpAddr, names: &[String]) -> Self {
        if names.is_empty() && !bound.is_loopback() {
            return Self::Any;
        }
        Self::Listed { bound, names: names.to_vec() }
    }

    fn has(&self, host: &str) -> bool {
        let Self::Listed { bound, names } = self else { return true };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            let listed = names.iter().any(|name| name.parse() == Ok(address));
            return address.is_loopback() || bound.is_unspecified() || address == *bound || listed;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        host == "localhost"
            || host.ends_with(".localhost")
            || names.iter().any(|name| name.eq_ignore_ascii_case(&host))
    }

    /// Refuses what is addressed to another host. Programs that are no browsers may name none.
    pub(crate) fn check<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        if *self == Self::Any {
            return Ok(());
        }
        // HTTP/2 has it in the address.
        let given = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
        let Some(given) = given.or_else(|| request.uri().authority().map(Authority::as_str)) else {
            return Ok(());
        };
        let authority: Option<Authority> = given.parse().ok();
        if authority.as_ref().is_some_and(|authority| self.has(authority.host())) {
            return Ok(());
        }
        let name = authority.as_ref().map_or("NAME", Authority::host);
        let message = format!(
            "this server is not to be asked as '{given}'\nhint: start it with --allowed-host {name}"
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
    fn hosts_of_others_are_refused() {
        let check = |bound: &str, names: &[&str], host: Option<&str>, allowed: bool| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let hosts = Hosts::of(bound.parse().expect("an address"), &names);
            let http1 = host.map(|host| Request::get("/").header(header::HOST, host));
            let http2 = host.map(|host| Request::get(format!("http://{host}/")));
            let requests = [http1, http2].map(|r| r.unwrap_or_else(|| Request::get("/")).body(()));
            for request in requests {
                let found = hosts.check(&request.expect("a request")).is_ok();
                assert_eq!(found, allowed, "{bound} {names:?} {host:?}");
            }
        };
        let known =
            ["localhost", "LOCALHOST:8080", "localhost.", "a.localhost:1", "127.0.0.1:8080"];
        for host in known.into_iter().chain(["127.1.2.3", "[::1]:8080", "[::1]"]) {
            check("127.0.0.1", &[], Some(host), true);
            check("::1", &["a.example"], Some(host), true);
            check("0.0.0.0", &["a.example"], Some(host), true);
        }
        for host in
            ["a.example", "a.example:8080", "localhost.a.example", "notlocalhost", "10.0.0.1"]
        {
            check("127.0.0.1", &[], Some(host), false);
            check("127.0.0.1", &["b.example"], Some(host), false);
            check("0.0.0.0", &[], Some(host), true);
        }
        check("127.0.0.1", &[], None, true);
        check("127.0.0.1", &["a.example", "10.0.0.1"], Some("A.example:80"), true);
        check("127.0.0.1", &["a.example", "10.0.0.1"], Some("10.0.0.1:80"), true);
        check("0.0.0.0", &["a.example"], Some("10.0.0.1:8080"), true);
        check("0.0.0.0", &["a.example"], Some("b.example"), false);
        check("10.0.0.1", &["a.example"], Some("10.0.0.1"), true);
        check("10.0.0.1", &["a.example"], Some("10.0.0.2"), false);
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        let hosts = Hosts::of(IpAddr::from([127, 0, 0, 1]), &[]);
        for host in [&b"a b"[..], b"\xff", b"", b"@"] {
            let request = Request::get("/").header(header::HOST, host).body(()).expect("a request");
            assert!(hosts.check(&request).is_err(), "{host:?}");
        }
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
