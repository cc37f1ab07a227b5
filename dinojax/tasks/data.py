"""Images and their maps for a task: opened and checked, and the batch of any step."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.decode import ReadOptions
from dinojax.eval.dense_pixels import nearest, resized, short_side
from dinojax.eval.depth_transforms import DepthTrainTransform
from dinojax.eval.map_folder import MapFolder, has_maps, open_maps, read_map
from dinojax.eval.patch_maps import normalizer
from dinojax.eval.segmentation_metrics import IGNORE, reduce_zero
from dinojax.eval.segmentation_transforms import TrainTransform
from dinojax.tasks.order import order
from dinojax.tasks.settings import Settings

_LOOKED_AT = 20  # maps of depth whose range is looked at before training


@dataclasses.dataclass(frozen=True)
class TaskData:
    """What a head learns from, and what it is judged by (None: by nothing)."""

    task: str
    settings: Settings
    train: MapFolder
    val: MapFolder | None
    cut: Callable[..., tuple[np.ndarray, np.ndarray]]  # a random view of an image and its map

    @property
    def fingerprint(self) -> str:
        """Of images, and of the names and sizes of maps."""
        told = hashlib.sha256(self.train.images.fingerprint.encode())
        for path in self.train.maps:
            told.update(f"{path.name} {path.stat().st_size}\n".encode())
        return told.hexdigest()[:16]

    def truth(self, stored_HW: np.ndarray) -> np.ndarray:
        """Of a stored map: metres float32, or classes int64 with IGNORE where there is none."""
        own = self.settings
        if self.task == "segment":
            if own.zero_is_unlabelled:
                return reduce_zero(stored_HW)
            return stored_HW.astype(np.int64)
        whole = np.issubdtype(stored_HW.dtype, np.integer)
        return stored_HW.astype(np.float32) / np.float32(own.per_metre if whole else 1.0)

    @property
    def outputs(self) -> int:
        """Bins of metres, or classes of all maps."""
        return num_classes(self) if self.task == "segment" else self.settings.num_bins

    @property
    def told(self) -> dict[str, Any]:
        """What `task run` needs to know of the data."""
        return {}

    def batch(self, number: int) -> tuple[np.ndarray, None, np.ndarray]:
        """(normalised images [B, S, S, C], their sizes, truth [B, S, S]) of a step's number alone.

        sizes: None, as images fill their arrays.
        """
        size = self.settings.batch_size
        views = [self._view(position) for position in range(number * size, (number + 1) * size)]
        images, truth = (np.stack(parts) for parts in zip(*views, strict=True))
        return images, None, truth.astype(np.int32) if self.task == "segment" else truth

    def _view(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        own = self.settings
        epoch, place = divmod(position, len(self.train))
        index = order(own.seed, epoch, len(self.train))[place]
        pixels, stored = self.train.read(int(index))
        rng = np.random.default_rng([own.seed, 1, position])
        if self.task == "segment":
            return self.cut(pixels, stored, rng)
        height, width = stored.shape
        size = short_side(height, width, own.size)
        return self.cut(resized(pixels, size), nearest(self.truth(stored), size), rng)


def open_data(
    task: str, path: str, settings: Settings, preprocessing: Any, channels: int
) -> TaskData:
    """The folders train and val below `path`, or the folder itself with nothing to be judged by.

    Each holds images/ and maps/. Raises ConfigError, naming folder, file and key, for a layout,
    labels or metres that do not fit.
    """
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(f"--data {path} is no folder.")
    if len(settings.value_range) not in (0, 2, 2 * channels):
        raise ConfigError(
            f"value_range has {len(settings.value_range) // 2} pairs for the {channels} channels "
            "of the backbone; give one pair, or one for each."
        )
    folders = [root / "train", root / "val"] if (root / "train").is_dir() else [root]
    read = ReadOptions(value_range=settings.value_range)
    train = open_maps(str(folders[0]), channels=channels, key="--data", options=read)
    val = None
    if len(folders) > 1 and has_maps(str(folders[1])):
        val = open_maps(str(folders[1]), channels=channels, key="--data", options=read)
    if not len(train):
        raise ConfigError(f"--data {path} holds no images.")
    data = TaskData(task, settings, train, val, _cut(task, settings, preprocessing))
    if task != "segment":
        _check_metres(data)
    return data


def _cut(task: str, settings: Settings, preprocessing: Any):
    normalize = normalizer(preprocessing)
    if task == "segment":
        return TrainTransform(
            settings.size,
            settings.size,
            normalize,
            zero_is_unlabelled=settings.zero_is_unlabelled,
        )
    # What a turn leaves open is 0: no depth known, but a height.
    angle = 0.0 if task == "canopy" else 2.5
    return DepthTrainTransform((settings.size, settings.size), normalize, angle=angle)


def num_classes(data: TaskData) -> int:
    """Of all maps. Raises ConfigError for a label that num_classes does not allow."""
    asked, largest = data.settings.num_classes, 0
    for folder in (data.train, data.val):
        for path in () if folder is None else folder.maps:
            stored = read_map(path)
            if not np.issubdtype(stored.dtype, np.integer):
                raise ConfigError(f"{path}: labels are whole numbers; this map is {stored.dtype}.")
            labels = data.truth(stored)
            known = labels[labels != IGNORE]
            if known.size and (known.min() < 0 or (asked and known.max() >= asked)):
                raise ConfigError(
                    f"{path}: labels run from {known.min()} to {known.max()}; with num_classes="
                    f"{asked} they must be in 0..{asked - 1}, or {IGNORE} where there is none."
                )
            largest = max(largest, int(known.max(initial=0)))
    return asked or largest + 1


def _check_metres(data: TaskData) -> None:
    own, low, high, known = data.settings, np.inf, -np.inf, 0
    for path in data.train.maps[:_LOOKED_AT]:
        metres = data.truth(read_map(path))
        finite = metres[np.isfinite(metres)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        known += int(np.sum((finite > own.min_depth) & (finite < own.max_depth)))
    if not known:
        raise ConfigError(
            f"{data.train.maps[0].parent}: the maps run from {low:g} to {high:g} m, none of it "
            f"between min_depth={own.min_depth:g} and max_depth={own.max_depth:g}. Is "
            f"per_metre={own.per_metre:g} what whole numbers hold for a metre?"
        )
