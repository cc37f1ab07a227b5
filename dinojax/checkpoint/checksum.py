"""What the arrays of a tree hold, in 32 bits each: the same on any devices and shardings."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.distributed import process_group


def arrays(tree: Any) -> dict[str, dict]:
    """Path -> {"shape", "dtype", "sum"} of every array, as JSON takes it."""
    named = _named(tree)
    sums = np.asarray(_sums([leaf for _, leaf in named])).tolist()
    found = shapes(tree)
    return {name: {**found[name], "sum": s} for (name, _), s in zip(named, sums, strict=True)}


def shapes(tree: Any) -> dict[str, dict]:
    """The same without the sums, for arrays that need not exist yet."""
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in _named(tree)
    }


def differences(saved: dict[str, dict], wanted: dict[str, dict]) -> list[str]:
    """A line for each of the first ten arrays that only one has, or in another shape."""

    def shape(found, name):
        return tuple(found[name]["shape"]) if name in found else "none"

    names = sorted(n for n in saved | wanted if shape(saved, n) != shape(wanted, n))
    lines = [f"{n}: {shape(saved, n)} there, {shape(wanted, n)} here" for n in names[:10]]
    return [*lines, f"and {len(names) - 10} more"] if len(names) > 10 else lines


def changed(saved: dict[str, dict], found: dict[str, dict]) -> list[str]:
    """Names of the arrays that do not hold what was saved; a cast one cannot be compared."""
    same_kind = [name for name in saved if saved[name]["dtype"] == found[name]["dtype"]]
    return [name for name in same_kind if saved[name]["sum"] != found[name]["sum"]]


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]


@process_group.together
@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(leaf) for leaf in leaves])


def _sum(values: jax.Array) -> jax.Array:
    """Sum of the words times odd weights modulo 2**32: any one changed word changes it."""
    if jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
        values = jax.random.key_data(values)
    if values.dtype == bool:
        values = values.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * values.dtype.itemsize}")
    words = jax.lax.bitcast_convert_type(values, unsigned).astype(jnp.uint32)
    weights = jnp.uint32(1)
    for axis in range(words.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        weights = weights * jnp.uint32(0x9E3779B1) + jnp.uint32(2) * place
    return jnp.sum(words * weights, dtype=jnp.uint32)
