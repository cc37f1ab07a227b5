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
    objects = _rows(truth.class_N, truth.image_N, np.zeros(len(truth.class_N)))
    found = _rows(detected.class_N, detected.image_N, -detected.score_N)
    for number, name in enumerate(classes):
        matched = list(_by_image(truth, detected, objects.get(name, {}), found.get(name, {})))
        for area in range(len(AREAS)):
            if not (total := sum(int(m[3][area]) for m in matched)):
                continue
            own = [(score_D, hit[area], ignored[area]) for score_D, hit, ignored, _ in matched]
            for column, count in enumerate(COUNTS):
                curve, share = _curve(own, count, total)
                recall[:, number, area, column] = share
            precision[:, :, number, area] = curve
    return Precision(precision, recall)


def _rows(class_N, image_N, rank_N) -> dict[Any, dict[Any, np.ndarray]]:
    """Rows of each class and image that has any, least rank first, of equal ones the earlier."""
    order_N = np.lexsort((rank_N, image_N, class_N))
    pairs = np.stack([class_N[order_N], image_N[order_N]])
    starts = np.flatnonzero(np.any(np.diff(pairs), axis=0)) + 1
    found: dict[Any, dict[Any, np.ndarray]] = {}
    for rows in np.split(order_N, starts) if len(order_N) else ():
        found.setdefault(class_N[rows[0]], {})[image_N[rows[0]]] = rows
    return found


def _by_image(truth: Truth, detected: Detected, objects: dict, found: dict):
    """What `_matched` says of each image, of one class: rows of its objects and detections."""
    none = np.zeros(0, int)
    for image in sorted({*objects, *found}):
        own, rows = objects.get(image, none), found.get(image, none)[: COUNTS[-1]]
        crowd_G = truth.crowd_N[own].astype(bool)
        sides = truth.boxes_N4[own], truth.area_N[own], crowd_G
        yield _matched(sides, (detected.boxes_N4[rows], detected.score_N[rows]))


def _matched(objects, found):
    """(scores [D], hit [4, 10, D], ignored [4, 10, D], how many objects count [4]), by area."""
    (boxes_G4, area_G, crowd_G), (boxes_D4, score_D) = objects, found
    low_A1, high_A1 = np.array(list(AREAS.values())).T[:, :, None]
    ignored_A1G = (crowd_G | (area_G < low_A1) | (area_G > high_A1))[:, None]
    overlap_DG = overlaps(boxes_D4, boxes_G4, crowd_G)
    hit = np.zeros((len(AREAS), len(THRESHOLDS), len(score_D)), bool)
    ignored = np.zeros_like(hit)
    taken_ATG = np.zeros((*hit.shape[:2], len(area_G)), bool)
    near = overlap_DG.max(axis=1, initial=0) >= THRESHOLDS[0]
    for d in np.flatnonzero(near):
        reached_TG = overlap_DG[d] >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
        open_ATG = reached_TG & (~taken_ATG | crowd_G)
        # An object that counts goes before those that do not, whatever their overlap.
        chosen_ATG = open_ATG & ~ignored_A1G
        chosen_ATG = np.where(chosen_ATG.any(axis=-1, keepdims=True), chosen_ATG, open_ATG)
        shown_ATG = np.where(chosen_ATG, overlap_DG[d], -1)
        g_AT = len(area_G) - 1 - np.argmax(shown_ATG[..., ::-1], axis=-1)  # of equal ones the last
        a, t = np.nonzero(chosen_ATG.any(axis=-1))
        g = g_AT[a, t]
        hit[a, t, d], taken_ATG[a, t, g], ignored[a, t, d] = (True, True, ignored_A1G[a, 0, g])
    size_D = boxes_D4[:, 2] * boxes_D4[:, 3]
    ignored |= ~hit & ((size_D < low_A1) | (size_D > high_A1))[:, None]
    return score_D, hit, ignored, np.sum(~ignored_A1G[:, 0], axis=-1)


def overlaps(boxes_D4: np.ndarray, boxes_G4: np.ndarray, crowd_G: np.ndarray) -> np.ndarray:
    """Intersection over union [D, G]; over the detection's own area where the truth is a crowd."""
    low = np.maximum(boxes_D4[:, None, :2], boxes_G4[None, :, :2])
    high = np.minimum(
        boxes_D4[:, None, :2] + boxes_D4[:, None, 2:], (boxes_G4[:, :2] + boxes_G4[:, 2:])[None]
    )
    shared_DG = np.prod(np.maximum(high - low, 0), axis=-1)
    size_D1, size_G = (np.prod(boxes_D4[:, 2:], axis=1)[:, None], np.prod(boxes_G4[:, 2:], axis=1))
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
