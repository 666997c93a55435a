//! Where labelled faces come from: a folder for each person, or a collection's own people.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize as _;
use shared::catalogue::Metric;
use shared::db::faces::AssignedBy;
use shared::embedding::Embedding;
use shared::transfer::{FaceLine, Line};

use crate::client::Client;
use crate::eval::calibration::ALIASES;
use crate::eval::embed::Setup;
use crate::transfer::file::tell_lines;

use super::comparisons::Labelled;
use super::embedded::{self, LeftOut};

/// Faces that are compared at most: every two of them are, so that the work grows with the square.
const MOST_FACES: usize = 15_000;
/// Names of pictures end so.
const PICTURES: [&str; 6] = ["heic", "heif", "jpeg", "jpg", "png", "webp"];

/// People with some faces of each. Of more than there may be, first those who have many lose some, then people are left out
/// by chance: whom a hash of their names puts last, so that it is the same ones each time.
struct Sample<T> {
    people: BTreeMap<(u64, String), Vec<T>>,
    faces: usize,
    /// Faces that one person may have.
    per_person: usize,
    /// People from here on are left out.
    below: u64,
    most: usize,
}

impl<T> Sample<T> {
    fn new(per_person: usize, most: usize) -> Self {
        Self { people: BTreeMap::new(), faces: 0, per_person, below: u64::MAX, most }
    }

    fn add(&mut self, person: &str, face: T) {
        let mut hasher = DefaultHasher::new();
        person.hash(&mut hasher);
        let rank = hasher.finish();
        if rank >= self.below {
            return;
        }
        let faces = self.people.entry((rank, person.to_owned())).or_default();
        if faces.len() < self.per_person {
            faces.push(face);
            self.faces += 1;
        }
        if self.faces >= 2 * self.most {
            self.thin();
        }
    }

    fn thin(&mut self) {
        while self.faces > self.most && self.per_person > 1 {
            let longest = self.people.values().map(Vec::len).max().unwrap_or_default();
            self.per_person = (longest.min(self.per_person) - 1).max(1);
            for faces in self.people.values_mut() {
                self.faces -= faces.len().saturating_sub(self.per_person);
                faces.truncate(self.per_person);
            }
        }
        while self.faces > self.most
            && let Some(((rank, _), faces)) = self.people.pop_last()
        {
            self.below = rank;
            self.faces -= faces.len();
        }
    }

    /// By name.
    fn finish(mut self) -> Vec<(String, Vec<T>)> {
        self.thin();
        let mut people: Vec<_> = self.people.into_iter().map(|((_, name), faces)| (name, faces)).collect();
        people.sort_by(|a, b| a.0.cmp(&b.0));
        people
    }
}

/// The faces of a folder's pictures, with which pictures do not count. Persons that LFW has under two names are not compared
/// with each other.
pub(super) async fn of_folder(
    setup: &Setup,
    folder: &Path,
    per_person: Option<usize>,
) -> anyhow::Result<(Labelled, LeftOut)> {
    let people = pictures(folder, per_person.unwrap_or(usize::MAX))?;
    let paths: Vec<PathBuf> = people.iter().flat_map(|(_, paths)| paths.iter().cloned()).collect();
    let (found, left_out) = embedded::embed(setup, paths).await?;
    let mut found = found.into_iter();
    let faces = people.into_iter().map(|(name, paths)| (name, found.by_ref().take(paths.len()).flatten().collect()));
    let metric = setup.engine.pipeline().recognizer.metric;
    Ok((Labelled::new(faces, ALIASES.iter().map(|alias| [alias.one, alias.other]), metric), left_out))
}

/// The pictures of `folder/<person>/`.
fn pictures(folder: &Path, per_person: usize) -> anyhow::Result<Vec<(String, Vec<PathBuf>)>> {
    let mut sample = Sample::new(per_person, MOST_FACES);
    for person in listed(folder)? {
        if !person.is_dir() {
            continue;
        }
        let name = person
            .file_name()
            .and_then(|name| name.to_str())
            .with_context(|| format!("{} is no text: rename it, the person is called so", person.display()))?;
        for picture in listed(&person)? {
            let extension = picture.extension().and_then(|extension| extension.to_str()).map(str::to_lowercase);
            if extension.is_some_and(|extension| PICTURES.contains(&extension.as_str())) {
                sample.add(name, picture);
            }
        }
    }
    anyhow::ensure!(
        !sample.people.is_empty(),
        "there is no picture in a folder of {}; a person's pictures lie in {}/<person>/",
        folder.display(),
        folder.display()
    );
    Ok(sample.finish())
}

fn listed(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("list the folder {}", folder.display());
    let entries = std::fs::read_dir(folder).with_context(failed)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().with_context(failed)?;
    paths.sort();
    Ok(paths)
}

/// The faces of a collection that a user named or enrolled, by this pipeline's vectors: those by which people are recognised.
pub(super) async fn of_collection(
    client: &Client,
    collection: &str,
    pipeline: &str,
    per_person: Option<usize>,
) -> anyhow::Result<Labelled> {
    let model = client.get(&format!("/v1/models/{pipeline}")).await?;
    let metric = Metric::deserialize(&model["metric"])
        .context("the server does not say how the model's vectors are compared")?;
    let mut sample = Sample::new(per_person.unwrap_or(usize::MAX), MOST_FACES);
    tell_lines(client, collection, |line| {
        if let Line::Face(face) = line
            && let Some((person, embedding)) = template(*face, pipeline)
        {
            sample.add(&person, embedding);
        }
    })
    .await?;
    Ok(Labelled::new(sample.finish(), [], metric))
}

/// Whose the face is, with its vector.
fn template(mut face: FaceLine, pipeline: &str) -> Option<(String, Embedding)> {
    let is_said = matches!(face.assigned_by, Some(AssignedBy::Enrolled | AssignedBy::User)) && !face.hidden;
    let person = face.person.filter(|_| is_said)?;
    Some((person.id.to_string(), face.vectors.remove(pipeline)?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(most: usize, faces_of: &[usize]) -> Vec<(String, Vec<usize>)> {
        let mut sample = Sample::new(usize::MAX, most);
        for (person, faces) in faces_of.iter().enumerate() {
            (0..*faces).for_each(|face| sample.add(&format!("{person:04}"), face));
        }
        sample.finish()
    }

    #[test]
    fn who_has_many_faces_loses_some_first() {
        assert_eq!(sampled(10, &[2, 3]), [("0000".to_owned(), vec![0, 1]), ("0001".to_owned(), vec![0, 1, 2])]);
        let few = sampled(10, &[100, 3, 1]);
        assert_eq!(few.iter().map(|(_, faces)| faces.len()).collect::<Vec<_>>(), [6, 3, 1]);
        let fewer = sampled(10, &[7, 7, 7, 1]);
        assert_eq!(fewer.iter().map(|(_, faces)| faces.len()).collect::<Vec<_>>(), [3, 3, 3, 1]);
    }

    #[test]
    fn then_people_are_left_out_by_chance() {
        let all = sampled(100, &[2; 1000]);
        assert_eq!((all.len(), all.iter().all(|(_, faces)| faces.len() == 1)), (100, true));
        let numbers: Vec<usize> = all.iter().map(|(name, _)| name.parse().unwrap()).collect();
        let early = numbers.iter().filter(|number| **number < 500).count();
        assert!((30..=70).contains(&early), "{early} of the first half: when they came does not matter");
        assert_eq!(sampled(100, &[2; 1000]), all, "the same each time");
    }

    #[test]
    fn a_folder_a_person() {
        let folder = tempfile::tempdir().unwrap();
        let refused = pictures(folder.path(), 9).unwrap_err().to_string();
        assert!(refused.contains("<person>"), "{refused}");
        for (person, name) in
            [("Bob", "2.JPG"), ("Bob", "1.jpg"), ("Bob", "notes.txt"), ("Ann", "x.png"), ("Cy", "y.md")]
        {
            std::fs::create_dir_all(folder.path().join(person)).unwrap();
            std::fs::write(folder.path().join(person).join(name), "").unwrap();
        }
        std::fs::write(folder.path().join("SHA256SUMS"), "").unwrap();
        let names = |per_person| -> Vec<(String, Vec<String>)> {
            let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            let found = pictures(folder.path(), per_person).unwrap().into_iter();
            found.map(|(person, paths)| (person, paths.into_iter().map(name).collect())).collect()
        };
        let person =
            |name: &str, pictures: &[&str]| (name.to_owned(), pictures.iter().map(|p| (*p).to_owned()).collect());
        assert_eq!(names(9), [person("Ann", &["x.png"]), person("Bob", &["1.jpg", "2.JPG"])]);
        assert_eq!(names(1), [person("Ann", &["x.png"]), person("Bob", &["1.jpg"])]);
        assert!(pictures(&folder.path().join("nowhere"), 9).unwrap_err().to_string().contains("nowhere"));
    }
}
