"""Spreads the cls tokens of different images apart. Sablayrolles et al., arXiv:1806.03198."""

import jax
import jax.numpy as jnp

EPS = 1e-8


def koleo_loss(cls_UVD: jax.Array, *, num_neighbors: int = 1) -> jax.Array:
    """Mean of -log distance between each unit cls token and its nearest ones in the group.

    Groups are searched separately: U of them, V images each, one crop per image. The gradient
    goes through both ends of a distance. As in the reference implementation EPS is added to each
    component of the difference, and to the distance, so equal images give finite numbers: a value
    that depends on rounding, and gradients that cancel when they are each other's nearest.
    Scalar, float32 at least.

    Raises ValueError when a group holds too few images for num_neighbors.
    """
    V = cls_UVD.shape[1]
    if not 1 <= num_neighbors < V:
        raise ValueError(
            f"losses.koleo_neighbors={num_neighbors} does not fit groups of {V} images; use 1 to"
            f" {V - 1}, or larger groups (losses.koleo_group)."
        )
    cls_UVD = cls_UVD.astype(jnp.promote_types(cls_UVD.dtype, jnp.float32))
    # The maximum inside the root keeps the gradient of a zero vector finite.
    squares_UV1 = jnp.sum(cls_UVD**2, axis=-1, keepdims=True)
    unit_UVD = cls_UVD / jnp.sqrt(jnp.maximum(squares_UV1, EPS**2))

    fixed_UVD = jax.lax.stop_gradient(unit_UVD)
    similarity_UVV = jnp.einsum("uvd,uwd->uvw", fixed_UVD, fixed_UVD, precision="highest")
    self_VV = jnp.eye(V, dtype=bool)[None]
    # Two unit vectors reach -1 when opposite; -2 makes sure that self stays last.
    similarity_UVV = jnp.where(self_VV, -2.0, similarity_UVV)
    # A sort stays with its groups, where top_k would collect those of all devices.
    nearest_UVn = jnp.argsort(similarity_UVV, axis=-1, descending=True)[..., :num_neighbors]

    take = jax.vmap(lambda rows, index: rows[index])
    difference_UVnD = unit_UVD[:, :, None, :] - take(unit_UVD, nearest_UVn) + EPS
    distance_UVn = jnp.sqrt(jnp.maximum(jnp.sum(difference_UVnD**2, axis=-1), 1e-30))
    return -jnp.mean(jnp.log(distance_UVn + EPS))


def by_crop(cls_BGD: jax.Array, group_size: int) -> jax.Array:
    """[B, G, D] -> [(U G), V, D]: neighbours are sought within one crop number of a group."""
    num_images, num_global, width = cls_BGD.shape
    per_group = cls_BGD.reshape(num_images // group_size, group_size, num_global, width)
    return per_group.swapaxes(1, 2).reshape(-1, group_size, width)
