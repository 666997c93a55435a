//! Thresholds that were measured for a pipeline, in general or for one collection, and which of them a collection goes by:
//! its own newest, else the newest general one, else the catalogue's.

#[cfg(test)]
mod tests;

use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;
use sea_orm::{FromQueryResult, QueryOrder, QuerySelect};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clusters::queue;
use super::entity::calibration::{ActiveModel, Column, Entity, Model};
use super::{Db, collections, execute, models, now, scoped, statement};
use crate::access::Grant;
use crate::catalogue::{self, Calibration, Metric, check_points};
use crate::ids::{CalibrationId, CollectionId};

/// A threshold with the false accept rate at it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CalibrationPoint {
    /// How often one comparison of two persons' faces reaches the threshold.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1)]
    pub far: f64,
    /// The threshold, a score: a cosine, -1 to 1; of a pipeline with the metric `euclidean` 1 less the distance, 1 at most.
    #[schema(maximum = 1)]
    pub cosine: f32,
    /// The rate is at least this, as surely as the calibration says.
    #[schema(minimum = 0, maximum = 1)]
    pub lower: f64,
    /// And at most this.
    #[schema(minimum = 0, maximum = 1)]
    pub upper: f64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The pipeline that made the vectors.
    pub pipeline: String,
    /// The faces it was measured on.
    pub measured_on: String,
    /// In the order of falling rates and rising thresholds.
    pub points: Vec<CalibrationPoint>,
    /// The lowest rate that comparisons were counted for; what lies below it was extrapolated.
    pub measured_far: f64,
    /// How many people were compared with each other.
    pub people: u32,
    /// How many faces they have in all.
    pub faces: u32,
    /// How many comparisons of two persons' faces that makes.
    pub comparisons: u64,
    /// How sure the bounds are, 0 to 1.
    pub confidence: f64,
}

impl Measured {
    /// Names the first field that makes no sense for a pipeline of that metric, as (JSON pointer, why).
    pub fn check(&self, metric: Metric) -> Result<(), (String, &'static str)> {
        let points: Vec<(f64, f32)> = self.points.iter().map(|point| (point.far, point.cosine)).collect();
        check_points(&points, Some(self.measured_far), metric).map_err(|flaw| match flaw.point {
            Some(n) => (format!("#/points/{n}/{}", flaw.field), flaw.why),
            None => (format!("#/{}", flaw.field), flaw.why),
        })?;
        self.check_bounds()?;
        let wrong = |field: &str, why| Err((format!("#/{field}"), why));
        if self.people < 2 {
            return wrong("people", "must be at least 2: one person is compared with nobody");
        }
        if self.faces < self.people {
            return wrong("faces", "must be at least one a person");
        }
        if self.comparisons == 0 || i64::try_from(self.comparisons).is_err() {
            return wrong("comparisons", "must be at least 1, and below 2^63");
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return wrong("confidence", "must lie between 0 and 1, and be neither");
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<(), (String, &'static str)> {
        for (n, point) in self.points.iter().enumerate() {
            let wrong = |field: &str, why| Err((format!("#/points/{n}/{field}"), why));
            if !(0.0..=point.far).contains(&point.lower) {
                return wrong("lower", "must lie between 0 and far");
            }
            if !(point.far..=1.0).contains(&point.upper) {
                return wrong("upper", "must lie between far and 1");
            }
        }
        Ok(())
    }
}

impl Model {
    /// The stored points.
    ///
    /// # Errors
    /// The row was written by something that is not face-id.
    pub fn points(&self) -> Result<Vec<CalibrationPoint>, DbErr> {
        serde_json::from_str(&self.points).map_err(|e| DbErr::Json(e.to_string()))
    }

    /// What is decided by.
    ///
    /// # Errors
    /// As of [`Self::points`].
    pub fn calibration(&self) -> Result<Calibration, DbErr> {
        let points = self.points()?;
        Ok(Calibration {
            measured_on: self.measured_on.clone(),
            far: points.iter().map(|point| point.far).collect(),
            score: points.iter().map(|point| point.cosine).collect(),
            measured_far: Some(self.measured_far),
        })
    }
}

/// Stores what was measured and checked, for one collection or for all that go by the pipeline. Whoever decides by it from
/// now on is matched again, and where `begins_clusters` all faces that came until now are looked at: without a calibration none
/// were put together. `None`: the collection or the model is gone.
pub async fn store(
    db: &Db,
    collection: Option<CollectionId>,
    measured: &Measured,
    begins_clusters: bool,
) -> Result<Option<Model>, DbErr> {
    let txn = db.begin().await?;
    if !models::hold(&txn, &measured.pipeline).await? {
        txn.rollback().await?;
        return Ok(None);
    }
    if let Some(collection) = collection
        && collections::hold_pipeline(&txn, collection).await?.is_none()
    {
        txn.rollback().await?;
        return Ok(None);
    }
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let row = ActiveModel {
        id: Set(CalibrationId::new()),
        pipeline: Set(measured.pipeline.clone()),
        collection_id: Set(collection),
        measured_on: Set(measured.measured_on.clone()),
        points: Set(serde_json::to_string(&measured.points).map_err(|e| DbErr::Json(e.to_string()))?),
        measured_far: Set(measured.measured_far),
        people: Set(measured.people.into()),
        faces: Set(measured.faces.into()),
        comparisons: Set(number(measured.comparisons)),
        confidence: Set(measured.confidence),
        created_at: Set(now(&txn).await?),
    };
    let stored = row.insert(&txn).await?;
    request_rematches(&txn, &stored).await?;
    if begins_clusters {
        for collection in concerns(&txn, &stored).await? {
            queue::enqueue_all(&txn, collection).await?;
        }
    }
    txn.commit().await?;
    Ok(Some(stored))
}

/// Deletes a calibration that the grant holds for; whoever decided by it is matched again. False where it is not there.
pub async fn delete(db: &Db, grant: &Grant, id: CalibrationId) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    let Some(known) = find(&txn, grant, id).await? else {
        txn.rollback().await?;
        return Ok(false);
    };
    let deleted = execute(&txn, "DELETE FROM calibrations WHERE id = $1", [id.into()]).await?;
    request_rematches(&txn, &known).await?;
    txn.commit().await?;
    Ok(deleted > 0)
}

/// Deletes what was measured of a pipeline that nothing uses any more: its scores say nothing of the next one of that name.
pub(crate) async fn delete_of_pipeline(txn: &impl ConnectionTrait, pipeline: &str) -> Result<(), DbErr> {
    execute(txn, "DELETE FROM calibrations WHERE pipeline = $1", [pipeline.into()]).await?;
    Ok(())
}

/// The faces of every collection that the calibration concerns are matched again.
async fn request_rematches(txn: &impl ConnectionTrait, calibration: &Model) -> Result<(), DbErr> {
    let (concerned, values) = concerned(calibration);
    let sql = format!("INSERT INTO rematch_requests (collection_id, requested_at) SELECT c.id, {{now}} {concerned}");
    execute(txn, &sql, values).await?;
    Ok(())
}

/// The collections that a calibration concerns, as the end of a query with its values: those that go by its pipeline, and by
/// none of their own where it is a general one.
fn concerned(calibration: &Model) -> (String, Vec<Value>) {
    let by_pipeline = "FROM collections c WHERE c.pipeline = $1";
    let pipeline = Value::from(calibration.pipeline.as_str());
    if let Some(collection) = calibration.collection_id {
        return (format!("{by_pipeline} AND c.id = $2"), vec![pipeline, collection.into()]);
    }
    let own = "SELECT 1 FROM calibrations o WHERE o.collection_id = c.id AND o.pipeline = c.pipeline";
    (format!("{by_pipeline} AND NOT EXISTS ({own})"), vec![pipeline])
}

/// A collection that has no calibration but this one, and no threshold set by hand: without it, nobody could be matched there.
/// Where the catalogue has one for the pipeline, that does not matter.
pub async fn needed_by(conn: &impl ConnectionTrait, calibration: &Model) -> Result<Option<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        name: String,
        settings: String,
    }
    let (concerned, mut values) = concerned(calibration);
    values.push(calibration.id.into());
    let other = format!(
        "SELECT 1 FROM calibrations a WHERE a.pipeline = c.pipeline AND a.id <> ${}
            AND (a.collection_id = c.id OR a.collection_id IS NULL)",
        values.len()
    );
    let sql = format!(
        "SELECT c.name, c.settings {concerned} AND c.erased_at IS NULL AND NOT EXISTS ({other}) ORDER BY c.name"
    );
    for row in Row::find_by_statement(statement(conn, &sql, values)).all(conn).await? {
        let settings: collections::CollectionSettings =
            serde_json::from_str(&row.settings).map_err(|error| DbErr::Json(error.to_string()))?;
        if settings.match_cosine.is_none() {
            return Ok(Some(row.name));
        }
    }
    Ok(None)
}

/// The collections that a calibration concerns.
async fn concerns(conn: &impl ConnectionTrait, calibration: &Model) -> Result<Vec<CollectionId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: CollectionId,
    }
    let (concerned, values) = concerned(calibration);
    let sql = format!("SELECT c.id {concerned} ORDER BY c.id");
    let rows = Row::find_by_statement(statement(conn, &sql, values)).all(conn).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// The calibration that was stored last for the collection with this pipeline, else for all with it; `None` where the
/// catalogue's counts.
pub async fn in_use(
    conn: &impl ConnectionTrait,
    pipeline: &str,
    collection: CollectionId,
) -> Result<Option<Model>, DbErr> {
    let sql = "SELECT * FROM calibrations WHERE pipeline = $1 AND (collection_id = $2 OR collection_id IS NULL)
        ORDER BY CASE WHEN collection_id IS NULL THEN 1 ELSE 0 END, created_at DESC, id DESC LIMIT 1";
    Model::find_by_statement(statement(conn, sql, [pipeline.into(), collection.into()])).one(conn).await
}

/// Whether anything says what a score of this pipeline means in the collection: a stored calibration, or the catalogue's.
pub async fn has_any(
    conn: &impl ConnectionTrait,
    pipeline: &catalogue::Pipeline,
    collection: CollectionId,
) -> Result<bool, DbErr> {
    Ok(pipeline.calibration.is_some() || in_use(conn, &pipeline.name, collection).await?.is_some())
}

/// The calibration of that id, if the grant holds for it: general ones are of all collections.
pub async fn find(conn: &impl ConnectionTrait, grant: &Grant, id: CalibrationId) -> Result<Option<Model>, DbErr> {
    Entity::find_by_id(id).filter(scoped::filter(grant, Column::CollectionId)).one(conn).await
}

/// Which calibrations to list.
#[derive(Clone, Debug, Default)]
pub struct CalibrationFilter {
    /// Of this collection.
    pub collection: Option<CollectionId>,
    /// For this pipeline.
    pub pipeline: Option<String>,
}

/// Up to `limit` calibrations that the grant holds for and that were made before `before`, newest first.
pub async fn list(
    db: &Db,
    grant: &Grant,
    filter: &CalibrationFilter,
    before: Option<CalibrationId>,
    limit: u64,
) -> Result<Vec<Model>, DbErr> {
    let reached = scoped::filter(grant, Column::CollectionId);
    let mut query = Entity::find().filter(reached).order_by_desc(Column::Id).limit(limit);
    if let Some(collection) = filter.collection {
        query = query.filter(Column::CollectionId.eq(collection));
    }
    if let Some(pipeline) = &filter.pipeline {
        query = query.filter(Column::Pipeline.eq(pipeline.as_str()));
    }
    if let Some(before) = before {
        query = query.filter(Column::Id.lt(before));
    }
    query.all(&db.read).await
}
