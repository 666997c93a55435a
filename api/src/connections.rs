//! The connections of clients: how many there are at once, and how long each may be silent.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use shared::config::ServerConfig;
use shared::telemetry::metrics;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

/// How long nothing is accepted after the system had no room for another connection.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(200);

/// What a client is told for whom there is no place; nothing of its request was read.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 169\r\n\r\n\
    {\"type\":\"urn:face-id:problem:too_many_connections\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"code\":\"too_many_connections\",\"detail\":\"connect again in a second\",\"errors\":[]}";

/// See the module.
pub(crate) struct Connections {
    http: http1::Builder,
    service: TowerToHyperService<Router>,
    places: Arc<Semaphore>,
    /// Longest time that a client may take nothing of its answer.
    write_timeout: Duration,
    stopping: GracefulShutdown,
    open: JoinSet<()>,
}

impl Connections {
    /// None yet; `router` answers what will come on them.
    pub(crate) fn new(server: &ServerConfig, router: Router) -> Self {
        let mut http = http1::Builder::new();
        // Between two requests of a connection the same clock runs.
        http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(server.header_timeout_s));
        Self {
            http,
            service: TowerToHyperService::new(router),
            places: Arc::new(Semaphore::new(server.max_connections)),
            write_timeout: Duration::from_secs(server.write_timeout_s),
            stopping: GracefulShutdown::new(),
            open: JoinSet::new(),
        }
    }

    /// Takes connections until `stop`.
    pub(crate) async fn take(&mut self, listener: TcpListener, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = self.open.join_next() => metrics::connections(self.open.len()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.begin(stream),
                    // A client that was gone before it was let in.
                    Err(error) if is_of_client(&error) => {}
                    Err(error) => {
                        tracing::warn!(%error, "accept a connection");
                        tokio::time::sleep(NO_ROOM_PAUSE).await;
                    }
                },
            }
        }
    }

    fn begin(&mut self, stream: TcpStream) {
        // An answer is not held back until the client has acknowledged the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection may be slow");
        }
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => self.serve(stream, place),
            Err(_) => turn_away(&stream),
        }
        metrics::connections(self.open.len());
    }

    fn serve(&mut self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.write_timeout));
        let connection = self.http.serve_connection(TokioIo::new(Box::pin(stream)), self.service.clone());
        let connection = self.stopping.watch(connection);
        self.open.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke off");
            }
            drop(place);
        });
    }

    /// Has each connection end with the request that is under way on it; after `grace`, whatever is.
    pub(crate) async fn end(mut self, grace: Duration) {
        if tokio::time::timeout(grace, self.stopping.shutdown()).await.is_err() {
            tracing::warn!(connections = self.open.len(), "requests were still under way after the grace period");
        }
        self.open.shutdown().await;
    }
}

fn is_of_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Says that there is no place, without waiting for the client to take it.
fn turn_away(stream: &TcpStream) {
    metrics::connection_refused();
    if let Err(error) = stream.try_write(FULL) {
        tracing::debug!(%error, "tell a client that there is no place");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_an_answer() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["code"], &body["status"]), (&"too_many_connections".into(), &503.into()));
    }
}
