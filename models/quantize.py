"""Makes an 8-bit integer copy of a recognizer, calibrated on your own faces, and a catalogue entry for it.

    python3 -m venv quantize
    quantize/bin/pip install onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 pillow==13.0.0
    face-id models crops --model yunet-mobilefacenet --photos PHOTOS --out crops
    quantize/bin/python models/quantize.py --entry models/yunet-mobilefacenet.toml --weights FILE.onnx \
        --crops crops --name yunet-mobilefacenet-own-int8 --out DIR

Static quantization as ONNX Runtime does it: QDQ nodes, int8 weights with a scale for each output channel, uint8
activations whose ranges are the least and greatest values on the crops (MinMax). Every fifth crop is kept out of that
and tells how far the copy's vectors are from the original's. Needs Python 3.11.
"""

import argparse
import hashlib
import pathlib
import re
import sys
import tempfile
import tomllib

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

HELD_OUT = 5
FEWEST = 50
REQUIRES = """# Other processors add 8-bit products in 16 bits, which saturate, and give other vectors.
requires = ["avx512_vnni", "avx_vnni", "dotprod"]"""


def tensor(path, alignment, recognizer):
    """A crop as the recognizer wants it, [1, 3, height, width]."""
    picture = Image.open(path).convert("RGB")
    if picture.size != (alignment["width"], alignment["height"]):
        sys.exit(f"{path} has {picture.size} pixels; make the crops with `face-id models crops`")
    values = np.asarray(picture, np.float32)
    if recognizer["channels"] == "bgr":
        values = values[:, :, ::-1]
    values = (values - np.float32(recognizer["mean"])) * np.float32(recognizer["scale"])
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


class Crops(CalibrationDataReader):
    """Feeds the crops one by one."""

    def __init__(self, name, inputs):
        self.feeds = iter([{name: value} for value in inputs])

    def get_next(self):
        return next(self.feeds, None)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def vectors(path, inputs):
    """Unit vectors of the inputs."""
    model = session(path)
    name = model.get_inputs()[0].name
    found = np.concatenate([model.run(None, {name: value})[0].reshape(1, -1) for value in inputs])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def quantize(weights, target, inputs):
    with tempfile.TemporaryDirectory() as folder:
        prepared = pathlib.Path(folder) / "prepared.onnx"
        # Folds what can be folded, so that fewer tensors are rounded.
        quant_pre_process(weights, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Crops(session(prepared).get_inputs()[0].name, inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def entry(text, name, target, licence, use):
    """The entry of the original with the copy in its place, without what was measured on the original."""
    text = re.sub(r"(?ms)^\[(calibration|fingerprint)\].*?(?=^\[|\Z)", "", text)
    text = re.sub(r'(?m)^name = ".*"$', f'name = "{name}"', text, count=1)
    text = re.sub(r"(?m)^requires = .*\n", "", text)
    described = rf'description = "\1; recognizer in 8-bit integers"\n{REQUIRES}'
    text = re.sub(r'(?m)^description = "(.*)"$', described, text, count=1)
    content = target.read_bytes()
    block = (
        f'[recognizer.file]\nname = "{target.name}"\nsha256 = "{hashlib.sha256(content).hexdigest()}"\n'
        f"size_bytes = {len(content)}\nurls = []\n"
        f'licence = "{licence}; quantized by models/quantize.py"\nuse = "{use}"\n'
    )
    return re.sub(r"(?ms)^\[recognizer\.file\].*?(?=^\[|\Z)", lambda _: block, text).rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entry", required=True, type=pathlib.Path, help="the original's catalogue entry")
    parser.add_argument("--weights", required=True, type=pathlib.Path, help="the original's recognizer")
    parser.add_argument("--crops", required=True, type=pathlib.Path, help="a folder of aligned crops, PNG")
    parser.add_argument("--name", required=True, help="name of the new pipeline")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for NAME.onnx and NAME.toml")
    args = parser.parse_args()
    text = args.entry.read_text()
    original = tomllib.loads(text)
    file = original["recognizer"]["file"]
    if hashlib.sha256(args.weights.read_bytes()).hexdigest() != file["sha256"]:
        sys.exit(f"{args.weights} is not the recognizer that {args.entry} names")
    paths = sorted(args.crops.glob("*.png"))
    if len(paths) < FEWEST:
        sys.exit(f"{len(paths)} crops in {args.crops}; with fewer than {FEWEST} the ranges are too narrow")
    inputs = [tensor(path, original["alignment"], original["recognizer"]) for path in paths]
    held_out = inputs[::HELD_OUT]
    used = [value for n, value in enumerate(inputs) if n % HELD_OUT]
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"{args.name}.onnx"
    quantize(args.weights, target, used)
    cosine = (vectors(args.weights, held_out) * vectors(target, held_out)).sum(axis=1)
    print(f"calibrated on {len(used)} crops")
    print(
        f"cosine to the original on {len(held_out)} others: median {np.median(cosine):.4f}, "
        f"10th percentile {np.percentile(cosine, 10):.4f}, lowest {cosine.min():.4f}"
    )
    made = args.out / f"{args.name}.toml"
    made.write_text(entry(text, args.name, target, file["licence"], file["use"]))
    print(f"{hashlib.sha256(target.read_bytes()).hexdigest()}  {target}")
    print(f"wrote {made}; append what `face-id models fingerprint {args.name}` prints, and a [calibration]")


if __name__ == "__main__":
    main()
