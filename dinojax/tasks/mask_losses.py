"""Losses of Mask2Former: matched masks are compared at sampled points, classes at every query.

Cheng et al., arXiv:2112.01527, sections 3.2 and 3.3; points as in PointRend, arXiv:1912.08193.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dinojax.models.layers import wide
from dinojax.tasks.assignment import assign
from dinojax.tasks.mask2former import Prediction

WEIGHTS = {"classes": 2.0, "masks": 5.0, "dice": 5.0}  # of costs and of losses
NO_OBJECT = 0.1  # weight of queries that claim nothing
NUM_POINTS, OVERSAMPLE, IMPORTANT = 12_544, 3.0, 0.75


class Targets(NamedTuple):
    """Segments of images, padded to the same number."""

    labels_BT: jax.Array  # int32
    masks_BTHW: jax.Array  # 0 or 1
    count_B: jax.Array  # int32

    @property
    def real_BT(self) -> jax.Array:
        return jnp.arange(self.labels_BT.shape[1])[None] < self.count_B[:, None]


class Points(NamedTuple):
    """Draws of places (x, y), uniform from 0 to 1."""

    cost_BP2: jax.Array  # where an image's masks are compared to match them
    candidates_BTN2: jax.Array  # of each pair, of which the most uncertain count
    others_BTM2: jax.Array  # and those that count anyhow


def draw_points(key: jax.Array, targets: Targets, num_points: int = NUM_POINTS) -> Points:
    """Points of a step, by its key."""
    num_images, num_targets = targets.labels_BT.shape
    important = int(IMPORTANT * num_points)
    shapes = (
        (num_images, num_points, 2),
        (num_images, num_targets, int(OVERSAMPLE * num_points), 2),
        (num_images, num_targets, num_points - important, 2),
    )
    keys = jax.random.split(key, len(shapes))
    return Points(*(jax.random.uniform(k, s) for k, s in zip(keys, shapes, strict=True)))


def at_points(maps_NHW: jax.Array, points_NP2: jax.Array) -> jax.Array:
    """Values [N, P] of maps at (x, y) from 0 to 1 over their extent; bilinear, zeros outside."""
    num, rows, columns = maps_NHW.shape
    flat = wide(maps_NHW).reshape(num, -1)
    x, y = points_NP2[..., 0] * columns - 0.5, points_NP2[..., 1] * rows - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros(x.shape, flat.dtype)
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            share = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row))
            index = jnp.clip(row, 0, rows - 1) * columns + jnp.clip(column, 0, columns - 1)
            found = jnp.take_along_axis(flat, index.astype(jnp.int32), axis=1)
            total += jnp.where(inside, share, 0) * found
    return total


def _points_of_all(masks_BNHW: jax.Array, points_BP2: jax.Array) -> jax.Array:
    """[B, N, P]: every mask of an image at the image's points."""
    num = masks_BNHW.shape[1]
    points = jnp.repeat(points_BP2, num, axis=0)
    found = at_points(masks_BNHW.reshape(-1, *masks_BNHW.shape[2:]), points)
    return found.reshape(*masks_BNHW.shape[:2], -1)


def match(prediction: Prediction, targets: Targets, points_BP2: jax.Array) -> jax.Array:
    """Query of each target [B, T]; -1 where there is none."""
    logits_BQP = _points_of_all(prediction.masks_BQhw, points_BP2)
    wanted_BTP = _points_of_all(targets.masks_BTHW, points_BP2)
    probability = jax.nn.softmax(wide(prediction.classes_BQK))
    labels_B1T = jnp.maximum(targets.labels_BT, 0)[:, None]
    cost = -WEIGHTS["classes"] * jnp.take_along_axis(probability, labels_B1T, axis=2)
    pairs = "bqp,btp->bqt"
    yes = jnp.einsum(pairs, jax.nn.softplus(-logits_BQP), wanted_BTP)
    no = jnp.einsum(pairs, jax.nn.softplus(logits_BQP), 1 - wanted_BTP)
    cost += WEIGHTS["masks"] * (yes + no) / logits_BQP.shape[-1]
    shown = jax.nn.sigmoid(logits_BQP)
    shared = 2 * jnp.einsum(pairs, shown, wanted_BTP)
    sums = jnp.sum(shown, axis=-1)[:, :, None] + jnp.sum(wanted_BTP, axis=-1)[:, None]
    cost += WEIGHTS["dice"] * (1 - (shared + 1) / (sums + 1))
    return assign(jnp.where(targets.real_BT[:, None], cost, 0), targets.count_B)


def losses(
    prediction: Prediction, targets: Targets, query_BT: jax.Array, points: Points
) -> dict[str, jax.Array]:
    """classes: weighted mean over queries; masks, dice: sums over pairs by their number."""
    real_BT = targets.real_BT
    num = jnp.maximum(jnp.sum(targets.count_B), 1)
    index = jnp.maximum(query_BT, 0)[..., None, None]
    masks_BThw = jnp.take_along_axis(prediction.masks_BQhw, index, axis=1)
    masks_Nhw = masks_BThw.reshape(-1, *masks_BThw.shape[2:])
    places = _important(masks_Nhw, points)
    logits_BTP = at_points(masks_Nhw, places).reshape(*real_BT.shape, -1)
    masks = targets.masks_BTHW
    wanted_BTP = at_points(masks.reshape(-1, *masks.shape[2:]), places).reshape(logits_BTP.shape)
    each = jax.nn.softplus(logits_BTP) - logits_BTP * wanted_BTP
    apart = jnp.mean(each, axis=-1)
    shown = jax.nn.sigmoid(logits_BTP)
    sums = jnp.sum(shown, axis=-1) + jnp.sum(wanted_BTP, axis=-1)
    dice = 1 - (2 * jnp.sum(shown * wanted_BTP, axis=-1) + 1) / (sums + 1)
    return {
        "classes": _classes(prediction.classes_BQK, targets, query_BT),
        "masks": jnp.sum(jnp.where(real_BT, apart, 0)) / num,
        "dice": jnp.sum(jnp.where(real_BT, dice, 0)) / num,
    }


def _important(masks_Nhw: jax.Array, points: Points) -> jax.Array:
    """The candidates [N, P, 2] where a mask is most uncertain, and the others."""
    candidates = points.candidates_BTN2.reshape(len(masks_Nhw), -1, 2)
    others = points.others_BTM2.reshape(len(masks_Nhw), -1, 2)
    count = round(others.shape[1] * IMPORTANT / (1 - IMPORTANT))
    sure = jnp.abs(at_points(jax.lax.stop_gradient(masks_Nhw), candidates))
    _, index = jax.lax.top_k(-sure, count)
    chosen = jnp.take_along_axis(candidates, index[..., None], axis=1)
    return jnp.concatenate([chosen, others], axis=1)


def _classes(logits_BQK: jax.Array, targets: Targets, query_BT: jax.Array) -> jax.Array:
    num_images, num_queries, num_classes = logits_BQK.shape
    image_B1 = jnp.arange(num_images)[:, None]
    place_BT = jnp.where(targets.real_BT, query_BT, num_queries)  # beyond: left out
    label_BQ = jnp.full((num_images, num_queries), num_classes - 1, jnp.int32)
    label_BQ = label_BQ.at[image_B1, place_BT].set(targets.labels_BT, mode="drop")
    log_BQK = jax.nn.log_softmax(wide(logits_BQK))
    loss_BQ = -jnp.take_along_axis(log_BQK, label_BQ[..., None], axis=2)[..., 0]
    weight_BQ = jnp.where(label_BQ == num_classes - 1, NO_OBJECT, 1.0).astype(loss_BQ.dtype)
    return jnp.sum(weight_BQ * loss_BQ) / jnp.sum(weight_BQ)


def total(parts: dict[str, jax.Array], weights: Mapping[str, float] = WEIGHTS) -> jax.Array:
    """The losses of a layer by their weights."""
    return sum((weights[name] * value for name, value in parts.items()), jnp.zeros(()))
