"""What free_batch.py frees, and what it refuses: `python -m unittest discover models`, with its packages."""

import unittest

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import free_batch

ROW = 12


def model(nodes, constants, outputs, size=1):
    """A model of one input [size, 3, 4]; constants and the outputs' shapes by name."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [size, 3, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


WEIGHTS = np.arange(ROW * 2, dtype=np.float32).reshape(ROW, 2) - 7
FLAT = node("Reshape", "input flat", "row")
PRODUCT = node("MatMul", "row weights", "output")


class Freed(unittest.TestCase):
    def check(self, made):
        freed = free_batch.free(made, 1e-5)
        for value in [freed.graph.input[0], *freed.graph.output]:
            self.assertEqual(value.type.tensor_type.shape.dim[0].dim_param, "batch")
        return freed

    def test_reshapes(self):
        for size in (1, 4):
            for flat in ([size, -1], [size, ROW], [-1, ROW]):
                constants = {"flat": np.array(flat), "weights": WEIGHTS}
                freed = self.check(model([FLAT, PRODUCT], constants, {"output": [size, 2]}, size))
                if flat[0] == size:
                    self.assertNotIn("flat", [initializer.name for initializer in freed.graph.initializer])

    def test_a_reshape_by_a_constant_node(self):
        flat = node("Constant", "", "flat", value=numpy_helper.from_array(np.array([1, -1])))
        self.check(model([flat, FLAT, PRODUCT], {"weights": WEIGHTS}, {"output": [1, 2]}))

    def test_flatten_of_everything(self):
        nodes = [node("Flatten", "input", "row", axis=0), PRODUCT]
        self.check(model(nodes, {"weights": WEIGHTS}, {"output": [1, 2]}))

    def test_a_token_beside_the_rows(self):
        token = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
        for concat in ("token input", "input token"):
            nodes = [node("Concat", concat, "output", axis=1)]
            self.check(model(nodes, {"token": token}, {"output": [1, 4, 4]}))

    def test_shapes_made_of_constants(self):
        token = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
        shape = np.array([1, 2, 4])
        for kind, inputs in (("Expand", "token shape"), ("ConstantOfShape", "shape"), ("Tile", "token repeats")):
            nodes = [node(kind, inputs, "more"), node("Concat", "input more", "output", axis=1)]
            constants = {"token": token, "shape": shape, "repeats": np.array([1, 2, 1])}
            self.check(model(nodes, constants, {"output": [1, 5, 4]}))

    def test_sizes_of_a_resize(self):
        nodes = [
            node("Unsqueeze", "input axis", "picture"),
            helper.make_node("Resize", ["picture", "", "", "sizes"], ["output"], mode="nearest"),
        ]
        constants = {"axis": np.array([1]), "sizes": np.array([1, 1, 6, 8])}
        self.check(model(nodes, constants, {"output": [1, 1, 6, 8]}))


class Refused(unittest.TestCase):
    def check(self, made, *parts):
        with self.assertRaises(free_batch.Refused) as refused:
            free_batch.free(made, 1e-5)
        for part in parts:
            self.assertIn(part, str(refused.exception))

    def test_rows_that_are_mixed(self):
        nodes = [node("ReduceMean", "input", "mean", axes=[0], keepdims=1), node("Add", "input mean", "output")]
        self.check(model(nodes, {}, {"output": [1, 3, 4]}), "output output mixes rows", "batch of 2, row")

    def test_rows_in_another_order(self):
        nodes = [node("Slice", "input last end axis step", "output")]
        constants = {"last": [-1], "end": [np.iinfo(np.int64).min], "axis": [0], "step": [-1]}
        self.check(model(nodes, constants, {"output": [1, 3, 4]}), "mixes rows", "batch of 2")

    def test_an_output_without_a_batch_axis(self):
        nodes = [node("Reshape", "input flat", "output")]
        self.check(model(nodes, {"flat": np.array([-1, 4])}, {"output": [3, 4]}), "output output of shape [3, 4]")

    def test_one_row_for_all(self):
        nodes = [node("ReduceMax", "input", "output", axes=[0], keepdims=1)]
        self.check(model(nodes, {}, {"output": [1, 3, 4]}), "no row for each input", "batch of 2 gives [1, 3, 4]")

    def test_a_batch_that_cannot_be_run(self):
        nodes = [node("Squeeze", "input axis", "rows"), node("Unsqueeze", "rows axis", "output")]
        self.check(model(nodes, {"axis": np.array([0])}, {"output": [1, 3, 4]}), "a batch of 2 cannot be run")

    def test_answers_that_prove_nothing(self):
        nodes = [node("Mul", "input zero", "output")]
        self.check(model(nodes, {"zero": np.float32(0)}, {"output": [1, 3, 4]}), "same for all inputs", "--inputs")

    def test_what_is_free_already(self):
        nodes = [node("Relu", "input", "output")]
        self.check(model(nodes, {}, {"output": ["n", 3, 4]}, "n"), "free already")


if __name__ == "__main__":
    unittest.main()
