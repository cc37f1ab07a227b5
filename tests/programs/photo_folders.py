"""Folders for the dense evaluations, made of photographs that packages ship; nothing is downloaded.

    python -m tests.programs.photo_folders DIR

photographs/: the 16 of the tiles. regions/: parts of several photographs in one picture, the map
says of which a pixel is (train: left 60 % of each, val: the rest), classes.txt what each shows.
depth/: scikit-image's motorcycle with the depth of its measured disparity, cut in the same way.
objects/: a round part of one photograph on another, and its box. Everything is fixed by seeds.
"""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dinojax.data.tile_captions import SUBJECTS
from dinojax.data.tiles import LEFT_SHARE, PHOTOGRAPHS

HEIGHT, WIDTH = 144, 192  # pixels of the pictures made here
# Of the motorcycle: baseline in metres, focal length and offset of the centres in pixels, as
# scikit-image's `stereo_motorcycle` documents them.
BASELINE, FOCAL, OFFSET = 0.193001, 994.978, 31.278


def photograph(package: str, path: str) -> np.ndarray:
    """uint8 [H, W, 3]."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    file = Path(spec.submodule_search_locations[0]) / path
    return np.asarray(Image.open(file).convert("RGB"))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path)


def part(pixels: np.ndarray, rng, left: bool) -> np.ndarray:
    """A piece of HEIGHT x WIDTH of the left or the right part of a photograph."""
    middle = int(pixels.shape[1] * LEFT_SHARE)
    side = pixels[:, :middle] if left else pixels[:, middle:]
    scale = max(HEIGHT / side.shape[0], WIDTH / side.shape[1], 0.4)
    size = int(np.ceil(side.shape[1] * scale)), int(np.ceil(side.shape[0] * scale))
    large = np.asarray(Image.fromarray(np.ascontiguousarray(side)).resize(size))
    top = rng.integers(large.shape[0] - HEIGHT + 1)
    start = rng.integers(large.shape[1] - WIDTH + 1)
    return large[top : top + HEIGHT, start : start + WIDTH]


def regions(root: Path, photos: list[np.ndarray]) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    names = "".join(f"{SUBJECTS[name]}\n" for name in PHOTOGRAPHS)
    for split, num, left in (("train", 96, True), ("val", 32, False)):
        rng = np.random.default_rng(len(split))
        for number in range(num):
            classes = rng.permutation(len(photos))[:5]
            centres = rng.uniform([[0, 0]] * 5, [[HEIGHT, WIDTH]] * 5)
            far = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in centres]
            nearest = np.argmin(far, axis=0)
            parts = np.stack([part(photos[c], rng, left) for c in classes])
            pixels = np.take_along_axis(parts, nearest[None, ..., None], axis=0)[0]
            save(root / split / "images" / f"{number:03d}.png", pixels)
            save(root / split / "maps" / f"{number:03d}.png", classes[nearest].astype(np.uint8))
        (root / split / "classes.txt").write_text(names)


def depths(root: Path) -> None:
    pixels = photograph("skimage", "data/motorcycle_left.png")
    spec = importlib.util.find_spec("skimage")
    with np.load(Path(spec.submodule_search_locations[0]) / "data/motorcycle_disp.npz") as file:
        disparity = file["arr_0"].astype(np.float64)
    known = np.isfinite(disparity)
    metres = BASELINE * FOCAL / (np.where(known, disparity, 1) + OFFSET)
    stored = np.where(known, np.round(1000 * metres), 0).astype(np.uint16)
    middle = int(pixels.shape[1] * LEFT_SHARE)
    for split, first, last, num in (("train", 0, middle, 48), ("val", middle, pixels.shape[1], 16)):
        rng = np.random.default_rng(num)
        for number in range(num):
            top = rng.integers(pixels.shape[0] - 2 * HEIGHT + 1)
            start = rng.integers(first, last - 2 * HEIGHT + 1)
            cut = slice(top, top + 2 * HEIGHT), slice(start, start + 2 * HEIGHT)
            save(root / split / "images" / f"{number:03d}.png", pixels[cut][::2, ::2])
            save(root / split / "maps" / f"{number:03d}.png", stored[cut][::2, ::2])


def objects(root: Path, photos: list[np.ndarray]) -> None:
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    lines = []
    for number in range(40):
        front, back = (part(photos[c], rng, True) for c in rng.permutation(len(photos))[:2])
        reach = rng.uniform(0.18, 0.32, 2) * [HEIGHT, WIDTH]
        y, x = rng.uniform(reach, [HEIGHT, WIDTH] - reach)
        inside = ((rows - y) / reach[0]) ** 2 + ((columns - x) / reach[1]) ** 2 <= 1
        name = f"{number:03d}.png"
        save(root / "images" / name, np.where(inside[..., None], front, back))
        down, right = np.nonzero(inside)
        lines.append([name, right.min(), down.min(), right.max() + 1, down.max() + 1])
    with (root / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["name", "left", "top", "right", "bottom"], *lines])


def main(root: Path) -> None:
    photos = {name: photograph(*where) for name, where in PHOTOGRAPHS.items()}
    for name, pixels in photos.items():
        save(root / "photographs" / f"{name}.png", pixels)
    regions(root / "regions", list(photos.values()))
    depths(root / "depth")
    objects(root / "objects", list(photos.values()))
    print(f"{root}: {', '.join(sorted(path.name for path in root.iterdir()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
