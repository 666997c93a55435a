"""Faces by each detector family as OpenCV sizes pictures and NumPy reads the networks' answers, written apart from the worker's
code, for its tests: python families.py MODELS PICTURE... writes JSON to standard output.

{"family": {"picture": [{"box": [x, y, width, height], "score": s, "points": [[x, y], ...]}, ...]}}
"""

import json
import pathlib
import sys

import cv2
import numpy as np
import onnxruntime


class Models:
    def __init__(self, folder):
        self.paths = {path.name: path for path in pathlib.Path(folder).rglob("*.onnx")}

    def net(self, name):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(self.paths[name], options, providers=["CPUExecutionProvider"])


def run(net, blob):
    names = [output.name for output in net.get_outputs()]
    return dict(zip(names, net.run(names, {net.get_inputs()[0].name: blob.astype(np.float32)})))


def shown(picture, side, enlarge=0):
    """The picture with its longer side at most `side` pixels, at least `enlarge`, and picture pixels along one of its own."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    wanted = min(max(longer, enlarge), side)
    size = [max(1, round(length * wanted / longer)) for length in (width, height)]
    if size == [width, height]:
        return picture, np.ones(2)
    kernel = cv2.INTER_AREA if wanted < longer else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=kernel), np.array([width / size[0], height / size[1]])


def planes(picture, mean, scale):
    return ((picture.astype(np.float32) - mean) * scale).transpose(2, 0, 1)[None]


def overlap(one, others, smaller=False):
    left = np.maximum(one[:2], others[:, :2])
    right = np.minimum(one[2:4], others[:, 2:4])
    both = np.prod(np.maximum(right - left, 0), axis=1)
    areas = [np.prod(boxes[..., 2:4] - boxes[..., :2], axis=-1) for boxes in (one, others)]
    return both / (np.minimum(*np.broadcast_arrays(*areas)) if smaller else areas[0] + areas[1] - both)


def suppress(boxes, scores, most, smaller=False):
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[overlap(boxes[best], boxes[order], smaller) <= most]
    return np.array(kept, dtype=int)


def faces(boxes, scores, points, factor):
    found = []
    for n in range(len(boxes)):
        left, top, right, bottom = boxes[n] * np.tile(factor, 2)
        places = [] if points is None else (points[n] * factor).tolist()
        box = [float(left), float(top), float(right - left), float(bottom - top)]
        found.append({"box": box, "score": float(scores[n]), "points": places})
    return found


def scrfd(models, name, picture):
    small, factor = shown(picture, 640, 384)
    canvas = np.zeros((640, 640, 3), np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    outputs = list(run(models.net(name), planes(canvas, 127.5, 1 / 128)).values())
    boxes, scores, points = [], [], []
    for stride in (8, 16, 32):
        cells = 640 // stride
        rows = cells * cells * 2
        of = lambda columns: next(o.reshape(rows, columns) for o in outputs if o.shape[-1] == columns and o.size == rows * columns)
        corner = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), axis=-1).reshape(-1, 2)
        corner = np.repeat(corner, 2, axis=0) * stride
        distance, moves = of(4) * stride, of(10).reshape(rows, 5, 2) * stride
        boxes.append(np.hstack([corner - distance[:, :2], corner + distance[:, 2:]]))
        scores.append(of(1)[:, 0])
        points.append(corner[:, None] + moves)
    boxes, scores, points = map(np.concatenate, (boxes, scores, points))
    sure = scores >= 0.5
    boxes, scores, points = boxes[sure], scores[sure], points[sure]
    kept = suppress(boxes, scores, 0.3)
    return faces(boxes[kept], scores[kept], points[kept], factor)


def ultraface(models, picture):
    height, width = picture.shape[:2]
    by = min(320 / width, 240 / height)
    size = [max(1, int(width * by + 1e-6)), max(1, int(height * by + 1e-6))]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if by < 1 else cv2.INTER_LINEAR)
    canvas = np.zeros((240, 320, 3), np.uint8)
    canvas[: size[1], : size[0]] = small
    outputs = run(models.net("version-RFB-320.onnx"), planes(canvas, 127, 1 / 128))
    scores, boxes = outputs["scores"][0][:, 1], outputs["boxes"][0] * [320, 240, 320, 240]
    sure = scores >= 0.7
    boxes, scores = boxes[sure], scores[sure]
    kept = suppress(boxes, scores, 0.3)
    return faces(boxes[kept], scores[kept], None, np.array([width / size[0], height / size[1]]))


def crops(picture, boxes, side):
    """Square parts of a picture, zero outside of it, at the size of a network's input."""
    cut = []
    for left, top, right, bottom in boxes.astype(int):
        part = np.zeros((bottom - top, right - left, 3), np.uint8)
        x, y = max(left, 0), max(top, 0)
        inside = picture[y : max(bottom, 0), x : max(right, 0)]
        part[y - top : y - top + inside.shape[0], x - left : x - left + inside.shape[1]] = inside
        kernel = cv2.INTER_AREA if part.shape[0] > side else cv2.INTER_LINEAR
        cut.append(planes(cv2.resize(part, (side, side), interpolation=kernel), 127.5, 1 / 128)[0])
    return np.stack(cut)


def squares(boxes, offsets):
    """Where the offsets move them, as squares around the same middles; sides are exclusive here."""
    moved = boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    side = (moved[:, 2:] - moved[:, :2]).max(axis=1, keepdims=True)
    corner = np.round((moved[:, :2] + moved[:, 2:] - side) / 2)
    return np.hstack([corner, corner + np.round(side)])


def mtcnn(models, picture, min_face=20, thresholds=(0.6, 0.7, 0.8)):
    small, factor = shown(picture, 640)
    height, width = small.shape[:2]
    first, second, third = (models.net(f"mtcnn_{name}.onnx") for name in ("pnet", "rnet", "onet"))
    boxes, scores, offsets = [], [], []
    scale = 12 / min_face
    while min(height, width) * scale > 12:
        size = [int(np.ceil(width * scale)), int(np.ceil(height * scale))]
        level = cv2.resize(small, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        outputs = run(first, planes(level, 127.5, 1 / 128))
        score, offset = outputs["prob"][0, 1], outputs["bbox"][0]
        rows, columns = np.nonzero(score > thresholds[0])
        corner = np.stack([columns, rows], axis=1) * 2 + 1
        found = np.round(np.hstack([corner, corner + 12]) / scale)
        found[:, 2:] += 1
        kept = suppress(found, score[rows, columns], 0.5)
        boxes.append(found[kept])
        scores.append(score[rows, columns][kept])
        offsets.append(offset[:, rows, columns].T[kept])
        scale *= 0.707
    boxes, scores, offsets = map(np.concatenate, (boxes, scores, offsets))
    kept = suppress(boxes, scores, 0.7)
    boxes = squares(boxes[kept], offsets[kept])
    outputs = run(second, crops(small, boxes, 24))
    sure = outputs["prob"][:, 1] > thresholds[1]
    boxes, scores, offsets = boxes[sure], outputs["prob"][sure, 1], outputs["bbox"][sure]
    kept = suppress(boxes, scores, 0.7)
    boxes = squares(boxes[kept], offsets[kept])
    outputs = run(third, crops(small, boxes, 48))
    sure = outputs["prob"][:, 1] >= thresholds[2]
    boxes, scores, offsets = boxes[sure], outputs["prob"][sure, 1], outputs["bbox"][sure]
    side = boxes[:, 2:] - boxes[:, :2]
    marks = outputs["landmarks"][sure].reshape(-1, 2, 5).transpose(0, 2, 1)
    points = boxes[:, None, :2] + marks * side[:, None]
    boxes = boxes + offsets * np.tile(side, 2)
    kept = suppress(boxes, scores, 0.7, smaller=True)
    return faces(boxes[kept], scores[kept], points[kept], factor)


def landmark68(models, picture, box):
    """The 68 points of a box."""
    left, top, width, height = (round(side) for side in box)
    part = np.zeros((height, width, 3), np.uint8)
    x, y = max(left, 0), max(top, 0)
    inside = picture[y : max(top + height, 0), x : max(left + width, 0)]
    part[y - top : y - top + inside.shape[0], x - left : x - left + inside.shape[1]] = inside
    by = 112 / max(width, height)
    size = [min(112, int(np.ceil(width * by - 1e-9))), min(112, int(np.ceil(height * by - 1e-9)))]
    fit = cv2.resize(part, size, interpolation=cv2.INTER_AREA if by < 1 else cv2.INTER_LINEAR)
    pad = [(112 - side) // 2 for side in size]
    canvas = np.zeros((112, 112, 3), np.uint8)
    canvas[pad[1] : pad[1] + size[1], pad[0] : pad[0] + size[0]] = fit
    blob = planes(canvas, np.array([122.782, 117.001, 104.298]), 1 / 255)
    places = run(models.net("landmark68.onnx"), blob)["landmarks"].reshape(68, 2) * 112 - pad
    return (places * [width / size[0], height / size[1]] + [left, top]).tolist()


def main():
    models, pictures = Models(sys.argv[1]), sys.argv[2:]
    families = {
        "scrfd": lambda picture: scrfd(models, "det_500m.onnx", picture),
        "scrfd-2500m": lambda picture: scrfd(models, "scrfd_2.5g_kps_640.onnx", picture),
        "ultraface": lambda picture: ultraface(models, picture),
        "mtcnn": lambda picture: mtcnn(models, picture),
    }
    answer = {family: {} for family in families}
    answer["landmark68"] = {}
    for path in pictures:
        name = pathlib.Path(path).name
        picture = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        for family, find in families.items():
            answer[family][name] = find(picture)
        placed = [dict(face) for face in answer["mtcnn"][name]]
        for face in placed:
            face["points"] = landmark68(models, picture, face["box"])
        answer["landmark68"][name] = placed
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
