//! Pictures of this machine's own folders, read in place: only below folders that the operator allows.

use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::ObjectError;

/// The folders that files may be read from.
#[derive(Clone, Debug, Default)]
pub struct ImportRoots {
    roots: Vec<PathBuf>,
}

impl ImportRoots {
    /// Those of the settings.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots }
    }

    /// The real place of a file or folder: links are followed first, so that none leads out of the allowed folders.
    ///
    /// # Errors
    /// There is nothing, or it lies in none of them.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, ObjectError> {
        let shown = || path.display().to_string();
        if !path.is_absolute() {
            return Err(ObjectError::NotImportable(shown()));
        }
        match path.canonicalize() {
            Ok(real) if self.is_below(&real) => Ok(real),
            // Whether there is anything elsewhere is nobody's business.
            Err(error) if self.is_below(path) && !path.components().any(|c| c == Component::ParentDir) => {
                Err(failed("look for", path, error))
            }
            _ => Err(ObjectError::NotImportable(shown())),
        }
    }

    fn is_below(&self, path: &Path) -> bool {
        let holds =
            |root: &PathBuf| path.starts_with(root) || root.canonicalize().is_ok_and(|real| path.starts_with(real));
        self.roots.iter().any(holds)
    }

    /// The file's bytes, unless they are more than `max_bytes`. Blocks.
    ///
    /// # Errors
    /// There is no such file, it lies outside the allowed folders, is too long, or cannot be read.
    pub fn read(&self, path: &Path, max_bytes: usize) -> Result<Vec<u8>, ObjectError> {
        let real = self.resolve(path)?;
        // To open a pipe would wait for whoever writes to it.
        if !real.metadata().map_err(|e| failed("look at", path, e))?.is_file() {
            return Err(ObjectError::NotFound(path.display().to_string()));
        }
        let file = std::fs::File::open(&real).map_err(|e| failed("open", path, e))?;
        let mut bytes = Vec::new();
        let limit = max_bytes as u64 + 1;
        file.take(limit).read_to_end(&mut bytes).map_err(|e| failed("read", path, e))?;
        if bytes.len() > max_bytes {
            return Err(ObjectError::TooLarge { key: path.display().to_string(), max_bytes });
        }
        Ok(bytes)
    }
}

/// What stands for a file's bytes: its size and when it was changed.
pub fn file_fingerprint(file: &Metadata) -> String {
    format!("{}-{}.{:09}", file.len(), file.mtime(), file.mtime_nsec())
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> ObjectError {
    let key = path.display().to_string();
    match source.kind() {
        std::io::ErrorKind::NotFound
        | std::io::ErrorKind::NotADirectory
        | std::io::ErrorKind::InvalidFilename
        | std::io::ErrorKind::InvalidInput => ObjectError::NotFound(key),
        std::io::ErrorKind::PermissionDenied => {
            ObjectError::Refused { action, key, reason: "permission denied".to_owned(), source }
        }
        _ => ObjectError::Store { action, key, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_an_allowed_folder_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        for dir in [&inside, &outside] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("a.jpg"), b"bytes").unwrap();
        }
        std::os::unix::fs::symlink(outside.join("a.jpg"), inside.join("link.jpg")).unwrap();
        let roots = ImportRoots::new(vec![inside.clone()]);
        assert_eq!(roots.read(&inside.join("a.jpg"), 5).unwrap(), b"bytes");
        assert!(matches!(roots.read(&inside.join("a.jpg"), 4), Err(ObjectError::TooLarge { .. })));
        assert!(matches!(roots.read(&inside.join("b.jpg"), 5), Err(ObjectError::NotFound(_))));
        for foreign in [
            outside.join("a.jpg"),
            outside.join("nothing.jpg"),
            inside.join("link.jpg"),
            inside.join("../out/b.jpg"),
            inside.join("../out/a.jpg"),
            "a.jpg".into(),
        ] {
            assert!(matches!(roots.read(&foreign, 5), Err(ObjectError::NotImportable(_))), "{}", foreign.display());
        }
    }
}
