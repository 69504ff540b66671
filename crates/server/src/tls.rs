//! Connections that nobody else can read, by rustls.
//!
//! ```text
//! TCP connections ─► a task for each handshake ─► channel ─► axum
//! ```
//! A client that connects and says nothing holds up nobody.
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time.
const MAX_HANDSHAKES: usize = 256;

/// Key and certificates of a server.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads PEM files: the private key, and the certificate, followed by those that vouch for it.
    ///
    /// # Errors
    /// If a file cannot be read or holds nothing of the kind, or key and certificate do not belong together.
    pub fn read(key: &Path, certificates: &Path) -> Result<Self, String> {
        let at = |path: &Path| {
            let path = path.display().to_string();
            move |error: rustls_pki_types::pem::Error| {
                format!("{path}: {error}\nhint: a PEM file is expected")
            }
        };
        let private = PrivateKeyDer::from_pem_file(key).map_err(at(key))?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect)
            .map_err(at(certificates))?;
        if chain.is_empty() {
            return Err(format!("{}: there is no certificate in it", certificates.display()));
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|error| format!("{}, {}: {error}", key.display(), certificates.display()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Connections whose handshake is done.
#[derive(Debug)]
pub struct TlsListener {
    connections: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Takes connections from `listener`.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn new(listener: TcpListener, tls: Tls) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, connections) = mpsc::channel(1);
        tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
            let mut listener = listener;
            loop {
                // axum's own: it waits where the system has no more file descriptors.
                let accept = axum::serve::Listener::accept(&mut listener);
                let (stream, from) = tokio::select! {
                    accepted = accept => accepted,
                    () = sender.closed() => return,
                };
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let (sender, acceptor) = (sender.clone(), tls.0.clone());
                tokio::spawn(async move {
                    let _place = place;
                    // Tokens go out as they come; that it cannot be had changes nothing else.
                    let _ = stream.set_nodelay(true);
                    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        // That nobody takes it any more means that the server ends.
                        Ok(Ok(stream)) => drop(sender.send((stream, from)).await),
                        Ok(Err(error)) => tracing::debug!(%from, %error, "handshake failed"),
                        Err(_) => tracing::debug!(%from, "handshake took too long"),
                    }
                });
            }
        });
        Ok(Self { connections, address })
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            // The task that accepts has ended, which it does only with the runtime.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
