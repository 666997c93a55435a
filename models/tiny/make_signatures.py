"""Writes signatures/*.onnx: for each entry of models/templates a recognizer of its input and output that tells synthetic faces apart
(README.md here), and a landmark network of 68 points. Nothing here is trained.

    pip install --target PLACE onnx==1.23.2 numpy==2.4.6 onnxruntime==1.32.0
    PYTHONPATH=PLACE python3 models/tiny/make_signatures.py
"""

import pathlib
import tomllib

import numpy as np
from make_tiny import CROP, POINTS, Graph
from onnx import TensorProto, helper

HERE = pathlib.Path(__file__).parent
BLOCKS = 8


def recognizer(path, width, height, planes, interleaved, dimension):
    """The colours of 8 x 8 blocks less their mean, as often as they fit into so many components."""
    g = Graph()
    image = g.op("Transpose", "input", perm=[0, 3, 1, 2]) if interleaved else "input"
    block = [height // BLOCKS, width // BLOCKS]
    pattern = g.op("AveragePool", image, kernel_shape=block, strides=block)
    centred = g.op("Sub", pattern, g.op("ReduceMean", pattern, axes=[2, 3], keepdims=1))
    flat = g.op("Reshape", centred, g.ints(-1, planes * BLOCKS * BLOCKS))
    times = -(-dimension // (planes * BLOCKS * BLOCKS))
    many = g.op("Tile", flat, g.ints(1, times)) if times > 1 else flat
    g.op("Slice", many, g.ints(0), g.ints(dimension), g.ints(1), name="embedding")
    shape = ["batch", height, width, planes] if interleaved else ["batch", planes, height, width]
    crop = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    vector = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dimension])
    g.save(path, [crop], [vector])


def points68():
    """68 points of a face whose five are those of the detector, in parts of the crop that is the face."""
    left, right, nose, mouth_left, mouth_right = (np.array(point) / CROP for point in POINTS)
    line = lambda one, other, count: np.linspace(one, other, count)
    ring = lambda middle, width, height, count: [
        middle + [-width * np.cos(turn), -height * np.sin(turn)] for turn in np.linspace(0, 2 * np.pi, count, endpoint=False)
    ]
    jaw = [[0.5 - 0.42 * np.cos(turn), 0.45 + 0.5 * np.sin(turn)] for turn in np.linspace(0, np.pi, 17)]
    brows = [*line(left + [-0.1, -0.1], left + [0.1, -0.1], 5), *line(right + [-0.1, -0.1], right + [0.1, -0.1], 5)]
    bridge = line((left + right) / 2, nose, 4)
    wings = line(nose + [-0.08, 0.05], nose + [0.08, 0.05], 5)
    mouth = (mouth_left + mouth_right) / 2
    half = (mouth_right - mouth_left)[0] / 2
    eyes = [*ring(left, 0.07, 0.03, 6), *ring(right, 0.07, 0.03, 6)]
    lips = [*ring(mouth, half, 0.07, 12), *ring(mouth, half * 0.8, 0.03, 8)]
    return np.array([*jaw, *brows, *bridge, *wings, *eyes, *lips], np.float32)


def landmarks(path):
    g = Graph()
    places = points68()
    assert places.shape == (68, 2)
    # The same for every input, once for each row of a batch.
    nothing = g.op("Mul", g.op("ReduceMean", "image", axes=[1, 2, 3], keepdims=0), 0.0)
    rows = g.op("Unsqueeze", nothing, g.ints(1))
    g.op("Add", rows, g.const(places.reshape(1, 136)), name="landmarks")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 112, 112])
    g.save(path, [image], [helper.make_tensor_value_info("landmarks", TensorProto.FLOAT, ["batch", 136])])


def main():
    out = HERE / "signatures"
    out.mkdir(exist_ok=True)
    landmarks(out / "landmark68.onnx")
    for template in sorted((HERE.parent / "templates").glob("*.toml")):
        entry = tomllib.loads(template.read_text())
        part, size = entry["recognizer"], entry["alignment"]
        planes = 1 if part["channels"] == "gray" else 3
        path = out / f"{template.stem}.onnx"
        recognizer(path, size["width"], size["height"], planes, part["layout"] == "nhwc", part["dimension"])
    for path in sorted(out.glob("*.onnx")):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
