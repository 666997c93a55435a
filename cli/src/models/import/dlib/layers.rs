//! dlib's networks (`dlib/dnn/core.h`, `layers.h`), as a row of layers from the input on.
//!
//! A file has a version for each layer, the outermost first, down to the input; then what each layer holds, from the input
//! outwards. A tag and a skip have a version and hold nothing, so that only their places tell them apart.

use anyhow::{Context as _, bail, ensure};

use super::bytes::{Reader, Tensor};

/// Most layers that are read; the recognizer has 130.
const MOST_LAYERS: usize = 1000;
/// Versions of what surrounds a layer.
const TAG_OR_SKIP: i64 = 1;
const LAYER: i64 = 2;
const FIRST_LAYER: i64 = 3;
/// Tensors of each layer that only training needs: gradients and the last output.
const SCRATCH: usize = 3;

/// A network.
#[derive(Debug, PartialEq)]
pub(super) struct Network {
    /// Subtracted from 0..255 of red, green and blue; what is left is divided by 256.
    pub(super) mean: [f32; 3],
    /// Height and width of its input, where they are fixed.
    pub(super) size: Option<[usize; 2]>,
    pub(super) layers: Vec<Layer>,
}

/// A layer, with what folds into it.
#[derive(Debug, PartialEq)]
pub(super) enum Layer {
    Convolution {
        filters: Tensor,
        biases: Vec<f32>,
        window: Window,
    },
    Relu,
    MaxPool(Window),
    AveragePool(Window),
    /// The mean over all rows and columns.
    AverageAll,
    /// A matrix of inputs by outputs.
    Linear(Tensor),
    /// What comes here is kept beside (`tag1`).
    Keep,
    /// What comes here is kept in the place of what was, with which it goes on (`tag2`, then `skip1`).
    Swap,
    /// What was kept is added; the smaller of the two is filled up with zeros (`add_prev`).
    Add,
}

/// Rows before columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) sides: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) padding: [usize; 2],
}

/// What a file holds of one layer.
enum Held {
    Layer(Layer),
    /// A factor and an addend for each channel.
    Scale(Vec<[f64; 2]>),
}

impl Network {
    pub(super) fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut reader = Reader::new(bytes);
        let read = Self::read_from(&mut reader);
        read.with_context(|| format!("at byte {}", reader.position()))
    }

    fn read_from(reader: &mut Reader<'_>) -> anyhow::Result<Self> {
        loss(reader)?;
        let mut versions = Vec::new();
        while versions.last() != Some(&FIRST_LAYER) {
            let version = reader.integer()?;
            ensure!([TAG_OR_SKIP, LAYER, FIRST_LAYER].contains(&version), "no layer of version {version} is known");
            versions.push(version);
            ensure!(versions.len() <= MOST_LAYERS, "it has more than {MOST_LAYERS} layers");
        }
        let (mean, size) = input(reader)?;
        let mut network = Self { mean, size, layers: Vec::new() };
        versions.reverse();
        for same in versions.chunk_by(|one, other| (*one == TAG_OR_SKIP) == (*other == TAG_OR_SKIP)) {
            match (same[0] == TAG_OR_SKIP, same.len()) {
                (true, 1) => network.layers.push(Layer::Keep),
                (true, 2) => network.layers.push(Layer::Swap),
                (true, _) => bail!("more than two tags and skips in a row are not known"),
                (false, _) => same.iter().try_for_each(|version| network.push(held(reader, *version)?))?,
            }
        }
        reader.end()?;
        Ok(network)
    }

    /// A scale folds into the convolution before it.
    fn push(&mut self, held: Held) -> anyhow::Result<()> {
        match (held, self.layers.last_mut()) {
            (Held::Layer(layer), _) => self.layers.push(layer),
            (Held::Scale(scale), Some(Layer::Convolution { filters, biases, .. })) => fold(&scale, filters, biases)?,
            (Held::Scale(_), _) => bail!("a scale that follows no convolution is not known"),
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "weights are floats")]
fn fold(scale: &[[f64; 2]], filters: &mut Tensor, biases: &mut [f32]) -> anyhow::Result<()> {
    let of_one = filters.numbers.len() / biases.len();
    ensure!(scale.len() == biases.len(), "a scale of {} channels follows {}", scale.len(), biases.len());
    for (([factor, addend], bias), filter) in scale.iter().zip(biases).zip(filters.numbers.chunks_exact_mut(of_one)) {
        *bias = (f64::from(*bias) * factor + addend) as f32;
        for number in filter {
            *number = (f64::from(*number) * factor) as f32;
        }
    }
    Ok(())
}

/// What training aims at; of it, nothing is needed.
fn loss(reader: &mut Reader<'_>) -> anyhow::Result<()> {
    reader.expect("the version of the network", 1)?;
    let numbers = match reader.text()? {
        // Margin and distance.
        "loss_metric_2" => 2,
        "loss_mmod_" => {
            reader.expect("the version of the detector's options", 1)?;
            reader.expect("the width of a face's box", 80)?;
            reader.expect("the height of a face's box", 80)?;
            // What a false face and a missed one cost, and three overlaps, two of them with another limit.
            7
        }
        other => bail!("the loss {other} is not known"),
    };
    reader.items(numbers, Reader::number)?;
    Ok(())
}

fn input(reader: &mut Reader<'_>) -> anyhow::Result<([f32; 3], Option<[usize; 2]>)> {
    let name = reader.text()?;
    let mean = [reader.float()?, reader.float()?, reader.float()?];
    let size = match name {
        "input_rgb_image" | "input_rgb_image_pyramid" => None,
        "input_rgb_image_sized" => Some([side(reader)?, side(reader)?]),
        "input_rgb_image_pyramid2" => {
            // Padding between and around the pyramid's levels, which is the caller's here.
            reader.items(2, Reader::integer)?;
            None
        }
        other => bail!("the input {other} is not known"),
    };
    Ok((mean, size))
}

fn side(reader: &mut Reader<'_>) -> anyhow::Result<usize> {
    let side = reader.count("pixels of a side", 4096)?;
    ensure!(side > 0, "a side has no pixels");
    Ok(side)
}

/// A layer and what surrounds it.
fn held(reader: &mut Reader<'_>, version: i64) -> anyhow::Result<Held> {
    let name = reader.text()?;
    let held = details(reader, name).with_context(|| format!("the layer {name}"))?;
    reader.items(3, Reader::truth)?;
    reader.items(SCRATCH, Reader::tensor)?;
    if version == FIRST_LAYER {
        reader.expect("how many pictures become one", 1)?;
    }
    Ok(held)
}

fn details(reader: &mut Reader<'_>, name: &str) -> anyhow::Result<Held> {
    Ok(Held::Layer(match name {
        "con_4" | "con_5" => convolution(reader, name == "con_5")?,
        "affine_" => return affine(reader),
        "bn_con2" => return normalisation(reader),
        "relu_" => Layer::Relu,
        "add_prev_" => Layer::Add,
        "max_pool_2" => Layer::MaxPool(window(reader)?),
        "avg_pool_2" => match window(reader)? {
            Window { sides: [0, 0], .. } => Layer::AverageAll,
            window => Layer::AveragePool(window),
        },
        "fc_2" => linear(reader)?,
        other => bail!("layers of the kind {other} are not known"),
    }))
}

fn convolution(reader: &mut Reader<'_>, may_lack_biases: bool) -> anyhow::Result<Layer> {
    let weights = reader.tensor()?;
    let filters = reader.count("filters", u32::MAX as usize)?;
    let window = window(reader)?;
    let (shape, bias_shape) = (reader.alias()?, reader.alias()?);
    learning(reader)?;
    ensure!(!may_lack_biases || reader.truth()?, "it has no biases");
    let (filters_are, sides_are) = (shape[0] == filters, shape[2..] == window.sides);
    ensure!(filters_are && sides_are && !shape.contains(&0), "its filters are not as many, or as large, as it says");
    let (filters, rest) = weights.split(shape)?;
    ensure!(bias_shape == [1, shape[0], 1, 1] && rest.len() == shape[0], "it has no bias for each filter");
    Ok(Layer::Convolution { filters, biases: rest, window })
}

/// Sides, strides and padding, each of rows and of columns.
fn window(reader: &mut Reader<'_>) -> anyhow::Result<Window> {
    let mut numbers = [0; 6];
    for number in &mut numbers {
        *number = reader.count("pixels", 1024)?;
    }
    let [rows, columns, down, across, above, left] = numbers;
    ensure!(down > 0 && across > 0, "a window does not move on");
    Ok(Window { sides: [rows, columns], strides: [down, across], padding: [above, left] })
}

fn learning(reader: &mut Reader<'_>) -> anyhow::Result<()> {
    reader.items(4, Reader::number)?;
    Ok(())
}

fn affine(reader: &mut Reader<'_>) -> anyhow::Result<Held> {
    let weights = reader.tensor()?;
    let (shape, other) = (reader.alias()?, reader.alias()?);
    reader.expect("what it scales (0: channels)", 0)?;
    let (factors, addends) = factors_and_addends(weights, shape, other)?;
    let pairs = factors.into_iter().zip(addends).map(|(factor, addend)| [factor, addend].map(f64::from));
    Ok(Held::Scale(pairs.collect()))
}

fn factors_and_addends(weights: Tensor, shape: [usize; 4], other: [usize; 4]) -> anyhow::Result<(Vec<f32>, Vec<f32>)> {
    ensure!(shape == [1, shape[1], 1, 1] && shape == other, "it has no factor and addend for each channel");
    let (factors, addends) = weights.split(shape)?;
    ensure!(addends.len() == shape[1], "it has no addend for each channel");
    Ok((factors.numbers, addends))
}

/// Batch normalisation, as it is once training is over: by means and variances of the training.
fn normalisation(reader: &mut Reader<'_>) -> anyhow::Result<Held> {
    let weights = reader.tensor()?;
    let (shape, other) = (reader.alias()?, reader.alias()?);
    // Means and spreads of the last batch, then those of many.
    let statistics = reader.items(4, Reader::tensor)?;
    reader.items(2, Reader::integer)?;
    learning(reader)?;
    let least = reader.number()?;
    let (factors, addends) = factors_and_addends(weights, shape, other)?;
    let [.., means, variances] = statistics.as_slice() else { bail!("it has no statistics") };
    ensure!(means.shape == shape && variances.shape == shape, "it has no mean and variance for each channel");
    let mut scale = Vec::with_capacity(factors.len());
    for (((factor, addend), mean), variance) in factors.iter().zip(&addends).zip(&means.numbers).zip(&variances.numbers)
    {
        let spread = (f64::from(*variance) + least).sqrt();
        ensure!(spread > 0.0, "a channel has a variance that is not above 0");
        let factor = f64::from(*factor) / spread;
        scale.push([factor, f64::from(*addend) - factor * f64::from(*mean)]);
    }
    Ok(Held::Scale(scale))
}

fn linear(reader: &mut Reader<'_>) -> anyhow::Result<Layer> {
    let (outputs, inputs) = (reader.count("outputs", u32::MAX as usize)?, reader.count("inputs", u32::MAX as usize)?);
    let weights = reader.tensor()?;
    let shape = reader.alias()?;
    reader.alias()?;
    reader.expect("whether it has no biases", 1)?;
    learning(reader)?;
    let is_whole = shape == [inputs, outputs, 1, 1] && outputs > 0;
    let (weights, rest) = weights.split(shape)?;
    ensure!(is_whole && rest.is_empty(), "its weights are not as many as it says");
    Ok(Layer::Linear(weights))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As dlib writes them.
    fn integer(value: i64) -> Vec<u8> {
        let bytes = value.unsigned_abs().to_le_bytes();
        let count = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let sign = if value < 0 { 0x80 } else { 0 };
        [&[sign | u8::try_from(count).unwrap()][..], &bytes[..count]].concat()
    }

    fn integers(values: &[i64]) -> Vec<u8> {
        values.iter().flat_map(|value| integer(*value)).collect()
    }

    /// Whole numbers, as floats.
    fn numbers(values: &[i64]) -> Vec<u8> {
        values.iter().flat_map(|value| integers(&[*value, 0])).collect()
    }

    fn text(text: &str) -> Vec<u8> {
        [&integer(text.len().try_into().unwrap())[..], text.as_bytes()].concat()
    }

    fn tensor(shape: [i64; 4], numbers: &[f32]) -> Vec<u8> {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        [integer(2), integers(&shape), bytes].concat()
    }

    /// What surrounds a layer.
    fn layer(details: Vec<u8>) -> Vec<u8> {
        [details, b"110".to_vec(), tensor([0; 4], &[]).repeat(3)].concat()
    }

    fn convolution() -> Vec<u8> {
        let parts = [
            text("con_4"),
            // Two filters of one pixel of three channels, then their biases.
            tensor([8, 1, 1, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5, 0.25]),
            integers(&[2, 1, 1, 1, 1, 0, 0, 1, 2, 3, 1, 1, 1, 1, 2, 1, 1]),
            numbers(&[1, 1, 1, 0]),
        ];
        parts.concat()
    }

    fn scale() -> Vec<u8> {
        let shape = [1, 1, 2, 1, 1];
        [
            text("affine_"),
            tensor([4, 1, 1, 1], &[2.0, -1.0, 10.0, 20.0]),
            integers(&[shape, shape].concat()),
            integer(0),
        ]
        .concat()
    }

    fn pool(name: &str, window: [i64; 6]) -> Vec<u8> {
        [text(name), integers(&window)].concat()
    }

    fn head(versions: &[i64]) -> Vec<u8> {
        let input = [text("input_rgb_image_sized"), numbers(&[1, 2, 3]), integers(&[8, 6])].concat();
        [integer(1), text("loss_metric_2"), numbers(&[0, 1]), integers(versions), input].concat()
    }

    /// A convolution with a scale, past which an average of its input goes on.
    fn network() -> Vec<u8> {
        let add = text("add_prev_");
        let inner = [layer(convolution()), integer(1), layer(scale())].concat();
        let outer = [layer(text("relu_")), layer(pool("avg_pool_2", [2, 2, 2, 2, 0, 0])), layer(add)].concat();
        [head(&[2, 2, 1, 1, 2, 1, 2, 3]), inner, outer].concat()
    }

    #[test]
    fn layers_come_from_the_input_on_with_tags_and_skips_between() {
        let network = Network::read(&network()).unwrap();
        assert_eq!((network.mean, network.size), ([1.0, 2.0, 3.0], Some([8, 6])));
        let window = Window { sides: [1, 1], strides: [1, 1], padding: [0, 0] };
        let numbers = vec![2.0, 4.0, 6.0, -4.0, -5.0, -6.0];
        let wanted = [
            Layer::Convolution { filters: Tensor { shape: [2, 3, 1, 1], numbers }, biases: vec![11.0, 19.75], window },
            Layer::Keep,
            Layer::Relu,
            Layer::Swap,
            Layer::AveragePool(Window { sides: [2, 2], strides: [2, 2], padding: [0, 0] }),
            Layer::Add,
        ];
        assert_eq!(network.layers, wanted);
    }

    #[test]
    fn what_is_cut_off_or_not_known_is_refused() {
        let bytes = network();
        for length in 0..bytes.len() {
            assert!(Network::read(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Network::read(&[&bytes[..], &[0]].concat()).is_err());
        let refused =
            |layers: &[i64], rest: Vec<u8>| format!("{:#}", Network::read(&[head(layers), rest].concat()).unwrap_err());
        assert!(refused(&[3], layer(text("htan_"))).contains("htan_"));
        let first = [layer(scale()), integer(1)].concat();
        assert!(refused(&[3], first).contains("follows no convolution"));
        assert!(refused(&[1, 1, 1, 3], [layer(text("relu_")), integer(1)].concat()).contains("in a row"));
        assert!(refused(&[4], Vec::new()).contains("version 4"));
        assert!(refused(&[2; 2000], Vec::new()).contains("more than 1000"));
        let standing = pool("max_pool_2", [2, 2, 0, 1, 0, 0]);
        assert!(refused(&[3], layer(standing)).contains("does not move on"));
    }

    #[test]
    fn normalisation_goes_by_what_training_saw() {
        let shape = [1, 1, 1, 1];
        let alias = [integer(1), integers(&shape)].concat();
        let one = |number: f32| tensor(shape, &[number]);
        let details = [
            tensor([2, 1, 1, 1], &[6.0, 1.0]),
            alias.repeat(2),
            [9.0, 9.0, 5.0, 3.0].map(one).concat(),
            integers(&[100, 100]),
            numbers(&[1, 0, 1, 1, 1]),
        ];
        let details = details.concat();
        let Held::Scale(scale) = normalisation(&mut Reader::new(&details)).unwrap() else { panic!("no scale") };
        // 6 / sqrt(3 + 1), and 1 - 3 * 5.
        assert_eq!(scale, [[3.0, -14.0]]);
    }
}
