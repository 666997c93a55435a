//! Enroll: one face of a picture becomes a person's.

use sea_orm::{DatabaseTransaction, DbErr};
use serde_json::{Value, json};
use shared::db::collections::CollectionSettings;
use shared::db::entity::collection;
use shared::db::entity::job::Model as Job;
use shared::db::erasures::fence::{Fence, Stored};
use shared::db::erasures::places;
use shared::db::faces::{AssignedBy, NewFace, Origin};
use shared::db::images::ImageSource;
use shared::db::reprocess::pending;
use shared::db::{faces, images, merges, persons, rematches};
use shared::job::{FaceChoice, ImageRef, PersonRef, Problem};

use super::pictures::{analysed, chosen, face_json, fetched, is_spoof, keeps, live_networks, new_faces};
use super::{Done, JobError, Refused, merged, no_person, settings};
use crate::analysis::{AnalysedFace, Wishes};
use crate::context::WorkerContext;
use crate::vision::quality::Gate;

/// A face that is to become a person's.
#[derive(Debug)]
pub struct Enrollment {
    image: ImageSource,
    size: [u32; 2],
    person: PersonRef,
    face: NewFace,
    detector_revision: String,
    /// What the answer says of the face.
    answer: Value,
}

pub(super) async fn run(
    ctx: &WorkerContext,
    job: &Job,
    collection: &collection::Model,
    image: &ImageRef,
    (person, face): (&PersonRef, FaceChoice),
) -> Result<Done, JobError> {
    let engine = ctx.engine(job).await?;
    let settings = settings(ctx, collection, job).await?;
    let wishes = Wishes { keep: keeps(&settings), live: live_networks(ctx, &settings).await? };
    let (analysis, source) = analysed(ctx, job, &engine, fetched(ctx, image).await?, wishes).await?;
    let gate = Gate::enroll(engine.pipeline().detector.match_score);
    let face = chosen(&analysis, face, &gate)?;
    if is_spoof(&face, &settings) {
        return Err(JobError::Rejected(spoof_suspected(&face, &settings)));
    }
    Ok(Done::Enroll(Box::new(Enrollment {
        image: source,
        size: analysis.size,
        person: person.clone(),
        face: new_faces(ctx, job, std::slice::from_ref(&face), engine.pipeline()).await?.swap_remove(0),
        detector_revision: engine.pipeline().detector_revision(),
        answer: face_json(&face, &gate),
    })))
}

fn spoof_suspected(face: &AnalysedFace, settings: &CollectionSettings) -> Problem {
    let detail = format!(
        "the face looks like a picture of one: its live score is {:.3}, and the collection asks for {}; take the picture anew \
         of the person",
        face.live_score.unwrap_or_default(),
        settings.min_live_score
    );
    Problem { faces: vec![face.detection.bounding_box.into()], ..Problem::new("spoof_suspected", detail) }
}

impl Enrollment {
    pub(super) async fn record(
        &self,
        txn: &DatabaseTransaction,
        fence: &Fence<'_>,
        job: &Job,
    ) -> Result<Result<Value, Refused>, DbErr> {
        let collection = job.collection_id;
        if let PersonRef::Id { id } = self.person
            && persons::find(txn, collection, id).await?.is_none()
        {
            if !fence.held_back(txn, &[(job, Stored::OfPerson(&self.person))]).await?.is_empty() {
                return Ok(Err(Refused::Erased));
            }
            return Ok(Err(no_person(txn, collection, id).await?.into()));
        }
        let image = images::find_or_create(txn, collection, &self.image, self.size).await?;
        let origin =
            Origin { collection, image: image.id, detector_revision: &self.detector_revision, pipeline: &job.pipeline };
        // The owner is looked at before the person is made: a refusal must leave nothing behind.
        let owner = faces::find_at(txn, image.id, &self.face.face_box).await?.and_then(|f| f.person_id.map(|p| (f, p)));
        if let Some((_, owner)) = &owner
            && persons::find(txn, collection, *owner).await?.is_none()
        {
            return Ok(Err(Refused::Erased));
        }
        if let Some((face, owner)) = &owner
            && !persons::is(txn, *owner, &self.person).await?
            && face.assigned_by != Some(AssignedBy::Auto)
        {
            let detail =
                format!("this very face is person {owner}'s already; un-assign or delete face {} first", face.id);
            return Ok(Err(Problem::new("face_belongs_to_other_person", detail).into()));
        }
        let Some(person) = persons::find_or_create(txn, collection, &self.person).await? else {
            return Ok(Err(Problem::new("person_not_found", "the person was deleted while the job ran").into()));
        };
        // By its external id it would come to life again.
        if let Some(into) = merges::merged_into(txn, collection, &self.person).await? {
            return Ok(Err(merged(into).into()));
        }
        // Now that image and person are held: an erasure that was not waited for is seen.
        let stored = [Stored::OfPerson(&self.person), Stored::OfPicture(&self.image.sha256)];
        if !fence.held_back(txn, &stored.map(|stored| (job, stored))).await?.is_empty() {
            return Ok(Err(Refused::Erased));
        }
        if let Some(since) = fence.accepted_at(txn, job).await?
            && !places::may_enroll(txn, image.id, &self.face.face_box, since).await?
        {
            return Ok(Err(Refused::Erased));
        }
        let face = faces::place(txn, origin, std::slice::from_ref(&self.face)).await?.swap_remove(0);
        let already_enrolled = face.person_id == Some(person.id) && face.assigned_by == Some(AssignedBy::Enrolled);
        faces::enroll(txn, face.id, person.id).await?;
        images::remember_found(txn, collection, &[(&self.image, image.id)]).await?;
        pending::note(txn, collection, Some(&job.pipeline), &[image.id]).await?;
        if !already_enrolled {
            rematches::request(txn, collection, Some(face.id), None).await?;
        }
        let mut answer = self.answer.clone();
        answer["person_id"] = json!(person.id);
        answer["external_id"] = json!(person.external_id);
        answer["face_id"] = json!(face.id);
        answer["image_id"] = json!(image.id);
        answer["already_enrolled"] = json!(already_enrolled);
        Ok(Ok(answer))
    }
}
