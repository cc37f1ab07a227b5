"""A folder of images and their maps, of labels or of depth: `images/NAME.jpg`, `maps/NAME.png`.

Or a public data set in the layout of its authors (layouts.py).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data.decode import PLAIN, DecodeError, ReadOptions
from dinojax.data.example import Source
from dinojax.data.folder import FolderFiles
from dinojax.data.sources import SOURCES
from dinojax.eval import layout_files
from dinojax.eval.segmentation_metrics import IGNORE

IMAGES, MAPS = "images", "maps"
SUFFIXES = (".png", ".npy", ".tif", ".tiff")  # of maps, whatever that of the image


@dataclasses.dataclass(frozen=True)
class MapFolder:
    """Images in the order of their names, each with the file of its map."""

    images: Source
    maps: tuple[Path, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of a layout

    def __len__(self) -> int:
        return len(self.maps)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(pixels uint8 [H, W, C], map [H, W] as stored).

        Raises DecodeError, naming the file, for a map that cannot be read or is of another size.
        """
        pixels, values = self.images[index].pixels, read_map(self.maps[index])
        if values.shape != pixels.shape[:2]:
            raise DecodeError(
                f"{self.maps[index]}: the map is {values.shape[0]} x {values.shape[1]}, its image"
                f" {pixels.shape[0]} x {pixels.shape[1]}; they must be of one size."
            )
        return pixels, values

    def known(self, section: Any, *keys: str) -> Any:
        """A section whose keys have the values that a layout states, where it states them."""
        own = {key: self.facts[key] for key in keys if key in self.facts}
        return type(section)(**(vars(section) | own))

    def check_labels(self, index: int, labels_HW: np.ndarray, num_classes: int) -> None:
        """Raise DecodeError, naming the map, for labels that no class has."""
        valid = labels_HW[labels_HW != IGNORE]
        if valid.size and not 0 <= valid.min() <= valid.max() < num_classes:
            raise DecodeError(
                f"{self.maps[index]}: its labels run from {valid.min()} to {valid.max()}; with"
                f" {num_classes} classes they must be in 0..{num_classes - 1}, or {IGNORE} ="
                " ignored."
            )


def has_maps(path: str, kind: str = "maps") -> bool:
    """Whether a path is such a folder, or names a layout of this kind: maps (labels) or depth."""
    if layout_files.is_layout(path):
        return layout_files.kind_of(path) == kind
    return bool(path) and (Path(path) / IMAGES).is_dir() and (Path(path) / MAPS).is_dir()


def open_maps(
    path: str,
    *,
    channels: int,
    key: str,
    kind: str = "maps",
    learn: bool = True,
    options: ReadOptions = PLAIN,
) -> MapFolder:
    """The folder or the layout at a path; `key` is what messages name.

    kind: of a layout, maps or depth; learn: of one without a split, that to learn from. options: of
    a folder, how its images become pixels. Raises ConfigError for a folder of another layout and
    for images without a map.
    """
    if layout_files.is_layout(path):
        files = layout_files.find(path, key=key, kind=kind, learn=learn)
        source = layout_files.source_of(files, channels=channels, key=key)
        maps = tuple(files.root / name for name in files.maps)
        return MapFolder(source, maps, files.layout.facts)
    root = Path(path)
    if not has_maps(path):
        raise ConfigError(
            f"{key}={path} must hold the folders {IMAGES} and {MAPS}: {IMAGES}/NAME.jpg with"
            f" {MAPS}/NAME.png (or {', '.join(SUFFIXES[1:])}) of the same size."
        )
    keys = f"{key}/{IMAGES}", f"{key}/{MAPS}"
    folders = str(root / IMAGES), str(root / MAPS)
    return pair_of(*folders, channels=channels, keys=keys, options=options)


def pair_of(
    images: str,
    maps: str,
    *,
    channels: int,
    keys: tuple[str, str],
    options: ReadOptions = PLAIN,
) -> MapFolder:
    """The images of one folder with the maps of another, named alike but for their suffixes.

    keys: of the two, for messages. Raises ConfigError for images without a map.
    """
    where: dict[str, Any] = {"path": images, "key": keys[0], "options": options}
    source: Any = SOURCES["folder"](channels=channels, **where)
    assert isinstance(source.files, FolderFiles)
    names = source.files.names
    found = [_map_of(Path(maps), name) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise ConfigError(
            f"{keys[1]}={maps}: {len(missing)} of {len(names)} images have no map; the first is"
            f" {missing[0]}, for which this folder should hold the same name with one of"
            f" {', '.join(SUFFIXES)}."
        )
    return MapFolder(source, tuple(path for path in found if path is not None))


def _map_of(folder: Path, name: str) -> Path | None:
    for suffix in SUFFIXES:
        found = folder / PurePosixPath(name).with_suffix(suffix)
        if found.is_file():
            return found
    return None


def read_map(path: Path) -> np.ndarray:
    """A map [H, W]: indexes of a palette, grey values of 8 or 16 bits, floats; no code is run."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                values = np.asarray(picture)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DecodeError(f"{path}: this map cannot be read: {error}") from error
    if values.ndim != 2:
        raise DecodeError(f"{path}: a map has one value per pixel; this file is {values.shape}.")
    return values
