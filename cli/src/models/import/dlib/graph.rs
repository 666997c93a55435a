//! A network of dlib's as an ONNX graph.

use anyhow::{Context as _, bail, ensure};

use super::super::onnx::{Attribute, Axis, Graph};
use super::bytes::Tensor;
use super::layers::{Layer, Network, Window};

const INPUT: &str = "image";

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// `embedding`, `[N, numbers]`.
    Vector,
    /// `score`, `[N, 1, rows, columns]`.
    Map,
}

/// What flows from one layer to the next.
#[derive(Clone, Debug)]
struct Value {
    name: String,
    channels: usize,
    /// Rows and columns, where they are known.
    size: Option<[usize; 2]>,
}

struct Builder {
    graph: Graph,
    flow: Value,
    kept: Option<Value>,
    nodes: usize,
}

/// The ONNX file: `image` is `[N, 3, height, width]`, red first, its mean subtracted and the rest divided by 256.
pub(super) fn model(network: &Network, output: Output) -> anyhow::Result<Vec<u8>> {
    let input = Value { name: INPUT.to_owned(), channels: 3, size: network.size };
    let mut builder = Builder { graph: Graph::new("dlib"), flow: input, kept: None, nodes: 0 };
    let (last, others) = network.layers.split_last().context("it has no layers")?;
    for layer in others {
        builder.layer(layer, None)?;
    }
    let name = match output {
        Output::Vector => "embedding",
        Output::Map => "score",
    };
    builder.layer(last, Some(name))?;
    let Builder { graph, flow, .. } = builder;
    let side = |axis: usize, free| network.size.map_or(Axis::Free(free), |size| Axis::Fixed(size[axis]));
    let image = [Axis::Free("N"), Axis::Fixed(3), side(0, "H"), side(1, "W")];
    let (rows, columns) = (Axis::Free("Ho"), Axis::Free("Wo"));
    let shape = match (output, last) {
        (Output::Vector, Layer::Linear(_)) => vec![Axis::Free("N"), Axis::Fixed(flow.channels)],
        (Output::Map, Layer::Convolution { .. }) => vec![Axis::Free("N"), Axis::Fixed(flow.channels), rows, columns],
        _ => bail!("its last layer does not give what is expected of it"),
    };
    Ok(graph.file((INPUT, &image), (name, &shape)))
}

impl Builder {
    fn layer(&mut self, layer: &Layer, name: Option<&str>) -> anyhow::Result<()> {
        match layer {
            Layer::Convolution { filters, biases, window } => self.convolution(filters, biases, window, name)?,
            Layer::Relu => self.node("Relu", &[], &[], self.flow.size),
            Layer::MaxPool(window) => self.pool("MaxPool", window)?,
            Layer::AveragePool(window) => {
                ensure!(window.padding == [0, 0], "an average over padding is not known");
                self.pool("AveragePool", window)?;
            }
            Layer::AverageAll => self.node("GlobalAveragePool", &[], &[], Some([1, 1])),
            Layer::Linear(weights) => self.linear(weights, name)?,
            Layer::Keep => self.kept = Some(self.flow.clone()),
            Layer::Swap => {
                let kept = self.kept.as_mut().context("nothing was kept that it could go on with")?;
                std::mem::swap(kept, &mut self.flow);
            }
            Layer::Add => self.add()?,
        }
        Ok(())
    }

    /// A node after the last one, with the same number of channels.
    fn node(&mut self, operator: &str, more: &[&str], attributes: &[Attribute<'_>], size: Option<[usize; 2]>) {
        let name = self.next_name(operator);
        self.named(name, operator, more, attributes);
        self.flow.size = size;
    }

    fn named(&mut self, name: String, operator: &str, more: &[&str], attributes: &[Attribute<'_>]) {
        let inputs = [&[self.flow.name.as_str()], more].concat();
        self.graph.node(&name, operator, &inputs, attributes);
        self.flow.name = name;
    }

    fn next_name(&mut self, operator: &str) -> String {
        self.nodes += 1;
        format!("{}_{}", operator.to_lowercase(), self.nodes)
    }

    fn convolution(
        &mut self,
        filters: &Tensor,
        biases: &[f32],
        window: &Window,
        name: Option<&str>,
    ) -> anyhow::Result<()> {
        ensure!(
            filters.shape[1] == self.flow.channels,
            "a filter of {} channels is given {}",
            filters.shape[1],
            self.flow.channels
        );
        let name = name.map_or_else(|| self.next_name("Conv"), str::to_owned);
        let (filter, bias) = (format!("{name}_filters"), format!("{name}_biases"));
        self.graph.floats(&filter, &filters.shape, &filters.numbers);
        self.graph.floats(&bias, &[biases.len()], biases);
        let size = self.windows(window)?;
        let pads = [window.padding, window.padding].concat();
        let attributes = [
            Attribute::Integers("kernel_shape", &window.sides),
            Attribute::Integers("strides", &window.strides),
            Attribute::Integers("pads", &pads),
        ];
        self.named(name, "Conv", &[&filter, &bias], &attributes);
        self.flow = Value { name: std::mem::take(&mut self.flow.name), channels: biases.len(), size };
        Ok(())
    }

    fn pool(&mut self, operator: &str, window: &Window) -> anyhow::Result<()> {
        let size = self.windows(window)?;
        let pads = [window.padding, window.padding].concat();
        let attributes = [
            Attribute::Integers("kernel_shape", &window.sides),
            Attribute::Integers("strides", &window.strides),
            Attribute::Integers("pads", &pads),
        ];
        self.node(operator, &[], &attributes, size);
        Ok(())
    }

    /// How many windows there are, down and across: those that fit in whole.
    fn windows(&self, window: &Window) -> anyhow::Result<Option<[usize; 2]>> {
        let Some(size) = self.flow.size else { return Ok(None) };
        let along = |axis: usize| {
            let room = (size[axis] + 2 * window.padding[axis]).checked_sub(window.sides[axis]);
            Ok(room.context("a window is larger than what it moves over")? / window.strides[axis] + 1)
        };
        let windows: anyhow::Result<_> = along(0).and_then(|rows| Ok([rows, along(1)?]));
        windows.map(Some)
    }

    fn linear(&mut self, weights: &Tensor, name: Option<&str>) -> anyhow::Result<()> {
        let [inputs, outputs, ..] = weights.shape;
        let pixels = self.flow.size.map(|[rows, columns]| rows * columns).context("its input has no fixed size")?;
        ensure!(inputs == self.flow.channels * pixels, "a matrix of {inputs} inputs is given others");
        self.node("Flatten", &[], &[Attribute::Integer("axis", 1)], None);
        let name = name.map_or_else(|| self.next_name("MatMul"), str::to_owned);
        let matrix = format!("{name}_weights");
        self.graph.floats(&matrix, &[inputs, outputs], &weights.numbers);
        self.named(name, "MatMul", &[&matrix], &[]);
        self.flow.channels = outputs;
        Ok(())
    }

    fn add(&mut self) -> anyhow::Result<()> {
        let kept = self.kept.take().context("nothing was kept that it could add")?;
        let (Some(one), Some(other)) = (self.flow.size, kept.size) else {
            bail!("what is added has no fixed size");
        };
        let size = [one[0].max(other[0]), one[1].max(other[1])];
        let channels = self.flow.channels.max(kept.channels);
        let kept = self.filled_up(kept, channels, size);
        let flow = self.flow.clone();
        self.flow = self.filled_up(flow, channels, size);
        self.node("Add", &[&kept.name], &[], Some(size));
        Ok(())
    }

    /// With zeros as further channels, and below and to the right.
    fn filled_up(&mut self, value: Value, channels: usize, size: [usize; 2]) -> Value {
        let has = [value.channels, value.size.map_or(size[0], |has| has[0]), value.size.map_or(size[1], |has| has[1])];
        if has == [channels, size[0], size[1]] {
            return value;
        }
        let name = self.next_name("Pad");
        let lacks = format!("{name}_lengths");
        let missing = [channels - has[0], size[0] - has[1], size[1] - has[2]].map(|missing| missing as i64);
        // How many before the first and after the last, along all four axes.
        self.graph.integers(&lacks, &[[0; 5].as_slice(), &missing].concat());
        self.graph.node(&name, "Pad", &[&value.name, &lacks], &[]);
        Value { name, channels, size: Some(size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convolution(channels: [usize; 2], window: Window) -> Layer {
        let shape = [channels[1], channels[0], window.sides[0], window.sides[1]];
        let numbers = vec![0.0; shape.iter().product()];
        Layer::Convolution { filters: Tensor { shape, numbers }, biases: vec![0.0; channels[1]], window }
    }

    fn window(side: usize, stride: usize) -> Window {
        Window { sides: [side; 2], strides: [stride; 2], padding: [0, 0] }
    }

    fn linear(inputs: usize) -> Layer {
        Layer::Linear(Tensor { shape: [inputs, 2, 1, 1], numbers: vec![0.0; inputs * 2] })
    }

    fn made(size: Option<[usize; 2]>, layers: Vec<Layer>, output: Output) -> anyhow::Result<Vec<u8>> {
        model(&Network { mean: [0.0; 3], size, layers }, output)
    }

    fn has(file: &[u8], text: &str) -> bool {
        file.windows(text.len()).any(|part| part == text.as_bytes())
    }

    #[test]
    fn what_is_added_is_filled_up() {
        // 8 pixels: a window of 3 has room for 3 in steps of 2, one of 2 for 4.
        let block = |channels| {
            let down = convolution([3, channels], window(3, 2));
            let average = Layer::AveragePool(window(2, 2));
            vec![Layer::Keep, down, Layer::Swap, average, Layer::Add, Layer::AverageAll, linear(channels.max(3))]
        };
        for channels in [2, 3, 5] {
            let file = made(Some([8, 8]), block(channels), Output::Vector).unwrap();
            assert!(has(&file, "Pad") && has(&file, "embedding"), "{channels}");
        }
        let even = made(Some([9, 9]), block(3), Output::Vector).unwrap();
        assert!(!has(&even, "Pad"), "4 and 4 of as many channels");
        assert!(made(None, block(3), Output::Vector).is_err());
    }

    #[test]
    fn layers_that_do_not_fit_are_refused() {
        let refused = |layers, size| format!("{:#}", made(size, layers, Output::Map).unwrap_err());
        assert!(refused(vec![Layer::Add], Some([8, 8])).contains("nothing was kept"));
        assert!(refused(vec![Layer::Swap], Some([8, 8])).contains("nothing was kept"));
        assert!(refused(vec![convolution([2, 1], window(1, 1))], None).contains("2 channels is given 3"));
        assert!(refused(vec![Layer::MaxPool(window(9, 1))], Some([8, 8])).contains("larger than"));
        assert!(refused(vec![Layer::AverageAll, linear(4)], Some([8, 8])).contains("4 inputs"));
        assert!(refused(vec![Layer::Relu], None).contains("last layer"));
        assert!(refused(Vec::new(), None).contains("no layers"));
        let map = made(None, vec![convolution([3, 1], window(1, 1))], Output::Map).unwrap();
        assert!(["score", "Ho", "Wo"].iter().all(|name| has(&map, name)));
    }
}
