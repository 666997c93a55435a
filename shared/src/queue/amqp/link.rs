//! A connection to the broker: how it is opened, what can go wrong with it, and how it is kept up.
//!
//! lapin's own recovery is off: it does not survive errors of a channel. A role (publish, consume, ...) is one task that
//! opens everything anew after any trouble, for ever.

use std::time::Duration;

use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::queue::QueueError;

/// The longest wait for one answer of the broker.
const ANSWER: Duration = Duration::from_secs(5);
/// The longest wait for a connection: TCP, TLS and login, on a broker that may just have begun.
const CONNECT: Duration = Duration::from_secs(15);
/// Seconds without a sign of life after which either side gives the connection up.
const HEARTBEAT_S: u16 = 10;
/// How often the state of a connection is looked at: lapin tells nobody of its end.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// AMQP's code, of a missing permission among others.
const ACCESS_REFUSED: u16 = 403;
/// What a broker says to a declaration with other arguments; its code alone (406) has more meanings.
const INEQUIVALENT: &str = "inequivalent arg";

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A connection that held for so long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(5);

/// What went wrong with the broker. The texts name no password.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// No answer in time.
    #[error("{doing}: the broker did not answer within {} s", .after.as_secs())]
    Silent { doing: String, after: Duration },
    /// What is declared exists with other arguments.
    #[error(
        "{doing}: it exists with other arguments, the queue's capacity among them: set them back, or let the queue run \
         empty and delete it ({detail})"
    )]
    Mismatch { doing: String, detail: String },
    /// Any other refusal or failure.
    #[error("{doing}: {source}")]
    Failed { doing: String, source: lapin::Error },
    /// The connection or something on it ended by itself.
    #[error("{0}")]
    Ended(String),
}

impl LinkError {
    /// The broker's code and words, where this is an answer of the broker.
    pub(super) fn reply(&self) -> Option<(u16, &str)> {
        match self {
            Self::Failed { source, .. } => match source.kind() {
                ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().as_str())),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the broker would refuse the same again until somebody changes something.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Mismatch { .. }) || self.reply().is_some_and(|(code, _)| code == ACCESS_REFUSED)
    }
}

impl From<LinkError> for QueueError {
    fn from(error: LinkError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// Waits for an answer of the broker, but not for ever.
pub(super) async fn within<T>(
    doing: impl Into<String>,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, LinkError> {
    limited(ANSWER, doing, answer).await
}

async fn limited<T>(
    after: Duration,
    doing: impl Into<String>,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(after, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => {
            let doing = doing.into();
            Err(match source.kind() {
                ErrorKind::ProtocolError(error) if error.get_message().as_str().contains(INEQUIVALENT) => {
                    LinkError::Mismatch { doing, detail: error.get_message().to_string() }
                }
                _ => LinkError::Failed { doing, source },
            })
        }
        Err(_) => Err(LinkError::Silent { doing: doing.into(), after }),
    }
}

/// Opens a connection that the broker's tools show as `face-id {role}`.
pub(super) async fn connect(uri: &AMQPUri, role: &str) -> Result<Connection, LinkError> {
    let mut uri = uri.clone();
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    let properties = ConnectionProperties::default().with_connection_name(format!("face-id {role}").into());
    let doing = format!("connect to {}:{}", uri.authority.host, uri.authority.port);
    limited(CONNECT, doing, Connection::connect_uri(uri, properties)).await
}

/// Opens a channel.
pub(super) async fn channel(connection: &Connection) -> Result<Channel, LinkError> {
    within("open a channel", connection.create_channel()).await
}

/// Returns when the connection is no longer there.
pub(super) async fn loss(connection: &Connection) -> LinkError {
    while connection.status().connected() {
        tokio::time::sleep(LOOK).await;
    }
    LinkError::Ended("the connection to the broker was lost".to_owned())
}

/// Runs `session` again and again until it returns `Ok` or `stop`. `report` hears of every failure.
pub(super) async fn keep_up<F>(
    role: &str,
    stop: &CancellationToken,
    report: impl Fn(&LinkError),
    mut session: impl FnMut() -> F,
) where
    F: Future<Output = Result<(), LinkError>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = tokio::time::Instant::now();
        let Err(error) = session().await else { return };
        report(&error);
        if begun.elapsed() >= GOOD {
            pause = FIRST_PAUSE;
        }
        if error.is_refusal() {
            pause = LONGEST_PAUSE;
        }
        let wait = jittered(pause);
        tracing::warn!(role, %error, again_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), "the message broker");
        pause = (pause * 2).min(LONGEST_PAUSE);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Between half of `pause` and all of it, so that many processes do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let bytes = Uuid::new_v4().into_bytes();
    let unit = f64::from(u16::from_be_bytes([bytes[0], bytes[1]])) / 65_536.0;
    pause.mul_f64(0.5 + 0.5 * unit)
}
