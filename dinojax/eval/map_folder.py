"""A folder of images and their maps, of labels or of depth: `images/NAME.jpg`, `maps/NAME.png`."""

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data.decode import PLAIN, DecodeError, ReadOptions
from dinojax.data.example import Source
from dinojax.data.folder import FolderFiles
from dinojax.data.sources import SOURCES

IMAGES, MAPS = "images", "maps"
SUFFIXES = (".png", ".npy", ".tif", ".tiff")  # of maps, whatever that of the image


@dataclasses.dataclass(frozen=True)
class MapFolder:
    """Images in the order of their names, each with the file of its map."""

    images: Source
    maps: tuple[Path, ...]

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


def has_maps(path: str) -> bool:
    return bool(path) and (Path(path) / IMAGES).is_dir() and (Path(path) / MAPS).is_dir()


def open_maps(path: str, *, channels: int, key: str) -> MapFolder:
    """The folder at a path; `key` is what messages name.

    Raises ConfigError for a folder of another layout and for images without a map.
    """
    root = Path(path)
    if not has_maps(path):
        raise ConfigError(
            f"{key}={path} must hold the folders {IMAGES} and {MAPS}: {IMAGES}/NAME.jpg with"
            f" {MAPS}/NAME.png (or {', '.join(SUFFIXES[1:])}) of the same size."
        )
    keys = f"{key}/{IMAGES}", f"{key}/{MAPS}"
    return pair_of(str(root / IMAGES), str(root / MAPS), channels=channels, keys=keys)


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
