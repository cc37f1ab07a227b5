"""Maps of labels as the segments that Mask2Former is taught: one for each class that is there."""

import jax
import jax.numpy as jnp

from dinojax.tasks import mask_losses
from dinojax.tasks.mask2former import Prediction


def segments(labels_BHW: jax.Array, num_classes: int, most: int) -> mask_losses.Targets:
    """Of each image the classes it has, in rising order; pixels without a label are in none.

    most: segments of an image, the queries that there are; classes beyond are left out.
    """
    masks_BKHW = labels_BHW[:, None] == jnp.arange(num_classes)[None, :, None, None]
    present_BK = jnp.any(masks_BKHW, axis=(2, 3))
    order_BT = jnp.argsort(~present_BK, axis=1, stable=True)[:, :most]
    masks_BTHW = jnp.take_along_axis(masks_BKHW, order_BT[..., None, None], axis=1)
    count_B = jnp.minimum(jnp.sum(present_BK, axis=1), most)
    return mask_losses.Targets(order_BT.astype(jnp.int32), masks_BTHW, count_B.astype(jnp.int32))


def loss(
    predictions: list[Prediction], targets: mask_losses.Targets, key: jax.Array, num_points: int
) -> jax.Array:
    """Of all predictions, each matched anew at points of its own. Mask2Former, section 3.2.1."""
    total = jnp.zeros(())
    for number, prediction in enumerate(predictions):
        points = mask_losses.draw_points(jax.random.fold_in(key, number), targets, num_points)
        query_BT = mask_losses.match(prediction, targets, points.cost_BP2)
        parts = mask_losses.losses(prediction, targets, query_BT, points)
        total += mask_losses.total(parts)
    return total
