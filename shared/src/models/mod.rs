//! The models that are registered: catalogue entries as rows, which all processes of an installation follow while they run.
//!
//! At its start each process registers the entries that it comes with; others are added over HTTP. What vectors of a name
//! mean never changes as long as something uses it.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbErr};

use crate::catalogue::{Catalogue, CatalogueError, Entry, Origin, Pipeline};
use crate::db::calibrations;
use crate::db::models::{self, Digest, Model, Use};
use crate::db::{Db, is_deadlock, is_lock_timeout, is_postgres};
use crate::face_index::pgvector::{create_within, drop_within, has_within};
use crate::ids::ApiKeyId;

/// How often a process looks for what others registered.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Models that there may be: each is tried by each worker and has queues of its own.
pub const MOST: usize = 200;
/// Tries to get the locks that a change of models takes.
const TRIES: u32 = 5;
/// Pause between them.
const PAUSE: Duration = Duration::from_millis(300);

/// What a process knows of the registered models; see the module.
#[derive(Debug)]
pub struct Models {
    /// None where the models never change.
    db: Option<Db>,
    known: RwLock<Known>,
    /// One reads at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    catalogue: Arc<Catalogue>,
    digests: Vec<Digest>,
    unreadable: BTreeMap<String, String>,
}

/// Why models cannot be registered or read.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// Its files say something else than what is stored was made with.
    #[error(
        "the catalogue's entry {name} was registered with another detector, alignment or recognizer, and its vectors could not \
         be compared with those of this one: {}. Give this entry another name, or put the old one back",
        used.as_str()
    )]
    Changed {
        /// Whose.
        name: String,
        /// What keeps it.
        used: Use,
    },
    /// There is none of that name.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The database does not answer.
    #[error("look at the registered models: {0}")]
    Db(#[from] DbErr),
}

/// What became of an entry that was added.
#[derive(Clone, Debug, PartialEq)]
pub enum Added {
    /// It is registered.
    New(Box<Model>),
    /// It was, with the same content.
    Known(Box<Model>),
    /// The name has another content.
    Taken,
    /// Nothing is registered under the name, and something uses it: nobody could tell whether this entry made it.
    Used(Use),
    /// There are as many models as there may be.
    TooMany,
}

/// What became of an entry that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Done,
    /// It was not there.
    NotFound,
    /// It is part of the program.
    BuiltIn,
    /// Something uses it.
    Used(Use),
}

/// Registers the entries that a process comes with.
///
/// # Errors
/// One would make other vectors than those that are stored under its name, or the database does not answer.
pub async fn register(db: &Db, own: &[Entry]) -> Result<(), ModelsError> {
    if are_registered(&db.read, own).await? {
        return Ok(());
    }
    through_locks(|| register_once(db, own)).await?
}

async fn register_once(db: &Db, own: &[Entry]) -> Result<Result<(), ModelsError>, DbErr> {
    let txn = db.begin().await?;
    models::lock(&txn).await?;
    for entry in own {
        if let Err(used) = register_one(&txn, entry).await? {
            txn.rollback().await?;
            return Ok(Err(ModelsError::Changed { name: entry.pipeline.name.clone(), used }));
        }
    }
    txn.commit().await?;
    Ok(Ok(()))
}

/// Registers an entry of a client's.
pub async fn add(db: &Db, entry: &Entry, key: Option<ApiKeyId>) -> Result<Added, DbErr> {
    through_locks(|| add_once(db, entry, key)).await
}

async fn add_once(db: &Db, entry: &Entry, key: Option<ApiKeyId>) -> Result<Added, DbErr> {
    let name = &entry.pipeline.name;
    let txn = db.begin().await?;
    models::lock(&txn).await?;
    if let Some(row) = models::find(&txn, name).await? {
        txn.rollback().await?;
        let is_same = parsed(&row).is_ok_and(|known| known == entry.pipeline);
        return Ok(if is_same { Added::Known(Box::new(row)) } else { Added::Taken });
    }
    if let Some(used) = models::in_use(&txn, name).await? {
        txn.rollback().await?;
        return Ok(Added::Used(used));
    }
    if models::digests(&txn).await?.len() >= MOST {
        txn.rollback().await?;
        return Ok(Added::TooMany);
    }
    make_place(&txn, &entry.pipeline).await?;
    models::put(&txn, entry, key).await?;
    let row = models::find(&txn, name).await?;
    txn.commit().await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound(format!("the model {name} was just written")))?;
    Ok(Added::New(Box::new(row)))
}

/// Forgets an entry that nothing uses, with the place for its vectors.
pub async fn remove(db: &Db, name: &str) -> Result<Removed, DbErr> {
    through_locks(|| remove_once(db, name)).await
}

async fn remove_once(db: &Db, name: &str) -> Result<Removed, DbErr> {
    let txn = db.begin().await?;
    models::lock(&txn).await?;
    models::hold_alone(&txn, name).await?;
    let kept = match models::find(&txn, name).await? {
        None => Some(Removed::NotFound),
        Some(row) if row.origin() == Origin::BuiltIn => Some(Removed::BuiltIn),
        Some(_) => models::in_use(&txn, name).await?.map(Removed::Used),
    };
    if let Some(kept) = kept {
        txn.rollback().await?;
        return Ok(kept);
    }
    models::delete(&txn, name).await?;
    calibrations::delete_of_pipeline(&txn, name).await?;
    if is_postgres(&txn) {
        drop_within(&txn, name).await?;
    }
    txn.commit().await?;
    Ok(Removed::Done)
}

impl Models {
    /// Registers the process's own entries, and reads all that there are.
    ///
    /// # Errors
    /// See [`register`].
    pub async fn open(db: &Db, own: &[Entry]) -> Result<Self, ModelsError> {
        register(db, own).await?;
        let models = Self { db: Some(db.clone()), known: RwLock::default(), turn: tokio::sync::Mutex::default() };
        models.refresh().await?;
        Ok(models)
    }

    /// Just these, which never change, without a database.
    pub fn fixed(catalogue: Catalogue) -> Self {
        let known = Known { catalogue: Arc::new(catalogue), ..Known::default() };
        Self { db: None, known: RwLock::new(known), turn: tokio::sync::Mutex::default() }
    }

    /// All models, as they were read last.
    pub fn now(&self) -> Arc<Catalogue> {
        Arc::clone(&self.known().catalogue)
    }

    /// Entries that this program cannot read, by name, and why: a newer one wrote them.
    pub fn unreadable(&self) -> BTreeMap<String, String> {
        self.known().unreadable.clone()
    }

    /// The model of that name; one that is not known is looked for in the database.
    ///
    /// # Errors
    /// There is none, or the database does not answer.
    pub async fn pipeline(&self, name: &str) -> Result<Arc<Pipeline>, ModelsError> {
        if let Some(pipeline) = self.now().find(name) {
            return Ok(Arc::clone(pipeline));
        }
        self.refresh().await?;
        let now = self.now();
        match now.find(name) {
            Some(pipeline) => Ok(Arc::clone(pipeline)),
            None => Err(now.pipeline(name).map(drop).expect_err("it was just not found; this is a bug").into()),
        }
    }

    /// Reads what has changed since the last time. What has not stays the same allocation.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn refresh(&self) -> Result<(), DbErr> {
        let Some(db) = &self.db else { return Ok(()) };
        let _turn = self.turn.lock().await;
        let digests = models::digests(&db.read).await?;
        if digests == self.known().digests {
            return Ok(());
        }
        let rows = models::all(&db.read).await?;
        let (before, mut unreadable) = (self.known().clone_of(), BTreeMap::new());
        let mut pipelines = Vec::with_capacity(rows.len());
        let mut digests = Vec::with_capacity(rows.len());
        for row in rows {
            let digest = row.version();
            let known = before.0.find(&row.name).filter(|_| before.1.contains(&digest));
            match known
                .map_or_else(|| parsed(&row).map(|pipeline| Arc::new(usable(&row, pipeline))), |p| Ok(Arc::clone(p)))
            {
                Ok(pipeline) => pipelines.push(pipeline),
                Err(error) => {
                    tracing::warn!(model = row.name, %error, "a registered model cannot be read by this version");
                    unreadable.insert(row.name, error.to_string());
                }
            }
            digests.push(digest);
        }
        let catalogue = Arc::new(pipelines.into_iter().collect());
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Known { catalogue, digests, unreadable };
        Ok(())
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn clone_of(&self) -> (Arc<Catalogue>, Vec<Digest>) {
        (Arc::clone(&self.catalogue), self.digests.clone())
    }
}

/// What a row says.
///
/// # Errors
/// It is no entry that this program reads.
pub fn parsed(row: &Model) -> Result<Pipeline, CatalogueError> {
    Ok(Entry::parse(row.origin(), &row.name, row.entry.clone())?.pipeline)
}

/// A worker fetches what its operator named: addresses of an entry that came over HTTP would let a client have it call any
/// address within its network.
fn usable(row: &Model, pipeline: Pipeline) -> Pipeline {
    if row.origin() == Origin::Added { pipeline.without_addresses() } else { pipeline }
}

async fn are_registered(conn: &impl ConnectionTrait, own: &[Entry]) -> Result<bool, DbErr> {
    let rows: BTreeMap<String, Model> =
        models::all(conn).await?.into_iter().map(|row| (row.name.clone(), row)).collect();
    for entry in own {
        let name = &entry.pipeline.name;
        let is_same = |row: &Model| row.digest == entry.digest() && row.origin() == entry.origin;
        let is_known = rows.get(name).is_some_and(|row| is_same(row) || is_overridden(row, entry));
        if !is_known || (is_postgres(conn) && !has_within(conn, name).await?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the operator put in the place of a built-in entry stays, whichever process starts last and has no such folder.
fn is_overridden(row: &Model, entry: &Entry) -> bool {
    row.origin() == Origin::Folder && entry.origin == Origin::BuiltIn
}

/// Registers an entry in the place of one of its name, unless that makes other vectors and is used.
async fn register_one(txn: &impl ConnectionTrait, entry: &Entry) -> Result<Result<(), Use>, DbErr> {
    let name = &entry.pipeline.name;
    let row = models::find(txn, name).await?;
    if let Some(row) = row.as_ref().filter(|row| is_overridden(row, entry)) {
        // One that cannot be read got its place from the program that registered it.
        if let Ok(pipeline) = parsed(row) {
            make_place(txn, &pipeline).await?;
        }
        return Ok(Ok(()));
    }
    if row.is_none()
        && let Some(used) = models::in_use(txn, name).await?
    {
        let used = used.as_str();
        tracing::warn!(model = name, origin = %entry.origin, used, "a model is registered for the first time and in use: its entry is taken for the one that made what is stored");
    }
    // One that cannot be read is taken for another.
    let is_other =
        row.as_ref().is_some_and(|row| !parsed(row).is_ok_and(|old| old.makes_the_same_vectors(&entry.pipeline)));
    if is_other {
        models::hold_alone(txn, name).await?;
        if let Some(used) = models::in_use(txn, name).await? {
            return Ok(Err(used));
        }
        calibrations::delete_of_pipeline(txn, name).await?;
        if is_postgres(txn) {
            // Its vectors may have another length.
            drop_within(txn, name).await?;
        }
    }
    make_place(txn, &entry.pipeline).await?;
    if row.is_none_or(|row| row.digest != entry.digest() || row.origin() != entry.origin) {
        models::put(txn, entry, None).await?;
        tracing::info!(model = name, origin = %entry.origin, "a model is registered");
    }
    Ok(Ok(()))
}

/// On `PostgreSQL` vectors of each pipeline lie in a partition of their own.
async fn make_place(txn: &impl ConnectionTrait, pipeline: &Pipeline) -> Result<(), DbErr> {
    if is_postgres(txn) && !has_within(txn, &pipeline.name).await? {
        create_within(txn, &pipeline.name, pipeline.recognizer.dimension).await?;
    }
    Ok(())
}

/// Tries again where others hold what is to be changed; each try waits briefly, so that nobody waits behind it for long.
async fn through_locks<T, F>(change: impl Fn() -> F) -> Result<T, DbErr>
where
    F: Future<Output = Result<T, DbErr>>,
{
    let mut tries = 1;
    loop {
        match change().await {
            Err(error) if (is_lock_timeout(&error) || is_deadlock(&error)) && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            changed => return changed,
        }
    }
}
