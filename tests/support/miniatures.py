"""Small data in the layouts that authors publish: photographs of few colours, videos, lists."""

import json

import numpy as np
from PIL import Image

from dinojax.eval import videos
from tests.support.dense import COLOURS, PATCH, save

LAYOUTS = {
    "davis2017": ("JPEGImages/480p", "Annotations/480p"),
    "youtube_vos": ("train/JPEGImages", "train/Annotations"),
    "mose": ("train/JPEGImages", "train/Annotations"),
    "": ("images", "maps"),
}


def jpeg(path, array):
    """Blocks of 8 pixels of equal content become equal blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=100, subsampling=0)


def videos_in(root, layout, marked=range(5)):
    """Two videos in which squares of texture move a patch per frame before plain grey."""
    images, maps = LAYOUTS[layout]
    for name, tops in {"bear": (1,), "camel": (0, 2)}.items():
        rng = np.random.default_rng(len(tops))
        parts = [rng.integers(0, 256, (2 * PATCH, 2 * PATCH, 3), np.uint8) for _ in tops]
        for frame in range(5):
            pixels = np.full((5 * PATCH, 8 * PATCH, 3), 90, np.uint8)
            ids = np.zeros(pixels.shape[:2], np.uint8)
            for number, (top, part) in enumerate(zip(tops, parts, strict=True), start=1):
                rows = slice(PATCH * top, PATCH * (top + 2))
                columns = slice(PATCH * frame, PATCH * (frame + 2))
                pixels[rows, columns], ids[rows, columns] = part, 3 * number
            ids[-1, -1] = videos.VOID if frame == 0 else 0
            jpeg(root / images / name / f"{frame:05d}.jpg", pixels)
            if frame in marked:
                save(root / maps / name / f"{frame:05d}.png", ids)
    if layout == "davis2017":
        (root / "ImageSets/2017").mkdir(parents=True)
        (root / "ImageSets/2017/val.txt").write_text("camel\nbear\n")
    return f"{layout}:{root}" if layout else str(root)


def dots(root, name, num, seed):
    """Videos of three frames of a dot that goes right (class 1) or left (0)."""
    rng, lines = np.random.default_rng(seed), []
    for number in range(num):
        direction, row = number % 2, int(rng.integers(0, 3))
        for frame in range(3):
            pixels = np.full((3 * PATCH, 3 * PATCH, 3), 110, np.uint8)
            column = frame if direction else 2 - frame
            rows, columns = (slice(PATCH * n, PATCH * (n + 1)) for n in (row, column))
            pixels[rows, columns] = 250
            save(root / f"{name}{number}/{frame:05d}.png", pixels)
        lines.append(f"{name}{number} {direction}")
    (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return str(root / f"{name}.txt")


SHAPE = (5 * PATCH, 6 * PATCH)


def photograph(root, path, colour=None):
    """A JPEG of one colour, or of coloured squares; gives the numbers of the squares."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path) + sum(map(ord, path)))
    cells = rng.integers(0, 3, (5, 6)).repeat(PATCH, axis=0).repeat(PATCH, axis=1)
    pixels = COLOURS[cells] if colour is None else np.broadcast_to(colour, (*SHAPE, 3)).copy()
    format = "PNG" if path.endswith("png") else "JPEG"
    Image.fromarray(pixels.astype(np.uint8)).save(root / path, format=format)
    return cells


def written(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


WNIDS = ("n01440764", "n01443537", "n01484850")


def imagenet(root):
    """Three classes, each a colour."""
    for number, wnid in enumerate(WNIDS):
        for n in range(2):
            photograph(root, f"train/{wnid}/{wnid}_{n}.JPEG", COLOURS[number])
        name = f"val/{wnid}/ILSVRC2012_val_{number + 1:08d}.JPEG"
        photograph(root, name, COLOURS[number])
    rows = [[1], [], [2, 0]]  # the first is said to be of the second class, the second of none
    written(root, "real.json", json.dumps(rows))


def keypoints_in(root):
    """A pair of each of two classes: the first shows one photograph twice, the second two."""
    for kind, names in {"aeroplane": ("a", "a"), "bus": ("b", "c")}.items():
        for name in names:
            photograph(root, f"JPEGImages/{kind}/{name}.jpg", texture(ord(name)))
        row = {"category": kind, "src_imname": f"{names[0]}.jpg", "trg_imname": f"{names[1]}.jpg"}
        row |= {"src_kps": [[12, 20], [28, 4]], "trg_kps": [[12, 20], [28, 4]]}
        row |= {"trg_bndbox": [4, 0, 24, 32], "mirror": 0, "filename": kind}
        written(root, f"PairAnnotation/test/1-{kind}.json", json.dumps(row))


def views_in(root):
    """Two views of each of two objects, the second turned about the line of sight by 90 degrees.

    A `cup` is a flat square of 48 pixels, 16 cm away, of patches of one colour each, which is what
    a turn leaves; the second view of a `fan` has other colours.
    """
    depth = np.zeros((64, 64), np.uint16)
    depth[8:56, 8:56] = 4096  # 655.35 / 4096 = 0.16 m
    for name, seeds in {"cup": (1, 1), "fan": (2, 3)}.items():
        rows = []
        for number, seed in enumerate(seeds):
            colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
            pixels = np.rot90(colours.repeat(8, 0).repeat(8, 1), -number)
            save(root / f"{name}/wild_set/depth/00{number}.png", depth)
            path = root / f"{name}/wild_set/images/00{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.ascontiguousarray(pixels))
            image.save(path, quality=100, subsampling=0)
            turn = [[1, 0, 0, 0], [0.5**0.5, 0, 0, 0.5**0.5]][number]
            camera = {"q": turn, "t": [0, 0, 0], "focal_length": 128.0}  # of the image below
            rows.append({"filename": f"00{number}.jpg", "image_size": [128, 128], "camera": camera})
        written(root, f"{name}/wild_set/annotations.json", json.dumps(rows))


def texture(seed):
    """Noise, of which every patch is another."""
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3))
