"""Prints what dlib itself makes of pictures, as one JSON array: what the tests of `face-id models import dlib` compare with.

Usage: describe.py PICTURE...

Of each picture: the boxes of the MMOD detector (left, top, right, bottom; the last two are still part of the box) with their
scores and, for each box, the five points, the 68 points, and the vectors by either. Of a picture of 150 x 150
pixels the vector is taken of all of it instead, as of a face chip.
"""

import json
import sys
from pathlib import Path

import dlib

CHIP = (150, 150)


def main():
    # The package's own module asks for setuptools.
    found = [Path(folder) / "face_recognition_models/models" for folder in sys.path]
    models = next(folder for folder in found if folder.is_dir())
    detector = dlib.cnn_face_detection_model_v1(str(models / "mmod_human_face_detector.dat"))
    five = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    sixty_eight = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
    recognizer = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def points(shape):
        return [[point.x, point.y] for point in shape.parts()]

    def face(picture, box, score):
        by_five, by_68 = five(picture, box), sixty_eight(picture, box)
        return {
            "box": [box.left(), box.top(), box.right(), box.bottom()],
            "score": score,
            "five": points(by_five),
            "sixty_eight": points(by_68),
            "vector": list(recognizer.compute_face_descriptor(picture, by_five)),
            "vector_by_68": list(recognizer.compute_face_descriptor(picture, by_68)),
        }

    def described(picture):
        if picture.shape[:2] == CHIP:
            return {"vector": list(recognizer.compute_face_descriptor(picture)), "faces": []}
        found = detector(picture, 0)
        return {"vector": [], "faces": [face(picture, one.rect, one.confidence) for one in found]}

    json.dump([described(dlib.load_rgb_image(path)) for path in sys.argv[1:]], sys.stdout)


if __name__ == "__main__":
    main()
