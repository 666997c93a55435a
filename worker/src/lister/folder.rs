//! The pictures below a folder, in an order in which a listing can go on anywhere.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use shared::batch::{Checkpoint, is_picture_name};
use shared::db::batches::listing::Listed;
use shared::job::{ImageRef, Problem};

use crate::jobs::JobError;

/// Files of any kind that are looked at for each picture of a page, at most: a folder of other things must not hold up the
/// listings of others.
const LOOKED_AT: usize = 20;

/// A walk through a folder and all below it: the entries of each folder by name, a folder's own where its name stands. A
/// hidden file or folder is passed over, and a link to a folder, which may lead round in a circle.
pub(super) struct FolderWalk {
    /// The entries left of each folder on the way down, the next one last.
    levels: Vec<Vec<Entry>>,
    /// How many places could not be read since the last page, and the first of them.
    skipped: (u64, Option<String>),
}

struct Entry {
    path: PathBuf,
    is_folder: bool,
}

impl FolderWalk {
    /// A walk that begins after the file `after`.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn open(folder: &Path, after: Option<&str>) -> Result<Self, JobError> {
        let unreadable = |error: std::io::Error| {
            let detail = format!("the folder {} cannot be read: {error}", folder.display());
            JobError::Rejected(Problem::new("source_unreadable", detail))
        };
        let entries = Self::entries(folder).map_err(unreadable)?;
        let mut walk = Self { levels: vec![entries], skipped: (0, None) };
        let Some(after) = after.and_then(|after| Path::new(after).strip_prefix(folder).ok()) else { return Ok(walk) };
        let names: Vec<OsString> = after.iter().map(OsString::from).collect();
        walk.go_to(&names);
        Ok(walk)
    }

    /// Up to `limit` pictures, of up to [`LOOKED_AT`] times as many files.
    pub(super) fn page(&mut self, limit: usize, mut checkpoint: Checkpoint) -> Listed {
        let mut items = Vec::with_capacity(limit);
        let mut is_last = false;
        for _ in 0..LOOKED_AT * limit {
            let Some(path) = self.next_file() else {
                is_last = true;
                break;
            };
            match picture(&path) {
                Ok(Some((file, fingerprint))) => {
                    items.push(ImageRef::File { file, fingerprint: Some(fingerprint) });
                }
                Ok(None) => {}
                Err(why) => self.skip(&path, &why),
            }
            if let Some(path) = path.to_str() {
                checkpoint.after = Some(path.to_owned());
            }
            if items.len() == limit {
                break;
            }
        }
        let (skipped, first) = std::mem::take(&mut self.skipped);
        checkpoint.skipped += skipped;
        checkpoint.first_skipped = checkpoint.first_skipped.or(first);
        Listed { items, checkpoint, is_last }
    }

    fn skip(&mut self, path: &Path, why: &dyn std::fmt::Display) {
        self.skipped.0 += 1;
        self.skipped.1.get_or_insert_with(|| format!("{}: {why}", path.display()));
    }

    fn next_file(&mut self) -> Option<PathBuf> {
        loop {
            let Some(entry) = self.levels.last_mut()?.pop() else {
                self.levels.pop();
                continue;
            };
            if !entry.is_folder {
                return Some(entry.path);
            }
            self.descend(&entry.path);
        }
    }

    fn descend(&mut self, folder: &Path) {
        match Self::entries(folder) {
            Ok(entries) => self.levels.push(entries),
            Err(error) => self.skip(folder, &error),
        }
    }

    /// Drops what comes before the file of these names, and that file.
    fn go_to(&mut self, names: &[OsString]) {
        for (depth, name) in names.iter().enumerate() {
            let Some(level) = self.levels.last_mut() else { return };
            let is_before = |entry: &Entry| entry.path.file_name().map(|n| n.cmp(name));
            while level.last().is_some_and(|e| is_before(e) == Some(Ordering::Less)) {
                level.pop();
            }
            if level.last().is_none_or(|e| is_before(e) != Some(Ordering::Equal)) {
                return;
            }
            let Some(found) = level.pop() else { return };
            if !found.is_folder {
                return;
            }
            if depth + 1 < names.len() {
                self.descend(&found.path);
            }
        }
    }

    /// The folder's entries, the first by name last. One that cannot be looked at is kept as a file: the page says why.
    fn entries(folder: &Path) -> std::io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            entries.push(Entry { path: entry.path(), is_folder });
        }
        entries.sort_unstable_by(|a, b| b.path.file_name().cmp(&a.path.file_name()));
        Ok(entries)
    }
}

/// A picture's path and what stands for its bytes; `None` for what is none by its name.
fn picture(path: &Path) -> Result<Option<(String, String)>, String> {
    if !is_picture_name(&path.to_string_lossy()) {
        return Ok(None);
    }
    let Some(name) = path.to_str() else { return Err("its name is no text".to_owned()) };
    let metadata = fs::metadata(path).map_err(|e| e.to_string())?;
    Ok(metadata.is_file().then(|| (name.to_owned(), fingerprint(&metadata))))
}

fn fingerprint(file: &Metadata) -> String {
    format!("{}-{}.{:09}", file.len(), file.mtime(), file.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in ["a/2.jpg", "a/b/1.png", "a.jpg", "b.jpg", "b/c.JPEG", "b/.hidden.jpg", ".git/x.jpg", "notes.txt"] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), folder.path().join("round")).unwrap();
        folder
    }

    fn names(folder: &Path, listed: &Listed) -> Vec<String> {
        let name = |image: &ImageRef| match image {
            ImageRef::File { file, .. } => Path::new(file).strip_prefix(folder).unwrap().display().to_string(),
            other => panic!("{other:?} is no file"),
        };
        listed.items.iter().map(name).collect()
    }

    #[test]
    fn a_walk_goes_on_after_any_file() {
        let folder = library();
        let all = FolderWalk::open(folder.path(), None).unwrap().page(10, Checkpoint::default());
        let wanted = ["a/2.jpg", "a/b/1.png", "a.jpg", "b/c.JPEG", "b.jpg"];
        assert_eq!(
            (names(folder.path(), &all), all.is_last, all.checkpoint.skipped),
            (wanted.map(str::to_owned).to_vec(), true, 0)
        );
        for done in 1..=wanted.len() {
            let mut walk = FolderWalk::open(folder.path(), None).unwrap();
            let first = walk.page(done, Checkpoint::default());
            let go_on = walk.page(10, first.checkpoint.clone());
            let after = first.checkpoint.after.as_deref();
            let again = FolderWalk::open(folder.path(), after).unwrap().page(10, first.checkpoint.clone());
            for rest in [go_on, again] {
                assert_eq!(names(folder.path(), &rest), wanted[done..], "after {after:?}");
                assert!(rest.is_last);
            }
        }
    }

    #[test]
    fn a_file_that_is_gone_is_gone_on_after() {
        let folder = library();
        let after = folder.path().join("a/b/1.png");
        fs::remove_dir_all(folder.path().join("a/b")).unwrap();
        let rest = FolderWalk::open(folder.path(), after.to_str()).unwrap().page(10, Checkpoint::default());
        assert_eq!(names(folder.path(), &rest), ["a.jpg", "b/c.JPEG", "b.jpg"]);
    }

    #[test]
    fn what_cannot_be_named_is_told() {
        use std::os::unix::ffi::OsStringExt as _;
        let folder = library();
        fs::write(folder.path().join(OsString::from_vec(b"\xff.jpg".to_vec())), b"x").unwrap();
        let listed = FolderWalk::open(folder.path(), None).unwrap().page(10, Checkpoint::default());
        assert_eq!((listed.items.len(), listed.checkpoint.skipped), (5, 1));
        assert!(listed.checkpoint.first_skipped.unwrap().ends_with("its name is no text"));
    }
}
