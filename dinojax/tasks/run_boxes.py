"""`dinojax task run detect`: boxes of images as COCO's results, and pictures of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data import fields
from dinojax.files.drafts import open_new, write_json
from dinojax.tasks.box_judge import SHOWN, boxes_of
from dinojax.tasks.network import TaskNetwork
from dinojax.tasks.train import TASK, saved_task
from dinojax.viz.box_lines import Boxes, box_lines


def write_boxes(
    network: TaskNetwork,
    variables: dict[str, Any],
    weights: str,
    images: Sequence[tuple[Path, np.ndarray]],
) -> list[Path]:
    """NAME.json and NAME-picture.png of each image; the paths of the former.

    weights: the run that has the names of the classes. images: (where to, without the suffix;
    pixels uint8 [H, W, C]).
    """
    classes = _classes(weights, network.outputs)
    found = boxes_of(network, variables, [pixels for _, pixels in images])
    return [
        _write(place, pixels, boxes, classes)
        for (place, pixels), boxes in zip(images, found, strict=True)
    ]


def _classes(weights: str, num: int) -> list[tuple[int, str]]:
    """(id, name) of the classes of a detector."""
    directory, about, _ = saved_task(weights)
    where = directory / TASK
    pairs = fields.field(about, "classes", [list], where=where)
    rows = [dict(zip(("id", "name"), pair, strict=False)) for pair in pairs]
    if len(rows) != num:
        raise ConfigError(f"{where}: {len(rows)} classes for a head of {num}.")
    return [
        (fields.field(row, "id", int, where=where), fields.field(row, "name", str, where=where))
        for row in rows
    ]


def _write(
    place: Path, pixels: np.ndarray, found: Boxes, classes: Sequence[tuple[int, str]]
) -> Path:
    """The id of an image is its name, a number where it is one."""
    path, stem = place.with_name(f"{place.name}.json"), place.name
    ids, names = np.array([number for number, _ in classes]), dict(classes)
    found = found._replace(class_N=ids[found.class_N])
    content = [
        {
            "image_id": int(stem) if stem.isdecimal() else stem,
            "category_id": int(category),
            "bbox": [float(edge) for edge in box],
            "score": float(score),
        }
        for box, category, score in zip(found.sides_N4, found.class_N, found.score_N, strict=True)
    ]
    write_json(path, content)
    sure = found.above(SHOWN)
    with open_new(place.with_name(f"{stem}-picture.png")) as file:
        Image.fromarray(box_lines(pixels, sure, names)).save(file, format="PNG")
    pairs = zip(sure.class_N, sure.score_N, strict=True)
    listed = ", ".join(f"{names[int(category)]} {score:.2f}" for category, score in pairs)
    print(f"{path}: {listed or f'no box at {SHOWN} or above'}")
    return path
