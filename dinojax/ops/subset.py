"""Some rows of each group taken out, and put back to their places; each is the other's transpose.

Both read rows by number, in either direction of a gradient. The derivative that JAX finds of
reading rows adds them at their places, for which XLA copies the whole array that they are added to.
"""

import jax
import jax.numpy as jnp


def places(kept_Uk: jax.Array, num_rows: int) -> jax.Array:
    """The number of each row among the kept ones of its group, k where it is none: int32 [U, b].

    kept_Uk: distinct numbers of rows below num_rows = b.
    """
    is_it_Ubk = kept_Uk[:, None, :] == jnp.arange(num_rows, dtype=kept_Uk.dtype)[None, :, None]
    number_Ub = jnp.argmax(is_it_Ubk, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(is_it_Ubk, axis=-1), number_Ub, kept_Uk.shape[1])


@jax.custom_vjp
def take(x_UbX: jax.Array, kept_Uk: jax.Array, places_Ub: jax.Array) -> jax.Array:
    """The kept rows of each group, [U, k, ...]. places_Ub: `places` of kept_Uk."""
    return _rows(x_UbX, kept_Uk)


@jax.custom_vjp
def put(y_UkX: jax.Array, kept_Uk: jax.Array, places_Ub: jax.Array) -> jax.Array:
    """Kept rows at their places and zeros elsewhere, [U, b, ...]."""
    is_kept_Ub = places_Ub < kept_Uk.shape[1]
    found_UbX = _rows(y_UkX, jnp.minimum(places_Ub, kept_Uk.shape[1] - 1))
    is_kept_UbX = is_kept_Ub.reshape(*is_kept_Ub.shape, *[1] * (y_UkX.ndim - 2))
    return jnp.where(is_kept_UbX, found_UbX, jnp.zeros((), y_UkX.dtype))


def _rows(x_UbX, numbers_Uk):
    return jax.vmap(lambda x, n: x.at[n].get(mode="promise_in_bounds"))(x_UbX, numbers_Uk)


take.defvjp(
    lambda x, *rows: (take(x, *rows), rows),
    lambda rows, grad: (put(grad, *rows), None, None),
)
put.defvjp(
    lambda y, *rows: (put(y, *rows), rows),
    lambda rows, grad: (take(grad, *rows), None, None),
)
