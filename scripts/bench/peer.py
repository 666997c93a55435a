"""What a user would otherwise write: OpenCV's YuNet and a recognizer in ONNX Runtime, in a pool of processes.

Reads the pipeline's description, so that both sides run the same models with the same settings, and prints one JSON
line with the images, the faces, the seconds by the clock and of processor time, and the images a second.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import time
import tomllib

import cv2
import numpy as np
import onnxruntime

# A picture is shown to the detector with a longer side of at least this.
MIN_SIDE = 384


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=pathlib.Path, help="a file with the path of a picture in each line")
    parser.add_argument("--pipeline", type=pathlib.Path, required=True, help="its entry in the catalogue")
    parser.add_argument("--detector", required=True, help="the detector's file")
    parser.add_argument("--recognizer", required=True, help="the recognizer's file")
    parser.add_argument("--side", type=int, help="longer side that the detector sees; else the pipeline's own")
    parser.add_argument("--score", type=float, help="least score of a face; else the pipeline's own")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args()


def similarity(points, template):
    """The 2 x 3 similarity that maps points to the template with the least squared error (Umeyama 1991)."""
    centre, template_centre = points.mean(0), template.mean(0)
    a, b = points - centre, template - template_centre
    u, singular, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    scale = (singular * np.diag(sign)).sum() / (a**2).sum()
    return np.hstack([scale * rotation, (template_centre - scale * rotation @ centre)[:, None]])


class Peer:
    def __init__(self, args):
        pipeline = tomllib.loads(args.pipeline.read_text())
        detector, recognizer = pipeline["detector"], pipeline["recognizer"]
        self.side = args.side or detector["input_side"]
        score = args.score or detector["store_score"]
        cv2.setNumThreads(1)
        self.detector = cv2.FaceDetectorYN.create(args.detector, "", (320, 320), score)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.recognizer = onnxruntime.InferenceSession(
            args.recognizer, options, providers=["CPUExecutionProvider"]
        )
        self.input = self.recognizer.get_inputs()[0]
        self.batches = not isinstance(self.input.shape[0], int)
        self.mean = np.float32(recognizer["mean"])
        self.scale = np.float32(recognizer["scale"])
        self.template = np.float64(pipeline["alignment"]["points"])
        self.size = (pipeline["alignment"]["width"], pipeline["alignment"]["height"])

    def analyse(self, path):
        """The vectors of the faces on a picture."""
        picture = cv2.imread(path)
        height, width = picture.shape[:2]
        longer = max(width, height)
        ratio = min(max(longer, MIN_SIDE), self.side) / longer
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        shown = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
        self.detector.setInputSize(size)
        _, faces = self.detector.detect(shown)
        if faces is None:
            return np.empty((0, 0), np.float32)
        to_picture = np.float64([width, height]) / size
        crops = [self.crop(picture, face[4:14].reshape(5, 2) * to_picture) for face in faces]
        batches = [np.stack(crops)] if self.batches else [crop[None] for crop in crops]
        vectors = np.concatenate([self.recognizer.run(None, {self.input.name: batch})[0] for batch in batches])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def crop(self, picture, points):
        crop = cv2.warpAffine(picture, similarity(points, self.template), self.size)
        rgb = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB).astype(np.float32)
        return ((rgb - self.mean) * self.scale).transpose(2, 0, 1)


peer = None


def start(args):
    global peer
    peer = Peer(args)


def count_faces(path):
    """The faces on a picture, and the processor time that finding them took."""
    began = time.process_time()
    return len(peer.analyse(path)), time.process_time() - began


def main():
    args = arguments()
    paths = args.pictures.read_text().splitlines()
    with multiprocessing.get_context("spawn").Pool(args.processes, start, (args,)) as pool:
        # Loading the models is no part of it.
        pool.map(count_faces, paths[:1] * args.processes, chunksize=1)
        began = time.perf_counter()
        found = list(pool.imap_unordered(count_faces, paths))
        seconds = time.perf_counter() - began
    report = {
        "images": len(paths),
        "faces": sum(faces for faces, _ in found),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(sum(cpu for _, cpu in found), 3),
        "images_per_s": round(len(paths) / seconds, 3),
        "processes": args.processes,
        "opencv": cv2.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
