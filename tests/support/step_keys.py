"""The random keys of steps, as words."""

import jax
import numpy as np

from dinojax.ops import rng


def words(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def of_steps(key):
    """The keys of the first steps and the last one, of their purposes, and of the first groups."""
    found = set()
    for step in (0, 1, 2, 2**31 - 1):
        own = jax.random.fold_in(key, step)
        streams = [rng.stream(own, purpose) for purpose in rng.PURPOSES]
        groups = [k for purpose in rng.PURPOSES for k in rng.group_keys(own, purpose, 3)]
        found |= {tuple(words(k)) for k in (own, *streams, *groups)}
    return found
