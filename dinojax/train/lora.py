"""Low-rank adapters (LoRA, arXiv:2106.09685): continued training that moves little of a backbone.

A kernel of a block is base + alpha / rank * a b, of which a and b alone train. All this is the
optimizer's business: it holds base, a and b, turns the gradient of the kernel into theirs, and
returns the change of the whole kernel. So student, ema, checkpoints and exports hold merged
kernels at all times, and networks and losses know nothing of adapters.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinojax.models.layers import Named
from dinojax.ops import rng
from dinojax.train.optim import Multipliers

Tree = Any  # nested dicts of arrays

# Target -> how many axes of its kernel, after that of the depth, are inputs.
NUM_IN = {"qkv": 1, "proj": 2, "ffn": 1}


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """The keys of config section `adapter`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # of NUM_IN
    norms: bool  # the scales and biases of norms train as well

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class AdapterState(NamedTuple):
    """steps: updates done; base, adapters: by name, such as `blocks-attn-qkv-kernel`."""

    steps: jax.Array
    base: dict[str, jax.Array]  # the kernels before the first update
    adapters: dict[str, dict[str, jax.Array]]  # a [depth, inputs, rank], b [depth, rank, outputs]
    inner: Any  # of the optimizer of all that trains


def wrap(
    spec: AdapterSpec,
    make_optimizer: Callable[[Multipliers], optax.GradientTransformationExtraArgs],
    *,
    multipliers: Multipliers,
    seed: int,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of {"backbone", "dino_head", ...} that trains adapters and heads.

    make_optimizer: from the factors of what trains. Everything else keeps its value to the last
    bit and has no moments. The base is what the kernels are at the first update, so weights may
    be loaded into a new state. Raises ValueError for a backbone without a target.
    """
    if not kernels_of(multipliers.lr["backbone"], spec):
        raise ValueError(
            f"adapter.rank={spec.rank}, but no kernel of this backbone is one of "
            f"adapter.targets={spec.targets}; set adapter.rank=0."
        )
    factors = Multipliers(*[_trained(tree, spec, _factors_of) for tree in multipliers])
    optimizer = make_optimizer(factors)

    def init(params: Tree) -> AdapterState:
        kernels = kernels_of(params["backbone"], spec)
        adapters = {name: _new(leaf, name, spec, seed=seed) for name, leaf in kernels.items()}
        trained = _trained(params, spec, lambda name, leaf: adapters[name])
        base = jax.tree.map(jnp.copy, kernels)
        return AdapterState(jnp.zeros((), jnp.int32), base, adapters, optimizer.init(trained))

    def update(grads: Tree, state: AdapterState, params: Tree = None, *, now, **_):
        if params is None:
            raise ValueError("Adapters need params: update(grads, state, params, now=...).")
        kernels = kernels_of(params["backbone"], spec)
        base = {
            name: jnp.where(state.steps == 0, kernel, state.base[name])
            for name, kernel in kernels.items()
        }
        _, pull = jax.vjp(functools.partial(merge, base, spec=spec), state.adapters)
        (slopes,) = pull(kernels_of(grads["backbone"], spec))
        trained = _trained(params, spec, lambda name, _: state.adapters[name])
        gradients = _trained(grads, spec, lambda name, _: slopes[name])
        updates, inner = optimizer.update(gradients, state.inner, trained, now=now)
        adapters = optax.apply_updates(state.adapters, updates["backbone"]["adapters"])
        merged = merge(base, adapters, spec=spec)

        def change(path, leaf):
            name = _name(path)
            if name in merged:
                return merged[name] - leaf
            return updates["backbone"]["norms"].get(name, jnp.zeros_like(leaf))

        backbone = jax.tree_util.tree_map_with_path(change, params["backbone"])
        new = AdapterState(optax.safe_increment(state.steps), base, adapters, inner)
        return {**updates, "backbone": backbone}, new

    return optax.GradientTransformationExtraArgs(init, update)


def merge(base: dict, adapters: dict, *, spec: AdapterSpec) -> dict[str, jax.Array]:
    """The kernels that base and adapters stand for, in full float32."""

    def product(a, b):
        return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)

    return {
        name: base[name] + spec.scale * jax.vmap(product)(pair["a"], pair["b"])
        for name, pair in adapters.items()
    }


def kernels_of(backbone: Tree, spec: AdapterSpec) -> dict[str, Any]:
    """Kernels [depth, inputs, outputs] of the targets, by name."""
    found = _leaves(backbone)
    return {name: leaf for name, leaf in found.items() if _target(name) in spec.targets}


def num_trained(params: Tree, spec: AdapterSpec) -> tuple[int, int]:
    """(parameters that train, parameters of the networks); the arrays may be abstract."""

    def count(tree: Tree) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    def shapes(name, leaf):
        num_in = NUM_IN[_target(name) or ""]
        shapes = {"a": (*leaf.shape[: 1 + num_in], spec.rank)}
        shapes["b"] = (leaf.shape[0], spec.rank, *leaf.shape[1 + num_in :])
        return {k: jax.ShapeDtypeStruct(shape, leaf.dtype) for k, shape in shapes.items()}

    return count(_trained(params, spec, shapes)), count(params)


def _trained(tree: Tree, spec: AdapterSpec, adapters: Callable[[str, Any], Any]) -> Tree:
    """What trains, from a tree of the shape of the parameters.

    adapters: (name, leaf of the kernel) -> {"a": ..., "b": ...}.
    """
    kernels = kernels_of(tree["backbone"], spec)
    norms = {name: leaf for name, leaf in _leaves(tree["backbone"]).items() if "norm" in name}
    backbone = {
        "adapters": {name: adapters(name, leaf) for name, leaf in kernels.items()},
        "norms": norms if spec.norms else {},
    }
    return {**tree, "backbone": backbone}


def _factors_of(name: str, factor: Any) -> dict[str, Any]:
    """The factor of a kernel, a number or an array [depth, 1, ...], for its adapters."""
    if isinstance(factor, np.ndarray):  # an axis for each of theirs
        num_in = NUM_IN[_target(name) or ""]
        ndim = {"a": num_in + 2, "b": factor.ndim - num_in + 1}
        return {part: factor.reshape(-1, *[1] * (n - 1)) for part, n in ndim.items()}
    return {"a": factor, "b": factor}


def _new(kernel: Any, name: str, spec: AdapterSpec, *, seed: int) -> dict[str, Any]:
    """a: normal with the deviation that keeps the size of its input; b: 0, so that nothing moves.

    Sharded as the kernel is, where that carries the names of its axes.
    """
    value = kernel.value if isinstance(kernel, Named) else kernel
    split = 1 + NUM_IN[_target(name) or ""]
    depth, inputs, outputs = value.shape[0], value.shape[1:split], value.shape[split:]
    key = rng.init_key(jax.random.key(seed))
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    a = math.prod(inputs) ** -0.5 * jax.random.normal(key, (depth, *inputs, spec.rank), value.dtype)
    b = jnp.zeros((depth, spec.rank, *outputs), value.dtype)
    if not isinstance(kernel, Named):
        return {"a": a, "b": b}
    names = kernel.names
    return {
        "a": Named(a, (*names[:split], None)),
        "b": Named(b, (names[0], None, *names[split:])),
    }


def _target(name: str) -> str | None:
    """qkv, proj or ffn for a kernel of the blocks, else None."""
    parts = name.split("-")
    if parts[0] != "blocks" or parts[-1] != "kernel":
        return None
    return "ffn" if parts[1] == "mlp" else parts[2]


def _leaves(tree: Tree) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Named))
    return {_name(path): leaf for path, leaf in found}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="-")  # keys of saved arrays
