//! HTTP as downloads need it: redirects that never carry the token to another host, retries with
//! growing pauses, and answers taken apart into what identifies a file.
//!
//! Redirects are followed here and not by the HTTP library, for two reasons: Hugging Face says in
//! the headers of its redirect what the file is (`X-Linked-ETag` is its sha256), and the token
//! belongs to one origin only.
use std::sync::Arc;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC};
use ureq::Body;
use ureq::http::{HeaderMap, Method, Request, Response, Uri};

use crate::error::printable;
use crate::{Error, HubConfig, Progress};

/// What is encoded in one segment of a path.
pub(crate) const PATH_SEGMENT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What is encoded in a `Location` that is not as clean as it should be.
const LOCATION: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`');

const MAX_REDIRECTS: u32 = 10;

/// An HTTP client with the configuration's token, patience and certificates.
pub(crate) struct Client {
    agent: ureq::Agent,
    /// `Authorization` header and the origin that it is for.
    token: Option<(String, String)>,
    pub(crate) retry: Retry,
    offline: bool,
}

/// How often and how patiently to try again.
#[derive(Clone, Copy)]
pub(crate) struct Retry {
    attempts: u32,
    backoff: Duration,
    max_backoff: Duration,
}

/// Failures in a row, and the pause before the next attempt.
pub(crate) struct Failures {
    retry: Retry,
    attempts: u32,
    weight: u32,
}

/// A final answer: no redirect, and a success or a status that its caller asked to see.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    /// The headers of the first answer, redirect or not.
    pub(crate) first_headers: HeaderMap,
}

/// A request that failed in a way that may pass.
pub(crate) struct Transient {
    pub(crate) why: String,
    /// What the server asked for with `Retry-After`.
    pub(crate) after: Option<Duration>,
    /// How much it counts against the attempts: more if there is no server, since that rarely
    /// passes soon.
    pub(crate) weight: u32,
}

impl Transient {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), after: None, weight: 1 }
    }
}

impl Retry {
    pub(crate) fn start(self) -> Failures {
        Failures { retry: self, attempts: 0, weight: 0 }
    }
}

impl Failures {
    /// Counts a failure and waits; the error when there were too many.
    pub(crate) fn wait(
        &mut self,
        url: &str,
        failure: &Transient,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        self.attempts += 1;
        self.weight += failure.weight;
        let why = &failure.why;
        if self.weight >= self.retry.attempts.max(1) {
            let attempts = self.attempts;
            return Err(Error::Network { url: url.into(), why: why.clone(), attempts });
        }
        let doublings = (self.attempts - 1).min(16);
        let pause = failure
            .after
            .unwrap_or(self.retry.backoff.saturating_mul(1 << doublings))
            .min(self.retry.max_backoff);
        progress
            .note(&format!("{url}: {why}; trying again in {:.0} s", pause.as_secs_f32().ceil()));
        let end = Instant::now() + pause;
        loop {
            crate::go_on(progress)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(200)));
        }
    }

    /// Forgets the failures: things move again.
    pub(crate) fn reset(&mut self) {
        (self.attempts, self.weight) = (0, 0);
    }
}

impl Client {
    pub(crate) fn new(config: &HubConfig) -> Result<Self, Error> {
        let mut tls = ureq::tls::TlsConfig::builder();
        if let Some(path) = &config.ca_file {
            tls = tls.root_certs(read_certificates(path)?);
        }
        let agent = ureq::Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("hurtle/", env!("CARGO_PKG_VERSION")))
            // Compression would make lengths and ranges those of the compressed bytes.
            .accept_encoding("identity")
            .timeout_connect(Some(config.timeout))
            .timeout_recv_response(Some(config.timeout))
            .timeout_per_read(Some(config.timeout))
            .timeout_per_write(Some(config.timeout))
            .build()
            .new_agent();
        let endpoint: Option<Uri> = config.hf_endpoint.parse().ok();
        let Some(endpoint) = endpoint.filter(is_http) else {
            let found = printable(&config.hf_endpoint, 80);
            let why = format!("expected https://HOST, found '{found}'");
            return Err(Error::Config { name: "HF_ENDPOINT".into(), why });
        };
        let token = config
            .hf_token
            .as_ref()
            .map(|token| (origin(&endpoint), format!("Bearer {}", token.reveal())));
        let retry = Retry {
            attempts: config.attempts,
            backoff: config.backoff,
            max_backoff: config.max_backoff,
        };
        Ok(Self { agent, token, retry, offline: config.offline })
    }

    /// One GET with redirects. `Ok(Err(_))` is worth another attempt.
    ///
    /// # Errors
    /// [`Error::Status`] for a status that is neither a success nor in `accepted`,
    /// [`Error::BadAnswer`] for redirects that lead nowhere, [`Error::Offline`].
    pub(crate) fn get_once(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        accepted: &[u16],
    ) -> Result<Result<Answer, Transient>, Error> {
        let shown = without_userinfo(url);
        if self.offline {
            return Err(Error::Offline { what: shown, variable: "HURTLE_OFFLINE" });
        }
        let bad = |why: String| Error::BadAnswer { url: shown.clone(), why };
        let mut uri: Uri = url.parse().map_err(|_| bad("the address is malformed".into()))?;
        let mut first_headers = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(Method::GET).uri(&uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some((_, bearer)) = self.token.as_ref().filter(|(o, _)| *o == origin(&uri)) {
                request = request.header("Authorization", bearer);
            }
            let request = request.body(()).map_err(|e| bad(e.to_string()))?;
            let mut response = match self.agent.run(request) {
                Ok(response) => response,
                Err(e) => {
                    let why = describe(&e);
                    return if is_permanent(&e) {
                        Err(bad(why))
                    } else {
                        let weight = if is_unreachable(&e) { 3 } else { 1 };
                        Ok(Err(Transient { why, after: None, weight }))
                    };
                }
            };
            let first = first_headers.get_or_insert_with(|| response.headers().clone());
            let status = response.status();
            if status.is_success() || accepted.contains(&status.as_u16()) {
                return Ok(Ok(Answer { first_headers: std::mem::take(first), response }));
            }
            if status.is_redirection() {
                let location = header(response.headers(), "location")
                    .ok_or_else(|| bad(format!("a redirect ({status}) without Location")))?;
                let next = resolve_location(&uri, location)
                    .ok_or_else(|| bad(format!("a redirect to '{}'", printable(location, 100))))?;
                if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                    return Err(bad(format!("a redirect from https to {}", origin(&next))));
                }
                uri = next;
                continue;
            }
            let code = status.as_u16();
            if matches!(code, 408 | 425 | 429 | 500 | 502 | 503 | 504) {
                let after = header(response.headers(), "retry-after")
                    .and_then(|v| v.trim().parse().ok())
                    .map(Duration::from_secs);
                let why = format!("the server answered {status}");
                return Ok(Err(Transient { why, after, weight: 1 }));
            }
            return Err(Error::Status { url: shown, status: code, detail: detail(&mut response) });
        }
        Err(bad(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// The body of a small answer, at most `limit` bytes, with attempts repeated.
    ///
    /// # Errors
    /// As [`Client::get_once`], and [`Error::Network`] after too many failures.
    pub(crate) fn get_text(
        &self,
        url: &str,
        limit: u64,
        progress: &mut dyn Progress,
    ) -> Result<String, Error> {
        let mut failures = self.retry.start();
        loop {
            let failure = match self.get_once(url, &[], &[])? {
                Ok(mut answer) => {
                    let body = answer.response.body_mut().with_config().limit(limit);
                    match body.read_to_string() {
                        Ok(text) => return Ok(text),
                        Err(ureq::Error::BodyExceedsLimit(_)) => {
                            let why = format!("the answer is longer than {limit} bytes");
                            return Err(Error::BadAnswer { url: url.into(), why });
                        }
                        Err(e) => Transient::new(describe(&e)),
                    }
                }
                Err(failure) => failure,
            };
            failures.wait(url, &failure, progress)?;
        }
    }

    /// Whether `url` would be asked with the token.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }
}

/// A header's value, if it is there and plain text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What a server says about a refusal: its own header, else the beginning of a text or JSON body.
fn detail(response: &mut Response<Body>) -> String {
    if let Some(message) = header(response.headers(), "x-error-message") {
        return printable(message, 200);
    }
    let is_page = header(response.headers(), "content-type").is_some_and(|t| t.contains("html"));
    if is_page {
        return String::new();
    }
    let body = response.body_mut().with_config().limit(64 * 1024).lossy_utf8(true);
    let text = body.read_to_string().unwrap_or_default();
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let error = json.as_ref().and_then(|j| j.get("error")).and_then(|e| e.as_str());
    printable(error.unwrap_or(&text), 200)
}

/// Scheme, host and port: what a token is for.
fn origin(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    format!("{scheme}://{}:{port}", uri.host().unwrap_or_default().to_ascii_lowercase())
}

/// Where a redirect leads (RFC 9110, section 10.2.2); only http and https.
fn resolve_location(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?.trim();
    let location = percent_encoding::utf8_percent_encode(location, LOCATION).to_string();
    let scheme = base.scheme_str()?;
    let authority = base.authority()?.as_str();
    let authority = authority.rsplit('@').next()?;
    let absolute = if location.contains("://") && !location.starts_with(['/', '?']) {
        location
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let folder = &base.path()[..=base.path().rfind('/')?];
        format!("{scheme}://{authority}{folder}{location}")
    };
    absolute.parse().ok().filter(is_http)
}

fn is_http(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|h| !h.is_empty())
}

/// An address as it may be shown and stored: without user name and password.
pub(crate) fn without_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    format!("{scheme}://{}{path}", authority.rsplit('@').next().unwrap_or(authority))
}

/// A failed request in words.
pub(crate) fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "the host name is not known".into(),
        ureq::Error::Io(e) => describe_io(e),
        ureq::Error::Timeout(_) => "the server is silent".into(),
        other => {
            let mut text = printable(&other.to_string(), 200);
            if text.contains("UnknownIssuer") {
                text.push_str(
                    "\nhint: if your network has a certificate authority of its own, set SSL_CERT_FILE to its PEM file",
                );
            }
            text
        }
    }
}

/// A failed read in words.
pub(crate) fn describe_io(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the connection was cut".into(),
        _ => printable(&error.to_string(), 200),
    }
}

/// Whether there was nobody to talk to.
fn is_unreachable(error: &ureq::Error) -> bool {
    use std::io::ErrorKind as Kind;
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        // A failed look-up of the name has no kind of its own, so what is left counts as one.
        ureq::Error::Io(e) => !matches!(
            e.kind(),
            Kind::ConnectionReset
                | Kind::ConnectionAborted
                | Kind::BrokenPipe
                | Kind::UnexpectedEof
                | Kind::TimedOut
                | Kind::WouldBlock
                | Kind::Interrupted
        ),
        _ => false,
    }
}

/// Whether another attempt is pointless.
fn is_permanent(error: &ureq::Error) -> bool {
    matches!(
        error,
        ureq::Error::BadUri(_)
            | ureq::Error::Http(_)
            | ureq::Error::InvalidProxyUrl
            | ureq::Error::Tls(_)
            | ureq::Error::Rustls(_)
    ) || matches!(error, ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData)
}

fn read_certificates(path: &std::path::Path) -> Result<ureq::tls::RootCerts, Error> {
    let pem = std::fs::read(path).map_err(Error::io(path, "read the certificates"))?;
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        let why = format!("{} holds no PEM certificate", path.display());
        return Err(Error::Config { name: "SSL_CERT_FILE".into(), why });
    }
    Ok(ureq::tls::RootCerts::Specific(Arc::new(certificates)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_as_the_rfc_says() {
        let check = |location: &str, expected: Option<&str>| {
            let base: Uri = "https://u:p@h:1/a/b?c=d".parse().unwrap();
            let found = resolve_location(&base, location).map(|u| u.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        };
        check("https://x/y", Some("https://x/y"));
        check("//x/y", Some("https://x/y"));
        check("/y?u=http://z", Some("https://h:1/y?u=http://z"));
        check("y", Some("https://h:1/a/y"));
        check("?e=f", Some("https://h:1/a/b?e=f"));
        check("/y z#frag", Some("https://h:1/y%20z"));
        check("ftp://x/y", None);
        check("http://", None);
    }

    #[test]
    fn origins_and_shown_addresses() {
        let origin_of = |url: &str| origin(&url.parse().unwrap());
        assert_eq!(origin_of("https://H/x"), origin_of("https://h:443/y"));
        assert_ne!(origin_of("https://h/x"), origin_of("http://h/x"));
        assert_ne!(origin_of("http://h:1/x"), origin_of("http://h:2/x"));
        assert_eq!(without_userinfo("https://u:p@h/x@y"), "https://h/x@y");
        assert_eq!(without_userinfo("https://h?a@b"), "https://h?a@b");
    }
}
