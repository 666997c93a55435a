"""Writes the tiny_*.onnx files, and the numbers in tiny.toml and tiny-live.toml that depend on them.

They have the inputs and outputs of the real models, but see "blue-screen faces" (README.md here), so that the whole
path is tested where no real weights are. Nothing here is trained.

    pip install --target PLACE onnx==1.23.2 numpy==2.4.6 onnxruntime==1.32.0
    PYTHONPATH=PLACE python3 models/tiny/make_tiny.py
"""

import hashlib
import pathlib
import re

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent
POINTS = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
CELL = 8
CROP = 112
BLOCKS = 8
DIMENSION = 64
LOW, HIGH = 40, 220
# Sides, in cells, of the windows that each stride's cells look through.
WINDOWS = {8: [5, 8], 16: [12, 18], 32: [27, 40, 60, 80]}


class Graph:
    """Nodes in order, each named by its output."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def const(self, value, dtype=np.float32):
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return self.constants[key].name

    def ints(self, *values):
        return self.const(values, np.int64)

    def op(self, kind, *inputs, name=None, **attributes):
        inputs = [self.const(i) if isinstance(i, (int, float)) else i for i in inputs]
        name = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def slice(self, value, axis, start, end, step=1):
        return self.op("Slice", value, self.ints(start), self.ints(end), self.ints(axis), self.ints(step))

    def product(self, *values):
        result = values[0]
        for value in values[1:]:
            result = self.op("Mul", result, value)
        return result

    def save(self, path, inputs, outputs):
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def coordinates(g, value, axis, step):
    """Middle of each pixel or cell along an axis of `value`, in cells."""
    length = g.op("Gather", g.op("Shape", value), g.const(axis, np.int64), axis=0)
    end = g.op("Cast", length, to=TensorProto.FLOAT)
    line = g.op("Mul", g.op("Add", g.op("Range", g.const(0.0), end, g.const(1.0)), 0.5), step)
    return g.op("Unsqueeze", line, g.ints(*{3: (0, 1, 2), 2: (0, 1, 3)}[axis]))


def window_sums(g, moments, side):
    """Sums over the window of `side` cells around each cell; what lies outside the picture is empty."""
    before, after = (side - 1) // 2, side // 2
    across = g.op("AveragePool", moments, kernel_shape=[1, side], pads=[0, before, 0, after], count_include_pad=1)
    both = g.op("AveragePool", across, kernel_shape=[side, 1], pads=[before, 0, after, 0], count_include_pad=1)
    return g.op("Mul", both, float(side * side))


def look(g, moments, inside, x, y, side):
    """Score, middle and area of the one filled square in the window, if that is what it shows."""
    sums = window_sums(g, moments, side)
    area = g.op("Max", g.slice(sums, 1, 0, 1), 1e-3)
    middle_x, middle_y, square_x, square_y = (g.op("Div", g.slice(sums, 1, n, n + 1), area) for n in (1, 2, 3, 4))
    errors = []
    for middle, square in ((middle_x, square_x), (middle_y, square_y)):
        # A filled square of side s has variance s * s / 12; one that the window cuts, or two of them, have another.
        variance = g.op("Mul", g.op("Sub", square, g.product(middle, middle)), 12.0)
        errors.append(g.op("Abs", g.op("Sub", g.op("Div", variance, area), 1.0)))
    # A square that reaches out of the window goes on in the ring of cells around it.
    ring = g.op("Sub", g.slice(window_sums(g, moments, side + 2), 1, 0, 1), area)
    whole = g.op("Clip", g.op("Sub", 1.5, g.op("Mul", g.op("Div", ring, g.op("Sqrt", area)), 5.0)), 0.0, 1.0)
    fit = g.op("Clip", g.op("Sub", 1.25, g.op("Mul", g.op("Add", *errors), 5.0)), 0.0, 1.0)
    off_x, off_y = g.op("Sub", x, middle_x), g.op("Sub", y, middle_y)
    distance = g.op("Div", g.op("Add", g.product(off_x, off_x), g.product(off_y, off_y)), area)
    near = g.op("Clip", g.op("Sub", 1.0, g.op("Mul", distance, 0.8)), 0.0, 1.0)
    large = g.op("Clip", g.op("Sub", area, 4.0), 0.0, 1.0)
    return g.product(fit, whole, near, large, inside), middle_x, middle_y, area


def best(g, answers):
    """The answer with the highest score, cell by cell."""
    kept = answers[0]
    for answer in answers[1:]:
        better = g.op("Greater", answer[0], kept[0])
        kept = [g.op("Where", better, new, old) for new, old in zip(answer, kept)]
    return kept


def rows(g, value, columns, name):
    return g.op("Reshape", g.op("Transpose", value, perm=[0, 2, 3, 1]), g.ints(1, -1, columns), name=name)


def head(g, stride, answer):
    """The four outputs of a stride, as YuNet has them."""
    step = stride // CELL
    if step > 1:
        answer = [g.slice(g.slice(a, 2, step // 2, 2**31 - 1, step), 3, step // 2, 2**31 - 1, step) for a in answer]
    score, middle_x, middle_y, area = answer
    column = g.op("Sub", coordinates(g, score, 3, 1.0), 0.5)
    row = g.op("Sub", coordinates(g, score, 2, 1.0), 0.5)
    side = g.op("Sqrt", area)

    def offset(middle, along, share):
        place = g.op("Add", middle, g.op("Mul", side, share))
        return g.op("Sub", g.op("Mul", place, CELL / stride), along)

    log_side = g.op("Log", g.op("Mul", side, CELL / stride))
    box = g.op("Concat", offset(middle_x, column, 0.0), offset(middle_y, row, 0.0), log_side, log_side, axis=1)
    points = []
    for point_x, point_y in POINTS:
        points.append(offset(middle_x, column, point_x / CROP - 0.5))
        points.append(offset(middle_y, row, point_y / CROP - 0.5))
    rows(g, score, 1, f"cls_{stride}")
    rows(g, score, 1, f"obj_{stride}")
    rows(g, box, 4, f"bbox_{stride}")
    rows(g, g.op("Concat", *points, axis=1), 10, f"kps_{stride}")


def detector(path):
    g = Graph()
    blue = g.slice("input", 1, 0, 1)
    # Half way between the 60 of the background and the 255 of a face, so that blurred edges stay where they are.
    mask = g.op("Clip", g.op("Div", g.op("Sub", blue, 117.5), 80.0), 0.0, 1.0)
    x, y = coordinates(g, blue, 3, 1 / CELL), coordinates(g, blue, 2, 1 / CELL)
    along_x, along_y = g.op("Mul", mask, x), g.op("Mul", mask, y)
    raw = g.op("Concat", mask, along_x, along_y, g.op("Mul", along_x, x), g.op("Mul", along_y, y), axis=1)
    moments = g.op("AveragePool", raw, kernel_shape=[CELL, CELL], strides=[CELL, CELL])
    inside = g.op("Clip", g.op("Mul", g.op("Sub", g.slice(moments, 1, 0, 1), 0.5), 4.0), 0.0, 1.0)
    cell_x, cell_y = coordinates(g, moments, 3, 1.0), coordinates(g, moments, 2, 1.0)
    for stride, sides in WINDOWS.items():
        head(g, stride, best(g, [look(g, moments, inside, cell_x, cell_y, side) for side in sides]))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    outputs = [
        helper.make_tensor_value_info(f"{kind}_{stride}", TensorProto.FLOAT, [1, None, columns])
        for kind, columns in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10))
        for stride in WINDOWS
    ]
    g.save(path, [image], outputs)


def projection():
    """Orthogonal rows of a Hadamard matrix with scrambled columns: whole numbers, the same on every machine."""
    matrix = np.ones((1, 1))
    while len(matrix) < 2 * BLOCKS * BLOCKS:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    signs = np.random.RandomState(20260501).randint(0, 2, len(matrix)) * 2 - 1
    return (matrix * signs)[1 : DIMENSION + 1].T / 128


def recognizer(path):
    g = Graph()
    block = CROP // BLOCKS
    # The middle of each block only: a crop that is a little off still reads the same pattern.
    colours = g.slice(g.slice(g.slice("input", 1, 0, 2), 2, 3, CROP), 3, 3, CROP)
    pattern = g.op("AveragePool", colours, kernel_shape=[8, 8], strides=[block, block])
    centred = g.op("Sub", pattern, g.op("ReduceMean", pattern, axes=[2, 3], keepdims=1))
    flat = g.op("Reshape", centred, g.ints(-1, 2 * BLOCKS * BLOCKS))
    g.op("MatMul", flat, g.const(projection()), name="embedding")
    crop = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, CROP, CROP])
    vector = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])
    g.save(path, [crop], [vector])


def pair(path, tensors):
    """How alike two crops of 64 pixels on 0..255 are: 1 where they are one, less their mean difference."""
    g = Graph()
    if tensors == 1:
        one, other = g.slice("pair", 1, 0, 3), g.slice("pair", 1, 3, 6)
        inputs = [helper.make_tensor_value_info("pair", TensorProto.FLOAT, ["batch", 6, 64, 64])]
    else:
        one, other = "one", "other"
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3, 64, 64]) for n in (one, other)]
    apart = g.op("ReduceMean", g.op("Abs", g.op("Sub", one, other)), axes=[1, 2, 3], keepdims=0)
    g.op("Unsqueeze", g.op("Sub", 1.0, g.op("Div", apart, 128.0)), g.ints(1), name="score")
    g.save(path, inputs, [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])])


def live(path):
    """Logits of paper, live and screen: live is a crop whose brightest blue is that of a synthetic face."""
    g = Graph()
    brightest = g.op("ReduceMax", g.slice("input", 1, 0, 1), axes=[2, 3], keepdims=0)
    logit = g.op("Div", g.op("Sub", brightest, 230.0), 5.0)
    nothing = g.op("Mul", logit, 0.0)
    g.op("Concat", nothing, logit, nothing, axis=1, name="logits")
    crop = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 80, 80])
    g.save(path, [crop], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])])


def splitmix64(state):
    """Next state and output (Steele, Lea, Flood 2014)."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return state, z ^ (z >> 31)


def crop_of(seed):
    """The aligned crop of a person, RGB planes on 0..255."""
    planes, state = [], seed
    for _ in range(2):
        state, bits = splitmix64(state)
        grid = np.array([HIGH if bits >> n & 1 else LOW for n in range(BLOCKS * BLOCKS)], np.float32)
        planes.append(np.kron(grid.reshape(BLOCKS, BLOCKS), np.ones((CROP // BLOCKS, CROP // BLOCKS), np.float32)))
    return np.stack([*planes, np.full((CROP, CROP), 255, np.float32)])


def calibration(path, people=4000):
    """Thresholds for each rate over all pairs of different people."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [np.stack([crop_of(s) for s in range(i, i + 100)]) for i in range(0, people, 100)]
    vectors = np.concatenate([session.run(None, {"input": part})[0] for part in parts])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.sort((vectors @ vectors.T)[np.triu_indices(people, 1)])[::-1]
    rates = [10.0**-n for n in range(1, 7)]
    return rates, [float(scores[int(len(scores) * rate)]) for rate in rates]


def main():
    files = {name: HERE / f"tiny_{name}.onnx" for name in ("detector", "recognizer", "live", "pair_one", "pair_two")}
    detector(files["detector"])
    recognizer(files["recognizer"])
    live(files["live"])
    pair(files["pair_one"], 1)
    pair(files["pair_two"], 2)
    rates, cosines = calibration(files["recognizer"])
    for entry in (HERE / "tiny.toml", HERE / "tiny-live.toml"):
        write_numbers(entry, files, cosines)
    print(dict(zip(rates, cosines)))


def write_numbers(entry, files, cosines):
    text = entry.read_text()
    for path in files.values():
        content = path.read_bytes()
        numbers = f'sha256 = "{hashlib.sha256(content).hexdigest()}"\nsize_bytes = {len(content)}\n'
        text = re.sub(rf'(name = "{path.name}"\n)sha256 = .*\nsize_bytes = .*\n', rf"\g<1>{numbers}", text)
    text = re.sub(r"cosine = .*", f"cosine = [{', '.join(f'{c:.4f}' for c in cosines)}]", text)
    entry.write_text(text)


if __name__ == "__main__":
    main()
