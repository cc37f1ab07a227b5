"""Boxes of whole images by a detector, and COCO's average precision of them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dinojax.eval.patch_maps import normalizer
from dinojax.tasks import coco_ap
from dinojax.tasks.box_data import BoxData, padded, seen_whole
from dinojax.tasks.coco_boxes import BoxFile
from dinojax.tasks.detr import detected
from dinojax.tasks.network import HeadSpec, TaskNetwork
from dinojax.viz.box_lines import Boxes, box_lines
from dinojax.viz.label_colors import side_by_side

PICTURES = 4  # images of a sheet
SHOWN = 0.3  # least score of a box that is drawn
_SIDE = 320  # pixels of a picture on a sheet


def boxes_of(
    network: TaskNetwork, variables: dict[str, Any], images: Sequence[np.ndarray]
) -> list[Boxes]:
    """The surest boxes of images uint8 [H, W, C], in their pixels, by falling score.

    Each goes whole through the backbone (and in windows, where the head was trained so), its long
    side at the size of training; as many at once as in a batch of training, the last ones repeated.
    """
    own, found = network.settings, []
    patch_size, num = network.backbone.spec.patch_size, own.queries * network.outputs
    normalize = normalizer(network.backbone.preprocessing)
    for first in range(0, len(images), own.batch_size):
        part = images[first : first + own.batch_size]
        pixels = [seen_whole(image, own.size, patch_size) for image in part]
        pixels += [pixels[-1]] * (own.batch_size - len(part))
        seen, sizes_B2 = padded(pixels, own.size, normalize)
        originals = [image.shape[:2] for image in part]
        originals += [originals[-1]] * (own.batch_size - len(part))
        given = network.spec.needed(seen, sizes_B2), network.features(seen)
        count = min(own.num_boxes, num)
        told = _detect(network.spec, count, variables, *given, np.array(originals, np.int32))
        scores, classes, corners = (np.asarray(x) for x in told)
        found += [Boxes(*rows) for rows in zip(corners, classes, scores, strict=True)][: len(part)]
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _detect(spec: HeadSpec, count: int, variables, needed, features, originals_B2):
    told: Any = spec.module.apply(variables, *spec.inputs(needed, features), train=False)
    return detected(told.layers[-1], needed, originals_B2, count=count)


def judge_boxes(network: TaskNetwork, variables: dict[str, Any], data: BoxData):
    """(ap, ap50 and the ten others of COCO in percent, -1 for what the truth does not hold; a
    sheet: truth, prediction)."""
    assert data.val is not None
    truth, rows, shown = data.val, [], []
    ids = np.array([number for number, _ in data.train.classes])
    step = data.settings.batch_size
    for first in range(0, len(truth), step):
        indexes = range(first, min(first + step, len(truth)))
        images = [truth.pixels(index) for index in indexes]
        for index, pixels, found in zip(
            indexes, images, boxes_of(network, variables, images), strict=True
        ):
            rows.append((np.full(len(found.score_N), index), ids[found.class_N], found))
            if index < PICTURES:
                sure = found.above(SHOWN)._replace(class_N=ids[found.above(SHOWN).class_N])
                pair = (box_lines(pixels, _own(truth, index)), box_lines(pixels, sure))
                shown.append(pair)
    detections = coco_ap.Detected(
        np.concatenate([image for image, _, _ in rows]),
        np.concatenate([classes for _, classes, _ in rows]),
        np.concatenate([found.sides_N4 for _, _, found in rows]),
        np.concatenate([found.score_N for _, _, found in rows]),
    )
    summary = average_precision(truth, detections)
    values = {name: value if value == -1 else 100 * value for name, value in summary.items()}
    return values, side_by_side(shown, side=_SIDE)


def average_precision(truth: BoxFile, detections: coco_ap.Detected) -> dict[str, float]:
    """COCO's twelve numbers; images by their row in the file, classes by their id."""
    ids = np.array([number for number, _ in truth.classes])
    objects = coco_ap.Truth(
        truth.image_N, ids[truth.class_N], truth.boxes_N4, truth.area_N, truth.crowd_N
    )
    return coco_ap.average_precision(objects, detections, ids).summary()


def _own(truth: BoxFile, index: int) -> Boxes:
    """The objects of an image, classes by their id."""
    rows = truth.objects(index)
    boxes_N4 = truth.boxes_N4[rows]
    corners = np.concatenate([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]], axis=1)
    ids = np.array([number for number, _ in truth.classes])
    return Boxes(corners, ids[truth.class_N[rows]], np.ones(len(corners)))
