"""Targets from teacher logits: Sinkhorn-Knopp (SwAV, arXiv:2006.09882) or softmax with a centre.

The definitions of targets; training makes them in blocks.py without storing them. Inside jit arrays
are global, so every sum below is already over all devices.
"""

import jax
import jax.numpy as jnp
from jax.nn import logsumexp


def sinkhorn(
    logits_NK: jax.Array, temperature: jax.typing.ArrayLike, *, num_iterations: int = 3
) -> jax.Array:
    """Targets [N, K]: exp(logits / temperature), its columns and rows scaled in turn to one sum.

    An iteration divides each prototype by its sum over samples, then each sample by its sum over
    prototypes, so rows sum to 1 and prototypes are used about equally. Float32 at least; no
    gradient. Finite for all finite logits. DINOv2, arXiv:2304.07193, section 4.

    Raises ValueError when num_iterations is below 1.
    """
    if num_iterations < 1:
        raise ValueError(
            f"losses.sinkhorn_iterations={num_iterations} is not positive; 3 is the usual number."
        )
    scores_NK = jax.lax.stop_gradient(logits_NK)
    scores_NK = scores_NK.astype(jnp.promote_types(scores_NK.dtype, jnp.float32))
    scores_NK = scores_NK / jnp.asarray(temperature, scores_NK.dtype)

    # The first iteration works on logarithms: nothing overflows, no row or column vanishes.
    log_u_K = -logsumexp(scores_NK, axis=0)
    log_v_N = -logsumexp(scores_NK + log_u_K[None, :], axis=1)
    plan_NK = jnp.exp(scores_NK + log_u_K[None, :] + log_v_N[:, None])

    # From here every prototype holds at least 1/K and every sample at least 1/N, so two vectors
    # of factors do, and an entry too small for the number format cannot matter. Prototypes get
    # N/K each, or the factors would drift with the iterations. Products and sums instead of dots
    # keep float32 on accelerators that round the operands of a dot.
    share = plan_NK.shape[0] / plan_NK.shape[1]
    v_N = jnp.ones_like(log_v_N)
    u_K = jnp.ones_like(log_u_K)
    for _ in range(num_iterations - 1):
        u_K = share / jnp.sum(plan_NK * v_N[:, None], axis=0)
        v_N = 1.0 / jnp.sum(plan_NK * u_K[None, :], axis=1)
    return plan_NK * u_K[None, :] * v_N[:, None]


def softmax_targets(
    logits: jax.Array, center_K: jax.Array, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Targets softmax((logits - center) / temperature), logits [..., K]; no gradient.

    DINO, arXiv:2104.14294, section 3.1.
    """
    logits = jax.lax.stop_gradient(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    center = center_K.astype(logits.dtype).reshape((1,) * (logits.ndim - 1) + (-1,))
    return jax.nn.softmax((logits - center) / jnp.asarray(temperature, logits.dtype), axis=-1)


def update_center(
    center_K: jax.Array, logits: jax.Array, momentum: jax.typing.ArrayLike
) -> jax.Array:
    """Moving average [K] of the mean teacher logit: m * center + (1 - m) * mean over all rows.

    The step that computes it still uses the old centre. DINO, arXiv:2104.14294, eq. 4.
    """
    logits = jax.lax.stop_gradient(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, center_K.dtype))
    mean_K = jnp.mean(logits.reshape(-1, logits.shape[-1]), axis=0)
    momentum = jnp.asarray(momentum, mean_K.dtype)
    return center_K * momentum + mean_K * (1.0 - momentum)
