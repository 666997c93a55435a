//! `PostgreSQL` with pgvector, `RabbitMQ` and an S3 server, each with a data folder and ports of its own: for trying
//! face-id out without containers, and for its tests.
//!
//! Nothing started here outlives its owner, see the module `guard`.

mod guard;
mod ports;
pub mod postgres;
pub mod rabbitmq;
pub mod s3;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

/// Folders in which downloads may lie: the configured one, and the one inside the repository.
fn cache_folders() -> Vec<PathBuf> {
    let configured = std::env::var_os("FACE_ID_CACHE_DIR").filter(|v| !v.is_empty()).map(PathBuf::from);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache");
    configured.into_iter().chain([own]).collect()
}

/// A folder for one service of this process, below the system's temporary folder: whoever runs the service can enter it.
/// What processes that are gone left there is deleted.
fn process_folder(service: &str) -> PathBuf {
    let base = std::env::temp_dir().join("face-id-services");
    for entry in std::fs::read_dir(&base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next_back()).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).is_dir()) {
            // Another process may be at it too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    base.join(format!("{service}-{}", std::process::id()))
}
