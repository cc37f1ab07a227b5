"""Boxes of objects: tables of one's own, annotations of PASCAL VOC, and of COCO."""

import csv
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import numpy as np

from dinojax.config import ConfigError
from dinojax.data import fields
from dinojax.data.storage import read_file
from dinojax.eval.layout_files import Files

COLUMNS = ("name", "left", "top", "right", "bottom")


def of_layout(files: Files) -> tuple[np.ndarray, ...]:
    """Boxes [K, 4] of every image of a layout; left and top begin at 0, right and bottom end.

    Raises ConfigError naming the file for an annotation that cannot be read.
    """
    if "boxes" in files.layout.facts:
        return _of_coco(files.root / files.layout.facts["boxes"], files.images)
    return tuple(_of_voc(files.root / name) for name in files.maps)


def _of_voc(path: Path) -> np.ndarray:
    """VOC counts pixels from 1, and the last one is in the box."""
    try:
        root = ElementTree.fromstring(read_file(str(path)))
        boxes = [
            [float(str(box.findtext(name))) for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in root.iterfind("object/bndbox")
        ]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ConfigError(f"{path}: this annotation cannot be read: {error}") from None
    if not boxes:
        raise ConfigError(f"{path}: this annotation has no object.")
    return np.array(boxes) - [1, 1, 0, 0]


def _of_coco(path: Path, images: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Without crowds. An image whose objects all are crowds has none, and is never located."""
    try:
        content = fields.parse(read_file(str(path), max_bytes=None), where=path, foreign=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    names = {
        fields.field(row, "id", int, where=path): fields.field(row, "file_name", str, where=path)
        for row in fields.field(content, "images", [dict], where=path)
    }
    boxes: dict[str, list] = defaultdict(list)
    for row in fields.field(content, "annotations", [dict], where=path):
        if not row.get("iscrowd"):
            image = fields.field(row, "image_id", int, where=path)
            sides = fields.field(row, "bbox", [float], where=path)
            if image not in names:
                raise ConfigError(
                    f"{path}: an annotation is of image {image}, which is not listed."
                )
            if len(sides) != 4:
                raise ConfigError(
                    f"{path}: bbox of an annotation of image {image} is {fields.shown(sides)}; four"
                    " numbers are expected."
                )
            left, top, width, height = sides
            boxes[names[image]].append([left, top, left + width, top + height])
    known = set(names.values())
    files = [Path(name).name for name in images]
    if lost := [name for name in files if name not in known]:
        raise ConfigError(f"{path} does not list {lost[0]} ({len(lost)} in all).")
    return tuple(np.array(boxes[name]).reshape(-1, 4) for name in files)


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Name of an image -> boxes [K, 4]: rows of name,left,top,right,bottom.

    Raises ConfigError, with the line, for a table of other columns and for boxes without an area.
    """
    found: dict[str, list] = {}
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ConfigError(
                f"{path}: the columns are {rows.fieldnames}; give {','.join(COLUMNS)}."
            )
        for line, row in enumerate(rows, start=2):
            try:
                box = [float(row[name]) for name in COLUMNS[1:]]
            except (TypeError, ValueError):
                raise ConfigError(
                    f"{path}, line {line}: {row} is no name with 4 numbers."
                ) from None
            if not (box[0] < box[2] and box[1] < box[3]):
                raise ConfigError(f"{path}, line {line}: the box {box} has no area.")
            found.setdefault(row["name"], []).append(box)
    return {name: np.array(boxes) for name, boxes in found.items()}
