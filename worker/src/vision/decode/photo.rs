//! A photograph of which no more is decoded than its faces need.

use super::DecodeError;
use super::jpeg::Jpeg;
use crate::vision::frame::Frame;
use crate::vision::{BoundingBox, Picture};

/// An upright photograph: all of it at the scale at which faces are looked for, and parts of it larger where a face is
/// small. All coordinates outside are those of the original.
#[derive(Debug)]
pub struct Photo {
    /// Width and height in upright original pixels.
    pub size: [u32; 2],
    /// What a clock at the place showed when it was taken: `YYYY-MM-DDTHH:MM:SS`, with `+HH:MM` behind it where known.
    pub captured_at: Option<String>,
    /// All of it.
    pub overview: Frame,
    /// The file, where the overview is smaller than the original.
    file: Option<Jpeg>,
}

impl From<Picture> for Photo {
    fn from(picture: Picture) -> Self {
        Self { size: [picture.width, picture.height], captured_at: None, overview: picture.into(), file: None }
    }
}

impl Photo {
    /// Decodes the file at the smallest scale at which the longer side has at least `side` pixels.
    pub(super) fn of_jpeg(file: Jpeg, side: u32) -> Result<Self, DecodeError> {
        let scale = file.scale(side);
        let (size, overview) = (file.size(), file.frame(scale, None)?);
        let captured_at = file.captured_at().map(str::to_owned);
        Ok(Self { size, captured_at, overview, file: (scale > 1).then_some(file) })
    }

    /// The part around `area`, at the smallest scale that still has a pixel for each `reduction` original ones or, where
    /// these are less than one, at the original's. None where the overview is the original.
    pub(crate) fn close_up(&self, area: BoundingBox, reduction: f32) -> Result<Option<Frame>, DecodeError> {
        self.file.as_ref().map(|file| file.frame(Jpeg::scale_of(reduction), Some(area))).transpose()
    }
}
