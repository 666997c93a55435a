//! What the two models of a reprocess run say of the same faces, whose persons somebody named.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The figures, by which to judge whether to go over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ComparisonReport {
    /// Faces that are enrolled or were assigned by a user, and have vectors of both pipelines.
    pub labelled_faces: usize,
    /// Those that were compared: all, or where there are more than 4000, up to 20 of each of some persons by chance, those with
    /// several faces first. A person is judged by the compared faces alone, where a job judges by up to 64.
    pub faces: usize,
    /// Their persons.
    pub persons: usize,
    /// Compared faces whose person has another one among them.
    pub faces_with_mates: usize,
    /// By the pipeline that the collection went by when the run was made.
    pub from: PipelineFigures,
    /// By the new one.
    pub to: PipelineFigures,
    /// Faces of which the two decide otherwise, by how.
    pub moved: Vec<MovedDecisions>,
}

/// What one pipeline says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PipelineFigures {
    /// Its name.
    pub pipeline: String,
    /// Pairs of faces of one person.
    pub genuine_pairs: u64,
    /// Pairs of faces of two persons.
    pub impostor_pairs: u64,
    /// How many of the former are told at a threshold that so many of the latter reach.
    pub tar: Vec<TarAtFar>,
    /// The share of faces with mates that are most like their own person.
    pub rank_1: Option<f64>,
    /// The threshold by which the collection would decide, at its size, a score by the pipeline's metric; null where nothing says
    /// one.
    pub match_cosine: Option<f32>,
    /// What each face is when it is looked up among the others; null without a threshold.
    pub outcomes: Option<OutcomeCounts>,
}

/// The true accept rate at a false accept rate, of single pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TarAtFar {
    /// The false accept rate.
    pub far: f64,
    /// The true accept rate; null where there are too few pairs to tell.
    pub tar: Option<f64>,
    /// The threshold that gives both, a score by the pipeline's metric.
    pub cosine: Option<f32>,
    /// Why there is none.
    pub why_not: Option<String>,
}

/// How many faces are what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutcomeCounts {
    /// A match of their own person.
    pub right: usize,
    /// A match of another person.
    pub wrong: usize,
    /// Perhaps somebody.
    pub uncertain: usize,
    /// Nobody.
    pub unknown: usize,
}

/// Faces that become something else with the new pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub struct MovedDecisions {
    pub from: Outcome,
    pub to: Outcome,
    pub faces: usize,
}

/// What a face is when it is looked up among all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It matches its own person.
    Right,
    /// It matches another person.
    Wrong,
    /// It is perhaps somebody.
    Uncertain,
    /// It is nobody.
    Unknown,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Right, Self::Wrong, Self::Uncertain, Self::Unknown];

    /// The name used in rows and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::Uncertain => "uncertain",
            Self::Unknown => "unknown",
        }
    }
}
