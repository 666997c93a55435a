//! Runs that give a collection another pipeline without losing a person, an id or a second of service: how one begins
//! ([`plan`]), what is seen of it ([`run`]), and what is asked of it ([`wishes`]).

pub mod plan;
pub mod run;
pub mod wishes;

use std::sync::Arc;

use shared::catalogue::Pipeline;
use shared::models::ModelsError;

use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// The model that a collection or run goes by.
pub(super) async fn registered(state: &AppState, pipeline: &str) -> ApiResult<Arc<Pipeline>> {
    state.models.pipeline(pipeline).await.map_err(|error| match error {
        ModelsError::Db(error) => error.into(),
        error => ApiError::unprocessable("pipeline_unknown", error.to_string()),
    })
}
