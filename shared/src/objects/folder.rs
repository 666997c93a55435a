//! Objects as files of one folder.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use uuid::Uuid;

use super::{ListedReference, ObjectError, ObjectMeta, ObjectStore, check_key};

/// The folder below the root where objects are written before they get their name.
const UNFINISHED: &str = ".unfinished";

/// See the module.
#[derive(Clone, Debug)]
pub struct FolderStore {
    root: PathBuf,
}

impl FolderStore {
    /// Opens the folder, making it where there is none.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self, ObjectError> {
        let root = root.into();
        let unfinished = root.join(UNFINISHED);
        tokio::fs::create_dir_all(&unfinished).await.map_err(|source| ObjectError::Store {
            action: "make",
            key: unfinished.display().to_string(),
            source,
        })?;
        Ok(Self { root })
    }

    /// Runs blocking file work on a copy of the root and the key.
    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        key: &str,
        work: impl FnOnce(&Path, &str) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let (root, owned) = (self.root.clone(), key.to_owned());
        let done = tokio::task::spawn_blocking(move || work(&root, &owned)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) if e.kind() == ErrorKind::NotFound => Err(ObjectError::NotFound(key.to_owned())),
            Ok(Err(source)) => Err(ObjectError::Store { action, key: key.to_owned(), source }),
            Err(panic) => Err(ObjectError::Store { action, key: key.to_owned(), source: std::io::Error::other(panic) }),
        }
    }
}

#[async_trait]
impl ObjectStore for FolderStore {
    async fn put(&self, key: &str, bytes: &[u8]) -> Result<(), ObjectError> {
        check_key(key)?;
        let bytes = bytes.to_vec();
        self.blocking("write", key, move |root, key| write(root, key, &bytes)).await
    }

    async fn get(&self, key: &str, max_bytes: usize) -> Result<Vec<u8>, ObjectError> {
        check_key(key)?;
        let read = self
            .blocking("read", key, move |root, key| {
                let mut bytes = Vec::new();
                let file = std::fs::File::open(root.join(key))?;
                file.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
                Ok(bytes)
            })
            .await?;
        if read.len() > max_bytes {
            return Err(ObjectError::TooLarge { key: key.to_owned(), max_bytes });
        }
        Ok(read)
    }

    async fn get_reference(&self, uri: &str, _: usize) -> Result<Vec<u8>, ObjectError> {
        self.check_reference(uri).and(Err(ObjectError::NoReferences))
    }

    fn check_reference(&self, _: &str) -> Result<(), ObjectError> {
        Err(ObjectError::NoReferences)
    }

    async fn list_references(&self, _: &str, _: Option<&str>, _: usize) -> Result<Vec<ListedReference>, ObjectError> {
        Err(ObjectError::NoReferences)
    }

    fn check_prefix(&self, _: &str) -> Result<(), ObjectError> {
        Err(ObjectError::NoReferences)
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, ObjectError> {
        check_key(key)?;
        self.blocking("look at", key, |root, key| meta(&root.join(key), key.to_owned())).await
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        check_key(key)?;
        let deleted = self.blocking("delete", key, delete).await;
        match deleted {
            Err(ObjectError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, ObjectError> {
        let after = after.map(str::to_owned);
        self.blocking("list", prefix, move |root, prefix| {
            let mut found = Vec::new();
            walk(root, root, prefix, &mut found)?;
            found.retain(|o| after.as_deref().is_none_or(|a| o.key.as_str() > a));
            found.sort_by(|a, b| a.key.cmp(&b.key));
            found.truncate(limit);
            Ok(found)
        })
        .await
    }

    async fn clean(&self, age: Duration) -> Result<(), ObjectError> {
        self.blocking("clean", UNFINISHED, move |root, folder| {
            for entry in std::fs::read_dir(root.join(folder))? {
                let entry = entry?;
                let modified = entry.metadata()?.modified()?;
                if SystemTime::now().duration_since(modified).is_ok_and(|d| d > age) {
                    std::fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// Writes beside, makes it durable, then renames: a reader sees all of it or nothing.
fn write(root: &Path, key: &str, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = root.join(UNFINISHED).join(Uuid::now_v7().to_string());
    let target = root.join(key);
    let folder = target.parent().unwrap_or(root);
    let written = (|| {
        let mut file = std::fs::File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // A concurrent delete of the folder's last object may remove it in between, so it is made again.
        loop {
            std::fs::create_dir_all(folder)?;
            match std::fs::rename(&unfinished, &target) {
                Err(e) if e.kind() == ErrorKind::NotFound && unfinished.try_exists()? => {}
                done => break done,
            }
        }?;
        std::fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The first error is the one that matters.
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

/// Removes the file and the folders that are empty without it.
fn delete(root: &Path, key: &str) -> std::io::Result<()> {
    let target = root.join(key);
    std::fs::remove_file(&target)?;
    for folder in target.ancestors().skip(1).take_while(|f| *f != root) {
        if std::fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

fn meta(path: &Path, key: String) -> std::io::Result<ObjectMeta> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(ErrorKind::NotFound.into());
    }
    Ok(ObjectMeta { key, size_bytes: metadata.len(), modified: metadata.modified()? })
}

fn walk(root: &Path, folder: &Path, prefix: &str, found: &mut Vec<ObjectMeta>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(key) = path.strip_prefix(root).ok().and_then(Path::to_str).map(str::to_owned) else { continue };
        let leads_there = prefix.starts_with(&format!("{key}/"));
        if path.is_dir() && key != UNFINISHED && (leads_there || format!("{key}/").starts_with(prefix)) {
            walk(root, &path, prefix, found)?;
        } else if path.is_file() && key.starts_with(prefix) {
            found.push(meta(&path, key)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::objects::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path()).await.unwrap();
        contract::run(Arc::new(store)).await;
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [UNFINISHED], "deleted objects leave no folders behind");
    }
}
