//! How a face is cut out for the recognizer: `[alignment]` of an entry.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::LandmarkScheme;

/// `[alignment]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alignment {
    /// How the landmarks are brought to the template.
    pub kind: AlignmentKind,
    /// Width of the crop in pixels.
    pub width: u32,
    /// Height of the crop in pixels.
    pub height: u32,
    /// Which points `points` places.
    #[serde(default)]
    pub scheme: LandmarkScheme,
    /// Which of the scheme's points they are, counted from 0; all of them where it is left out.
    pub indices: Option<Vec<usize>>,
    /// Where the points shall lie, in pixels of the crop; none for the kind `margin`.
    #[serde(default)]
    pub points: Vec<[f32; 2]>,
    /// For the kind `margin`: how much wider and higher than the face's box the part is that is cut out.
    pub margin: Option<f32>,
}

/// Ways to align.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlignmentKind {
    /// The similarity transform nearest in least squares (Umeyama 1991), bilinear, black outside.
    Similarity,
    /// The affine map that brings three points to theirs, bilinear, black outside.
    Affine,
    /// The face's box with a margin around it, upright, made a square and scaled to the crop; black outside.
    Margin,
}

impl Alignment {
    /// The crop's width and height.
    pub fn size(&self) -> [u32; 2] {
        [self.width, self.height]
    }

    /// Refuses what cannot be done with faces whose points are of the scheme `placed`.
    pub(super) fn check(&self, placed: LandmarkScheme) -> Result<(), String> {
        if !(16..=1024).contains(&self.width) || !(16..=1024).contains(&self.height) {
            return Err("alignment width and height must lie between 16 and 1024 pixels".to_owned());
        }
        if !self.points.iter().flatten().all(|number| number.is_finite()) {
            return Err("mean, scale and points must be finite".to_owned());
        }
        if self.kind == AlignmentKind::Margin {
            return self.check_margin();
        }
        if self.margin.is_some() {
            return Err("alignment.margin must be left out but for the kind margin".to_owned());
        }
        if !placed.gives(self.scheme) {
            return Err(format!("alignment.scheme is {}, but faces have the points {placed} here", self.scheme));
        }
        self.check_points()
    }

    /// In square pixels: of a similarity's points how far they are from the first one, and twice the area of an affine map's.
    fn spread(&self) -> f32 {
        let from_first = |[x, y]: [f32; 2]| [x - self.points[0][0], y - self.points[0][1]];
        match (self.kind, self.points.as_slice()) {
            (AlignmentKind::Affine, [_, second, third]) => {
                let ([ux, uy], [vx, vy]) = (from_first(*second), from_first(*third));
                (ux * vy - uy * vx).abs()
            }
            (_, points) => points.iter().map(|point| from_first(*point)).map(|[x, y]| x * x + y * y).sum(),
        }
    }

    fn check_margin(&self) -> Result<(), String> {
        if !self.points.is_empty() || self.indices.is_some() {
            return Err("alignment.points and indices must be left out for the kind margin".to_owned());
        }
        match self.margin {
            Some(margin) if (0.0..=2.0).contains(&margin) => Ok(()),
            _ => Err("alignment.margin must lie between 0 and 2 for the kind margin".to_owned()),
        }
    }

    fn check_points(&self) -> Result<(), String> {
        let known = self.scheme.points();
        if self.indices.iter().flatten().any(|index| *index >= known) {
            return Err(format!("alignment.indices must lie below {known} for the scheme {}", self.scheme));
        }
        let wanted = self.indices.as_ref().map_or(known, Vec::len);
        if self.points.len() != wanted {
            return Err(format!("alignment.points must be {wanted}, not {}", self.points.len()));
        }
        let indices = self.indices.iter().flatten();
        if indices.clone().collect::<BTreeSet<_>>().len() < indices.count() {
            return Err("alignment.indices must differ".to_owned());
        }
        if wanted > 1 && self.spread() < 1.0 {
            return Err(
                "alignment.points must not lie on one point, nor on one line where they are three of the kind affine"
                    .to_owned(),
            );
        }
        match self.kind {
            AlignmentKind::Similarity if wanted < 2 => Err("a similarity needs two points at least".to_owned()),
            AlignmentKind::Affine if wanted != 3 => Err("an affine alignment needs three points".to_owned()),
            _ => Ok(()),
        }
    }
}
