"""Named random streams: every draw is keyed by (seed, step, group, purpose).

Adding a purpose changes no other, and no key depends on the number of devices or hosts.
"""

import jax
import jax.numpy as jnp

# Numbers are part of the meaning of a seed: append, never renumber.
PURPOSES = {
    "crop": 1,
    "photometric": 2,
    "mask": 3,
    "drop": 4,
    "rope": 5,
    "sigreg": 6,
    "prototypes": 7,
    "guides": 8,
}
INIT = 2**31  # in place of a step's number, which is below


def init_key(key: jax.Array) -> jax.Array:
    """The key of initial values, from the key of a seed; no step has it."""
    return jax.random.fold_in(key, INIT)


def stream(key: jax.Array, purpose: str) -> jax.Array:
    """The key of one purpose, from the key of a step."""
    return jax.random.fold_in(key, PURPOSES[purpose])


def group_keys(key: jax.Array, purpose: str, num_groups: int) -> jax.Array:
    """Keys [U], one per group of the global batch, from the key of a step."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return fold(stream(key, purpose), jnp.arange(num_groups))
