//! `PostgreSQL` with pgvector, `RabbitMQ` and an S3 server, each with a data folder and ports of its own: for trying
//! face-id out without containers, and for its tests.
//!
//! Nothing started here outlives its owner, see the module `guard`.

mod guard;
pub mod ports;
pub mod postgres;
pub mod rabbitmq;
pub mod s3;
#[cfg(test)]
mod tests;
mod unprivileged;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The `server.secret_key` of installations on these services: like their passwords, it keeps nothing secret.
pub const FACE_ID_SECRET_KEY: &str = "ZmFjZS1pZC1zZXJ2aWNlczogZm9yIHRyaWVzIG9ubHk=";

/// Folders in which downloads may lie: the configured one, and the one inside the repository.
pub fn cache_folders() -> Vec<PathBuf> {
    let configured = std::env::var_os("FACE_ID_CACHE_DIR").filter(|v| !v.is_empty()).map(PathBuf::from);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache");
    configured.into_iter().chain([own]).collect()
}

/// A folder of this user's in one that everybody may write to.
fn own_folder(parent: &Path) -> anyhow::Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let folder = parent.join(format!("face-id-services-{user}"));
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let found = std::fs::symlink_metadata(&folder)?;
    ensure!(found.is_dir() && found.uid() == user, "{} belongs to somebody else; delete it", folder.display());
    Ok(folder)
}

/// A folder for one service of this process, below the system's temporary folder: whoever runs the service can enter it.
/// What processes that are gone left there is deleted.
///
/// # Panics
/// It cannot be made.
fn process_folder(service: &str) -> PathBuf {
    let base = own_folder(&std::env::temp_dir()).expect("make a folder for temporary services");
    let folder = base.join(format!("{service}-{}", std::process::id()));
    for entry in std::fs::read_dir(&base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next_back()).and_then(|pid| pid.parse::<u32>().ok());
        let gone = owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).is_dir());
        // This process's own id may have been another's before.
        if gone || entry.path() == folder {
            // Another process may be at it too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    folder
}
