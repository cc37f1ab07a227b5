"""Boxes of objects from a JSON file in COCO's form, checked before anything is learnt from them.

Lin et al., arXiv:1405.0312, and the page "Data format" of cocodataset.org.
"""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data import fields
from dinojax.data.decode import decode

log = logging.getLogger(__name__)

_SLACK = 1.0  # pixels by which rounding may put an edge beyond the image; it is cut there
_SPLITS = ("train", "val")
_EMPTY = "its box {0} has no area"
_OUTSIDE = "its box {0} is not inside the image of {1} x {2} pixels"


@dataclasses.dataclass(frozen=True)
class BoxFile:
    """Images in the order of the file, and the objects of each in the order of their ids.

    Boxes are (left, top, width, height) in pixels. Crowds are no objects to learn from; a detection
    in one counts as neither right nor wrong, as in pycocotools.
    """

    where: Path
    folder: Path
    channels: int
    names: tuple[str, ...]
    ids: np.ndarray  # int64 [I], those of the file
    sizes_I2: np.ndarray  # (height, width)
    classes: tuple[tuple[int, str], ...]  # (id, name) in the order of ids
    image_N: np.ndarray  # row of `ids`, in rising order
    class_N: np.ndarray  # row of `classes`
    boxes_N4: np.ndarray  # float64
    area_N: np.ndarray  # of the object where the file tells it, else of its box
    crowd_N: np.ndarray  # bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> np.ndarray:
        """uint8 [H, W, C]. Raises DecodeError, naming the file, for a damaged one."""
        path = self.folder / self.names[index]
        return decode(path.read_bytes(), name=str(path), channels=self.channels)

    def objects(self, index: int) -> slice:
        """Rows of the objects of an image."""
        first, last = np.searchsorted(self.image_N, [index, index + 1])
        return slice(int(first), int(last))

    @property
    def most(self) -> tuple[int, str]:
        """(objects of the fullest image without crowds, its name)."""
        counts = np.bincount(self.image_N[~self.crowd_N], minlength=len(self))
        return int(counts.max()), self.names[int(counts.argmax())]


def find(path: str) -> dict[str, tuple[Path, Path]]:
    """{"train": (file, folder of images)} and perhaps "val", below a path.

    TRAIN/annotations.json beside TRAIN/images/, the same without splits, or the public
    annotations/instances_train2017.json with train2017/. Raises ConfigError for anything else.
    """
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(f"--data {path} is no folder.")
    own = {s: (root / s / "annotations.json", root / s / "images") for s in _SPLITS}
    public = {
        s: (root / "annotations" / f"instances_{s}2017.json", root / f"{s}2017") for s in _SPLITS
    }
    alone = {"train": (root / "annotations.json", root / "images")}
    for layout in (own, public, alone):
        if layout["train"][0].is_file():
            found = {split: files for split, files in layout.items() if files[0].is_file()}
            for file, folder in found.values():
                if not folder.is_dir():
                    raise ConfigError(f"{file} has no folder of images beside it: {folder}.")
            return found
    raise ConfigError(
        f"--data {path} holds no boxes in COCO's form: neither train/annotations.json with "
        "train/images/, nor annotations.json with images/, nor the public layout, "
        "annotations/instances_train2017.json with train2017/."
    )


def open_boxes(where: Path, folder: Path, *, channels: int, leave_out: bool) -> BoxFile:
    """The file, with every image that it lists looked at (its header) and every box checked.

    leave_out: objects without area or outside their image are left out, and counted in the log.
    Raises ConfigError, naming the file and the id, for anything that does not fit.
    """
    try:
        content = fields.parse(where.read_bytes(), where=where)
        lists = {
            name: fields.field(content, name, [dict], where=f"{where} is no COCO file of boxes")
            for name in ("images", "annotations", "categories")
        }
        classes = _classes(lists["categories"], where)
        names, ids, sizes_I2, told = _images(lists["images"], where, folder)
        rows = _objects(lists["annotations"], where, (ids, names, sizes_I2), classes, leave_out)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not any(not row[-1] for row in rows):
        raise ConfigError(f"{where} holds no box to learn from.")
    table = np.array(sorted(rows), np.float64)
    told.update(repr((classes, names, list(ids))).encode() + table.tobytes())
    return BoxFile(
        where=where,
        folder=folder,
        channels=channels,
        names=names,
        ids=ids,
        sizes_I2=sizes_I2,
        classes=classes,
        image_N=table[:, 0].astype(np.int64),
        class_N=table[:, 2].astype(np.int64),
        boxes_N4=table[:, 3:7],
        area_N=table[:, 7],
        crowd_N=table[:, 8] > 0,
        fingerprint=told.hexdigest()[:16],
    )


def _unique(rows: list[dict[str, Any]], where: Path, kind: str) -> list[int]:
    """The ids. Raises ConfigError for one that stands twice."""
    ids = [fields.field(row, "id", int, where=f"{where}: {kind}") for row in rows]
    if len(set(ids)) < len(ids):
        values, counts = np.unique(np.array(ids, object), return_counts=True)
        twice = values[counts > 1][0]
        raise ConfigError(f"{where}: {kind} {twice} is there twice; give each an id of its own.")
    return ids


def _classes(rows: list[dict[str, Any]], where: Path) -> tuple[tuple[int, str], ...]:
    ids = _unique(rows, where, "category")
    names = [fields.field(row, "name", str, where=f"{where}: category") for row in rows]
    if not ids:
        raise ConfigError(f"{where} lists no categories.")
    return tuple(sorted(zip(ids, names, strict=True)))


def _images(rows: list[dict[str, Any]], where: Path, folder: Path):
    """(names, ids, sizes [I, 2], a digest of the files' sizes)."""
    ids = _unique(rows, where, "image")
    names, sizes, told = [], [], hashlib.sha256()
    for row, number in zip(rows, ids, strict=True):
        own = f"{where}: image {number}"
        name = fields.field(row, "file_name", str, where=own)
        size = tuple(fields.field(row, side, int, where=own) for side in ("height", "width"))
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ConfigError(f"{own}: file_name {name!r} leads out of {folder}.")
        if not (path := folder / name).is_file():
            raise ConfigError(f"{own}: {name} is not in {folder}.")
        try:
            with Image.open(path) as picture:
                found = picture.height, picture.width
        except OSError as error:
            raise ConfigError(f"{own}: {path} cannot be read: {error}") from None
        if found != size:
            raise ConfigError(
                f"{own}: {path} has {found[0]} rows and {found[1]} columns; the file says "
                f"{size[0]} and {size[1]}, and boxes are told in these pixels."
            )
        names.append(name)
        sizes.append(size)
        told.update(f"{path.stat().st_size}\n".encode())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{where}: {twice} is the file of two images.")
    if not names:
        raise ConfigError(f"{where} lists no images.")
    return tuple(names), np.array(ids), np.array(sizes), told


def _objects(rows, where: Path, images, classes, leave_out: bool) -> list[tuple[float, ...]]:
    """(image, id, class, left, top, width, height, area, crowd) of every annotation."""
    ids, names, sizes_I2 = images
    places = {int(number): place for place, number in enumerate(ids)}
    numbers = {number: place for place, (number, _) in enumerate(classes)}
    found, left_out = [], 0
    for row, number in zip(rows, _unique(rows, where, "annotation"), strict=True):
        own = f"{where}: annotation {number}"
        image = fields.field(row, "image_id", int, where=own)
        if image not in places:
            raise ConfigError(f"{own} is of image {image}, which is not listed.")
        place = places[image]
        own += f" (image {image}, {names[place]})"
        category = fields.field(row, "category_id", int, where=own)
        if category not in numbers:
            raise ConfigError(
                f"{own} has the class {category}; the categories of the file are "
                f"{fields.shown([number for number, _ in classes])}."
            )
        if (crowd := fields.field(row, "iscrowd", int, where=own, default=0)) not in (0, 1):
            raise ConfigError(f"{own}: iscrowd is {crowd}; 1 for a crowd, else 0.")
        box = _box(row, own, sizes_I2[place], leave_out)
        if box is None:
            left_out += 1
            continue
        area = fields.field(row, "area", float, where=own, default=box[2] * box[3])
        found.append((place, number, numbers[category], *box, float(area), crowd))
    if left_out:
        log.info("%s: %d boxes without area or outside their image left out", where, left_out)
    return found


def _box(row: Mapping[str, Any], own: str, size, leave_out: bool) -> tuple[float, ...] | None:
    """(left, top, width, height) inside the image; None for one to be left out."""
    values = fields.field(row, "bbox", [float], where=own)
    if len(values) != 4:
        raise ConfigError(f"{own}: bbox is {fields.shown(values)}; four numbers are expected.")
    left, top, width, height = map(float, values)
    limits = float(size[1]), float(size[0])
    ends = left + width, top + height
    fault = ""
    if not (width > 0 and height > 0):
        fault = _EMPTY.format(values)
    elif min(left, top) < -_SLACK or any(e > n + _SLACK for e, n in zip(ends, limits, strict=True)):
        fault = _OUTSIDE.format(values, int(limits[0]), int(limits[1]))
    starts = max(left, 0.0), max(top, 0.0)
    sides = [min(e, n) - s for e, n, s in zip(ends, limits, starts, strict=True)]
    if not fault and min(sides) <= 0:
        fault = _OUTSIDE.format(values, int(limits[0]), int(limits[1]))
    if not fault:
        inside = math.isclose(sides[0], width) and math.isclose(sides[1], height)
        return (left, top, width, height) if inside else (*starts, *sides)
    if leave_out:
        return None
    raise ConfigError(
        f"{own}: {fault}. Mend it, or --set leave_out=true to go without such boxes; a box is "
        "[left, top, width, height] in pixels."
    )
