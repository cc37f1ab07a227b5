"""Boxes with exact truth: shapes pasted on parts of photographs, in COCO's form."""

import json

import numpy as np
from PIL import Image, ImageDraw

from dinojax.data.tiles import PHOTOGRAPHS, photograph_path

NAMES = {7: "disc", 3: "rectangle", 20: "triangle"}  # category ids, in no order
_COLOURS = {"disc": (225, 40, 40), "rectangle": (40, 200, 60), "triangle": (50, 80, 225)}


def write(root, parts, side=64, public=False):
    """A folder for `task train detect`; parts: {split: number of images}."""
    for number, (split, count) in enumerate(parts.items()):
        folder = root / (f"{split}2017" if public else f"{split}/images")
        file = root / f"annotations/instances_{split}2017.json"
        file = file if public else root / split / "annotations.json"
        for path in (folder, file.parent):
            path.mkdir(parents=True, exist_ok=True)
        rng, images, annotations = np.random.default_rng(number), [], []
        for place in range(count):
            picture, boxes = drawn(rng, place, side)
            name, image = f"{place:04d}.png", 10 * place + 5
            picture.save(folder / name)
            size = {"width": picture.width, "height": picture.height}
            images.append({"id": image, "file_name": name, **size})
            for kind, box in boxes:
                row = {"id": len(annotations) + 1, "image_id": image, "category_id": kind}
                annotations.append({**row, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": kind, "name": name} for kind, name in NAMES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        file.write_text(json.dumps(content))
    return root


def drawn(rng, place, side):
    """(picture, [(category id, [left, top, width, height])]) with one to three shapes."""
    with Image.open(photograph_path(list(PHOTOGRAPHS)[place % len(PHOTOGRAPHS)])) as file:
        photograph = file.convert("RGB")
    left, top = (int(rng.integers(0, n - 2 * side)) for n in photograph.size)
    size = side, side if place % 2 else 3 * side // 4
    picture = photograph.crop((left, top, left + 2 * size[0], top + 2 * size[1])).resize(size)
    taken = np.zeros(size[::-1], bool)
    draw, boxes = ImageDraw.Draw(picture), []
    for _ in range(int(rng.integers(1, 4))):
        kind = list(NAMES)[rng.integers(len(NAMES))]
        shade = rng.integers(-30, 31, 3)
        colour = tuple(int(c + n) for c, n in zip(_COLOURS[NAMES[kind]], shade, strict=True))
        width, height = (int(n) for n in rng.integers(side // 3, 5 * side // 8, 2))
        x, y = (int(rng.integers(0, n - s)) for n, s in zip(size, (width, height), strict=True))
        if taken[y : y + height, x : x + width].any():
            continue
        taken[y : y + height, x : x + width] = True
        paste(draw, NAMES[kind], (x, y, width, height), colour)
        boxes.append((kind, [x, y, width, height]))
    return picture, boxes


def paste(draw, name, box, colour):
    """A shape that fills its box, its last row and column included."""
    x, y, width, height = box
    corners = x, y, x + width - 1, y + height - 1
    if name == "disc":
        draw.ellipse(corners, fill=colour)
    elif name == "rectangle":
        draw.rectangle(corners, fill=colour)
    else:
        tip = x + width // 2, y
        draw.polygon([tip, (corners[2], corners[3]), (x, corners[3])], fill=colour)
