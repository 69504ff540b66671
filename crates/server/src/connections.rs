//! Connections, and how long a client may keep one without asking for anything.
//!
//! ```text
//! accept ─► a task for each connection: HTTP/1 or HTTP/2 ─► the routes
//!              └ ends: by the client; with nothing asked for in `read_timeout`; or when the server stops
//! ```
//! A connection costs a descriptor and memory, so that somebody who opens many and sends a byte now and then
//! would keep others out. A head has to come within the time that a connection may be idle; a body that does not
//! come is `ReadTimeout`'s.
use crate::error::{ApiError, ErrorKind};
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::serve::Listener;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tower::ServiceExt as _;

/// Serves connections until `stop`, and then the requests that are there already.
///
/// A connection on which nothing is asked for in `read_timeout` is closed.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    read_timeout: Duration,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    // Tasks of connections hold receivers, so that it is seen when the last has ended.
    let (stopping, _) = watch::channel(false);
    loop {
        let (io, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        tokio::spawn(connection(io, router.clone(), read_timeout, stopping.subscribe()));
    }
    drop(listener);
    stopping.send_replace(true);
    stopping.closed().await;
}

async fn connection(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    router: Router,
    read_timeout: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    let (requests, watched) = watch::channel(0);
    let requests = Arc::new(requests);
    let service = service_fn(|request: axum::http::Request<Incoming>| {
        let request_there = RequestThere::new(&requests);
        let router = router.clone();
        async move {
            let reply = router.oneshot(request.map(Body::new)).await;
            reply.map(|reply| reply.map(|body| Reply { body, _request_there: request_there }))
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    // Names of headers mean the same in any case; there are scripts that compare them as other servers write them.
    builder.http1().timer(TokioTimer::new()).title_case_headers(true);
    // What a client that has gone leaves behind is found.
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(read_timeout);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut idle = pin!(idle(watched, read_timeout));
    let mut stopped = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection failed");
                }
                return;
            }
            () = &mut idle => return,
            _ = stopping.changed(), if !stopped => {
                stopped = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Waits until there has been no request for `time`.
async fn idle(mut requests: watch::Receiver<usize>, time: Duration) {
    loop {
        let none = *requests.borrow_and_update() == 0;
        let changed = match none {
            true => match tokio::time::timeout(time, requests.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            },
            false => requests.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Counts a request from its head to the end of its reply.
struct RequestThere(Arc<watch::Sender<usize>>);

impl RequestThere {
    fn new(requests: &Arc<watch::Sender<usize>>) -> Self {
        requests.send_modify(|n| *n += 1);
        Self(Arc::clone(requests))
    }
}

impl Drop for RequestThere {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

struct Reply {
    body: Body,
    _request_there: RequestThere,
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body may take so many times as long as one piece of it.
const BODY_TIMES: u32 = 10;

/// A body's pieces have to come within this time, and all of it within ten times as long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadTimeout(pub(crate) Duration);

impl ReadTimeout {
    /// Serves a request; where its body did not come in time, the reply says so.
    pub(crate) async fn serve(
        self,
        request: Request,
        serve: impl AsyncFnOnce(Request) -> Response,
    ) -> Response {
        let late = Arc::new(AtomicBool::new(false));
        let far = Duration::from_secs(1 << 30);
        let time = self.0.min(far);
        let end = Instant::now() + time * BODY_TIMES;
        let request = request.map(|body| {
            if body.is_end_stream() {
                return body;
            }
            let next = Box::pin(tokio::time::sleep(time));
            Body::new(Timed { body, time, end, next, late: Arc::clone(&late) })
        });
        let reply = serve(request).await;
        if !late.load(Ordering::Relaxed) {
            return reply;
        }
        let message = "the request's body did not come in time\nhint: --read-timeout of the server sets how long it waits for a piece";
        ApiError::new(ErrorKind::TooSlow, message).into_response()
    }
}

/// A body that fails if it does not come in time.
struct Timed {
    body: Body,
    time: Duration,
    end: Instant,
    /// When the next piece has to be there.
    next: Pin<Box<Sleep>>,
    late: Arc<AtomicBool>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            let next = self.end.min(Instant::now() + self.time);
            self.next.as_mut().reset(next);
            return frame;
        }
        self.next.as_mut().poll(context).map(|()| {
            self.late.store(true, Ordering::Relaxed);
            Some(Err(axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
