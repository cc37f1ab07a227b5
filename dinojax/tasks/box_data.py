"""Images with boxes for a detector: opened and checked, and the batch of any step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.eval.patch_maps import normalizer
from dinojax.tasks import box_views
from dinojax.tasks.box_views import View
from dinojax.tasks.coco_boxes import BoxFile, find, open_boxes
from dinojax.tasks.detection_losses import Targets
from dinojax.tasks.order import order
from dinojax.tasks.settings import Settings


@dataclasses.dataclass(frozen=True)
class BoxData:
    """What a detector learns from, and what it is judged by (None: by nothing)."""

    settings: Settings
    patch_size: int
    train: BoxFile
    val: BoxFile | None
    normalize: Callable[[np.ndarray], np.ndarray]

    @property
    def fingerprint(self) -> str:
        return self.train.fingerprint

    @property
    def outputs(self) -> int:
        """Classes: all that the file lists, in the order of their ids."""
        return len(self.train.classes)

    @property
    def told(self) -> dict[str, Any]:
        """What `task run` needs to know of the data."""
        return {"classes": [list(pair) for pair in self.train.classes]}

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray, Targets]:
        """(normalised images [B, S, S, C], their (height, width) in it [B, 2], objects).

        Of the step's number alone. Images lie at the top left; what is beyond them is 0.
        """
        own, views = self.settings, []
        for position in range(number * own.batch_size, (number + 1) * own.batch_size):
            epoch, place = divmod(position, len(self.train))
            index = int(order(own.seed, epoch, len(self.train))[place])
            rng = np.random.default_rng([own.seed, 1, position])
            sizes = max(round(own.scale * own.size), self.patch_size), own.size
            whole, labels = self._whole(index)
            view = box_views.draw(whole, rng, sizes, self.patch_size)
            views.append((view, labels[view.kept_N]))
        pixels = [view.pixels_HWC for view, _ in views]
        return *padded(pixels, own.size, self.normalize), self._targets(views)

    def _whole(self, index: int) -> tuple[View, np.ndarray]:
        rows = self.train.objects(index)
        real = ~self.train.crowd_N[rows]
        boxes_N4 = self.train.boxes_N4[rows][real]
        corners = np.concatenate([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]], axis=1)
        view = View(self.train.pixels(index), corners, np.arange(len(corners)))
        return view, self.train.class_N[rows][real]

    def _targets(self, views) -> Targets:
        most = max(self.train.most[0], 1)
        labels_BT = np.zeros((len(views), most), np.int32)
        boxes_BT4 = np.zeros((len(views), most, 4), np.float32)
        count_B = np.zeros(len(views), np.int32)
        for number, (view, labels) in enumerate(views):
            low, high = view.corners_N4[:, :2], view.corners_N4[:, 2:]
            count_B[number] = count = len(labels)
            labels_BT[number, :count] = labels
            boxes_BT4[number, :count] = np.concatenate([(low + high) / 2, high - low], axis=1)
        return Targets(labels_BT, boxes_BT4, count_B)  # type: ignore[arg-type]


def seen_whole(pixels_HWC: np.ndarray, size: int, patch_size: int) -> np.ndarray:
    """An image with its long side at `size`, in whole patches."""
    height, width = pixels_HWC.shape[:2]
    view = View(pixels_HWC, np.zeros((0, 4)), np.zeros(0, int))
    wanted = box_views.long_side(height, width, size, patch_size)
    return box_views.scaled(view, wanted).pixels_HWC


def padded(
    pixels: list[np.ndarray], size: int, normalize: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(normalised images [B, size, size, C], their (height, width) [B, 2]); 0 beyond them."""
    whole = np.zeros((len(pixels), size, size, pixels[0].shape[2]), np.float32)
    for image, own in zip(whole, pixels, strict=True):
        image[: own.shape[0], : own.shape[1]] = normalize(own.astype(np.float32) / 255)
    return whole, np.array([own.shape[:2] for own in pixels], np.int32)


def open_boxes_of(
    path: str, settings: Settings, preprocessing: Any, *, channels: int, patch_size: int
) -> BoxData:
    """Raises ConfigError, naming files, ids and keys, for data that do not fit."""
    files = find(path)
    options: dict[str, Any] = {"channels": channels, "leave_out": settings.leave_out}
    train = open_boxes(*files["train"], **options)
    val = open_boxes(*files["val"], **options) if "val" in files else None
    if val is not None and (other := [pair for pair in val.classes if pair not in train.classes]):
        raise ConfigError(
            f"{val.where} has the category {other[0]}, which {train.where} does not have."
        )
    most, name = train.most
    need = {"queries": most, "many_queries": most * settings.copies if settings.many_queries else 0}
    for key, number in need.items():
        if getattr(settings, key) < number:
            raise ConfigError(
                f"{train.where}: {name} has {most} objects, for which {key} must be at least "
                f"{number}; it is {getattr(settings, key)}."
            )
    return BoxData(settings, patch_size, train, val, normalizer(preprocessing))
