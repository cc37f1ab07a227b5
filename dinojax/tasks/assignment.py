"""Which query answers for which target: the cheapest pairs, found on the host by scipy."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

_LAST = 1e30  # a cost above all others


def assign(cost_BQT: jax.Array, count_B: jax.Array) -> jax.Array:
    """Query of each target, int32 [B, T], -1 behind the first `count` targets of an image.

    At least as many queries as targets, else ValueError on the host. A pair whose cost is no number
    is the last to be taken.
    """
    shape = jax.ShapeDtypeStruct((cost_BQT.shape[0], cost_BQT.shape[2]), jnp.int32)
    cost_BQT = jax.lax.stop_gradient(cost_BQT)
    return jax.pure_callback(_solve, shape, cost_BQT, count_B)


def _solve(cost_BQT, count_B) -> np.ndarray:
    cost_BQT, count_B = np.asarray(cost_BQT), np.asarray(count_B)
    found = np.full((cost_BQT.shape[0], cost_BQT.shape[2]), -1, np.int32)
    for image, (cost_QT, count) in enumerate(zip(cost_BQT, count_B, strict=True)):
        if count > len(cost_QT):
            raise ValueError(f"{count} targets for {len(cost_QT)} queries: give the head more.")
        cost_QT = np.where(np.isfinite(cost_QT), cost_QT, _LAST)
        queries, targets = linear_sum_assignment(cost_QT[:, :count])
        found[image, targets] = queries
    return found
