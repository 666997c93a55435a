//! One collection's units in memory, and a pass over the faces that wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sea_orm::DbErr;
use shared::catalogue::{Calibration, Metric};
use shared::db::clusters::pass::{self, Plan};
use shared::db::clusters::queue::{self, StoredFace, Waiting};
use shared::db::entity::collection::Model;
use shared::face_index::FaceIndexError;
use shared::ids::{ClusterId, CollectionId, FaceId, PersonId};
use shared::job::Lane;
use shared::telemetry::metrics;
use tokio_util::sync::CancellationToken;

use super::units::{Limits, Member, Merge, UnitId, Units};
use crate::context::WorkerContext;
use crate::leadership::Leadership;

/// Entries of the queue that one pass takes.
const PASS: usize = 256;
/// Faces that are read in one step.
const FACES_A_STEP: usize = 5_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Collection {
    id: CollectionId,
    pipeline: String,
    /// The version of the stored clusters that the units are true for.
    version: i64,
    units: Units,
    /// What clusters became part of since: a face that was deleted at that moment waits with the cluster of before.
    became: HashMap<ClusterId, ClusterId>,
}

/// Why a pass was given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    /// The stored clusters changed meanwhile, or it is another worker's turn to change them.
    #[error("the clusters were changed meanwhile")]
    Stale,
    /// There are so many faces that they are not held in memory.
    #[error("{0} faces are too many")]
    TooLarge(usize),
    /// The database failed.
    #[error("the database")]
    Db(#[from] DbErr),
    /// A stored vector does not fit.
    #[error("compare the faces")]
    Compare(#[from] FaceIndexError),
    /// The comparing broke off.
    #[error("the comparing broke off")]
    Broken(#[from] tokio::task::JoinError),
}

/// What the faces that wait have to do with the units.
#[derive(Debug, Default)]
struct Sorted {
    /// Faces that are placed and must not be.
    leaves: Vec<FaceId>,
    /// Faces to be placed.
    arrives: Vec<Member>,
    /// Clusters that lost a face.
    shrunk: BTreeSet<ClusterId>,
    /// Units of one face that are gone.
    gone: Vec<FaceId>,
}

impl Collection {
    /// Reads what is stored of vectors with that metric, as long as this worker leads and is not asked to stop.
    pub(super) async fn load(
        ctx: &WorkerContext,
        row: &Model,
        metric: Metric,
        leadership: &mut Leadership,
        stop: &CancellationToken,
    ) -> Result<Self, PassError> {
        let (id, pipeline) = (row.id, row.pipeline.as_str());
        let version = pass::version(&ctx.db.read, id).await?;
        let mut units = Units::new(metric);
        let mut after = FaceId(uuid::Uuid::nil());
        loop {
            if stop.is_cancelled() || !leadership.held().await {
                return Err(PassError::Stale);
            }
            let step = queue::placed(&ctx.db.read, id, pipeline, after, FACES_A_STEP).await?;
            let Some(last) = step.last() else { break };
            after = last.id;
            // One alone that is to leave waits in the queue: nothing may join it until then.
            for face in step.into_iter().filter(|face| face.cluster.is_some() || is_welcome(face)) {
                let (unit, person) = match face.cluster {
                    Some((cluster, person)) => (UnitId::Cluster(cluster), person),
                    None => (UnitId::Face(face.id), None),
                };
                if let Some(member) = member(face) {
                    units.add(unit, person, &member)?;
                }
            }
            check_size(ctx, units.faces())?;
        }
        Ok(Self { id, pipeline: pipeline.to_owned(), version, units, became: HashMap::new() })
    }

    /// How many faces are held.
    pub(super) fn faces(&self) -> usize {
        self.units.faces()
    }

    /// The pipeline whose vectors are compared.
    pub(super) fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Looks at the next faces that wait; the collection is given back as it is stored then.
    pub(super) async fn pass(mut self, ctx: &WorkerContext, calibration: &Calibration) -> Result<Self, PassError> {
        let waiting = queue::waiting(&ctx.db, self.id, PASS).await?;
        let faces: BTreeSet<FaceId> = waiting.iter().map(|entry| entry.face_id).collect();
        let faces: Vec<FaceId> = faces.into_iter().collect();
        let stored = queue::faces(&ctx.db.read, &self.pipeline, &faces).await?;
        let mut sorted = sort(&waiting, stored);
        sorted.shrunk = sorted.shrunk.into_iter().map(|cluster| last(&self.became, cluster)).collect();
        for face in sorted.gone.iter().chain(&sorted.leaves) {
            self.units.remove(UnitId::Face(*face));
        }
        for cluster in &sorted.shrunk {
            self.read_again(ctx, *cluster, &sorted.leaves).await?;
        }
        let new: Vec<FaceId> = sorted.arrives.iter().map(|member| member.face).collect();
        check_size(ctx, self.units.faces() + new.len())?;
        let limits = Limits::of(calibration, self.units.faces() + new.len());
        let place = ctx.stages.search(Lane::Bulk).await;
        let (mut units, arrives) = (self.units, sorted.arrives);
        let (units, merges) = tokio::task::spawn_blocking(move || {
            let merges = units.arrive(&arrives, limits, ClusterId::new)?;
            Ok::<_, FaceIndexError>((units, merges))
        })
        .await??;
        drop(place);
        self.units = units;
        let plan = plan(&waiting, sorted.leaves, sorted.shrunk, &new, &merges);
        if !pass::record(&ctx.db, self.id, self.version, &plan).await? {
            return Err(PassError::Stale);
        }
        metrics::faces_clustered(new.len(), merges.len());
        self.version += 1;
        self.became.extend(plan.moves);
        Ok(self)
    }

    /// Reads a cluster that lost faces.
    async fn read_again(&mut self, ctx: &WorkerContext, id: ClusterId, without: &[FaceId]) -> Result<(), PassError> {
        let stored = queue::of_cluster(&ctx.db.read, &self.pipeline, id).await?;
        let person = stored.first().and_then(|face| face.cluster?.1);
        let members: Vec<Member> =
            stored.into_iter().filter(|face| !without.contains(&face.id)).filter_map(member).collect();
        if members.is_empty() {
            self.units.remove(UnitId::Cluster(id));
        } else {
            self.units.put(UnitId::Cluster(id), person, &members)?;
        }
        Ok(())
    }
}

fn check_size(ctx: &WorkerContext, faces: usize) -> Result<(), PassError> {
    if faces > ctx.config.clustering.max_faces { Err(PassError::TooLarge(faces)) } else { Ok(()) }
}

/// A face, as far as it matters for its place; `None` without a vector.
fn member(face: StoredFace) -> Option<Member> {
    let embedding = face.embedding?;
    Some(Member { face: face.id, image: face.image, embedding, not: face.not, sides: face.sides })
}

fn sort(waiting: &[Waiting], stored: Vec<StoredFace>) -> Sorted {
    let mut sorted = Sorted::default();
    let there: BTreeSet<FaceId> = stored.iter().map(|face| face.id).collect();
    for entry in waiting.iter().filter(|entry| !there.contains(&entry.face_id)) {
        match entry.cluster_id {
            Some(cluster) => {
                sorted.shrunk.insert(cluster);
            }
            None => sorted.gone.push(entry.face_id),
        }
    }
    for face in stored {
        let is_clear = is_clear(&face);
        if face.is_placed {
            if is_clear && stays(face.person, face.cluster, &face.not) {
                continue;
            }
            sorted.leaves.push(face.id);
            if let Some((cluster, _)) = face.cluster {
                sorted.shrunk.insert(cluster);
            }
        }
        if is_welcome(&face) {
            sorted.arrives.extend(member(face));
        }
    }
    sorted
}

/// Whether a face can be compared, and nobody wants it left out.
fn is_clear(face: &StoredFace) -> bool {
    !face.is_held_back && face.is_usable && face.embedding.is_some()
}

/// Whether a face that is nobody's is to be placed.
fn is_welcome(face: &StoredFace) -> bool {
    is_clear(face) && face.person.is_none()
}

/// Whether a face stays where it is: nobody's, or its cluster's person's.
fn stays(person: Option<PersonId>, cluster: Option<(ClusterId, Option<PersonId>)>, not: &[PersonId]) -> bool {
    let of_cluster = cluster.and_then(|(_, person)| person);
    let is_refused = of_cluster.is_some_and(|person| not.contains(&person));
    !is_refused && (person.is_none() || person == of_cluster)
}

/// What is to be written of a pass.
fn plan(
    waiting: &[Waiting],
    leaves: Vec<FaceId>,
    shrunk: BTreeSet<ClusterId>,
    new: &[FaceId],
    merges: &[Merge],
) -> Plan {
    let mut places: BTreeMap<FaceId, Option<ClusterId>> = new.iter().map(|face| (*face, None)).collect();
    // What became part of what; a cluster that came to be in this pass may be gone again at its end.
    let mut into: HashMap<ClusterId, ClusterId> = HashMap::new();
    let (mut made, mut touched) = (BTreeSet::new(), shrunk);
    for merge in merges {
        touched.insert(merge.into);
        if merge.is_new {
            made.insert(merge.into);
        }
        for part in merge.parts.into_iter().flatten() {
            match part {
                UnitId::Face(face) => {
                    places.insert(face, Some(merge.into));
                }
                UnitId::Cluster(cluster) => {
                    into.insert(cluster, merge.into);
                }
            }
        }
    }
    let last = |cluster| last(&into, cluster);
    Plan {
        entries: waiting.iter().map(|entry| entry.seq).collect(),
        leaves,
        new_clusters: made.iter().copied().filter(|cluster| !into.contains_key(cluster)).collect(),
        places: places.into_iter().map(|(face, cluster)| (face, cluster.map(last))).collect(),
        moves: into.keys().filter(|from| !made.contains(from)).map(|from| (*from, last(*from))).collect(),
        touched: touched.into_iter().filter(|cluster| !into.contains_key(cluster)).collect(),
    }
}

/// The cluster that this one is part of by now.
fn last(into: &HashMap<ClusterId, ClusterId>, mut cluster: ClusterId) -> ClusterId {
    while let Some(next) = into.get(&cluster) {
        cluster = *next;
    }
    cluster
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn cluster(n: u128) -> ClusterId {
        ClusterId(Uuid::from_u128(n))
    }

    fn face(n: u128) -> FaceId {
        FaceId(Uuid::from_u128(n))
    }

    #[test]
    fn a_plan_says_where_everything_is_at_the_end() {
        let merges = [
            Merge {
                into: cluster(10),
                is_new: true,
                parts: [Some(UnitId::Face(face(1))), Some(UnitId::Face(face(2)))],
            },
            Merge { into: cluster(5), is_new: false, parts: [Some(UnitId::Cluster(cluster(10))), None] },
            Merge { into: cluster(6), is_new: false, parts: [Some(UnitId::Cluster(cluster(5))), None] },
        ];
        let waiting = [Waiting { seq: 7, face_id: face(1), cluster_id: None }];
        let plan = plan(&waiting, Vec::new(), [cluster(5), cluster(9)].into(), &[face(1), face(3)], &merges);
        assert_eq!(plan.entries, [7]);
        assert_eq!(plan.new_clusters, [], "the new one is part of another at the end");
        assert_eq!(
            plan.places,
            [(face(1), Some(cluster(6))), (face(2), Some(cluster(6))), (face(3), None)],
            "a face that lay alone before is placed too"
        );
        assert_eq!(plan.moves, [(cluster(5), cluster(6))]);
        assert_eq!(plan.touched, [cluster(6), cluster(9)]);
    }

    #[test]
    fn a_cluster_is_found_in_what_it_became() {
        let became = HashMap::from([(cluster(1), cluster(2)), (cluster(2), cluster(3))]);
        assert_eq!([1, 2, 3, 4].map(|n| last(&became, cluster(n))), [3, 3, 3, 4].map(cluster));
    }

    #[test]
    fn a_face_stays_with_its_person_only() {
        let person = |n| Some(PersonId(Uuid::from_u128(n)));
        let named = Some((cluster(1), person(1)));
        assert!(stays(None, Some((cluster(1), None)), &[]));
        assert!(stays(person(1), named, &[]));
        assert!(!stays(person(2), named, &[]), "somebody else");
        assert!(!stays(person(2), None, &[]), "alone, and somebody");
        assert!(!stays(None, named, &[PersonId(Uuid::from_u128(1))]), "not this one");
    }
}
