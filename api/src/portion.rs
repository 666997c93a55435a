//! Lines of a file that is imported, as many as are written in one transaction.

use sea_orm::DbErr;
use shared::db::Db;
use shared::db::transfer::export::ExportedImage;
use shared::db::transfer::import::{self, Imported, Target};
use shared::transfer::{ImageLine, Line, MergeLine, PersonLine};

/// Lines that are written in one transaction; a picture's faces stay together as far as they fit.
const SOME: usize = 500;
/// A transaction that is this full ends within a picture.
const MANY: usize = 2000;
/// So does one of lines of so many bytes.
const BYTES: usize = 8 << 20;

/// Lines that wait to be written together.
#[derive(Default)]
pub(crate) struct Portion {
    persons: Vec<PersonLine>,
    merges: Vec<MergeLine>,
    images: Vec<ExportedImage>,
    /// Whether a part of the first picture was written before.
    goes_on: bool,
    lines: usize,
    /// As they came.
    bytes: usize,
}

impl Portion {
    /// Whether what waits is to be written before this line is added.
    pub(crate) fn is_full_before(&self, line: &Line) -> bool {
        let is_large = self.lines >= MANY || self.bytes >= BYTES;
        match line {
            // Of persons first, since those that come after refer to them.
            Line::Merge(_) if !self.persons.is_empty() => true,
            Line::Image(_) => is_large || self.lines >= SOME || !self.persons.is_empty() || !self.merges.is_empty(),
            Line::Face(_) | Line::Place(_) => is_large,
            Line::Person(_) | Line::Merge(_) => is_large || self.lines >= SOME,
            Line::FaceIdExport(_) | Line::End(_) => false,
        }
    }

    /// Adds a line of so many bytes.
    pub(crate) fn add(&mut self, line: Line, bytes: usize) {
        self.lines += 1;
        self.bytes += bytes;
        match line {
            Line::Person(person) => self.persons.push(person),
            Line::Merge(merge) => self.merges.push(merge),
            Line::Image(image) => self.images.push((image, Vec::new(), Vec::new())),
            Line::Place(place) => self.images.last_mut().expect(PICTURE_FIRST).1.push(place),
            Line::Face(face) => self.images.last_mut().expect(PICTURE_FIRST).2.push(*face),
            Line::FaceIdExport(_) | Line::End(_) => {}
        }
    }

    /// Writes what waits before this line. A picture that the line belongs to is kept without what is written; only with the
    /// last of it it counts as analysed.
    pub(crate) async fn write(&mut self, db: &Db, target: Target<'_>, next: &Line) -> Result<Imported, DbErr> {
        let rest = |(image, ..): &mut ExportedImage| {
            let analyses = std::mem::take(&mut image.analyses);
            (ImageLine { analyses, ..image.clone() }, Vec::new(), Vec::new())
        };
        let goes_on = matches!(next, Line::Face(_) | Line::Place(_));
        let last = if goes_on { self.images.last_mut().map(rest) } else { None };
        let done = self.write_all(db, target).await?;
        *self = Self { goes_on: last.is_some(), images: last.into_iter().collect(), ..Self::default() };
        Ok(done)
    }

    /// Writes all that waits.
    pub(crate) async fn write_all(&self, db: &Db, target: Target<'_>) -> Result<Imported, DbErr> {
        let mut done = Imported::default();
        if !self.persons.is_empty() {
            done += import::add_persons(db, target, &self.persons).await?;
        }
        if !self.merges.is_empty() {
            done += import::add_merges(db, target, &self.merges).await?;
        }
        if !self.images.is_empty() {
            done += import::add_images(db, target, &self.images, self.goes_on).await?;
        }
        Ok(done)
    }
}

const PICTURE_FIRST: &str = "the checker refuses what comes before a picture; this is a bug";

#[cfg(test)]
mod tests {
    use shared::ids::PersonId;

    use super::*;

    fn person() -> Line {
        Line::Person(PersonLine {
            id: PersonId::new(),
            external_id: None,
            name: None,
            description: None,
            created_at: 0,
        })
    }

    /// How many lines of so many bytes a portion takes.
    fn taken(bytes: usize) -> usize {
        let mut portion = Portion::default();
        while !portion.is_full_before(&person()) {
            portion.add(person(), bytes);
        }
        portion.lines
    }

    #[test]
    fn a_portion_is_bounded_in_lines_and_bytes() {
        assert_eq!((taken(100), taken(4 << 20), taken(BYTES * 2)), (SOME, 2, 1));
    }
}
