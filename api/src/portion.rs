//! Lines of a file that is imported, as many as are written in one transaction.

use sea_orm::DbErr;
use shared::db::Db;
use shared::db::transfer::export::ExportedImage;
use shared::db::transfer::import;
use shared::ids::CollectionId;
use shared::transfer::{Counts, ImageLine, Line, MergeLine, PersonLine};

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

    /// Writes what waits. The last picture, of which more may come, is kept without what is written; only with the last of it
    /// it counts as analysed.
    pub(crate) async fn write(&mut self, db: &Db, into: (CollectionId, i64)) -> Result<Counts, DbErr> {
        let goes_on = |(image, ..): &mut ExportedImage| {
            let analyses = std::mem::take(&mut image.analyses);
            (ImageLine { analyses, ..image.clone() }, Vec::new(), Vec::new())
        };
        let last = self.images.last_mut().map(goes_on);
        let added = self.write_all(db, into).await?;
        *self = Self { images: last.into_iter().collect(), ..Self::default() };
        Ok(added)
    }

    /// Writes all that waits into a collection, of an import that has begun at that instant of the database's clock.
    pub(crate) async fn write_all(&self, db: &Db, into: (CollectionId, i64)) -> Result<Counts, DbErr> {
        let mut added = Counts::default();
        if !self.persons.is_empty() {
            add(&mut added, import::add_persons(db, into, &self.persons).await?);
        }
        if !self.merges.is_empty() {
            add(&mut added, import::add_merges(db, into, &self.merges).await?);
        }
        if !self.images.is_empty() {
            add(&mut added, import::add_images(db, into, &self.images).await?);
        }
        Ok(added)
    }
}

const PICTURE_FIRST: &str = "the checker refuses what comes before a picture; this is a bug";

/// Adds counts to a sum.
pub(crate) fn add(sum: &mut Counts, counts: Counts) {
    sum.persons += counts.persons;
    sum.merges += counts.merges;
    sum.images += counts.images;
    sum.places += counts.places;
    sum.faces += counts.faces;
    sum.vectors += counts.vectors;
}

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
