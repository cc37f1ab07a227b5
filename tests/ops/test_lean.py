"""Fast paths of elementwise functions, norms and drop path, each beside its definition.

Value and gradient in float64 to 1e-12; in bfloat16 no further from float32 than the definition is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.ops import lean, subset

DTYPES = ["float64", "bfloat16"]


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def gated(gate, value):
    return jax.nn.silu(gate) * value


def norm(function, centred):
    return lambda *args: function(
        *args,
        *([] if centred else [None]),
        centred=centred,
        eps=1e-6,
        dtype=args[0].dtype,
    )


def plain(function):
    """A function in float32 at least, rounded once, whose derivative jax finds."""
    return lambda *args: function(*map(lean.wide, args)).astype(args[0].dtype)


# name -> (fast path, definition, shapes of its arguments)
PAIRS = {
    "gelu": (lambda x: lean.elementwise(gelu, x), plain(gelu), [(6, 5)]),
    "gated": (lambda *x: lean.elementwise(gated, *x), plain(gated), [(6, 5), (6, 5)]),
    "layernorm": (
        norm(lean.normalize, True),
        norm(lean.normalize_plain, True),
        [(2, 3, 8), (8,), (8,)],
    ),
    "rmsnorm": (
        norm(lean.normalize, False),
        norm(lean.normalize_plain, False),
        [(2, 3, 8), (8,)],
    ),
}


def with_gradients(function, *args):
    """Value and gradients of a weighted sum of it, jitted as in a step."""

    def run(*args):
        value, pull = jax.vjp(function, *args)
        weights = jnp.linspace(-1.0, 2.0, value.size, dtype=value.dtype).reshape(value.shape)
        return value, *pull(weights)

    return jax.jit(run)(*args)


def distance(got, want) -> float:
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(got, want)]  # noqa: B905
    return max(np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in wide)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_fast_path_has_the_value_and_gradient_of_its_definition(name, dtype):
    fast, definition, shapes = PAIRS[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        numbers = [1.5 * rng.normal(size=shape) + 0.3 for shape in shapes]
        # Parameters are wide whatever the dtype of computation.
        kinds = [dtype if x.ndim > 1 else jnp.promote_types(dtype, "float32") for x in numbers]
        args = [jnp.asarray(x, kind) for x, kind in zip(numbers, kinds, strict=True)]
        got, want = with_gradients(fast, *args), with_gradients(definition, *args)
        assert [x.dtype for x in got] == [x.dtype for x in want]
        if dtype == "float64":
            assert distance(got, want) < 1e-12
            return
        true = with_gradients(definition, *(x.astype("float32") for x in args))
        assert distance(got, true) <= 1.01 * distance(want, true) < 0.02


@pytest.mark.parametrize("name", PAIRS)
def test_a_fast_path_keeps_its_arguments_and_numbers_of_rows_alone(name):
    """What the plain derivative keeps beside them is as large as they are."""

    def kept(function, *args):
        residuals = jax.tree.leaves(jax.vjp(function, *args)[1])
        return sorted(x.shape for x in residuals if x.ndim and x.shape[-1] > 1)

    fast, definition, shapes = PAIRS[name]
    args = [jnp.ones(shape, jnp.bfloat16 if len(shape) > 1 else jnp.float32) for shape in shapes]
    allowed = sorted(x.shape for x in args if name != "layernorm" or x is not args[2])
    assert kept(fast, *args) in (allowed, sorted(x.shape for x in args))
    assert len(kept(definition, *args)) > len(allowed)


def rows(num_groups, num_rows, num_kept):
    rng = np.random.default_rng(1)
    kept = np.stack([rng.permutation(num_rows)[:num_kept] for _ in range(num_groups)])
    return jnp.asarray(kept, jnp.int32)


@pytest.mark.parametrize(("num_groups", "num_rows", "num_kept"), [(1, 5, 3), (3, 4, 1), (2, 3, 3)])
def test_taking_rows_and_putting_them_back_is_reading_and_adding_them(
    num_groups, num_rows, num_kept
):
    kept_Uk = rows(num_groups, num_rows, num_kept)

    def fast(x_UbX):
        at = kept_Uk, subset.places(kept_Uk, num_rows)
        return x_UbX + subset.put(jnp.sin(subset.take(x_UbX, *at)), *at)

    def definition(x_UbX):
        taken = jax.vmap(lambda x, kept: x[kept])(x_UbX, kept_Uk)
        return jax.vmap(lambda x, kept, y: x.at[kept].add(y))(x_UbX, kept_Uk, jnp.sin(taken))

    with jax.enable_x64():
        x_UbX = jnp.asarray(np.random.default_rng(2).normal(size=(num_groups, num_rows, 2, 3)))
        got, want = with_gradients(fast, x_UbX), with_gradients(definition, x_UbX)
        assert distance(got, want) < 1e-12


def test_no_gradient_of_a_subset_adds_to_an_array():
    """XLA copies an array before it adds rows to it."""
    kept_Uk = rows(2, 6, 4)

    def loss(x_UbX):
        at = kept_Uk, subset.places(kept_Uk, 6)
        return jnp.sum(jnp.square(x_UbX + subset.put(jnp.sin(subset.take(x_UbX, *at)), *at)))

    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((2, 6, 3))))
    assert "scatter" not in text and "gather" in text
