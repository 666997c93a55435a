//! The workers that are alive, and which pipelines each runs. A worker says so again and again; one that went silent is
//! forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{Db, execute, micros, statement};

/// How often a worker says that it is alive.
pub const BEAT: Duration = Duration::from_secs(5);
/// A worker that has said nothing for so long is not counted.
const SILENCE: Duration = Duration::from_secs(20);

/// What a worker says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// The pipelines whose jobs it takes.
    pub pipelines: Vec<String>,
    /// What keeps it from others, by their names.
    pub left_out: BTreeMap<String, String>,
}

impl Served {
    fn columns(&self) -> Result<[Value; 2], DbErr> {
        let failed = |error: serde_json::Error| DbErr::Json(error.to_string());
        let pipelines = serde_json::to_string(&self.pipelines).map_err(failed)?;
        Ok([pipelines.into(), serde_json::to_string(&self.left_out).map_err(failed)?.into()])
    }
}

/// Says that a worker is alive and what it runs, and forgets those that went silent.
pub async fn beat(db: &Db, worker: Uuid, served: &Served) -> Result<(), DbErr> {
    let [pipelines, left_out] = served.columns()?;
    let sql = "INSERT INTO workers (id, pipelines, left_out, seen_at) VALUES ($1, $2, $3, {now})
        ON CONFLICT (id) DO UPDATE SET pipelines = excluded.pipelines, left_out = excluded.left_out,
            seen_at = excluded.seen_at";
    execute(&db.write, sql, [worker.into(), pipelines, left_out]).await?;
    let sql = "DELETE FROM workers WHERE seen_at < {now} - $1";
    execute(&db.write, sql, [micros(SILENCE * 3).into()]).await?;
    Ok(())
}

/// The worker has stopped.
pub async fn leave(db: &Db, worker: Uuid) -> Result<(), DbErr> {
    execute(&db.write, "DELETE FROM workers WHERE id = $1", [worker.into()]).await?;
    Ok(())
}

/// All workers of an earlier process are gone: whoever calls this holds the data folder.
pub async fn forget_all(db: &Db) -> Result<(), DbErr> {
    execute(&db.write, "DELETE FROM workers", []).await?;
    Ok(())
}

/// What each worker says that is alive.
pub async fn alive(db: &Db) -> Result<Vec<Served>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        pipelines: String,
        left_out: String,
    }
    let sql = "SELECT pipelines, left_out FROM workers WHERE seen_at >= {now} - $1 ORDER BY id";
    let rows = Row::find_by_statement(statement(&db.read, sql, [micros(SILENCE).into()])).all(&db.read).await?;
    let failed = |error: serde_json::Error| DbErr::Json(error.to_string());
    let read = |row: Row| {
        Ok(Served {
            pipelines: serde_json::from_str(&row.pipelines).map_err(failed)?,
            left_out: serde_json::from_str(&row.left_out).map_err(failed)?,
        })
    };
    rows.into_iter().map(read).collect()
}

/// Who runs one pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Workers that take its jobs.
    pub workers: usize,
    /// What keeps others from it, each reason once.
    pub problems: Vec<String>,
}

impl Serving {
    /// Who of these runs the pipeline.
    pub fn of(pipeline: &str, alive: &[Served]) -> Self {
        let mut problems: Vec<String> = alive.iter().filter_map(|one| one.left_out.get(pipeline).cloned()).collect();
        problems.sort_unstable();
        problems.dedup();
        Self { workers: alive.iter().filter(|one| one.pipelines.iter().any(|name| name == pipeline)).count(), problems }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_alive_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        for db in crate::testing::databases(folder.path()).await {
            let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
            let why = BTreeMap::from([("large".to_owned(), "no weights".to_owned())]);
            let small = Served { pipelines: vec!["tiny".to_owned()], left_out: why };
            beat(&db, one, &Served::default()).await.unwrap();
            beat(&db, one, &small).await.unwrap();
            beat(&db, other, &small).await.unwrap();
            let all = alive(&db).await.unwrap();
            assert_eq!(all, [small.clone(), small.clone()]);
            assert_eq!(Serving::of("tiny", &all), Serving { workers: 2, problems: Vec::new() });
            let none = Serving { workers: 0, problems: vec!["no weights".to_owned()] };
            assert_eq!(Serving::of("large", &all), none);
            let sql = "UPDATE workers SET seen_at = seen_at - $1 WHERE id = $2";
            execute(&db.write, sql, [micros(SILENCE * 2).into(), one.into()]).await.unwrap();
            assert_eq!(alive(&db).await.unwrap().len(), 1, "one went silent");
            leave(&db, other).await.unwrap();
            assert!(alive(&db).await.unwrap().is_empty());
            beat(&db, other, &small).await.unwrap();
            forget_all(&db).await.unwrap();
            assert!(alive(&db).await.unwrap().is_empty());
        }
    }
}
