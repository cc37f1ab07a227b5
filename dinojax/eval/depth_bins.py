"""Depth from logits over bins. AdaBins, arXiv:2011.14141, as the released DINOv3 heads use it."""

import jax
import jax.numpy as jnp
import numpy as np

_MIXLOG_SCALE = 8.0  # CHMv2 predicts eighths of a metre


def bins(kind: str, num: int, min_depth: float, max_depth: float) -> np.ndarray:
    """Centres [num] in metres, float64: linear, log, or CHMv2's mixlog (eighths of a metre).

    mixlog: from the logarithmic centre at the first bin to the linear one at the last.
    """
    if kind == "linear":
        return np.linspace(min_depth, max_depth, num)
    if kind == "log":
        return np.exp(np.linspace(np.log(min_depth), np.log(max_depth), num))
    if kind == "mixlog":
        greatest = max_depth / _MIXLOG_SCALE
        share = np.linspace(1.0, 0.0, num)
        log, linear = (bins(name, num, min_depth, greatest) for name in ("log", "linear"))
        return share * log + (1 - share) * linear
    raise ValueError(f"bins {kind!r} are unknown; choose of linear, log, mixlog.")


def depth_of(
    logits_BHWK: jax.Array, *, kind: str, norm: str, min_depth: float, max_depth: float
) -> jax.Array:
    """Depth [B, H, W] in metres: the mean of the bins' centres, weighted by the logits.

    norm: linear (relu + 0.1, divided by the sum), softmax, sigmoid (divided by the sum), or mixlog
    (relu + 1e-8, divided by the sum, times 8). One channel is regression: relu + min_depth.
    """
    logits = jnp.asarray(logits_BHWK)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if logits.shape[-1] == 1:
        return jax.nn.relu(logits[..., 0]) + min_depth
    centres_K = jnp.asarray(bins(kind, logits.shape[-1], min_depth, max_depth), logits.dtype)
    weights = {
        "linear": lambda x: jax.nn.relu(x) + 0.1,
        "softmax": jax.nn.softmax,
        "sigmoid": jax.nn.sigmoid,
        "mixlog": lambda x: jax.nn.relu(x) + 1e-8,
    }
    if norm not in weights:
        raise ValueError(f"norm {norm!r} is unknown; choose of {', '.join(weights)}.")
    weights_BHWK = weights[norm](logits)
    weights_BHWK /= jnp.sum(weights_BHWK, axis=-1, keepdims=True)
    depth_BHW = jnp.einsum("bhwk,k->bhw", weights_BHWK, centres_K, precision="highest")
    return depth_BHW * _MIXLOG_SCALE if norm == "mixlog" else depth_BHW
