"""Tiles of scenes as images to train on: read by windows as they are needed.

Tiles stand side by side from the top left; the last one of an axis ends where the scene ends. Those
with more than data.max_nodata of nodata are left out, for which scenes that may hold some are read
once when the source is opened. In the others nodata becomes the mean of the tile's other pixels.
"""

import dataclasses
import hashlib
import importlib
import io
import os

import numpy as np

from dinojax.data.decode import PLAIN, DecodeError, ReadOptions
from dinojax.data.encoded import (
    EncodedSource,
    check_one_decodes,
    checked_path,
    fingerprint,
    label_of,
    refuse_split,
)
from dinojax.data.example import Encoded, Source
from dinojax.data.folder import Walk, classes_of
from dinojax.data.scene import EXTENSIONS, Scene, open_scene, starts
from dinojax.data.storage import shown


@dataclasses.dataclass(frozen=True, eq=False)
class SceneTiles:
    """Files of a source: tile i lies at corners_N3[i] = (number of its scene, top, left)."""

    scenes: tuple[Scene, ...]
    names: tuple[str, ...]
    tile_size: int
    corners_N3: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.corners_N3)

    @property
    def local_files(self) -> tuple[str, ...]:
        return tuple(scene.path for scene in self.scenes)

    def encoded(self, index: int) -> Encoded:
        """The tile as a TIFF of the values that are stored."""
        number, top, left = map(int, self.corners_N3[index])
        scene = self.scenes[number]
        name = f"{shown(self.names[number])} at row {top}, column {left}"
        size = min(self.tile_size, scene.height), min(self.tile_size, scene.width)
        with scene.opened() as read:
            values_HWC, known_HW = read((top, left, *size))
        if not known_HW.any():
            raise DecodeError(f"{name}: every pixel is nodata, which it was not before.")
        return Encoded(_as_tiff(filled(values_HWC, known_HW)), label_of(self.labels, index), name)


def scenes(
    *,
    path: str,
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> Source:
    """The source of a scene, or of all scenes below a folder.

    Raises FileNotFoundError for a path that is not there, and ValueError without scenes or tiles,
    for scenes of different numbers or types of bands, and for values without a known range.
    """
    refuse_split(split, "scenes have")
    found, names, notes = open_scenes(path, key=key, options=options)
    labels, class_names = classes_of(names)
    tiles = [_tiles(scene, options) for scene in found]
    total = sum(num for num, _ in tiles)
    kept = [corners for _, corners in tiles]
    numbers = np.repeat(np.arange(len(found), dtype=np.int32), [len(own) for own in kept])
    corners_N3 = np.concatenate([numbers[:, None], np.concatenate(kept)], axis=1)
    if not len(corners_N3):
        raise ValueError(
            f"{key}={path}: every tile of {options.tile_size} pixels has more than "
            f"data.max_nodata={options.max_nodata:g} of nodata; raise it, or lower data.tile_size."
        )
    if total > len(corners_N3):
        notes += (f"{total - len(corners_N3):,} of {total:,} tiles left out for their nodata",)
    files = SceneTiles(
        scenes=found,
        names=names,
        tile_size=options.tile_size,
        corners_N3=corners_N3,
        labels=None if labels is None else labels[numbers],
    )
    rows = [(name, os.path.getsize(scene.path)) for name, scene in zip(names, found, strict=True)]
    told = (options.tile_size, options.bands, hashlib.sha256(corners_N3.tobytes()).hexdigest())
    digest = fingerprint([*rows, told])
    source = EncodedSource(files, channels, class_names, digest, options, notes)
    return check_one_decodes(source, f"{key}={path}")


def open_scenes(
    path: str, *, key: str, options: ReadOptions, is_ranged: bool = True
) -> tuple[tuple[Scene, ...], tuple[str, ...], tuple[str, ...]]:
    """(scenes, their names, notes) of a file or a folder, in bytewise order of the names.

    is_ranged: their values must have a range. Raises ValueError for no scenes, and for scenes whose
    bands differ in number or type.
    """
    root = checked_path(path, key, "a folder of scenes, or one scene")
    names: tuple[str, ...] = (os.path.basename(root),)
    notes: tuple[str, ...] = ()
    if os.path.isdir(root):
        walk = Walk(root, EXTENSIONS)
        names, notes = tuple(sorted(walk.sizes, key=os.fsencode)), walk.notes()
        if not names:
            raise ValueError(f"{key}={path} holds no scene, such as .{', .'.join(EXTENSIONS)}.")
    else:
        root = os.path.dirname(root)
    found = tuple(open_scene(os.path.join(root, name), options.bands) for name in names)
    for name, scene in zip(names, found, strict=True):
        for what, own, first in (
            ("bands", len(scene.bands), len(found[0].bands)),
            ("values", scene.dtype, found[0].dtype),
        ):
            if own != first:
                raise ValueError(
                    f"{key}={path}: {names[0]} has {first} {what}, {name} {own} {what}; give "
                    "scenes of one kind, or name the bands that all have with data.bands."
                )
        if is_ranged:
            scene.check_range(options.value_range, key="data.value_range")
    if unplaced := sum(not scene.crs for scene in found):
        notes += (f"{unplaced:,} of {len(found):,} scenes without a CRS",)
    return found, names, notes


def filled(values_HWC: np.ndarray, known_HW: np.ndarray) -> np.ndarray:
    """The same with the mean of the known pixels, by bands, where nothing is known."""
    if known_HW.all():
        return values_HWC
    means_C = values_HWC[known_HW].mean(axis=0, dtype=np.float64)
    if values_HWC.dtype.kind in "ui":
        means_C = np.rint(means_C)
    return np.where(known_HW[..., None], values_HWC, means_C.astype(values_HWC.dtype))


def _tiles(scene: Scene, options: ReadOptions) -> tuple[int, np.ndarray]:
    """(tiles of a scene, first pixels int32 [N, 2] of those that are known well enough)."""
    high, wide = (min(options.tile_size, side) for side in (scene.height, scene.width))
    corners = [
        (top, left)
        for top in starts(scene.height, high, high)
        for left in starts(scene.width, wide, wide)
    ]
    kept = corners
    if scene.has_nodata or scene.dtype.startswith("float"):
        least = (1 - options.max_nodata) * high * wide
        with scene.opened() as read:
            known = [np.count_nonzero(read((*corner, high, wide))[1]) for corner in corners]
        kept = [c for c, num in zip(corners, known, strict=True) if num >= max(least, 1)]
    return len(corners), np.array(kept, np.int32).reshape(-1, 2)


def _as_tiff(values_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    is_colour = values_HWC.shape[2] == 3 and values_HWC.dtype == np.uint8
    importlib.import_module("tifffile").imwrite(
        file,
        values_HWC[:, :, 0] if values_HWC.shape[2] == 1 else values_HWC,
        photometric="rgb" if is_colour else "minisblack",
        planarconfig=None if values_HWC.shape[2] == 1 else "contig",
        metadata=None,
    )
    return file.getvalue()
