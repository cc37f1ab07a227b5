"""Losses of a detector: every target is matched with one query, and the others say nothing.

DETR, arXiv:2005.12872; Plain-DETR, arXiv:2308.01904, whose boxes are changes of proposals; as in
DINOv3, arXiv:2508.10104, D.9.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dinojax.models.layers import wide
from dinojax.tasks import boxes
from dinojax.tasks.assignment import assign

_ALPHA, _GAMMA, _EPS = 0.25, 2.0, 1e-8  # focal loss, Lin et al., arXiv:1708.02002
WEIGHTS = {"classes": 2.0, "boxes": 1.0, "giou": 2.0}  # of costs and of losses


class Targets(NamedTuple):
    """Objects of images, padded to the same number."""

    labels_BT: jax.Array  # int32; anything behind the last
    boxes_BT4: jax.Array  # middles and sides, in the units of the predictions
    count_B: jax.Array  # int32

    @property
    def real_BT(self) -> jax.Array:
        return jnp.arange(self.labels_BT.shape[1])[None] < self.count_B[:, None]


class Found(NamedTuple):
    """What one layer says of every query."""

    classes_BQK: jax.Array  # logits
    boxes_BQ4: jax.Array
    # Where boxes are changes of others: these and the changes. None = boxes are compared as such.
    before_BQ4: jax.Array | None = None
    deltas_BQ4: jax.Array | None = None


def match(found: Found, targets: Targets) -> jax.Array:
    """Query of each target [B, T]; -1 where there is none."""
    probability = jax.nn.sigmoid(wide(found.classes_BQK))
    yes = _ALPHA * (1 - probability) ** _GAMMA * -jnp.log(probability + _EPS)
    no = (1 - _ALPHA) * probability**_GAMMA * -jnp.log(1 - probability + _EPS)
    labels_B1T = jnp.maximum(targets.labels_BT, 0)[:, None]
    classes_BQT = jnp.take_along_axis(yes - no, labels_B1T, axis=2)
    wanted_B1T4 = targets.boxes_BT4[:, None]
    if found.deltas_BQ4 is None:
        difference = found.boxes_BQ4[:, :, None] - wanted_B1T4
    else:
        assert found.before_BQ4 is not None
        change = boxes.deltas(found.before_BQ4[:, :, None], wanted_B1T4)
        difference = found.deltas_BQ4[:, :, None] - change
    cost = WEIGHTS["classes"] * classes_BQT
    cost += WEIGHTS["boxes"] * jnp.sum(jnp.abs(difference), axis=-1)
    cost -= WEIGHTS["giou"] * boxes.giou(found.boxes_BQ4[:, :, None], wanted_B1T4)
    return assign(jnp.where(targets.real_BT[:, None], cost, 0), targets.count_B)


def losses(found: Found, targets: Targets, query_BT: jax.Array) -> dict[str, jax.Array]:
    """classes, boxes and giou: sums over pairs (of classes: over all queries), by their number."""
    real_BT = targets.real_BT
    num = jnp.maximum(jnp.sum(targets.count_B), 1).astype(wide(found.classes_BQK).dtype)
    matched = jax.tree.map(lambda x: _picked(x, query_BT), found)
    wanted = targets.boxes_BT4
    if matched.deltas_BQ4 is None:
        difference = matched.boxes_BQ4 - wanted
    else:
        assert matched.before_BQ4 is not None
        # What pads the targets has no sides, whose logarithm would spoil gradients.
        wanted = jnp.where(real_BT[..., None], wanted, 1.0)
        difference = matched.deltas_BQ4 - boxes.deltas(matched.before_BQ4, wanted)
    apart = jnp.sum(jnp.abs(difference), axis=-1)
    overlap = boxes.giou(matched.boxes_BQ4, jnp.where(real_BT[..., None], wanted, 1.0))
    return {
        "classes": _focal(found.classes_BQK, targets, query_BT) / num,
        "boxes": jnp.sum(jnp.where(real_BT, apart, 0)) / num,
        "giou": jnp.sum(jnp.where(real_BT, 1 - overlap, 0)) / num,
    }


def _picked(x_BQC: jax.Array, query_BT: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BQC, jnp.maximum(query_BT, 0)[..., None], axis=1)


def _focal(logits_BQK: jax.Array, targets: Targets, query_BT: jax.Array) -> jax.Array:
    """Sum over queries and classes."""
    logits_BQK = wide(logits_BQK)
    num_images, num_queries, num_classes = logits_BQK.shape
    image_B1 = jnp.arange(num_images)[:, None]
    place_BT = jnp.where(targets.real_BT, query_BT, num_queries)  # beyond: left out
    wanted = jnp.zeros((num_images, num_queries, num_classes), logits_BQK.dtype)
    wanted = wanted.at[image_B1, place_BT, targets.labels_BT].set(1.0, mode="drop")
    probability = jax.nn.sigmoid(logits_BQK)
    each = jax.nn.softplus(logits_BQK) - logits_BQK * wanted
    right = probability * wanted + (1 - probability) * (1 - wanted)
    weight = _ALPHA * wanted + (1 - _ALPHA) * (1 - wanted)
    return jnp.sum(weight * (1 - right) ** _GAMMA * each)


def total(parts: dict[str, jax.Array]) -> jax.Array:
    """The losses of a layer by their weights."""
    return sum((WEIGHTS[name] * value for name, value in parts.items()), jnp.zeros(()))


def of_all(
    layers: Sequence[Found], many: Sequence[Found], proposals: Found, targets: Targets, copies: int
) -> jax.Array:
    """Sum of the losses of all layers, of proposals, and of the queries of which `copies` answer
    for each object; each layer is matched by itself. Jia et al., arXiv:2207.13080."""
    taught = [(found, targets) for found in layers]
    taught += [(found, repeated(targets, copies)) for found in many]
    taught.append((proposals, binary(targets)))
    summed = (total(losses(found, own, match(found, own))) for found, own in taught)
    return sum(summed, jnp.zeros(()))


def binary(targets: Targets) -> Targets:
    """The same objects of one class, for proposals."""
    return targets._replace(labels_BT=jnp.zeros_like(targets.labels_BT))


def repeated(targets: Targets, times: int) -> Targets:
    """Every object several times, for queries of which many may answer for one."""
    num = targets.labels_BT.shape[1]
    copy_N = jnp.arange(num * times)
    # Copies of an image's own objects first, so that what pads stays behind.
    count_B1 = jnp.maximum(targets.count_B, 1)[:, None]
    index_BN = copy_N[None] % count_B1
    return Targets(
        jnp.take_along_axis(targets.labels_BT, index_BN, axis=1),
        jnp.take_along_axis(targets.boxes_BT4, index_BN[..., None], axis=1),
        targets.count_B * times,
    )
