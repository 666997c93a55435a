//! An S3 server inside the process, over a folder, for trials and tests: it accepts one pair of keys, listens on the
//! loopback address only, and can be told to misbehave as real stores do.
//!
//! A key cannot lead through another one (`a` beside `a/b`), and one of more than about 150 bytes is too long: s3s-fs
//! keeps a file for each, named after it.

mod fault;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder as ConnectionBuilder;
use s3s::auth::SimpleAuth;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

pub use fault::{Fault, Faults};

use self::store::{MAX_OBJECT_BYTES, Store};

/// The access key that the server accepts.
pub const ACCESS_KEY: &str = "face-id-access-key";
/// The secret of [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "face-id-secret-key";

/// Largest XML or form body, in bytes; the store's requests have none.
const MAX_XML_BYTES: usize = 1 << 20;

/// A running server; dropping it cuts its connections and frees the port. What it stored stays in its folder.
pub struct S3Server {
    port: u16,
    root: PathBuf,
    faults: Faults,
    _serving: AbortOnDropHandle<()>,
}

impl S3Server {
    /// Starts a server whose buckets are the folders of `dir`; port 0 takes a free one.
    pub async fn start(dir: &Path, port: u16) -> anyhow::Result<Self> {
        tokio::fs::create_dir_all(dir).await.with_context(|| format!("make {}", dir.display()))?;
        let root = tokio::fs::canonicalize(dir).await.with_context(|| format!("look at {}", dir.display()))?;
        let files = FileSystem::new(&root).map_err(|e| anyhow!("open {} as an S3 store: {e:?}", root.display()))?;
        let faults = Faults::new();
        let service = service(Store::new(files, root.clone(), faults.clone()));
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .with_context(|| format!("listen on 127.0.0.1:{port} for S3; choose another port"))?;
        let port = listener.local_addr()?.port();
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(listener, service, faults.clone())));
        Ok(Self { port, root, faults, _serving: serving })
    }

    /// Its address, for path-style requests.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The folder that holds a folder for each bucket.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a bucket; one that is there stays as it is.
    pub async fn create_bucket(&self, name: &str) -> anyhow::Result<()> {
        ensure!(s3s::path::check_bucket_name(name), "{name:?} is no bucket name: use 3 to 63 of a-z, 0-9, '-' and '.'");
        let folder = self.root.join(name);
        tokio::fs::create_dir_all(&folder).await.with_context(|| format!("make the bucket {}", folder.display()))
    }

    /// The handle on its faults.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

fn service(store: Store) -> S3Service {
    let mut limits = S3Config::default();
    limits.xml_max_body_size = MAX_XML_BYTES;
    limits.form_max_fields_size = MAX_XML_BYTES;
    limits.post_object_max_file_size = MAX_OBJECT_BYTES.unsigned_abs();
    let mut builder = S3ServiceBuilder::new(store.clone());
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    builder.set_access(store);
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(limits))));
    builder.build()
}

async fn serve(listener: TcpListener, service: S3Service, faults: Faults) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(serve_connection(socket, service.clone(), faults.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, as a rule: trying again at once would only burn the processor.
                    tracing::warn!(%error, "the S3 server cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(socket: TcpStream, service: S3Service, faults: Faults) {
    if faults.now() == Fault::Gone {
        return;
    }
    // An answer's head and its body are two writes, of which the second would wait for the client's delayed acknowledgement.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "an S3 connection may be slow");
    }
    let http = ConnectionBuilder::new(TokioExecutor::new()).http1_only();
    tokio::select! {
        () = faults.gone() => {}
        served = http.serve_connection(TokioIo::new(socket), service) => {
            if let Err(error) = served {
                tracing::debug!(error, "an S3 connection ended early");
            }
        }
    }
}

/// One server for all tests of a process, on a thread of its own: it outlives the runtime of the test that comes first.
///
/// # Panics
/// It does not start.
pub async fn shared() -> &'static S3Server {
    static SHARED: OnceCell<S3Server> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let (started, server) = oneshot::channel();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("make a runtime for the S3 server").block_on(async move {
                    let server = S3Server::start(&crate::process_folder("s3"), 0).await;
                    let _ = started.send(server.expect("start an S3 server for the tests of this process"));
                    std::future::pending::<()>().await;
                });
            });
            server.await.expect("the S3 server starts")
        })
        .await
}
