//! One HTTP request over a connection of its own. The address that is dialled is the address that was checked: names are
//! resolved here, each address is looked at, and the socket is opened to one that passed. There is no pool that could keep a
//! connection to another, no proxy of the environment, and nothing follows a redirect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use shared::config::WebhooksConfig;
use shared::webhooks::address::AddressPolicy;
use shared::webhooks::target::Target;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// An answer's head is at most this long, in bytes.
const HEAD: usize = 64 * 1024;
/// Of an answer's body, how much is read at most, in bytes.
const READ: usize = 64 * 1024;
/// And how much is kept.
const KEPT: usize = 1024;
/// How long a body is read, once the status has come: it is for people who look at the log.
const READ_FOR: Duration = Duration::from_secs(2);
/// Addresses of a name that are tried at most.
const MOST_ADDRESSES: usize = 4;

/// What opens connections; cheap to clone.
#[derive(Clone)]
pub(crate) struct Dialer {
    policy: AddressPolicy,
    tls: TlsConnector,
    connect_timeout: Duration,
    timeout: Duration,
}

/// An endpoint's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `Retry-After` (RFC 9110, 10.2.3): a number of seconds, or what is left until a date.
    pub(crate) retry_after: Option<Duration>,
    /// The beginning of its body.
    pub(crate) beginning: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("name_not_resolved: {0}")]
    Resolve(#[source] std::io::Error),
    /// Every address behind the name is one that is not dialled.
    #[error("webhook_address_refused: {0} leads to no address that may be dialled (webhooks.allowed_networks)")]
    Refused(String),
    #[error("connect_failed: {0}")]
    Connect(#[source] std::io::Error),
    #[error("connect_timeout: no connection within {} s", .0.as_secs_f64())]
    ConnectTimeout(Duration),
    #[error("tls_failed: {0}")]
    Tls(#[source] std::io::Error),
    #[error("http_failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("timeout: no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
}

impl Dialer {
    /// Reads the system's certificates.
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub(crate) fn new(settings: &WebhooksConfig) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "read the system's certificates");
        }
        let (good, bad) = roots.add_parsable_certificates(found.certs);
        if good == 0 {
            tracing::warn!(bad, "the system has no certificates: no https endpoint can be told");
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            policy: settings.address_policy(),
            tls: TlsConnector::from(Arc::new(tls)),
            connect_timeout: Duration::from_secs_f64(settings.connect_timeout_s),
            timeout: Duration::from_secs_f64(settings.timeout_s),
        })
    }

    /// Sends the request and reads the answer.
    ///
    /// # Errors
    /// See [`DialError`].
    pub(crate) async fn send(&self, target: &Target, request: Request<Full<Bytes>>) -> Result<Answer, DialError> {
        let exchange = async {
            let socket = match tokio::time::timeout(self.connect_timeout, self.connect(target)).await {
                Ok(connected) => connected?,
                Err(_) => return Err(DialError::ConnectTimeout(self.connect_timeout)),
            };
            if !target.is_https() {
                return ask(socket, request).await;
            }
            let name = ServerName::try_from(target.host())
                .map_err(|error| DialError::Tls(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
            ask(self.tls.connect(name, socket).await.map_err(DialError::Tls)?, request).await
        };
        let answered = tokio::time::timeout(self.timeout, exchange).await;
        let asked = answered.unwrap_or(Err(DialError::Timeout(self.timeout)))?;
        Ok(asked.finished().await)
    }

    /// Connects to the first of the target's addresses that may be dialled and answers. One that is silent leaves the others
    /// their share of the time.
    async fn connect(&self, target: &Target) -> Result<TcpStream, DialError> {
        let mut failure = DialError::Refused(target.host());
        let mut addresses = self.addresses(target).await?;
        addresses.truncate(MOST_ADDRESSES);
        let share = self.connect_timeout / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        for address in addresses {
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) => failure = DialError::Connect(error),
                Err(_) => failure = DialError::ConnectTimeout(share),
            }
        }
        Err(failure)
    }

    /// The target's addresses that may be dialled. A name that leads to others too is dialled at these.
    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, DialError> {
        let found: Vec<SocketAddr> = if let Some(address) = target.address() {
            vec![SocketAddr::new(address, target.port())]
        } else {
            tokio::net::lookup_host((target.host(), target.port())).await.map_err(DialError::Resolve)?.collect()
        };
        Ok(found.into_iter().filter(|address| self.policy.allows(address.ip())).collect())
    }
}

/// An answer whose head has come.
struct Asked {
    status: u16,
    retry_after: Option<Duration>,
    body: Incoming,
    /// Drives the connection, which ends with it.
    driven: AbortOnDrop,
}

/// A task that ends when this is dropped.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Asked {
    /// With the beginning of the body, as far as it comes soon: the status is the answer.
    async fn finished(self) -> Answer {
        let Self { status, retry_after, body, driven } = self;
        let mut kept = Vec::new();
        let _ = tokio::time::timeout(READ_FOR, read(body, &mut kept)).await;
        drop(driven);
        // NUL is no character that PostgreSQL stores.
        let beginning = String::from_utf8_lossy(&kept).replace('\0', "\u{fffd}");
        Answer { status, retry_after, beginning }
    }
}

/// Sends the request and waits for the head of the answer.
async fn ask<S>(socket: S, request: Request<Full<Bytes>>) -> Result<Asked, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new().max_buf_size(HEAD).handshake(TokioIo::new(socket)).await?;
    // What goes wrong with it, whoever waits for the answer is told.
    let driven = AbortOnDrop(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await?;
    let retry_after = response.headers().get("retry-after").and_then(|v| retry_after(v.to_str().ok()?));
    Ok(Asked { status: response.status().as_u16(), retry_after, body: response.into_body(), driven })
}

fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Reads some of a body; one that breaks off, or does not end, changes nothing.
async fn read(mut body: Incoming, kept: &mut Vec<u8>) {
    let mut read = 0;
    while read < READ
        && let Some(Ok(frame)) = body.frame().await
    {
        let Some(data) = frame.data_ref() else { continue };
        read += data.len();
        kept.extend_from_slice(&data[..data.len().min(KEPT - kept.len())]);
    }
}
