//! Writing ONNX: as much of `onnx.proto` (IR 7, operator set 13) as networks of convolutions need, in protobuf's wire format.

/// `ModelProto.ir_version` and `OperatorSetIdProto.version`.
const IR_VERSION: u64 = 7;
const OPERATORS: u64 = 13;
/// `TensorProto.DataType`.
const FLOAT: u64 = 1;
const INT64: u64 = 7;
/// `AttributeProto.AttributeType`.
const INT: u64 = 2;
const INTS: u64 = 7;

/// A graph with one input and one output, both of floats.
pub(super) struct Graph {
    name: &'static str,
    nodes: Vec<Message>,
    weights: Vec<Message>,
}

/// Length along an axis.
#[derive(Clone, Copy)]
pub(super) enum Axis {
    Fixed(usize),
    /// Under this name.
    Free(&'static str),
}

/// Of a node.
pub(super) enum Attribute<'a> {
    Integer(&'static str, usize),
    Integers(&'static str, &'a [usize]),
}

impl Graph {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, nodes: Vec::new(), weights: Vec::new() }
    }

    /// Floats that are part of the model.
    pub(super) fn floats(&mut self, name: &str, shape: &[usize], numbers: &[f32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.weights.push(tensor(name, shape, FLOAT, &bytes));
    }

    /// Whole numbers that are part of the model.
    pub(super) fn integers(&mut self, name: &str, numbers: &[i64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.weights.push(tensor(name, &[numbers.len()], INT64, &bytes));
    }

    /// A node whose output has its name.
    pub(super) fn node(&mut self, name: &str, operator: &str, inputs: &[&str], attributes: &[Attribute<'_>]) {
        let mut node = Message::default();
        for input in inputs {
            node.text(1, input);
        }
        node.text(2, name);
        node.text(3, name);
        node.text(4, operator);
        for attribute in attributes {
            node.message(5, &attribute.message());
        }
        self.nodes.push(node);
    }

    /// The file, the same bytes for the same graph.
    pub(super) fn file(self, input: (&str, &[Axis]), output: (&str, &[Axis])) -> Vec<u8> {
        let mut graph = Message::default();
        self.nodes.iter().for_each(|node| graph.message(1, node));
        graph.text(2, self.name);
        self.weights.iter().for_each(|weight| graph.message(5, weight));
        graph.message(11, &value(input));
        graph.message(12, &value(output));
        let mut operators = Message::default();
        operators.text(1, "");
        operators.integer(2, OPERATORS);
        let mut model = Message::default();
        model.integer(1, IR_VERSION);
        model.text(2, "face-id");
        model.message(7, &graph);
        model.message(8, &operators);
        model.0
    }
}

impl Attribute<'_> {
    fn message(&self) -> Message {
        let mut message = Message::default();
        match self {
            Self::Integer(name, number) => {
                message.text(1, name);
                message.integer(3, *number as u64);
                message.integer(20, INT);
            }
            Self::Integers(name, numbers) => {
                message.text(1, name);
                numbers.iter().for_each(|number| message.integer(8, *number as u64));
                message.integer(20, INTS);
            }
        }
        message
    }
}

fn tensor(name: &str, shape: &[usize], data_type: u64, bytes: &[u8]) -> Message {
    let mut tensor = Message::default();
    for side in shape {
        tensor.integer(1, *side as u64);
    }
    tensor.integer(2, data_type);
    tensor.text(8, name);
    tensor.bytes(9, bytes);
    tensor
}

/// `ValueInfoProto` of floats.
fn value((name, shape): (&str, &[Axis])) -> Message {
    let mut axes = Message::default();
    for axis in shape {
        let mut dimension = Message::default();
        match axis {
            Axis::Fixed(length) => dimension.integer(1, *length as u64),
            Axis::Free(name) => dimension.text(2, name),
        }
        axes.message(1, &dimension);
    }
    let mut of_floats = Message::default();
    of_floats.integer(1, FLOAT);
    of_floats.message(2, &axes);
    let mut kind = Message::default();
    kind.message(1, &of_floats);
    let mut value = Message::default();
    value.text(1, name);
    value.message(2, &kind);
    value
}

/// A message in protobuf's wire format.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn integer(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_in_the_wire_format() {
        let mut message = Message::default();
        // The examples of protobuf's description of its encoding.
        message.integer(1, 150);
        message.text(2, "testing");
        assert_eq!(message.0, b"\x08\x96\x01\x12\x07testing");
        let mut outer = Message::default();
        outer.message(3, &message);
        assert_eq!(outer.0, [b"\x1a\x0c", &message.0[..]].concat());
    }
}
