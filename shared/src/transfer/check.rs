//! Reads a file line by line and refuses what is not as it has to be, before anything of the line is used.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Counts, FaceLine, Header, ImageLine, Line, VERSION, measured};
use crate::catalogue::Catalogue;

/// Longest text of a name, an external id or a place in bytes; a path may have 4096.
const MAX_TEXT: usize = 8192;
/// How far the length of a vector of f32 may be from 1 by its rounding, with a margin.
const UNIT_SLACK: f32 = 1e-3;

/// Why a file is refused. Nothing of the line that is named was used, nor of any after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TransferError {
    #[error("the file does not begin as a face-id export does; give what `face-id export` wrote")]
    NotAnExport,
    #[error("the file is of format {0}, and this face-id reads up to {VERSION}; upgrade it to import the file")]
    NewerFormat(u32),
    #[error("line {line} {why}; export again, or take another copy")]
    CorruptLine { line: u64, why: String },
    #[error("the file ends at line {line} without its last line: it was cut; export again, or take another copy")]
    Cut { line: u64 },
    #[error("the file lacks lines: it should have {wanted:?} and has {found:?}; export again, or take another copy")]
    Counts { wanted: Counts, found: Counts },
    #[error("the file has vectors of the pipeline {name}, which is not in the catalogue; known are {known}")]
    UnknownPipeline { name: String, known: String },
    #[error("the file has vectors of {theirs} components of the pipeline {name}, which here makes {ours}")]
    Dimension { name: String, theirs: usize, ours: usize },
    #[error("the file's vectors of the pipeline {name} were made with other weights than those of the catalogue")]
    Weights { name: String },
    #[error(
        "the file's vectors of the pipeline {name} were made or are compared otherwise than the catalogue's entry says: metric, \
         normalise, flip, jitter and prewhiten of its recognizer must be those of the file"
    )]
    Vectors { name: String },
}

impl TransferError {
    /// A stable code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAnExport => "not_an_export",
            Self::NewerFormat(_) => "newer_format",
            Self::CorruptLine { .. } => "corrupt_line",
            Self::Cut { .. } | Self::Counts { .. } => "export_cut",
            Self::UnknownPipeline { .. } => "unknown_pipeline",
            Self::Dimension { .. } => "dimension_mismatch",
            Self::Weights { .. } => "weights_mismatch",
            Self::Vectors { .. } => "vectors_mismatch",
        }
    }
}

/// See the module. Holds no more than the header and counts.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    line: u64,
    header: Option<Header>,
    found: Counts,
    /// Of the last picture.
    sha256: String,
    section: Section,
    /// Pipelines whose vectors are of unit length.
    unit: BTreeSet<String>,
}

/// What lines may follow: those of the same kind or a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    #[default]
    Persons,
    Merges,
    Images,
    End,
}

/// The part of a first line that every version has.
#[derive(Deserialize)]
struct AnyHeader {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
}

impl Checker {
    /// Reads the next line, without its end. The first is [`Line::FaceIdExport`].
    pub fn read(&mut self, line: &[u8]) -> Result<Line, TransferError> {
        self.line += 1;
        if self.header.is_none() {
            return self.read_header(line);
        }
        let line = serde_json::from_slice(line).map_err(|e| self.corrupt(format!("cannot be read: {e}")))?;
        self.check(&line)?;
        Ok(line)
    }

    /// From now on also refuses vectors that a pipeline of the catalogue would have scaled to unit length, and that are not of it:
    /// a dot product would not be a cosine.
    pub fn go_by(&mut self, catalogue: &Catalogue) {
        let names = self.header.iter().flat_map(|header| &header.pipelines).map(|pipeline| &pipeline.name);
        let is_unit = |name: &&String| catalogue.find(name).is_some_and(|pipeline| pipeline.recognizer.normalise);
        self.unit = names.filter(is_unit).cloned().collect();
    }

    /// Whether the last line was read.
    pub fn is_at_end(&self) -> bool {
        self.section == Section::End
    }

    /// What was read, once there are no more lines.
    pub fn finish(&self) -> Result<Counts, TransferError> {
        if self.header.is_none() {
            return Err(TransferError::NotAnExport);
        }
        if self.is_at_end() { Ok(self.found) } else { Err(TransferError::Cut { line: self.line }) }
    }

    /// The number of the last line that was read.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The error for something else that is wrong with the line that was read last.
    pub fn corrupt(&self, why: impl Into<String>) -> TransferError {
        TransferError::CorruptLine { line: self.line, why: why.into() }
    }

    fn read_header(&mut self, line: &[u8]) -> Result<Line, TransferError> {
        let any: AnyHeader = serde_json::from_slice(line).map_err(|_| TransferError::NotAnExport)?;
        if any.kind != "face_id_export" {
            return Err(TransferError::NotAnExport);
        }
        if any.version > VERSION {
            return Err(TransferError::NewerFormat(any.version));
        }
        let line = serde_json::from_slice(line).map_err(|e| self.corrupt(format!("cannot be read: {e}")))?;
        let Line::FaceIdExport(header) = &line else { return Err(TransferError::NotAnExport) };
        let has_own = header.pipelines.iter().any(|p| p.name == header.collection.pipeline);
        if !has_own || header.version == 0 {
            return Err(self.corrupt("does not say of which version or pipeline the file is"));
        }
        self.header = Some(header.clone());
        Ok(line)
    }

    fn check(&mut self, line: &Line) -> Result<(), TransferError> {
        let section = match line {
            Line::FaceIdExport(_) => return Err(self.corrupt("is a second header")),
            Line::Person(_) => Section::Persons,
            Line::Merge(_) => Section::Merges,
            Line::Image(_) | Line::Place(_) | Line::Face(_) => Section::Images,
            Line::End(_) => Section::End,
        };
        if section < self.section || self.is_at_end() {
            return Err(self.corrupt("is not where it belongs"));
        }
        if self.found.images == 0 && matches!(line, Line::Place(_) | Line::Face(_)) {
            return Err(self.corrupt("belongs to a picture, and none comes before it"));
        }
        self.check_content(line).map_err(|why| self.corrupt(why))?;
        self.section = section;
        if let Line::Image(image) = line {
            if image.sha256 <= self.sha256 {
                return Err(self.corrupt("is of a picture that is not in the order of the digests"));
            }
            self.sha256.clone_from(&image.sha256);
        }
        self.count(line)
    }

    fn count(&mut self, line: &Line) -> Result<(), TransferError> {
        match line {
            Line::FaceIdExport(_) => {}
            Line::Person(_) => self.found.persons += 1,
            Line::Merge(_) => self.found.merges += 1,
            Line::Image(_) => self.found.images += 1,
            Line::Place(_) => self.found.places += 1,
            Line::Face(face) => {
                self.found.faces += 1;
                self.found.vectors += face.vectors.len() as u64;
            }
            Line::End(wanted) if *wanted == self.found => {}
            Line::End(wanted) => return Err(TransferError::Counts { wanted: *wanted, found: self.found }),
        }
        Ok(())
    }

    fn check_content(&self, line: &Line) -> Result<(), String> {
        match line {
            Line::FaceIdExport(_) | Line::End(_) => Ok(()),
            Line::Person(person) => {
                // An empty name is one, an empty id is none.
                check_texts([&person.external_id, &None])?;
                [&person.name, &person.description].into_iter().flatten().try_for_each(|text| check_length(text))
            }
            Line::Merge(merge) => check_texts([&merge.external_id, &merge.into.external_id]),
            Line::Image(image) => check_image(image),
            Line::Place(place) => check_text(&place.uri).and_then(|()| check_length(&place.fingerprint)),
            Line::Face(face) => self.check_face(face),
        }
    }

    fn check_face(&self, face: &FaceLine) -> Result<(), String> {
        if face.geometry.is_empty() {
            return Err("has a face that lies nowhere".to_owned());
        }
        for (revision, geometry) in &face.geometry {
            check_text(revision)?;
            measured::check(&geometry.landmarks, &geometry.quality)?;
            let b = &geometry.face_box;
            let finite = [b.x, b.y, b.width, b.height, geometry.score].iter().all(|v| v.is_finite());
            if !finite || b.width <= 0.0 || b.height <= 0.0 {
                return Err("has a box without an area".to_owned());
            }
        }
        for (pipeline, vector) in &face.vectors {
            let known = self.header.iter().flat_map(|h| &h.pipelines).find(|p| p.name == *pipeline);
            let Some(known) = known else {
                return Err(format!("has a vector of the pipeline {pipeline}, which the first line does not name"));
            };
            if vector.0.dimension() != known.dimension {
                let (found, wanted) = (vector.0.dimension(), known.dimension);
                return Err(format!("has a vector of {found} components, where {pipeline} has {wanted}"));
            }
            if self.unit.contains(pipeline) && (vector.0.length() - 1.0).abs() > UNIT_SLACK {
                return Err(format!("has a vector that is not of unit length, as all of {pipeline} are"));
            }
        }
        if face.person.is_some() && face.assigned_by.is_none() {
            return Err("has a person, and nobody who said so".to_owned());
        }
        let persons = face.person.iter().chain(&face.not).chain(face.cluster.iter().flat_map(|c| &c.person));
        persons.into_iter().try_for_each(|person| check_texts([&person.external_id, &None]))
    }
}

fn check_image(image: &ImageLine) -> Result<(), String> {
    if image.sha256.len() != 64 || !image.sha256.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("has a sha256 that is not 64 lower-case hex digits".to_owned());
    }
    if image.width < 1 || image.height < 1 {
        return Err("has a picture without an area".to_owned());
    }
    image.analyses.keys().try_for_each(|revision| check_text(revision))?;
    check_texts([&image.captured_at, &image.uri])
}

fn check_texts(texts: [&Option<String>; 2]) -> Result<(), String> {
    texts.into_iter().flatten().try_for_each(|text| check_text(text))
}

fn check_text(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("has an empty text that has to say something".to_owned());
    }
    check_length(text)
}

/// Of a text that may be empty. One of the databases takes no NUL.
fn check_length(text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT || text.contains('\0') {
        return Err(format!("has a text that is not up to {MAX_TEXT} bytes without NUL"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use std::sync::Arc;

    use super::*;
    use crate::catalogue::Pipeline;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ID: &str = "0192aaaa-0000-7000-8000-000000000001";

    fn vector(components: &[f32]) -> String {
        STANDARD.encode(components.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    fn lines() -> Vec<serde_json::Value> {
        let settings = json!({});
        let pipeline = json!({ "name": "p", "dimension": 2, "weights": SHA, "detector_revision": "d" });
        let geometry =
            json!({ "box": { "x": 1, "y": 1, "width": 5, "height": 6 }, "landmarks": [], "score": 0.9, "quality": {} });
        vec![
            json!({ "type": "face_id_export", "version": 1, "pipelines": [pipeline],
                "collection": { "id": ID, "name": "c", "pipeline": "p", "settings": settings } }),
            json!({ "type": "person", "id": ID, "external_id": "ann", "created_at": 1 }),
            json!({ "type": "image", "id": ID, "sha256": SHA, "width": 10, "height": 20, "created_at": 1 }),
            json!({ "type": "face", "id": ID, "person": { "id": ID }, "assigned_by": "user", "created_at": 1,
                "geometry": { "d": geometry }, "vectors": { "p": vector(&[0.6, 0.8]) } }),
            json!({ "type": "end", "persons": 1, "merges": 0, "images": 1, "places": 0, "faces": 1, "vectors": 1 }),
        ]
    }

    fn check(lines: &[serde_json::Value]) -> Result<Counts, TransferError> {
        let mut checker = Checker::default();
        for line in lines {
            let read = checker.read(line.to_string().as_bytes())?;
            let mut written = Vec::new();
            read.write_to(&mut written);
            let again: Line = serde_json::from_slice(&written).unwrap();
            assert_eq!(again, read, "what was read is written again");
        }
        checker.finish()
    }

    #[test]
    fn a_whole_file_is_read() {
        let wanted = Counts { persons: 1, images: 1, faces: 1, vectors: 1, ..Counts::default() };
        assert_eq!(check(&lines()), Ok(wanted));
    }

    #[test]
    fn vectors_have_the_length_that_their_pipeline_gives_them() {
        let own = Catalogue::load(None).unwrap().pipeline("yunet-mobilefacenet").unwrap().clone();
        for (normalise, vector, is_taken) in
            [(true, [0.6, 0.8], true), (true, [3.0, 4.0], false), (false, [3.0, 4.0], true)]
        {
            let mut own = Pipeline { name: "p".to_owned(), ..own.clone() };
            own.recognizer.normalise = normalise;
            let mut lines = lines();
            lines[3]["vectors"]["p"] = json!(self::vector(&vector));
            let mut checker = Checker::default();
            checker.read(lines[0].to_string().as_bytes()).unwrap();
            checker.go_by(&[Arc::new(own)].into_iter().collect());
            let rest: Result<Vec<Line>, _> =
                lines[1..].iter().map(|line| checker.read(line.to_string().as_bytes())).collect();
            assert_eq!(rest.is_ok(), is_taken, "{rest:?}");
        }
    }

    #[test]
    fn what_the_api_takes_is_taken() {
        let mut lines = lines();
        lines[1]["name"] = json!("");
        // A figure that is not finite is stored as null.
        lines[3]["geometry"]["d"]["quality"] =
            json!({ "sharpness": null, "score": 0.5, "usable": false, "reasons": ["small"] });
        lines[3]["geometry"]["d"]["landmarks"] = json!([[1.5, 2], [3, 4], [5, 6], [7, 8], [9, 10]]);
        assert!(check(&lines).is_ok(), "{:?}", check(&lines));
        lines[3]["geometry"]["d"]["landmarks"] = json!({ "scheme": "ibug-68", "points": [[1.5, 2], [3, null]] });
        assert!(check(&lines).is_ok(), "{:?}", check(&lines));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        type Change = fn(&mut Vec<serde_json::Value>);
        let cases: [(Change, &str, u64); 24] = [
            (|l| l.clear(), "not_an_export", 0),
            (|l| drop(l.remove(0)), "not_an_export", 0),
            (|l| l[0] = json!({ "type": "face_id_export", "version": 2, "news": true }), "newer_format", 0),
            (|l| l[0]["pipelines"] = json!([]), "corrupt_line", 1),
            (|l| drop(l.pop()), "export_cut", 4),
            (|l| drop(l.remove(3)), "export_cut", 0),
            (|l| l[1]["surname"] = json!("x"), "corrupt_line", 2),
            (|l| l.swap(1, 2), "corrupt_line", 3),
            (|l| drop(l.remove(2)), "corrupt_line", 3),
            (|l| l[2]["sha256"] = json!("00"), "corrupt_line", 3),
            (|l| l[3]["vectors"]["p"] = json!(vector(&[0.6, f32::NAN])), "corrupt_line", 4),
            (|l| l[3]["vectors"]["p"] = json!(vector(&[1.0, 0.0, 0.0])), "corrupt_line", 4),
            (|l| l[3]["vectors"] = json!({ "q": vector(&[0.6, 0.8]) }), "corrupt_line", 4),
            (|l| l[3]["geometry"]["d"]["box"]["width"] = json!(0), "corrupt_line", 4),
            (|l| l[3]["geometry"]["d"]["quality"] = json!("x"), "corrupt_line", 4),
            (|l| l[3]["geometry"]["d"]["quality"] = json!({ "x": "\0" }), "corrupt_line", 4),
            (|l| l[3]["geometry"]["d"]["quality"] = json!({ "x": { "y": 1 } }), "corrupt_line", 4),
            (|l| l[3]["geometry"]["d"]["landmarks"] = json!([[1, 2], [3]]), "corrupt_line", 4),
            (|l| l[3]["geometry"]["d"]["landmarks"] = json!({ "scheme": "x", "points": [[3]] }), "corrupt_line", 4),
            (|l| l[3]["geometry"]["d"]["landmarks"] = json!({ "points": [[1, 2]] }), "corrupt_line", 4),
            (|l| l[3]["geometry"]["d"]["landmarks"] = json!(vec![[1, 2]; 1000]), "corrupt_line", 4),
            (|l| l[1]["external_id"] = json!(""), "corrupt_line", 2),
            (|l| l.insert(3, l[2].clone()), "corrupt_line", 4),
            (|l| l.push(l[1].clone()), "corrupt_line", 6),
        ];
        for (change, code, line) in cases {
            let mut lines = lines();
            change(&mut lines);
            let error = check(&lines).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            if line > 0 {
                assert!(error.to_string().contains(&format!("line {line} ")), "{error}");
            }
        }
    }
}
