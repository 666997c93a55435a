//! dlib's `shape_predictor` (`dlib/image_processing/shape_predictor.h`) to face-id's.

use anyhow::{Context as _, ensure};
use worker::vision::shape_predictor::{Pixel, ShapePredictor, Split, Stage, Tree};

use super::bytes::Reader;

pub(super) fn read(bytes: &[u8]) -> anyhow::Result<ShapePredictor> {
    let mut reader = Reader::new(bytes);
    let read = read_from(&mut reader);
    read.with_context(|| format!("at byte {}", reader.position()))
}

fn read_from(reader: &mut Reader<'_>) -> anyhow::Result<ShapePredictor> {
    reader.expect("the version of the shape predictor", 1)?;
    let shape = pairs(reader)?;
    let forests = reader.list("stages", |reader| reader.list("trees", |reader| tree(reader, shape.len())))?;
    let anchors = reader.list("stages", |reader| reader.list("points", index))?;
    let offset = |reader: &mut Reader<'_>| Ok([reader.float()?, reader.float()?]);
    let offsets = reader.list("stages", |reader| reader.list("offsets", offset))?;
    reader.end()?;
    ensure!(anchors.len() == forests.len() && offsets.len() == forests.len(), "its parts have other numbers of stages");
    let parts = forests.into_iter().zip(anchors).zip(offsets);
    let stages = parts.map(|((trees, anchors), offsets)| {
        ensure!(anchors.len() == offsets.len(), "a stage has other numbers of points and of offsets");
        let pixels = anchors.into_iter().zip(offsets).map(|(anchor, offset)| Pixel { anchor, offset }).collect();
        Ok(Stage { pixels, trees })
    });
    let stages = stages.collect::<anyhow::Result<_>>()?;
    Ok(ShapePredictor::new(shape, stages)?)
}

fn tree(reader: &mut Reader<'_>, points: usize) -> anyhow::Result<Tree> {
    let split =
        |reader: &mut Reader<'_>| Ok(Split { pixels: [index(reader)?, index(reader)?], threshold: reader.float()? });
    let splits = reader.list("splits", split)?;
    let leaves = reader.list("leaves", pairs)?;
    ensure!(leaves.len() == splits.len() + 1, "a tree has other than one leaf more than splits");
    ensure!(leaves.iter().all(|leaf| leaf.len() == points), "a leaf moves other than all points");
    Ok(Tree { splits, moves: leaves.concat() })
}

/// A column of x and y in turn.
fn pairs(reader: &mut Reader<'_>) -> anyhow::Result<Vec<[f32; 2]>> {
    let column = reader.column()?;
    let (pairs, rest) = column.as_chunks();
    ensure!(rest.is_empty(), "a shape has an x without y");
    Ok(pairs.to_vec())
}

fn index(reader: &mut Reader<'_>) -> anyhow::Result<u16> {
    let index = reader.count("as an index", usize::from(u16::MAX))?;
    Ok(u16::try_from(index)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two points, one stage, one tree of one split.
    fn file() -> Vec<u8> {
        // Numbers 1 and 2 as floats.
        const ONE: [u8; 3] = [1, 1, 0];
        const TWO: [u8; 3] = [1, 2, 0];
        let column = [&[0x81, 4, 0x81, 1][..], &ONE, &TWO, &TWO, &ONE].concat();
        let tree = [&[1, 1, 0, 1, 1][..], &TWO, &[1, 2], &column, &column].concat();
        let pixels = [&[1, 1, 1, 2, 1, 1, 0, 1, 1, 1, 2][..], &ONE, &TWO, &TWO, &TWO].concat();
        [&[1, 1][..], &column, &[1, 1, 1, 1], &tree, &pixels].concat()
    }

    #[test]
    fn a_predictor_is_read_as_dlib_writes_it() {
        let shape = vec![[1.0, 2.0], [2.0, 1.0]];
        let pixels = vec![Pixel { anchor: 1, offset: [1.0, 2.0] }, Pixel { anchor: 0, offset: [2.0, 2.0] }];
        let tree = Tree { splits: vec![Split { pixels: [0, 1], threshold: 2.0 }], moves: shape.repeat(2) };
        let wanted = ShapePredictor::new(shape, vec![Stage { pixels, trees: vec![tree] }]).unwrap();
        assert_eq!(read(&file()).unwrap(), wanted);
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused() {
        let bytes = file();
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        assert!(read(&[&bytes[..], &[0]].concat()).is_err());
        // One of its bytes another: an error or another predictor, and never a panic.
        for at in 0..bytes.len() {
            for new in [0, 1, 8, 0x7f, 0x88, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = new;
                let _ = read(&changed);
            }
        }
    }
}
