"""Frees the batch size of a model that was exported with a fixed one, and proves that nothing else has changed.

    python3 -m venv free
    free/bin/pip install onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
    free/bin/python models/free_batch.py --weights FILE.onnx --out NEW.onnx

The batch size stands in the input's and outputs' shapes, and often in constants that shape what lies between them.
Whether these were all can only be tried: batches of several sizes must give, row by row, what the original gives to each
input alone. A model of which this is not true (rows are mixed, an output has no row for each input) is refused, and
nothing is written. Needs Python 3.11.
"""

import argparse
import hashlib
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

BATCH = "batch"
# Batches that are tried; the first tells whether the model has changed at all.
TRIED = [1, 2, 3, 8]
# Length of the axes that are free already, such as height and width: a multiple of any detector's strides.
FREE = 64
# Which input of these holds a whole shape with the batch size in front.
SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Resize": 3}


class Refused(Exception):
    """The model cannot be freed; says why."""


def fixed_input(graph):
    """The graph's one input and its batch size."""
    weights = {initializer.name for initializer in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise Refused(f"it has {len(inputs)} inputs, and only models of one are handled")
    dims = inputs[0].type.tensor_type.shape.dim
    if not dims or not dims[0].dim_value:
        raise Refused(f"the first axis of its input {inputs[0].name} is free already")
    return inputs[0], dims[0].dim_value


class Rewriter:
    """Goes through the nodes once, and puts the batch size of the run where a constant has that of the export."""

    def __init__(self, graph):
        self.graph = graph
        self.input, self.size = fixed_input(graph)
        self.constants = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.nodes, self.made, self.replaced = [], 0, set()

    def run(self):
        for value in [self.input, *self.graph.output]:
            dims = value.type.tensor_type.shape.dim
            if dims and dims[0].dim_value == self.size:
                dims[0].dim_param = BATCH
        # Shapes in between, as the exporter saw them.
        del self.graph.value_info[:]
        for node in self.graph.node:
            self.rewrite(node)
            self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self.drop_replaced()

    def rewrite(self, node):
        if node.op_type == "Reshape":
            self.reshape(node)
        elif node.op_type == "Flatten":
            for attribute in node.attribute:
                # All in one row, where that row was the only one.
                attribute.i = 1 if attribute.name == "axis" and attribute.i == 0 else attribute.i
        elif node.op_type in SHAPE_INPUT:
            self.shape(node, SHAPE_INPUT[node.op_type])
        elif node.op_type == "Tile" and self.holds_batch(node.input[0]):
            self.shape(node, 1)
        elif node.op_type == "Concat":
            self.concat(node)

    def holds_batch(self, name):
        """Whether it is a constant of one whole batch."""
        value = self.constants.get(name)
        return value is not None and value.ndim > 1 and value.shape[0] == self.size

    def shape_of(self, node, at):
        """The constant shape that is input `at`, where the batch size is its first length."""
        value = self.constants.get(node.input[at]) if at < len(node.input) else None
        is_shape = value is not None and value.ndim == 1 and len(value) > 1 and value[0] == self.size
        return value.astype(np.int64) if is_shape else None

    def reshape(self, node):
        shape = self.shape_of(node, 1)
        if shape is None:
            return
        # 0 takes the length of the input's first axis over, -1 whatever is left.
        shape[0] = 0 if -1 in shape[1:] else -1
        if shape[0] == 0 and 0 not in shape[1:]:
            for attribute in node.attribute:
                attribute.i = 0 if attribute.name == "allowzero" else attribute.i
        self.replace(node, 1, self.constant(shape))

    def shape(self, node, at):
        shape = self.shape_of(node, at)
        if shape is not None:
            self.replace(node, at, self.with_batch(shape[1:]))

    def concat(self, node):
        """A constant beside rows (a class token, for instance) is needed once for each row."""
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        if axis == 0 or all(name in self.constants for name in node.input):
            return
        for at, name in enumerate(node.input):
            if self.holds_batch(name):
                row = self.constant(self.constants[name][:1])
                self.replace(node, at, self.node("Expand", row, self.with_batch(self.constants[name].shape[1:])))

    def replace(self, node, at, name):
        self.replaced.add(node.input[at])
        node.input[at] = name

    def drop_replaced(self):
        """Of the constants that were replaced, those that nobody reads any more; ONNX Runtime warns of them."""
        if any(attribute.HasField("g") for node in self.graph.node for attribute in node.attribute):
            return
        unread = self.replaced - {name for node in self.graph.node for name in node.input}
        for values in (self.graph.initializer, self.graph.input):
            for value in [value for value in values if value.name in unread]:
                values.remove(value)
        for node in [node for node in self.graph.node if node.op_type == "Constant" and node.output[0] in unread]:
            self.graph.node.remove(node)

    def with_batch(self, rest):
        """A shape of the run's batch size and `rest`."""
        zero, one = self.constant(np.array([0], np.int64)), self.constant(np.array([1], np.int64))
        batch = self.node("Slice", self.node("Shape", self.input.name), zero, one)
        return self.node("Concat", batch, self.constant(np.array(rest, np.int64)), axis=0)

    def constant(self, value):
        self.made += 1
        name = f"free_batch_{self.made}"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind, *inputs, **attributes):
        self.made += 1
        name = f"free_batch_{self.made}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name


def session(model):
    options = onnxruntime.SessionOptions()
    # What is wrong is told by `prove`.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def random_inputs(value, count):
    """`count` random inputs of the model, each [1, ...]; every second one as large as pixels are."""
    numbers = np.random.default_rng(1)
    shape = [dim.dim_value or FREE for dim in value.type.tensor_type.shape.dim][1:]
    scales = [1.0, 64.0]
    rows = [numbers.standard_normal([1, *shape]) * scales[n % 2] + scales[n % 2] for n in range(count)]
    return [row.astype(np.float32) for row in rows]


def answers(model, size, inputs):
    """What the original gives to each input alone; one of a larger batch size sees it as often as it must."""
    run = session(model)
    name = run.get_inputs()[0].name
    found = []
    for row in inputs:
        outputs = run.run(None, {name: np.repeat(row, size, axis=0)})
        for value, output in zip(run.get_outputs(), outputs):
            if output.ndim == 0 or output.shape[0] != size:
                shape = list(output.shape)
                raise Refused(f"its output {value.name} of shape {shape} has no axis for a batch of {size} in front")
        found.append([output[:1] for output in outputs])
    for n, value in enumerate(run.get_outputs()):
        if all(np.array_equal(answer[n], found[0][n]) for answer in found):
            raise Refused(f"its output {value.name} is the same for all inputs that were tried; name others with --inputs")
    return found


def prove(original, freed, limit, inputs):
    """Compares batches of the freed model with the original's answers to each input alone."""
    value, size = fixed_input(original.graph)
    wanted = answers(original, size, inputs)
    try:
        run = session(freed)
    except Exception as error:
        raise Refused(f"it cannot be loaded with a free batch size: {error}") from error
    for count in TRIED:
        worst = 0.0
        try:
            outputs = run.run(None, {value.name: np.concatenate(inputs[:count])})
        except Exception as error:
            raise Refused(f"a batch of {count} cannot be run: {error}") from error
        for n, (told, output) in enumerate(zip(run.get_outputs(), outputs)):
            expected = np.concatenate([answer[n] for answer in wanted[:count]])
            if output.shape != expected.shape:
                shapes = f"{list(output.shape)} where {list(expected.shape)} belongs"
                raise Refused(f"its output {told.name} has no row for each input: a batch of {count} gives {shapes}")
            apart = np.abs(output.astype(np.float64) - expected)
            if not (apart <= limit * max(1.0, np.abs(expected).max())).all():
                row = int(np.argmax(apart.reshape(count, -1).max(axis=1)))
                raise Refused(
                    f"its output {told.name} mixes rows or has changed: in a batch of {count}, row {row} is "
                    f"{apart[row].max():.3g} away from what the original gives to that input alone"
                )
            worst = max(worst, float(apart.max()))
        print(f"batch of {count}: as the original one by one, largest difference {worst:.3g}")


def free(original, limit, inputs=None):
    """A copy of the model with a free batch size."""
    value, _ = fixed_input(original.graph)
    freed = onnx.ModelProto()
    freed.CopyFrom(original)
    Rewriter(freed.graph).run()
    prove(original, freed, limit, random_inputs(value, max(TRIED)) if inputs is None else inputs)
    onnx.checker.check_model(freed)
    return freed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", required=True, type=pathlib.Path, help="the model with a fixed batch size")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="where the freed copy goes")
    parser.add_argument(
        "--limit", type=float, default=1e-4, help="largest difference, by the output's largest value where that is above 1"
    )
    parser.add_argument("--inputs", type=pathlib.Path, help=f"a .npy of {max(TRIED)} inputs or more, instead of random ones")
    args = parser.parse_args()
    inputs = None
    if args.inputs:
        rows = np.load(args.inputs).astype(np.float32)
        if len(rows) < max(TRIED):
            sys.exit(f"{args.inputs} holds {len(rows)} inputs; {max(TRIED)} are needed")
        inputs = [row[None] for row in rows]
    if args.out.exists():
        sys.exit(f"{args.out} exists; name a file that does not")
    try:
        freed = free(onnx.load(args.weights), args.limit, inputs)
    except Refused as why:
        sys.exit(f"{args.weights} is left as it is: {why}")
    onnx.save(freed, args.out)
    content = args.out.read_bytes()
    print(f"{hashlib.sha256(content).hexdigest()}  {args.out} ({len(content)} bytes)")


if __name__ == "__main__":
    main()
