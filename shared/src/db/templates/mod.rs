//! The vectors of persons' templates: what is needed to judge a person's faces together.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use sea_orm::prelude::*;
use sea_orm::{FromQueryResult, Value};
use serde_json::json;

use super::embeddings::StoredVector;
use super::rows::{self, Column, Rows};
use super::{placeholders, statement};
use crate::embedding::Embedding;
use crate::ids::{FaceId, PersonId};
use crate::template::NEWEST;

/// Which faces of `faces f` form templates, word for word as in their index.
const TEMPLATE: &str = "f.person_id IS NOT NULL AND f.assigned_by IN ('enrolled', 'user') AND NOT f.hidden";
/// Beyond so many vectors it costs no more to look up every face than to compare each with all of them.
const MOST_NEAR: usize = 2048;

/// What one pipeline made of each person's newest templates, [`NEWEST`] at most, and of these faces of theirs, the newest
/// first. A person without any is missing.
pub async fn newest(
    conn: &impl ConnectionTrait,
    pipeline: &str,
    faces: &[(PersonId, FaceId)],
) -> Result<HashMap<PersonId, Vec<(FaceId, Embedding)>>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        person_id: PersonId,
        face_id: FaceId,
        vector: StoredVector,
    }
    const COLUMNS: [(&str, Column); 2] = [("person_id", Column::Id), ("face_id", Column::Id)];
    let mut of_person: HashMap<PersonId, Vec<(FaceId, Embedding)>> = HashMap::new();
    if faces.is_empty() {
        return Ok(of_person);
    }
    let row =
        |(person, face): &(PersonId, FaceId)| json!({ "person_id": rows::id(person.0), "face_id": rows::id(face.0) });
    let wanted = Rows::new(&COLUMNS, faces.iter().map(row).collect());
    let table = wanted.table(conn);
    // Ranked are only those that have a vector, which is read of few of them.
    let sql = format!(
        "SELECT t.person_id, t.face_id, e.vector FROM (
            SELECT f.person_id, f.id AS face_id, row_number() OVER (PARTITION BY f.person_id ORDER BY f.id DESC) AS n
            FROM (SELECT DISTINCT r.person_id FROM {table}) AS p CROSS JOIN faces f
            WHERE f.person_id = p.person_id AND {TEMPLATE}
                AND EXISTS (SELECT 1 FROM embeddings v WHERE v.pipeline = $2 AND v.face_id = f.id)) AS t
         CROSS JOIN embeddings e
         WHERE (t.n <= {NEWEST} OR t.face_id IN (SELECT r.face_id FROM {table}))
            AND e.pipeline = $2 AND e.face_id = t.face_id
         ORDER BY t.person_id, t.face_id DESC"
    );
    let found = Row::find_by_statement(statement(conn, &sql, [wanted.value(), pipeline.into()])).all(conn).await?;
    for row in found {
        of_person.entry(row.person_id).or_default().push((row.face_id, row.vector.0));
    }
    Ok(of_person)
}

/// Whom a change of templates concerns.
#[derive(Clone, Debug, PartialEq)]
pub struct Concerned {
    /// Those whose templates came or went.
    pub persons: Vec<PersonId>,
    /// What one pipeline made of all of their templates, also of those that did not change: which of them fit has to do with
    /// the others. `None`: they are too many to be compared with.
    pub vectors: Option<Vec<Embedding>>,
}

/// Whom it concerns that these faces came and that these persons lost some.
pub async fn concerned(
    conn: &impl ConnectionTrait,
    pipeline: &str,
    faces: &[FaceId],
    persons: &[PersonId],
) -> Result<Concerned, DbErr> {
    #[derive(FromQueryResult)]
    struct Whose {
        person_id: PersonId,
    }
    #[derive(FromQueryResult)]
    struct Row {
        vector: StoredVector,
    }
    let mut concerned: BTreeSet<PersonId> = persons.iter().copied().collect();
    if !faces.is_empty() {
        let sql =
            format!("SELECT f.person_id FROM faces f WHERE f.id IN ({}) AND {TEMPLATE}", placeholders(1, faces.len()));
        let found = statement(conn, &sql, faces.iter().map(|face| Value::from(*face)));
        concerned.extend(Whose::find_by_statement(found).all(conn).await?.into_iter().map(|row| row.person_id));
    }
    let persons = Vec::from_iter(concerned);
    if persons.is_empty() {
        return Ok(Concerned { persons, vectors: Some(Vec::new()) });
    }
    let sql = format!(
        "SELECT e.vector FROM faces f JOIN embeddings e ON e.pipeline = $1 AND e.face_id = f.id
         WHERE f.person_id IN ({}) AND {TEMPLATE} LIMIT {}",
        placeholders(2, persons.len()),
        MOST_NEAR + 1
    );
    let values = std::iter::once(pipeline.into()).chain(persons.iter().map(|person| Value::from(*person)));
    let found = Row::find_by_statement(statement(conn, &sql, values)).all(conn).await?;
    let vectors = found.into_iter().map(|row| row.vector.0).collect::<Vec<_>>();
    Ok(Concerned { persons, vectors: (vectors.len() <= MOST_NEAR).then_some(vectors) })
}
