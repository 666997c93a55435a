"""Makes distinct 12-megapixel photographs with several faces each out of a few sample photographs.

Each is a mosaic of pieces of the samples, cut, scaled, mirrored, coloured and grained by a seed of its own, so that
the same samples give the same photographs. What is in the folder already is left alone.
"""

import argparse
import multiprocessing
import os
import pathlib

import cv2
import numpy as np

WIDTH, HEIGHT = 4000, 3000
QUALITY = 90
# Standard deviation of the grain in 8-bit steps. Enlarged pieces are smoother than what a camera takes: without the
# grain a file has a third of the 3 MB that it has with it.
GRAIN = 7.0
# Pieces of a mosaic; with the usual samples they give five to six faces.
PIECES = (2, 5)
# How much of a sample that is wider than high, and so of several people, a piece shows to a side.
GROUP_SHARE = (0.25, 0.5)
SUFFIXES = {".jpg", ".jpeg", ".png"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where they go")
    parser.add_argument("--samples", type=pathlib.Path, required=True, help="the folder of sample photographs")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args()


def split(random, count):
    """Cuts the picture into `count` rectangles (x, y, width, height), always the largest across its longer side."""
    pieces = [(0, 0, WIDTH, HEIGHT)]
    while len(pieces) < count:
        x, y, width, height = pieces.pop(max(range(len(pieces)), key=lambda n: pieces[n][2] * pieces[n][3]))
        share = random.uniform(0.4, 0.6)
        if width >= height:
            cut = round(width * share)
            pieces += [(x, y, cut, height), (x + cut, y, width - cut, height)]
        else:
            cut = round(height * share)
            pieces += [(x, y, width, cut), (x, y + cut, width, height - cut)]
    return pieces


def crop(random, sample, width, height):
    """A part of the sample of that shape: of a group a few people, of a portrait as much as there is."""
    rows, columns = sample.shape[:2]
    scale = min(columns / width, rows / height)
    if columns > rows:
        scale *= random.uniform(*GROUP_SHARE)
    part_width, part_height = int(width * scale), int(height * scale)
    x = random.integers(0, columns - part_width + 1)
    # Faces are in the upper half of portraits.
    y = int((rows - part_height) * random.uniform(0.0, 0.4 if rows > columns else 1.0))
    return sample[y : y + part_height, x : x + part_width]


def coloured(random, picture):
    """Another exposure, contrast and white balance."""
    levels = np.arange(256) / 255
    gamma, gains = random.uniform(0.8, 1.25), random.uniform(0.9, 1.1, 3)
    table = np.clip(levels[:, None] ** gamma * gains * 255, 0, 255).astype(np.uint8)
    return cv2.LUT(picture, table[:, None, :])


def compose(random, samples):
    photo = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for x, y, width, height in split(random, random.integers(PIECES[0], PIECES[1] + 1)):
        part = crop(random, samples[random.integers(len(samples))], width, height)
        if random.random() < 0.5:
            part = part[:, ::-1]
        piece = cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
        photo[y : y + height, x : x + width] = coloured(random, piece)
    # One tile of grain, laid down at another place in each photograph.
    tile = (random.standard_normal((512, 512, 3), np.float32) * GRAIN).astype(np.int16)
    grain = np.tile(tile, (HEIGHT // 512 + 1, WIDTH // 512 + 1, 1))[:HEIGHT, :WIDTH]
    return np.clip(photo + grain, 0, 255).astype(np.uint8)


def start(folder):
    global samples
    cv2.setNumThreads(1)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    samples = [cv2.imread(str(path)) for path in paths]


def make(task):
    path, seed = task
    photo = compose(np.random.default_rng(seed), samples)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])
    unfinished.rename(path)


def main():
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    tasks = [(args.folder / f"photo-{n:05}.jpg", (args.seed, n)) for n in range(args.count)]
    tasks = [task for task in tasks if not task[0].is_file()]
    with multiprocessing.get_context("spawn").Pool(args.processes, start, (args.samples,)) as pool:
        for _ in pool.imap_unordered(make, tasks):
            pass


if __name__ == "__main__":
    main()
