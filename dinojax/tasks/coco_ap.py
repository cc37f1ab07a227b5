"""Average precision and recall of boxes as COCO counts them.

Lin et al., arXiv:1405.0312, and the rules of pycocotools 2.0.11, to whose digits it agrees.
"""

import dataclasses
from typing import Any

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of overlap
_RECALLS = np.linspace(0.0, 1.0, 101)
COUNTS = (1, 10, 100)  # surest detections of a class and image that count
AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


@dataclasses.dataclass(frozen=True)
class Truth:
    """Objects of all images, N rows. Boxes are (left, top, width, height) in pixels."""

    image_N: np.ndarray
    class_N: np.ndarray
    boxes_N4: np.ndarray
    area_N: np.ndarray  # of the object, which is not that of its box
    crowd_N: np.ndarray  # true: many objects, of which a detection may show a part


@dataclasses.dataclass(frozen=True)
class Detected:
    """Detections of all images, N rows; of equal scores the earlier row comes first."""

    image_N: np.ndarray
    class_N: np.ndarray
    boxes_N4: np.ndarray
    score_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class Precision:
    """precision [10, 101, K, 4 areas] and recall [10, K, 4 areas, 3 counts]; -1 without truth."""

    precision: np.ndarray
    recall: np.ndarray

    def summary(self) -> dict[str, float]:
        """The twelve numbers of COCO, shares of 1; -1 where nothing is there to be found."""
        large: dict[str, tuple[int, Any]] = {"ap": (0, slice(None)), "ap50": (0, 0), "ap75": (0, 5)}
        large |= {f"ap_{name}": (n, slice(None)) for n, name in enumerate(AREAS) if n}
        found = {name: _mean(self.precision[t][..., area]) for name, (area, t) in large.items()}
        for number, count in enumerate(COUNTS):
            found[f"ar{count}"] = _mean(self.recall[:, :, 0, number])
        for number, name in enumerate(AREAS):
            if number:
                found[f"ar_{name}"] = _mean(self.recall[:, :, number, -1])
        return found


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def average_precision(truth: Truth, detected: Detected, classes: np.ndarray) -> Precision:
    """Of these classes, whose numbers may be any."""
    num = len(THRESHOLDS), len(_RECALLS), len(classes), len(AREAS)
    precision = -np.ones(num)
    recall = -np.ones((num[0], *num[2:], len(COUNTS)))
    for number, name in enumerate(classes):
        pairs = list(_by_image(truth, detected, name))
        for area, bounds in enumerate(AREAS.values()):
            matched = [_matched(objects, found, bounds) for objects, found in pairs]
            if not (total := sum(m[3] for m in matched)):
                continue
            for column, count in enumerate(COUNTS):
                curve, share = _curve([m[:3] for m in matched], count, total)
                recall[:, number, area, column] = share
            precision[:, :, number, area] = curve
    return Precision(precision, recall)


def _by_image(truth: Truth, detected: Detected, name):
    """Of one class and each image: (rows of the truth, those of the surest detections)."""
    own, found = truth.class_N == name, detected.class_N == name
    for image in np.unique(np.concatenate([truth.image_N[own], detected.image_N[found]])):
        objects = np.flatnonzero(own & (truth.image_N == image))
        rows = np.flatnonzero(found & (detected.image_N == image))
        rows = rows[np.argsort(-detected.score_N[rows], kind="stable")][: COUNTS[-1]]
        yield (
            (truth.boxes_N4[objects], truth.area_N[objects], truth.crowd_N[objects].astype(bool)),
            (detected.boxes_N4[rows], detected.score_N[rows]),
        )


def _matched(objects, found, bounds: tuple[float, float]):
    """(scores [D], hit [10, D], ignored [10, D], number of objects that count)."""
    (boxes_G4, area_G, crowd_G), (boxes_D4, score_D) = objects, found
    ignored_G = crowd_G | (area_G < bounds[0]) | (area_G > bounds[1])
    order = np.argsort(ignored_G, kind="stable")  # those that count come first
    ignored_G, crowd_G = ignored_G[order], crowd_G[order]
    overlap_DG = overlaps(boxes_D4, boxes_G4[order], crowd_G)
    hit = np.zeros((len(THRESHOLDS), len(score_D)), bool)
    ignored = np.zeros_like(hit)
    taken_TG = np.zeros((len(THRESHOLDS), len(ignored_G)), bool)
    for d, overlap_G in enumerate(overlap_DG):
        for t, least in enumerate(THRESHOLDS):
            open_G = (overlap_G >= min(least, 1 - 1e-10)) & (~taken_TG[t] | crowd_G)
            # An object that counts goes before those that do not, whatever their overlap.
            chosen_G = open_G & ~ignored_G
            chosen_G = chosen_G if chosen_G.any() else open_G
            if not chosen_G.any():
                continue
            shown_G = np.where(chosen_G, overlap_G, -1)
            g = len(shown_G) - 1 - int(np.argmax(shown_G[::-1]))  # of equal ones the last
            hit[t, d], taken_TG[t, g], ignored[t, d] = True, True, ignored_G[g]
    size_D = boxes_D4[:, 2] * boxes_D4[:, 3]
    ignored |= ~hit & ((size_D < bounds[0]) | (size_D > bounds[1]))[None]
    return score_D, hit, ignored, int(np.sum(~ignored_G))


def overlaps(boxes_D4: np.ndarray, boxes_G4: np.ndarray, crowd_G: np.ndarray) -> np.ndarray:
    """Intersection over union [D, G]; over the detection's own area where the truth is a crowd."""
    low = np.maximum(boxes_D4[:, None, :2], boxes_G4[None, :, :2])
    high = np.minimum(
        boxes_D4[:, None, :2] + boxes_D4[:, None, 2:], (boxes_G4[:, :2] + boxes_G4[:, 2:])[None]
    )
    shared_DG = np.prod(np.maximum(high - low, 0), axis=-1)
    size_D1, size_G = np.prod(boxes_D4[:, 2:], axis=1)[:, None], np.prod(boxes_G4[:, 2:], axis=1)
    union_DG = np.where(crowd_G, size_D1, size_D1 + size_G - shared_DG)
    return shared_DG / np.maximum(union_DG, np.finfo(float).tiny)


def _curve(matched, count: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """(precision [10, 101] at each recall, the largest recall [10])."""
    score_N = np.concatenate([score[:count] for score, _, _ in matched])
    order = np.argsort(-score_N, kind="stable")
    hit, ignored = (
        np.concatenate([m[part][:, :count] for m in matched], axis=1)[:, order] for part in (1, 2)
    )
    right = np.cumsum(hit & ~ignored, axis=1, dtype=float)
    wrong = np.cumsum(~hit & ~ignored, axis=1, dtype=float)
    recall, precision = right / total, right / (right + wrong + np.spacing(1))
    # Never less than at a larger recall.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    curve = np.zeros((len(THRESHOLDS), len(_RECALLS)))
    for t in range(len(THRESHOLDS)):
        place = np.searchsorted(recall[t], _RECALLS, side="left")
        reached = place < recall.shape[1]
        curve[t, reached] = precision[t, place[reached]]
    return curve, recall[:, -1] if recall.shape[1] else np.zeros(len(THRESHOLDS))
