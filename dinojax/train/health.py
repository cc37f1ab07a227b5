"""What tells a healthy run from a dying one: a few scalars of every step (docs/health.md).

Pure functions inside the compiled step, float32 at least, without gradient. Values of the teacher
are taken over the whole batch and those of the student are means, so neither devices nor
micro-batches change them.
"""

import functools
import math

import jax
import jax.numpy as jnp

from dinojax.sharding import mesh

CLOSE = 0.05  # distance of unit cls tokens (a cosine of 0.99875) from which images count as twins
TINY = 1e-12


@jax.named_scope("health")
def image_health(cls_BGD: jax.Array, patches_BGPD: jax.Array, prenorm_BGND: jax.Array) -> dict:
    """What patches of a square grid look like, per crop: a dict of [B, G].

    cls_patch_cosine: mean cosine of cls and patches; it rises when patches lose their place
    (DINOv3, arXiv:2508.10104, figure 5). patch_cosine: mean over pairs of different patches.
    locality: mean over the pairs of neighbours in the grid, minus patch_cosine. cls_norm,
    patch_norm, patch_norm_max: lengths before the final norm.
    """
    cls_BGD, patches_BGPD, prenorm_BGND = map(_wide, (cls_BGD, patches_BGPD, prenorm_BGND))
    P, D = patches_BGPD.shape[-2:]
    unit_BGPD = _unit(patches_BGPD)
    mean_BGD = jnp.mean(unit_BGPD, axis=-2)
    # |sum of P unit vectors|^2 = P + sum over the pairs: no [P, P] matrix is needed.
    pairs_BG = (P * jnp.sum(mean_BGD**2, axis=-1) - 1.0) / max(P - 1, 1)
    side = math.isqrt(P)
    grid_BGHWD = unit_BGPD.reshape(*unit_BGPD.shape[:2], side, side, D)
    beside_BG = jnp.sum(grid_BGHWD[..., 1:, :, :] * grid_BGHWD[..., :-1, :, :], axis=(-3, -2, -1))
    beside_BG += jnp.sum(grid_BGHWD[..., 1:, :] * grid_BGHWD[..., :-1, :], axis=(-3, -2, -1))
    norms_BGN = jnp.linalg.norm(prenorm_BGND, axis=-1)
    return {
        "cls_patch_cosine": jnp.sum(mean_BGD * _unit(cls_BGD), axis=-1),
        "patch_cosine": pairs_BG,
        "locality": beside_BG / max(2 * side * (side - 1), 1) - pairs_BG,
        "cls_norm": norms_BGN[..., 0],
        "patch_norm": jnp.mean(norms_BGN[..., -P:], axis=-1),
        "patch_norm_max": jnp.max(norms_BGN[..., -P:], axis=-1),
    }


@jax.named_scope("health")
def teacher_health(per_crop: dict, cls_BGD: jax.Array, targets: dict, *, group_size: int) -> dict:
    """Scalars of the teacher, over the whole batch.

    per_crop: of `image_health`. targets: {"dino", "ibot"} of (entropy, largest target, its
    prototype, number of prototypes), the first three [...]. group_size: images among which
    neighbours are sought; groups count alike.
    """
    found = target_health(targets)
    for name, values_BG in per_crop.items():
        over = jnp.max if name.endswith("max") else jnp.mean
        found[name] = over(values_BG)
    found["effective_rank"], found["cls_spread"] = spread(cls_BGD[:, 0])
    # Each device looks at its own groups, so no token travels.
    near = mesh.per_group(functools.partial(neighbors, group_size=group_size), cls_BGD)
    found |= {name: jnp.mean(values_U) for name, values_U in near.items()}
    return jax.lax.stop_gradient(found)


@jax.named_scope("health")
def target_health(targets: dict) -> dict[str, jax.Array]:
    """The part of `teacher_health` that tells of targets."""
    found: dict[str, jax.Array] = {}
    for name, seen in targets.items():
        if seen[0].size:  # nothing is masked with masks.rate=0
            found |= {f"{key}/{name}": x for key, x in _target_health(*seen).items()}
    return jax.lax.stop_gradient(found)


def _target_health(entropy, largest, first, num_prototypes: int) -> dict:
    """Of rows of probabilities: entropy and largest entry; prototypes that are a row's first."""
    # Compared, not scattered: a scatter would collect the rows of all devices.
    firsts_K = jnp.any(first.reshape(-1, 1) == jnp.arange(num_prototypes)[None], axis=0)
    return {
        "teacher_entropy": entropy_share(entropy, num_prototypes),
        "teacher_max": jnp.mean(largest),
        "prototypes_used": jnp.sum(firsts_K) / min(first.size, num_prototypes),
    }


def entropy_share(entropy: jax.Array, num_prototypes: int) -> jax.Array:
    """Mean entropy [...] of rows of probabilities, as a share of the largest possible."""
    return jax.lax.stop_gradient(jnp.mean(entropy)) / math.log(num_prototypes)


def spread(cls_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(effective rank, spread) of cls tokens of different images.

    Effective rank: (sum of eigenvalues)^2 / sum of their squares of the covariance, at most
    min(B - 1, D); 1 where all are equal. Spread: mean squared distance of unit tokens to their
    mean, 0 (all equal) to 1 (all directions alike).
    """
    cls_BD = _wide(cls_BD)
    centered_BD = cls_BD - jnp.mean(cls_BD, axis=0, keepdims=True)
    # Products of images would have the same eigenvalues, but need the tokens of all devices.
    product_DE = jnp.einsum("bd,be->de", centered_BD, centered_BD, precision="highest")
    trace, squares = jnp.trace(product_DE), jnp.sum(product_DE**2)
    # Equal tokens leave only rounding, whose rank would look healthy.
    varied = trace > 1e-10 * jnp.sum(cls_BD**2)
    rank = jnp.where(varied, trace**2 / jnp.maximum(squares, TINY**2), 1.0)
    return rank, 1.0 - jnp.sum(jnp.mean(_unit(cls_BD), axis=0) ** 2)


def neighbors(cls_BGD: jax.Array, *, group_size: int) -> dict:
    """Distances of unit cls tokens to the nearest other image of the group: a dict of [U].

    One crop number at a time, as KoLeo does. neighbor_distance and neighbor_distance_p05: median
    and 5 % quantile over the crops of a group. duplicates: share that is closer than CLOSE.
    """
    B, G, D = cls_BGD.shape
    unit_UVGD = _unit(_wide(cls_BGD)).reshape(B // group_size, group_size, G, D)
    cosine_UGVW = jnp.einsum("uvgd,uwgd->ugvw", unit_UVGD, unit_UVGD, precision="highest")
    cosine_UGVW = jnp.where(jnp.eye(group_size, dtype=bool)[None, None], -1.0, cosine_UGVW)
    distance_UGV = jnp.sqrt(jnp.maximum(2.0 - 2.0 * jnp.max(cosine_UGVW, axis=-1), 0.0))
    distance_UN = jnp.sort(distance_UGV.reshape(B // group_size, G * group_size), axis=-1)
    return {
        "neighbor_distance": _quantile(distance_UN, 0.5),
        "neighbor_distance_p05": _quantile(distance_UN, 0.05),
        "duplicates": jnp.mean((distance_UN < CLOSE).astype(distance_UN.dtype), axis=-1),
    }


def _quantile(sorted_UN: jax.Array, share: float) -> jax.Array:
    """Of sorted rows, linear between two entries: [U]."""
    place = share * (sorted_UN.shape[-1] - 1)
    low, high = math.floor(place), math.ceil(place)
    return sorted_UN[:, low] + (place - low) * (sorted_UN[:, high] - sorted_UN[:, low])


@jax.named_scope("health")
def relative_change(new, old) -> jax.Array:
    """Length of the difference of two trees over the length of the old one."""
    squares = lambda tree: sum(jnp.sum(_wide(x) ** 2) for x in jax.tree.leaves(tree))  # noqa: E731
    change = squares(jax.tree.map(jnp.subtract, new, old))
    return jnp.sqrt(change / jnp.maximum(squares(old), TINY))


def all_finite(scalars: dict) -> jax.Array:
    """Whether every scalar is finite. A norm is finite only if all it was taken of is."""
    return jnp.all(jnp.stack([jnp.isfinite(value) for value in scalars.values()]))


def keep_if(ok: jax.Array, new, old):
    """The new tree where ok, else the old one, leaf by leaf; fused into what makes the new one."""
    return jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, old)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _unit(x: jax.Array) -> jax.Array:
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, TINY**2))
