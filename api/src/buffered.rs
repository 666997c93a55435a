//! Bodies that are held in memory: how many bytes of them there may be at once.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a permit stands for, in bytes.
const UNIT: usize = 1024;
/// How long a body waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// The room for bodies; cheap to clone.
#[derive(Clone, Debug)]
pub struct BodyRoom {
    units: Arc<Semaphore>,
    patience: Duration,
}

/// What a request holds of the room, until it is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldRoom(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    /// What has come, in however many pieces.
    bytes: usize,
    room: Option<OwnedSemaphorePermit>,
}

/// There is no room for a body's next bytes.
#[derive(Debug, thiserror::Error)]
#[error("other requests' bodies fill the memory that the server has for them")]
pub(crate) struct NoRoom;

impl BodyRoom {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        let units = Arc::new(Semaphore::new((bytes / UNIT).min(Semaphore::MAX_PERMITS)));
        Self { units, patience: PATIENCE }
    }

    /// The request's body such that what has come of it is held in the room. It takes room as it comes, so that one that
    /// comes slowly keeps little from others.
    pub(crate) fn admit(&self, request: Request) -> Request {
        let held = request.extensions().get::<HeldRoom>().cloned().unwrap_or_default();
        let room = self.clone();
        request.map(|body| {
            Body::from_stream(body.into_data_stream().then(move |chunk| {
                let (room, held) = (room.clone(), held.clone());
                async move { room.hold(chunk.map_err(io::Error::other)?, &held).await }
            }))
        })
    }

    async fn hold(&self, chunk: Bytes, held: &HeldRoom) -> io::Result<Bytes> {
        let more = {
            let mut held = held.0.lock().unwrap_or_else(PoisonError::into_inner);
            held.bytes += chunk.len();
            let has = held.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            held.bytes.div_ceil(UNIT).saturating_sub(has)
        };
        if more == 0 {
            return Ok(chunk);
        }
        let units = u32::try_from(more).unwrap_or(u32::MAX);
        let room = tokio::time::timeout(self.patience, Arc::clone(&self.units).acquire_many_owned(units)).await;
        let Ok(Ok(room)) = room else { return Err(io::Error::other(NoRoom)) };
        let mut held = held.0.lock().unwrap_or_else(PoisonError::into_inner);
        match held.room.as_mut() {
            Some(before) => before.merge(room),
            None => held.room = Some(room),
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(room: &BodyRoom, held: &HeldRoom, bytes: usize) -> Result<Bytes, axum::Error> {
        let mut request = Request::new(Body::from(vec![0; bytes]));
        request.extensions_mut().insert(held.clone());
        axum::body::to_bytes(room.admit(request).into_body(), usize::MAX).await
    }

    #[tokio::test]
    async fn a_body_that_finds_no_room_is_refused_and_what_is_answered_makes_room() {
        let room = BodyRoom { patience: Duration::from_millis(50), ..BodyRoom::new(10 * UNIT) };
        let (first, second) = (HeldRoom::default(), HeldRoom::default());
        assert_eq!(read(&room, &first, 8 * UNIT).await.unwrap().len(), 8 * UNIT);
        let error = format!("{:?}", read(&room, &second, 3 * UNIT).await.unwrap_err());
        assert!(error.contains("NoRoom"), "{error}");
        drop(first);
        let trickled = HeldRoom::default();
        for _ in 0..9 * UNIT {
            room.hold(Bytes::from_static(b"x"), &trickled).await.unwrap();
        }
        drop(trickled);
        assert_eq!(read(&room, &second, 3 * UNIT).await.unwrap().len(), 3 * UNIT);
    }
}
