//! `/api/register_batch/`: an enroll job of each file `ID name.jpg` of the configured place.
//!
//! A few at a time, until the request has to be answered. What is registered is passed over the next time, so that a large
//! folder is done by sending the request again.

use std::path::Path;

use axum::extract::State;
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use shared::access::Grant;
use shared::batch::is_picture_name;
use shared::db::entity::collection;
use shared::db::images;
use shared::job::{FaceChoice, ImageRef, JobState, PersonRef};
use shared::objects::{ImportRoots, ObjectError, file_fingerprint};
use tokio::time::Instant;

use super::answer::{self, ALL_SAVED, NOT_SAVED, PictureTrouble, Trouble};
use super::{deadline, ended, found_or_made};
use crate::auth::{Caller, Write};
use crate::error::{ApiError, ApiResult};
use crate::extract::SubmitHeaders;
use crate::pictures::Picture;
use crate::routes::submit::{Enrollment, check_external_id, check_person, check_text, enroll_picture};
use crate::state::AppState;

/// Pictures of the place, at most: their names are held in memory.
const MOST: usize = 10_000;
/// Jobs of one request at a time.
const AT_ONCE: usize = 8;
/// Pictures of an answer that are named as troublesome, at most.
const NAMED: usize = 100;

/// What became of a picture.
enum Registered {
    Saved,
    /// The request had to be answered first.
    NotEnded,
    Not(PictureTrouble),
}

/// What all pictures of a request share.
struct Registering<'a> {
    state: &'a AppState,
    grant: &'a Grant,
    collection: &'a collection::Model,
    headers: &'a SubmitHeaders,
    until: Instant,
}

pub(super) async fn register_all(
    State(state): State<AppState>,
    caller: Caller<Write>,
    headers: SubmitHeaders,
) -> ApiResult<Response> {
    let until = deadline(&state);
    let pictures = listed(&state).await?;
    if pictures.is_empty() {
        let reason = "there is no picture at server.legacy_pictures; is it mounted?";
        return Ok(answer::refused(NOT_SAVED, "source_empty", reason));
    }
    let collection = found_or_made(&state, &caller).await?;
    let all = pictures.len();
    let (state, grant, collection, headers) = (&state, &*caller, &collection, &headers.without_key());
    let registering = Registering { state, grant, collection, headers, until };
    let registered = stream::iter(pictures).map(|image| registering.register(image)).buffered(AT_ONCE);
    let outcomes: Vec<ApiResult<Registered>> = registered.collect().await;
    Ok(told(all, outcomes.into_iter().collect::<ApiResult<_>>()?))
}

fn told(all: usize, outcomes: Vec<Registered>) -> Response {
    let left = outcomes.iter().filter(|outcome| matches!(outcome, Registered::NotEnded)).count();
    let problems: Vec<PictureTrouble> = outcomes
        .into_iter()
        .filter_map(|outcome| match outcome {
            Registered::Not(trouble) => Some(trouble),
            Registered::Saved | Registered::NotEnded => None,
        })
        .collect();
    if left > 0 {
        let done = all - left;
        return answer::not_ended(NOT_SAVED, format!("{done} of {all} pictures are done; send it again to go on"));
    }
    if problems.is_empty() {
        return answer::told(ALL_SAVED);
    }
    let reason = format!("{} of {all} pictures are not saved; the others are", problems.len());
    let code = "pictures_not_saved".to_owned();
    let problems = problems.into_iter().take(NAMED).collect();
    answer::many_refused(Trouble { detail: NOT_SAVED, code, reason, problems })
}

impl Registering<'_> {
    async fn register(&self, image: ImageRef) -> ApiResult<Registered> {
        let place = place_of(&image).to_owned();
        let file = place.rsplit('/').next().unwrap_or_default().to_owned();
        let Some(person) = person_of(&file) else {
            let reason = "a file's name has to be its person's ID, a space, and the name".to_owned();
            return Ok(Registered::Not(PictureTrouble { file, code: "bad_name".to_owned(), reason }));
        };
        if Instant::now() >= self.until {
            return Ok(Registered::NotEnded);
        }
        if self.is_registered(&image, &person).await? {
            return Ok(Registered::Saved);
        }
        if let Err(error) = check_person(self.state, self.collection, &person).await {
            // Of this person alone.
            let (code, reason) = error.told()?;
            return Ok(Registered::Not(PictureTrouble { file, code, reason }));
        }
        let (picture, face) = (Picture::There(image), FaceChoice::Largest);
        let enrollment = Enrollment { picture, person, face, tag: None, webhook_endpoints: None };
        let job = enroll_picture(self.state, self.grant, self.collection, self.headers, enrollment).await?;
        let job = ended(self.state, self.grant, job.id, self.until).await?;
        Ok(match job.state {
            JobState::Succeeded => Registered::Saved,
            _ if !job.has_ended() => Registered::NotEnded,
            _ => {
                let (code, reason) = answer::cause(&job);
                Registered::Not(PictureTrouble { file, code, reason })
            }
        })
    }

    /// Whether an earlier request has registered the person with this very file.
    async fn is_registered(&self, image: &ImageRef, person: &PersonRef) -> ApiResult<bool> {
        let (Some(uri), Some(fingerprint), PersonRef::External { external_id, .. }) =
            (image.uri(), image.fingerprint(), person)
        else {
            return Ok(false);
        };
        let place = (uri.as_str(), fingerprint);
        Ok(images::is_enrolled_from(&self.state.db.read, self.collection.id, place, external_id).await?)
    }
}

/// The person that a file's name says: `ID name.jpg`.
fn person_of(file: &str) -> Option<PersonRef> {
    let (stem, _) = file.rsplit_once('.')?;
    let (id, name) = stem.split_once(' ')?;
    let (external_id, name) = (id.to_owned(), name.trim().to_owned());
    let is_good = check_external_id("", &external_id).is_ok() && check_text("", &name).is_ok() && !name.is_empty();
    is_good.then_some(PersonRef::External { external_id, name: Some(name), description: None })
}

fn place_of(image: &ImageRef) -> &str {
    match image {
        ImageRef::Upload(upload) => &upload.object_key,
        ImageRef::Reference { s3, .. } => s3,
        ImageRef::File { file, .. } => file,
    }
}

/// The pictures of the configured place, in the order of their names.
async fn listed(state: &AppState) -> ApiResult<Vec<ImageRef>> {
    let place = state.config.server.legacy_pictures.clone();
    if place.is_empty() {
        let detail = "this server has no pictures to register: set server.legacy_pictures";
        return Err(ApiError::unprocessable("no_legacy_pictures", detail));
    }
    let pictures = if place.starts_with("s3://") {
        let found = state.objects.list_references(&place, None, MOST + 1).await.map_err(unreadable)?;
        // Whatever they are: what was not listed might be a picture.
        check_count(found.len())?;
        let image = |found: shared::objects::ListedReference| ImageRef::Reference {
            s3: found.uri,
            fingerprint: Some(found.fingerprint),
        };
        found.into_iter().filter(|found| is_picture_name(&found.uri)).map(image).collect()
    } else {
        let roots = ImportRoots::new(state.config.import.roots.clone());
        let files = tokio::task::spawn_blocking(move || files_of(&roots, Path::new(&place)));
        files.await.map_err(|error| ApiError::internal(&error))?.map_err(unreadable)?
    };
    check_count(pictures.len())?;
    Ok(pictures)
}

fn check_count(files: usize) -> ApiResult<()> {
    if files > MOST {
        let detail =
            format!("there are more than {MOST} files at server.legacy_pictures; put them into several places");
        return Err(ApiError::unprocessable("too_many_pictures", detail));
    }
    Ok(())
}

/// The pictures of a folder, those below its own folders left out; blocks. One more than may be, at most.
fn files_of(roots: &ImportRoots, folder: &Path) -> Result<Vec<ImageRef>, ObjectError> {
    let failed = |source| ObjectError::Store { action: "list", key: folder.display().to_string(), source };
    let real = roots.resolve(folder)?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&real).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(name) = entry.path().to_str().map(str::to_owned).filter(|name| is_picture_name(name)) else {
            continue;
        };
        // One that has gone meanwhile, or a link that leads nowhere, is no picture that is there.
        let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
        if metadata.is_file() {
            files.push(ImageRef::File { file: name, fingerprint: Some(file_fingerprint(&metadata)) });
        }
        if files.len() > MOST {
            break;
        }
    }
    files.sort_unstable_by(|a, b| place_of(a).cmp(place_of(b)));
    Ok(files)
}

/// What the operator has to mend is no secret to who may write.
fn unreadable(error: ObjectError) -> ApiError {
    match error {
        ObjectError::NotFound(_)
        | ObjectError::NotImportable(_)
        | ObjectError::BadReference(_)
        | ObjectError::NoReferences
        | ObjectError::BucketNotAllowed(_)
        | ObjectError::Refused { .. } => {
            ApiError::unprocessable("no_legacy_pictures", format!("server.legacy_pictures cannot be read: {error}"))
        }
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_like_its_person() {
        let person = |file| match person_of(file) {
            Some(PersonRef::External { external_id, name, .. }) => Some((external_id, name.unwrap())),
            _ => None,
        };
        let named = |id: &str, name: &str| Some((id.to_owned(), name.to_owned()));
        assert_eq!(person("17 Ann Lee.jpg"), named("17", "Ann Lee"));
        assert_eq!(person("A-1  Bob Jr. the second.jpeg"), named("A-1", "Bob Jr. the second"));
        for bad in ["Ann.jpg", " Ann.jpg", "17 .jpg", "17 Ann"] {
            assert_eq!(person(bad), None, "{bad}");
        }
    }
}
