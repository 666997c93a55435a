//! LFW's `pairs.txt`: which pictures are compared, fold by fold, and where they lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Columns of a pair of one person's pictures.
const ONE_PERSON: &str = "`<person> <number> <number>`";
/// Columns of a pair of two people's pictures.
const TWO_PEOPLE: &str = "`<person> <number> <other person> <number>`";

/// A picture by LFW's naming: `<person>/<person>_<four digits>.jpg`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Photo {
    pub(super) person: String,
    pub(super) number: u32,
}

/// Two pictures by their places in [`Pairs::photos`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) left: usize,
    pub(super) right: usize,
    pub(super) fold: usize,
    pub(super) is_same_person: bool,
}

/// A whole `pairs.txt`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pairs {
    /// Every picture named, once, by person and number.
    pub(super) photos: Vec<Photo>,
    pub(super) comparisons: Vec<Pair>,
    pub(super) folds: usize,
}

impl Photo {
    /// Where the picture lies below LFW's folder.
    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(&self.person).join(format!("{self}.jpg"))
    }
}

impl std::fmt::Display for Photo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{:04}", self.person, self.number)
    }
}

impl Pairs {
    /// Reads `<folds> <n>`, then for each fold n lines `<person> <i> <j>` and n lines `<person> <i> <person> <j>`.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty());
        let (line, head) = lines.next().unwrap_or_default();
        let (folds, each) = head
            .trim()
            .split_once(char::is_whitespace)
            .and_then(|(folds, each)| Some((folds.parse::<usize>().ok()?, each.trim().parse::<usize>().ok()?)))
            .filter(|&(folds, each)| (2..=1000).contains(&folds) && (1..=1_000_000).contains(&each))
            .with_context(|| unexpected(line, head, "`<folds> <pairs a kind>`"))?;
        let wanted = folds * each * 2;
        let mut named = Vec::new();
        for found in 0..wanted {
            let (line, text) = lines
                .next()
                .with_context(|| format!("the pairs end after {found}; {wanted} were announced by the first line"))?;
            named.push(photos(line, text, found % (each * 2) < each)?);
        }
        if let Some((line, text)) = lines.next() {
            anyhow::bail!(unexpected(line, text, "the end of the file"));
        }
        Ok(Self::numbered(folds, each, &named))
    }

    fn numbered(folds: usize, each: usize, named: &[[Photo; 2]]) -> Self {
        let mut places: BTreeMap<Photo, usize> = named.iter().flatten().cloned().map(|photo| (photo, 0)).collect();
        places.values_mut().enumerate().for_each(|(n, place)| *place = n);
        let pairs = named.iter().enumerate().map(|(n, [left, right])| Pair {
            left: places[left],
            right: places[right],
            fold: n / (each * 2),
            is_same_person: n % (each * 2) < each,
        });
        Self { comparisons: pairs.collect(), photos: places.into_keys().collect(), folds }
    }
}

fn photos(line: usize, text: &str, is_same_person: bool) -> anyhow::Result<[Photo; 2]> {
    let photo = |person: &str, number: &str| Some(Photo { person: named(person)?, number: number.parse().ok()? });
    let columns: Vec<&str> = text.split_whitespace().collect();
    let (read, wanted) = match (is_same_person, columns.as_slice()) {
        (true, [person, left, right]) => (photo(person, left).zip(photo(person, right)), ONE_PERSON),
        (false, [one, left, other, right]) if one != other => (photo(one, left).zip(photo(other, right)), TWO_PEOPLE),
        (true, _) => (None, ONE_PERSON),
        (false, _) => (None, TWO_PEOPLE),
    };
    read.map(<[Photo; 2]>::from).with_context(|| unexpected(line, text, wanted))
}

fn unexpected(line: usize, text: &str, wanted: &str) -> String {
    format!("line {} of the pairs is {text:?}; {wanted} was expected", line + 1)
}

/// The name, where it can be a folder's and not lead elsewhere.
fn named(person: &str) -> Option<String> {
    (!person.contains(['/', '\\']) && !person.starts_with('.')).then(|| person.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "2\t1\nAda\t1\t2\nAda\t1\tBob\t3\nBob\t3\t4\nCy\t1\tAda\t2\n";

    #[test]
    fn folds_and_kinds_follow_the_order_of_lines() {
        let pairs = Pairs::parse(SMALL).unwrap();
        let names: Vec<String> = pairs.photos.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["Ada_0001", "Ada_0002", "Bob_0003", "Bob_0004", "Cy_0001"]);
        let found: Vec<_> = pairs.comparisons.iter().map(|p| (p.left, p.right, p.fold, p.is_same_person)).collect();
        assert_eq!(found, [(0, 1, 0, true), (0, 2, 0, false), (2, 3, 1, true), (4, 1, 1, false)]);
        assert_eq!(pairs.photos[2].path(Path::new("lfw")), Path::new("lfw/Bob/Bob_0003.jpg"));
    }

    #[test]
    fn a_file_of_another_kind_is_refused_with_its_line() {
        let cases = [
            ("", "line 1"),
            ("1 1\nAda 1 2\nAda 1 Bob 2\n", "line 1"),
            ("2 1\nAda 1 2\n", "after 1;"),
            (&SMALL.replace("Ada\t1\t2", "Ada\t1\tx"), "line 2"),
            (&SMALL.replace("Bob\t3\t4", "Bob\t3\tAda\t4"), "line 4"),
            (&SMALL.replace("Cy", "../Cy"), "line 5"),
            (&format!("{SMALL}Ada 1 2\n"), "line 6"),
        ];
        for (text, wanted) in cases {
            let error = Pairs::parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
