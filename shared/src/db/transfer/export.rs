//! Reads a collection's people and faces page by page, all of it as it was at one moment.

use std::collections::{BTreeMap, HashMap};

use sea_orm::prelude::*;
use sea_orm::{DatabaseTransaction, FromQueryResult};
use serde_json::json;

use crate::db::embeddings::StoredVector;
use crate::db::entity::face::AssignedBy;
use crate::db::entity::image;
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, count, execute, is_postgres, persons, statement};
use crate::ids::{ClusterId, CollectionId, FaceId, ImageId, PersonId};
use crate::job::FaceBox;
use crate::transfer::{
    ClusterKey, FaceLine, GeometryLine, ImageLine, MergeLine, PersonKey, PersonLine, PlaceLine, Vector,
};

/// A collection at one moment. Holds a connection and, on `PostgreSQL`, keeps what is deleted meanwhile from being cleaned
/// up: it should not be held for long.
pub struct Snapshot {
    txn: DatabaseTransaction,
    collection: CollectionId,
}

/// How much is read at once.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Most pictures.
    pub images: u64,
    /// Most faces on them, but for a single picture that has more.
    pub faces: i64,
}

/// A picture with what belongs to it.
pub type ExportedImage = (ImageLine, Vec<PlaceLine>, Vec<FaceLine>);

#[derive(FromQueryResult)]
struct FaceRow {
    id: FaceId,
    image_id: ImageId,
    person_id: Option<PersonId>,
    external_id: Option<String>,
    assigned_by: Option<AssignedBy>,
    locked: bool,
    hidden: bool,
    created_at: i64,
    cluster_id: Option<ClusterId>,
    cluster_person: Option<PersonId>,
    cluster_external_id: Option<String>,
}

impl Snapshot {
    /// Begins one that whoever reads it may leave for up to `pause_s` seconds between two pages.
    pub async fn begin(db: &Db, collection: CollectionId, pause_s: u64) -> Result<Self, DbErr> {
        let txn = db.snapshot().await?;
        if is_postgres(&txn) {
            execute(&txn, &format!("SET LOCAL idle_in_transaction_session_timeout = '{pause_s}s'"), []).await?;
        }
        Ok(Self { txn, collection })
    }

    /// Whether there are vectors of the pipeline.
    pub async fn has_vectors(&self, pipeline: &str) -> Result<bool, DbErr> {
        let sql =
            "SELECT count(*) AS n FROM (SELECT 1 FROM embeddings WHERE collection_id = $1 AND pipeline = $2 LIMIT 1)
            AS found";
        Ok(count(&self.txn, sql, [self.collection.into(), pipeline.into()]).await? > 0)
    }

    /// Up to `limit` persons in the order of their ids, those after `after`.
    pub async fn persons(&self, after: Option<PersonId>, limit: u64) -> Result<Vec<PersonLine>, DbErr> {
        use crate::db::entity::person;
        use sea_orm::{QueryOrder as _, QuerySelect as _};
        let mut query = persons::of_collection(self.collection);
        if let Some(after) = after {
            query = query.filter(person::Column::Id.gt(after));
        }
        let rows = query.order_by_asc(person::Column::Id).limit(limit).all(&self.txn).await?;
        let line = |row: person::Model| PersonLine {
            id: row.id,
            external_id: row.external_id,
            name: row.name,
            description: row.description,
            created_at: row.created_at,
        };
        Ok(rows.into_iter().map(line).collect())
    }

    /// Up to `limit` persons that were merged into others, in the order of their ids, those after `after`.
    pub async fn merges(&self, after: Option<PersonId>, limit: u64) -> Result<Vec<MergeLine>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            person_id: PersonId,
            external_id: Option<String>,
            into_id: PersonId,
            into_external_id: Option<String>,
            merged_at: i64,
        }
        let sql = format!(
            "SELECT m.person_id, m.external_id, m.into_id, p.external_id AS into_external_id, m.merged_at
             FROM person_merges m JOIN persons p ON p.id = m.into_id AND p.erased_at IS NULL
             WHERE m.collection_id = $1 AND m.person_id > $2 ORDER BY m.person_id LIMIT {limit}"
        );
        let values = [self.collection.into(), after.unwrap_or(PersonId(Uuid::nil())).into()];
        let rows = Row::find_by_statement(statement(&self.txn, &sql, values)).all(&self.txn).await?;
        let line = |row: Row| MergeLine {
            id: row.person_id,
            external_id: row.external_id,
            into: PersonKey { id: row.into_id, external_id: row.into_external_id },
            merged_at: row.merged_at,
        };
        Ok(rows.into_iter().map(line).collect())
    }

    /// A page of pictures in the order of their digests, those after `after`, with their places and faces. Vectors are those
    /// of `pipelines`.
    pub async fn images(&self, after: &str, page: Page, pipelines: &[String]) -> Result<Vec<ExportedImage>, DbErr> {
        let images = self.page(after, page).await?;
        let ids: Vec<Uuid> = images.iter().map(|image| image.id.0).collect();
        let mut analyses = self.analyses(&ids).await?;
        let mut places = self.places(&ids).await?;
        let mut faces = self.faces(&ids, pipelines).await?;
        let exported = |row: image::Model| {
            let image = ImageLine {
                id: row.id,
                sha256: row.sha256,
                width: row.width,
                height: row.height,
                captured_at: row.captured_at,
                uri: row.uri,
                gone_at: row.gone_at,
                created_at: row.created_at,
                analyses: analyses.remove(&row.id).unwrap_or_default(),
            };
            let of_image = (places.remove(&row.id).unwrap_or_default(), faces.remove(&row.id).unwrap_or_default());
            (image, of_image.0, of_image.1)
        };
        Ok(images.into_iter().map(exported).collect())
    }

    async fn page(&self, after: &str, page: Page) -> Result<Vec<image::Model>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            image_id: ImageId,
            faces: i64,
        }
        let sql = format!(
            "SELECT * FROM images WHERE collection_id = $1 AND sha256 > $2 ORDER BY sha256 LIMIT {}",
            page.images
        );
        let values = [self.collection.into(), after.into()];
        let mut images = image::Model::find_by_statement(statement(&self.txn, &sql, values)).all(&self.txn).await?;
        let ids: Vec<Uuid> = images.iter().map(|image| image.id.0).collect();
        let sql =
            "SELECT f.image_id, count(*) AS faces FROM {ids} JOIN faces f ON f.image_id = r.id GROUP BY f.image_id";
        let faces: HashMap<ImageId, i64> =
            self.of_ids::<Row>(sql, &ids).await?.into_iter().map(|row| (row.image_id, row.faces)).collect();
        let mut read = 0;
        let fits = |image: &&image::Model| {
            read += faces.get(&image.id).unwrap_or(&0);
            read <= page.faces
        };
        let fitting = images.iter().take_while(fits).count();
        images.truncate(fitting.max(1));
        Ok(images)
    }

    /// Ends it.
    pub async fn end(self) -> Result<(), DbErr> {
        self.txn.rollback().await
    }

    /// The rows that `sql` finds, with `{ids}` as what stands in it for these ids under the name `r.id`.
    async fn of_ids<R: FromQueryResult>(&self, sql: &str, ids: &[Uuid]) -> Result<Vec<R>, DbErr> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = Rows::new(&[("id", Column::Id)], ids.iter().map(|id| json!({ "id": rows::id(*id) })).collect());
        let sql = sql.replace("{ids}", &wanted.table(&self.txn));
        R::find_by_statement(statement(&self.txn, &sql, [wanted.value()])).all(&self.txn).await
    }

    async fn analyses(&self, images: &[Uuid]) -> Result<HashMap<ImageId, BTreeMap<String, i32>>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            image_id: ImageId,
            detector_revision: String,
            faces: i32,
        }
        let sql =
            "SELECT a.image_id, a.detector_revision, a.faces FROM {ids} JOIN image_analyses a ON a.image_id = r.id";
        let mut by_image: HashMap<_, BTreeMap<_, _>> = HashMap::new();
        for row in self.of_ids::<Row>(sql, images).await? {
            by_image.entry(row.image_id).or_default().insert(row.detector_revision, row.faces);
        }
        Ok(by_image)
    }

    async fn places(&self, images: &[Uuid]) -> Result<HashMap<ImageId, Vec<PlaceLine>>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            image_id: ImageId,
            uri: String,
            fingerprint: String,
        }
        let sql = "SELECT s.image_id, s.uri, s.fingerprint FROM {ids} JOIN image_sources s ON s.image_id = r.id
            ORDER BY s.uri";
        let mut by_image: HashMap<_, Vec<_>> = HashMap::new();
        for row in self.of_ids::<Row>(sql, images).await? {
            by_image.entry(row.image_id).or_default().push(PlaceLine { uri: row.uri, fingerprint: row.fingerprint });
        }
        Ok(by_image)
    }

    async fn faces(&self, images: &[Uuid], pipelines: &[String]) -> Result<HashMap<ImageId, Vec<FaceLine>>, DbErr> {
        let sql =
            "SELECT f.id, f.image_id, f.person_id, p.external_id, f.assigned_by, f.locked, f.hidden, f.created_at,
                c.cluster_id, k.person_id AS cluster_person, kp.external_id AS cluster_external_id
            FROM {ids} JOIN faces f ON f.image_id = r.id
            LEFT JOIN persons p ON p.id = f.person_id
            LEFT JOIN cluster_faces c ON c.face_id = f.id
            LEFT JOIN clusters k ON k.id = c.cluster_id
            LEFT JOIN persons kp ON kp.id = k.person_id WHERE p.erased_at IS NULL ORDER BY f.id";
        let faces = self.of_ids::<FaceRow>(sql, images).await?;
        let ids: Vec<Uuid> = faces.iter().map(|face| face.id.0).collect();
        let mut geometry = self.geometry(&ids).await?;
        let mut vectors = self.vectors(&ids, pipelines).await?;
        let mut not = self.not(&ids).await?;
        let mut sides = self.sides(&ids).await?;
        let mut by_image: HashMap<_, Vec<_>> = HashMap::new();
        for row in faces {
            let line = FaceLine {
                id: row.id,
                person: key(row.person_id, row.external_id),
                assigned_by: row.assigned_by.filter(|_| row.person_id.is_some()),
                locked: row.locked,
                hidden: row.hidden,
                created_at: row.created_at,
                geometry: geometry.remove(&row.id).unwrap_or_default(),
                vectors: vectors.remove(&row.id).unwrap_or_default(),
                not: not.remove(&row.id).unwrap_or_default(),
                cluster: row
                    .cluster_id
                    .map(|id| ClusterKey { id, person: key(row.cluster_person, row.cluster_external_id) }),
                sides: sides.remove(&row.id).unwrap_or_default(),
            };
            by_image.entry(row.image_id).or_default().push(line);
        }
        Ok(by_image)
    }

    async fn geometry(&self, faces: &[Uuid]) -> Result<HashMap<FaceId, BTreeMap<String, GeometryLine>>, DbErr> {
        use crate::db::entity::face_geometry;
        let sql = "SELECT g.* FROM {ids} JOIN face_geometry g ON g.face_id = r.id";
        let json = |text: &str| serde_json::from_str(text).map_err(|e| DbErr::Json(e.to_string()));
        let mut by_face: HashMap<_, BTreeMap<_, _>> = HashMap::new();
        for row in self.of_ids::<face_geometry::Model>(sql, faces).await? {
            let line = GeometryLine {
                face_box: FaceBox { x: row.x, y: row.y, width: row.width, height: row.height },
                landmarks: json(&row.landmarks)?,
                score: row.score,
                quality: json(&row.quality)?,
            };
            by_face.entry(row.face_id).or_default().insert(row.detector_revision, line);
        }
        Ok(by_face)
    }

    async fn vectors(
        &self,
        faces: &[Uuid],
        pipelines: &[String],
    ) -> Result<HashMap<FaceId, BTreeMap<String, Vector>>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            face_id: FaceId,
            vector: StoredVector,
        }
        let mut by_face: HashMap<_, BTreeMap<_, _>> = HashMap::new();
        for pipeline in pipelines {
            // A name of the catalogue is of a-z, 0-9 and - only; as text of the statement it lets one partition be read.
            let sql = format!(
                "SELECT e.face_id, e.vector FROM {{ids}} JOIN embeddings e ON e.face_id = r.id AND e.pipeline = '{pipeline}'"
            );
            for row in self.of_ids::<Row>(&sql, faces).await? {
                by_face.entry(row.face_id).or_default().insert(pipeline.clone(), Vector(row.vector.0));
            }
        }
        Ok(by_face)
    }

    async fn not(&self, faces: &[Uuid]) -> Result<HashMap<FaceId, Vec<PersonKey>>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            face_id: FaceId,
            id: PersonId,
            external_id: Option<String>,
        }
        let sql = "SELECT x.face_id, p.id, p.external_id FROM {ids} JOIN face_rejections x ON x.face_id = r.id
            JOIN persons p ON p.id = x.person_id AND p.erased_at IS NULL ORDER BY p.id";
        let mut by_face: HashMap<_, Vec<_>> = HashMap::new();
        for row in self.of_ids::<Row>(sql, faces).await? {
            by_face.entry(row.face_id).or_default().push(PersonKey { id: row.id, external_id: row.external_id });
        }
        Ok(by_face)
    }

    async fn sides(&self, faces: &[Uuid]) -> Result<HashMap<FaceId, BTreeMap<Uuid, i32>>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            face_id: FaceId,
            id: Uuid,
            side: i32,
        }
        let sql = "SELECT s.face_id, s.id, s.side FROM {ids} JOIN cluster_separations s ON s.face_id = r.id";
        let mut by_face: HashMap<_, BTreeMap<_, _>> = HashMap::new();
        for row in self.of_ids::<Row>(sql, faces).await? {
            by_face.entry(row.face_id).or_default().insert(row.id, row.side);
        }
        Ok(by_face)
    }
}

fn key(id: Option<PersonId>, external_id: Option<String>) -> Option<PersonKey> {
    id.map(|id| PersonKey { id, external_id })
}
