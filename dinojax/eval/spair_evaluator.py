"""Keypoints of objects found in other objects of their class: SPair-71k (Min et al. 2019).

Below `spair.path` lie JPEGImages/CLASS/ and PairAnnotation/{trn,val,test}/ as published. DINOv3,
arXiv:2508.10104, D.3, as Probe3D evaluates it: images are filled up with white to squares, a
keypoint goes to its most similar patch, and a class's share counts all of its keypoints alike.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data import fields
from dinojax.data.example import Source
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.correspondence import keypoint_errors
from dinojax.eval.listed import listed
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, patch_maps, values_of
from dinojax.weights import pixels

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "path": {"default": "", "says": "folder of JPEGImages/ and PairAnnotation/; [ours]"},
    "split": {
        "default": "test",
        "says": "of the pairs: trn | val | test; [P]",
        "choices": ("trn", "val", "test"),
    },
    "per_class": {
        "default": 0,
        "says": "pairs of a class, drawn by a fixed seed; 0 = all; [ours]",
        "limits": (0, None),
    },
    "size": {"default": 1024, "says": "pixels of the square; [P] D.3", "limits": (8, 16_384)},
    "threshold": {
        "default": 0.1,
        "says": "of the distance, as a share of the box's longer side; [P]",
        "limits": (1e-6, 10),
    },
}
PROTOCOLS = {"paper": {"size": 1024, "threshold": 0.1}, "quick": {"size": 512, "per_class": 20}}
NUM = {"trn": 53_340, "val": 5_384, "test": 12_234}  # pairs, as published
TERMS = "SPair-71k, whose images are PASCAL's; see https://cvlab.postech.ac.kr/research/SPair-71k/"
SEED = 20  # of the pairs of a class
KEPT = 32  # images whose patches are held


@dataclasses.dataclass(frozen=True)
class Pair:
    """Keypoints [K, 2] (x, y) in pixels as stored; images by index. box: longer side, of right."""

    kind: str
    left: int
    right: int
    left_K2: np.ndarray
    right_K2: np.ndarray
    box: float


@dataclasses.dataclass(frozen=True)
class Keypoints:
    """Fields: the images, the pairs, and the section `spair`."""

    images: Source
    pairs: tuple[Pair, ...]
    section: Any
    transform: Any
    patch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.images,)

    def measure(self, network: Network) -> Measured:
        """Columns spair/pck, the mean over classes, and spair/CLASS, in percent of keypoints."""
        patches = functools.lru_cache(maxsize=KEPT)(functools.partial(self._patches, network))
        size, rows = self.section.size, []
        kinds = sorted({pair.kind for pair in self.pairs})
        for pair in self.pairs:
            (left, per_left), (right, per_right) = patches(pair.left), patches(pair.right)
            found = keypoint_errors(
                left,
                right,
                _seen(pair.left_K2 * per_left),
                _seen(pair.right_K2 * per_right),
                image_size=size,
                scale=pair.box * per_right / size,
            )
            hits = int(np.sum(found.error < self.section.threshold))
            rows.append((kinds.index(pair.kind), hits, len(found.error)))
        rows_N3 = np.array(rows)
        values = {
            f"spair/{kind}": _share(rows_N3[rows_N3[:, 0] == number])
            for number, kind in enumerate(kinds)
        }
        values["spair/pck"] = _over_classes(rows_N3)
        told = f"{len(self.pairs)} pairs of {len(kinds)} classes, {rows_N3[:, 2].sum()} keypoints"
        return Measured(
            values,
            num=len(self.pairs),
            told=told,
            samples={"spair/pck": rows_N3},
            statistic=_over_classes,
        )

    def _patches(self, network: Network, index: int) -> tuple[np.ndarray, float]:
        """(patches [h, w, D], pixels seen per pixel stored)."""
        stored = self.images[index].pixels
        height, width, channels = stored.shape
        side = max(height, width)
        square = np.full((side, side, channels), 255, np.uint8)
        square[:height, :width] = stored
        size = self.section.size
        large = pixels.resized(square, "exact", (size, size), "bilinear")
        seen = as_seen(self.transform, large)[None]
        maps = patch_maps(network, seen, patch_size=self.patch_size, batch_size=1)
        return maps[0], size / side


def _seen(places_K2: np.ndarray) -> np.ndarray:
    """With a third column: a pair lists the keypoints alone that both images show."""
    return np.concatenate([places_K2, np.ones((len(places_K2), 1))], axis=1)


def _share(rows_N3: np.ndarray) -> float:
    return 100.0 * float(rows_N3[:, 1].sum() / rows_N3[:, 2].sum())


def _over_classes(rows_N3: np.ndarray) -> float:
    return float(np.mean([_share(rows_N3[rows_N3[:, 0] == n]) for n in np.unique(rows_N3[:, 0])]))


def open_pairs(section: Any, channels: int) -> tuple[Source, list[Pair]]:
    """(images, pairs in the order of their files).

    Raises ConfigError for a folder without pairs and the first image that is not there, ValueError
    naming the annotation that holds something else.
    """
    root = Path(section.path)
    folder = root / "PairAnnotation" / section.split
    names = sorted(p.name for p in folder.glob("*.json")) if folder.is_dir() else []
    if not names:
        raise ConfigError(f"spair.path={root}: {folder} holds no pairs; is it the root?")
    rows, places = [], dict[str, int]()
    for name in names:
        path = folder / name
        content = fields.read(path, foreign=True)
        get = functools.partial(fields.field, content, where=path)
        kind = get("category", str)
        files = [f"{kind}/{get(key, str)}" for key in ("src_imname", "trg_imname")]
        left, right = (np.array(get(key, [[float]]), float) for key in ("src_kps", "trg_kps"))
        box = np.array(get("trg_bndbox", [float]))
        if left.shape != right.shape or left.ndim != 2 or len(box) != 4:
            raise ValueError(
                f"{path}: keypoints {left.shape} in one image and {right.shape} in the other."
            )
        one, other = (places.setdefault(file, len(places)) for file in files)
        longer = float(max(box[2] - box[0], box[3] - box[1]))
        rows.append(Pair(kind, one, other, left, right, longer))
    images = listed(root / "JPEGImages", list(places), channels)
    notes = [f"{TERMS}"]
    if len(rows) != NUM[section.split]:
        notes.append(f"SPair-71k, {section.split}: {len(rows):,} pairs found, "
                     f"{NUM[section.split]:,} published")  # fmt: skip
    return dataclasses.replace(images, notes=tuple(notes)), rows


def build(section, setting: Setting) -> Keypoints | None:
    section = values_of(section, KEYS)
    if not section.path:
        return None
    if section.size % setting.patch_size:
        raise ConfigError(
            f"spair.size={section.size} is no multiple of the patch of {setting.patch_size} pixels."
        )
    images, pairs = open_pairs(section, setting.config.image.channels)
    if section.per_class:
        rng, chosen = np.random.default_rng(SEED), []
        for kind in sorted({pair.kind for pair in pairs}):
            own = [number for number, pair in enumerate(pairs) if pair.kind == kind]
            chosen += sorted(rng.permutation(own)[: section.per_class].tolist())
        pairs = [pairs[number] for number in chosen]
    return Keypoints(images, tuple(pairs), section, setting.transform, setting.patch_size)
