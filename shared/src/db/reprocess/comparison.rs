//! Comparisons of a run's two pipelines: which are wanted, what they are made of, and what came of them.

use std::collections::HashMap;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::{Run, find};
use crate::access::Grant;
use crate::comparison::{ComparisonReport, Outcome};
use crate::db::embeddings::StoredVector;
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, execute, now, statement};
use crate::embedding::Embedding;
use crate::ids::{FaceId, PersonId, ReprocessRunId};

/// A face by which people are recognised, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromQueryResult)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Labelled {
    pub face_id: FaceId,
    pub person_id: PersonId,
}

/// A face of which the two decide otherwise, with the score and person that it is most like by each.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Disagreement {
    pub face_id: FaceId,
    pub from: Nearest,
    pub to: Nearest,
}

/// What one pipeline says of a face.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    /// What the face is.
    pub outcome: Outcome,
    /// How like the person it is.
    pub score: f64,
    /// Whose that is; `None` once that person is gone.
    pub person_id: Option<PersonId>,
}

/// A comparison as it is kept.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Comparison {
    pub wanted_at: i64,
    /// When the report was begun.
    pub made_at: Option<i64>,
    pub report: Option<ComparisonReport>,
    pub disagreements: Vec<(Disagreement, PersonId)>,
}

/// Has the two pipelines be compared, again where they were before. False where the run is in no state for it.
pub async fn want(db: &Db, run: ReprocessRunId) -> Result<bool, DbErr> {
    want_within(&db.write, run).await
}

pub(super) async fn want_within(conn: &impl ConnectionTrait, run: ReprocessRunId) -> Result<bool, DbErr> {
    let sql = "INSERT INTO reprocess_comparisons (run_id, wanted_at)
        SELECT id, {now} FROM reprocess_runs WHERE id = $1 AND state IN ('ready', 'active')
        ON CONFLICT (run_id) DO UPDATE SET wanted_at = excluded.wanted_at";
    Ok(execute(conn, sql, [run.into()]).await? > 0)
}

/// A run whose pipelines are to be compared: the one that has waited longest, with the time now.
pub async fn due(db: &Db) -> Result<Option<(Run, i64)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        run_id: ReprocessRunId,
    }
    let sql = "SELECT c.run_id FROM reprocess_comparisons c JOIN reprocess_runs r ON r.id = c.run_id
        JOIN collections k ON k.id = r.collection_id AND k.erased_at IS NULL
        WHERE r.state IN ('ready', 'active') AND (c.made_at IS NULL OR c.made_at < c.wanted_at)
        ORDER BY c.wanted_at LIMIT 1";
    let Some(row) = Row::find_by_statement(statement(&db.write, sql, [])).one(&db.write).await? else {
        return Ok(None);
    };
    let at = now(&db.write).await?;
    Ok(find(&db.write, &Grant::everything(), row.run_id).await?.map(|run| (run, at)))
}

/// Puts a comparison that failed behind all others that wait, as if it were wanted only now.
pub async fn postpone(db: &Db, run: ReprocessRunId) -> Result<(), DbErr> {
    let sql = "UPDATE reprocess_comparisons SET wanted_at = {now} WHERE run_id = $1";
    execute(&db.write, sql, [run.into()]).await?;
    Ok(())
}

/// Up to `limit` faces after `after`, by id, that form templates and have vectors of both pipelines.
pub async fn labelled(db: &Db, run: &Run, after: Option<FaceId>, limit: u64) -> Result<Vec<Labelled>, DbErr> {
    let has = |pipeline: &str| {
        format!("EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = {pipeline} AND e.face_id = f.id)")
    };
    let sql = format!(
        "SELECT f.id AS face_id, f.person_id FROM faces f WHERE f.collection_id = $1 AND f.id > $2
            AND f.person_id IS NOT NULL AND f.assigned_by IN ('enrolled', 'user') AND NOT f.hidden
            AND {} AND {} ORDER BY f.id LIMIT {limit}",
        has("$3"),
        has("$4")
    );
    let after = after.map_or(Uuid::nil(), |face| face.0);
    let values =
        [run.collection_id.into(), after.into(), run.from_pipeline.as_str().into(), run.pipeline.as_str().into()];
    Labelled::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await
}

/// The vectors that one pipeline made of these faces, as far as there are any.
pub async fn vectors(db: &Db, pipeline: &str, faces: &[FaceId]) -> Result<HashMap<FaceId, Embedding>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: FaceId,
        vector: StoredVector,
    }
    let ids = faces.iter().map(|face| json!({ "face_id": rows::id(face.0) })).collect();
    let wanted = Rows::new(&[("face_id", Column::Id)], ids);
    let sql = format!(
        "SELECT e.face_id, e.vector FROM {} CROSS JOIN embeddings e WHERE e.pipeline = $2 AND e.face_id = r.face_id",
        wanted.table(&db.read)
    );
    let found = Row::find_by_statement(statement(&db.read, &sql, [wanted.value(), pipeline.into()]));
    Ok(found.all(&db.read).await?.into_iter().map(|row| (row.face_id, row.vector.0)).collect())
}

/// Keeps what came of a comparison that was begun at `began`, in the place of an earlier one. What is gone since is left out.
pub async fn keep(
    db: &Db,
    run: ReprocessRunId,
    began: i64,
    report: &ComparisonReport,
    disagreements: &[Disagreement],
) -> Result<(), DbErr> {
    let text = serde_json::to_string(report).map_err(|error| DbErr::Json(error.to_string()))?;
    let txn = db.begin().await?;
    let sql = "UPDATE reprocess_comparisons SET made_at = $2, report = $3 WHERE run_id = $1";
    if execute(&txn, sql, [run.into(), began.into(), text.into()]).await? == 0 {
        return txn.rollback().await;
    }
    execute(&txn, "DELETE FROM reprocess_disagreements WHERE run_id = $1", [run.into()]).await?;
    let row = |(position, one): (usize, &Disagreement)| {
        json!({
            "position": position, "face_id": rows::id(one.face_id.0),
            "from_outcome": one.from.outcome.as_str(), "from_score": one.from.score,
            "from_person_id": rows::id(one.from.person_id.map(|person| person.0)),
            "to_outcome": one.to.outcome.as_str(), "to_score": one.to.score,
            "to_person_id": rows::id(one.to.person_id.map(|person| person.0)),
        })
    };
    let columns = &[
        ("position", Column::Integer),
        ("face_id", Column::Id),
        ("from_outcome", Column::Text),
        ("from_score", Column::Real),
        ("from_person_id", Column::Id),
        ("to_outcome", Column::Text),
        ("to_score", Column::Real),
        ("to_person_id", Column::Id),
    ];
    let rows = Rows::new(columns, disagreements.iter().enumerate().map(row).collect());
    let sql = format!(
        "INSERT INTO reprocess_disagreements (run_id, position, face_id, from_outcome, from_score, from_person_id,
            to_outcome, to_score, to_person_id)
         SELECT $2, r.position, r.face_id, r.from_outcome, r.from_score,
            (SELECT p.id FROM persons p WHERE p.id = r.from_person_id), r.to_outcome, r.to_score,
            (SELECT p.id FROM persons p WHERE p.id = r.to_person_id)
         FROM {} WHERE EXISTS (SELECT 1 FROM faces f WHERE f.id = r.face_id)",
        rows.table(&txn)
    );
    execute(&txn, &sql, [rows.value(), run.into()]).await?;
    txn.commit().await
}

/// The run's comparison, if one was made or is wanted; with the persons that the faces are of now.
pub async fn kept(db: &Db, run: ReprocessRunId) -> Result<Option<Comparison>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        wanted_at: i64,
        made_at: Option<i64>,
        report: Option<String>,
    }
    // What is listed belongs to the report.
    let txn = db.snapshot().await?;
    let sql = "SELECT wanted_at, made_at, report FROM reprocess_comparisons WHERE run_id = $1";
    let row = Row::find_by_statement(statement(&txn, sql, [run.into()])).one(&txn).await?;
    let Some(Row { wanted_at, made_at, report }) = row else { return Ok(None) };
    let read = |text: String| serde_json::from_str(&text).map_err(|error| DbErr::Json(error.to_string()));
    let report = report.map(read).transpose()?;
    let disagreements = disagreements(&txn, run).await?;
    txn.commit().await?;
    Ok(Some(Comparison { wanted_at, made_at, report, disagreements }))
}

async fn disagreements(
    conn: &impl ConnectionTrait,
    run: ReprocessRunId,
) -> Result<Vec<(Disagreement, PersonId)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: FaceId,
        person_id: PersonId,
        from_outcome: String,
        from_score: f64,
        from_person_id: Option<PersonId>,
        to_outcome: String,
        to_score: f64,
        to_person_id: Option<PersonId>,
    }
    // One whose label somebody took away says nothing any more.
    let sql = "SELECT d.face_id, f.person_id, d.from_outcome, d.from_score, d.from_person_id, d.to_outcome, d.to_score,
            d.to_person_id
        FROM reprocess_disagreements d JOIN faces f ON f.id = d.face_id
        WHERE d.run_id = $1 AND f.person_id IS NOT NULL ORDER BY d.position";
    let found = Row::find_by_statement(statement(conn, sql, [run.into()])).all(conn).await?;
    let outcome = |text: &str| {
        let known = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == text);
        known.ok_or_else(|| DbErr::Type(format!("there is no outcome {text}")))
    };
    let read = |row: Row| {
        let nearest =
            |text: &str, score, person_id| Ok::<_, DbErr>(Nearest { outcome: outcome(text)?, score, person_id });
        let from = nearest(&row.from_outcome, row.from_score, row.from_person_id)?;
        let to = nearest(&row.to_outcome, row.to_score, row.to_person_id)?;
        Ok((Disagreement { face_id: row.face_id, from, to }, row.person_id))
    };
    found.into_iter().map(read).collect()
}
