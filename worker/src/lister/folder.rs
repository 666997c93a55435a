//! The pictures below a folder, in the order of their paths' bytes: a listing can go on anywhere, and what is known of
//! places is compared with it range by range.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use shared::batch::{Checkpoint, is_picture_name};
use shared::db::batches::listing::Listed;
use shared::db::batches::missing::Coverage;
use shared::job::{ImageRef, Problem};
use shared::objects::file_fingerprint;

use super::sweep::coverage_of;
use crate::jobs::JobError;

/// Files of any kind that are looked at for each picture of a page, at most: a folder of other things must not hold up the
/// listings of others.
const LOOKED_AT: usize = 20;
/// Places of one page that could not be read, and folders that are empty, that are kept by name, at most.
const UNREAD: usize = 1000;

/// A walk through a folder and all below it, in the order of the paths' bytes. A hidden file or folder is passed over, and
/// a link to a folder, which may lead round in a circle.
pub(super) struct FolderWalk {
    coverage: Coverage,
    /// The entries left of each folder on the way down, the next one last.
    levels: Vec<Vec<Entry>>,
    /// How many places could not be read since the last page, and the first of them.
    skipped: (u64, Option<String>),
    /// Which they were; `None`: too many.
    unread: Option<Vec<String>>,
    /// Folders that were read since the last page and hold nothing.
    empty: Vec<String>,
}

struct Entry {
    path: PathBuf,
    is_folder: bool,
}

impl Entry {
    fn order(&self, name: &OsStr, is_folder: bool) -> Ordering {
        by_path((self.path.file_name().unwrap_or_default(), self.is_folder), (name, is_folder))
    }
}

/// The order of entries of one folder in that of whole paths: a folder's name goes on with a slash.
fn by_path((a, a_is_folder): (&OsStr, bool), (b, b_is_folder): (&OsStr, bool)) -> Ordering {
    let slash = |is_folder: bool| is_folder.then_some(b'/');
    let a = a.as_encoded_bytes().iter().copied().chain(slash(a_is_folder));
    a.cmp(b.as_encoded_bytes().iter().copied().chain(slash(b_is_folder)))
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
        let coverage = coverage_of(folder);
        let unread = Some(Vec::new());
        let mut walk = Self { coverage, levels: Vec::new(), skipped: (0, None), unread, empty: Vec::new() };
        walk.enter(folder, entries);
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
        let unread = self.unread.replace(Vec::new());
        let coverage = Coverage { unread, empty: std::mem::take(&mut self.empty), ..self.coverage.clone() };
        Listed { items, checkpoint, is_last, coverage: Some(coverage) }
    }

    fn skip(&mut self, path: &Path, why: &dyn std::fmt::Display) {
        self.unread = self.unread.take().filter(|unread| unread.len() < UNREAD);
        // What has no name in text is known to nobody.
        if let (Some(unread), Some(path)) = (&mut self.unread, path.to_str()) {
            unread.push(format!("file://{path}"));
        }
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
            Ok(entries) => self.enter(folder, entries),
            Err(error) => self.skip(folder, &error),
        }
    }

    fn enter(&mut self, folder: &Path, entries: Vec<Entry>) {
        if entries.is_empty() {
            self.unread = self.unread.take().filter(|_| self.empty.len() < UNREAD);
            self.empty.extend(folder.to_str().filter(|_| self.unread.is_some()).map(|path| format!("file://{path}")));
        }
        self.levels.push(entries);
    }

    /// Drops what comes before the file of these names, and that file.
    fn go_to(&mut self, names: &[OsString]) {
        for (depth, name) in names.iter().enumerate() {
            let is_folder = depth + 1 < names.len();
            let Some(level) = self.levels.last_mut() else { return };
            while level.last().is_some_and(|e| e.order(name, is_folder) == Ordering::Less) {
                level.pop();
            }
            if level.last().is_none_or(|e| e.order(name, is_folder) != Ordering::Equal) {
                return;
            }
            let Some(found) = level.pop() else { return };
            if is_folder {
                self.descend(&found.path);
            }
        }
    }

    /// The folder's entries, the first one last. One that cannot be looked at is kept as a file: the page says why.
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
        entries.sort_unstable_by(|a, b| b.order(a.path.file_name().unwrap_or_default(), a.is_folder));
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
    Ok(metadata.is_file().then(|| (name.to_owned(), file_fingerprint(&metadata))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in
            ["a/2.jpg", "a/b/1.png", "a.jpg", "b.jpg", "b/c.JPEG", "b/.hidden.jpg", ".git/x.jpg", "notes.txt", "a0.jpg"]
        {
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
        let wanted = ["a.jpg", "a/2.jpg", "a/b/1.png", "a0.jpg", "b.jpg", "b/c.JPEG"];
        assert!(wanted.is_sorted(), "as a database sorts them by their bytes");
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
        assert_eq!(names(folder.path(), &rest), ["a0.jpg", "b.jpg", "b/c.JPEG"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = library();
        let mut walk = FolderWalk::open(folder.path(), None).unwrap();
        fs::remove_dir_all(folder.path().join("b")).unwrap();
        fs::remove_file(folder.path().join("a0.jpg")).unwrap();
        let listed = walk.page(10, Checkpoint::default());
        assert_eq!(names(folder.path(), &listed), ["a.jpg", "a/2.jpg", "a/b/1.png", "b.jpg"]);
        let unread = ["a0.jpg", "b"].map(|name| format!("file://{}", folder.path().join(name).display()));
        let coverage = listed.coverage.unwrap();
        assert_eq!((coverage.unread, listed.checkpoint.skipped), (Some(unread.to_vec()), 2));
        assert_eq!(coverage.prefix, format!("file://{}/", folder.path().display()));
        assert_eq!(walk.page(10, Checkpoint::default()).coverage.unwrap().unread, Some(Vec::new()), "of each page");
    }

    #[test]
    fn what_is_empty_is_named() {
        let folder = library();
        fs::create_dir_all(folder.path().join("a/empty/too")).unwrap();
        fs::create_dir(folder.path().join("hides")).unwrap();
        fs::write(folder.path().join("hides/.keep"), "").unwrap();
        let listed = FolderWalk::open(folder.path(), None).unwrap().page(10, Checkpoint::default());
        let empty = ["a/empty/too", "hides"].map(|name| format!("file://{}", folder.path().join(name).display()));
        let coverage = listed.coverage.unwrap();
        assert_eq!((coverage.empty, coverage.unread), (empty.to_vec(), Some(Vec::new())));

        fs::remove_dir_all(folder.path()).unwrap();
        fs::create_dir(folder.path()).unwrap();
        let listed = FolderWalk::open(folder.path(), None).unwrap().page(10, Checkpoint::default());
        assert_eq!(listed.coverage.unwrap().empty, [format!("file://{}", folder.path().display())]);
    }

    #[test]
    fn what_cannot_be_named_is_told() {
        use std::os::unix::ffi::OsStringExt as _;
        let folder = library();
        fs::write(folder.path().join(OsString::from_vec(b"\xff.jpg".to_vec())), b"x").unwrap();
        let listed = FolderWalk::open(folder.path(), None).unwrap().page(10, Checkpoint::default());
        assert_eq!((listed.items.len(), listed.checkpoint.skipped), (6, 1));
        assert!(listed.checkpoint.first_skipped.unwrap().ends_with("its name is no text"));
    }
}
