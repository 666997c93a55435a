//! All faces of a collection as they are at a moment.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use shared::db::faces::{SAME_FACE_IOU, iou};
use shared::job::FaceBox;

use crate::client::Client;

/// Longest wait for the next part of an export.
const PATIENCE: Duration = Duration::from_secs(60);

/// A face on an image, and where.
struct Row {
    /// Whose it was said to be; a match by itself may be another by another model.
    person: Option<String>,
    image: String,
    face_box: FaceBox,
}

/// See the module.
pub(super) struct Census(BTreeMap<String, Row>);

impl Census {
    pub(super) async fn of(client: &Client, collection: &str) -> anyhow::Result<Self> {
        let mut faces = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let page = client.get(&format!("/v1/collections/{collection}/faces?limit=500{cursor}")).await?;
            for face in page["items"].as_array().context("the list of faces has no items")? {
                let text = |key: &str| face[key].as_str().map(str::to_owned);
                let row = Row {
                    person: text("person_id").filter(|_| face["assigned_by"] != "auto"),
                    image: text("image_id").context("a face has no image")?,
                    face_box: serde_json::from_value(face["box"].clone()).context("a face has no box")?,
                };
                faces.insert(text("id").context("a face has no id")?, row);
            }
            match &page["next_cursor"] {
                Value::String(next) => cursor = format!("&cursor={next}"),
                _ => return Ok(Self(faces)),
            }
        }
    }

    pub(super) fn faces(&self) -> usize {
        self.0.len()
    }

    /// How many faces were said to be somebody's.
    pub(super) fn named(&self) -> usize {
        self.0.values().filter(|row| row.person.is_some()).count()
    }

    /// How many of these faces are later what they were: on the same image, at the same place.
    pub(super) fn kept(&self, later: &Self) -> usize {
        let is_kept = |(id, row): &(&String, &Row)| {
            let same = |now: &Row| now.image == row.image && iou(&now.face_box, &row.face_box) > SAME_FACE_IOU;
            later.0.get(*id).is_some_and(same)
        };
        self.0.iter().filter(is_kept).count()
    }

    /// How many of those that are somebody's are the same one's later.
    pub(super) fn names_kept(&self, later: &Self) -> usize {
        let is_kept = |(id, row): &(&String, &Row)| {
            row.person.is_some() && later.0.get(*id).is_some_and(|now| now.person == row.person)
        };
        self.0.iter().filter(is_kept).count()
    }

    /// The part of the faces that an export shows with the pipeline's vector.
    pub(super) async fn embedded(&self, client: &Client, collection: &str, pipeline: &str) -> anyhow::Result<f64> {
        let path = format!("/v1/collections/{collection}/export");
        let export = client.get_stream(&path, PATIENCE).await?.text().await?;
        let mut with = 0;
        for line in export.lines() {
            let line: Value = serde_json::from_str(line).context("read the export")?;
            with += usize::from(line["vectors"][pipeline].is_string());
        }
        Ok(with as f64 / self.faces() as f64)
    }

    /// Pairs of faces of one image that lie so that they are one face.
    pub(super) fn doubled(&self) -> usize {
        let mut of_image: HashMap<&str, Vec<&FaceBox>> = HashMap::new();
        for row in self.0.values() {
            of_image.entry(&row.image).or_default().push(&row.face_box);
        }
        let pairs = |boxes: &Vec<&FaceBox>| {
            (1..boxes.len())
                .flat_map(|n| (0..n).map(move |m| (n, m)))
                .filter(|(n, m)| iou(boxes[*n], boxes[*m]) > SAME_FACE_IOU)
                .count()
        };
        of_image.values().map(pairs).sum()
    }
}
