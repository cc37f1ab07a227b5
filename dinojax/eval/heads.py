"""Many linear classifiers trained at once on the same features, each by its own learning rate.

A grid of settings costs one forward pass of the backbone: the heads that read the same features
are one array [G, D, C], and their losses are summed, so that no head has a say in another's
gradient. SGD and AdamW are those of torch, whose numbers the protocols are written in.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dinojax.sharding import mesh

HIGHEST = jax.lax.Precision.HIGHEST
CHUNK = 1024  # rows whose logits are held at once
INIT_STD = 0.01
MOMENTUM = 0.9  # of SGD
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW


@dataclasses.dataclass(frozen=True)
class Head:
    """One classifier of a grid."""

    features: str  # the name of what it reads
    lr: float  # at the start; a half cosine takes it to 0
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Training:
    """What all heads of a grid share."""

    num_steps: int
    optimizer: str = "sgd"  # sgd | adamw
    loss: str = "softmax"  # softmax, of classes; sigmoid, of 0/1 targets [B, C]

    def __post_init__(self):
        for name, known in {"optimizer": ("sgd", "adamw"), "loss": ("softmax", "sigmoid")}.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose of {', '.join(known)}."
                )


def grouped(heads: Sequence[Head]) -> dict[str, list[int]]:
    """{features: numbers of the heads that read them}, in the order of the heads."""
    found: dict[str, list[int]] = {}
    for number, head in enumerate(heads):
        found.setdefault(head.features, []).append(number)
    return found


def init(
    heads: Sequence[Head], widths: Mapping[str, int], num_classes: int, *, seed: int
) -> dict[str, dict[str, jax.Array]]:
    """{features: {"kernel": [G, D, C], "bias": [G, C]}} in float32; kernels normal, 0.01 wide.

    A head's numbers depend on the seed and on its place in the grid.
    """
    key = jax.random.key(seed)
    params = {}
    for name, numbers in grouped(heads).items():
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(numbers))
        shape = (widths[name], num_classes)
        kernels = jax.vmap(lambda key, shape=shape: jax.random.normal(key, shape))(keys)
        bias = jnp.zeros((len(numbers), num_classes), jnp.float32)
        params[name] = {"kernel": INIT_STD * kernels.astype(jnp.float32), "bias": bias}
    return params


def start(params, training: Training) -> dict[str, Any]:
    """The state of an untrained grid: {"params", "moments", "step"}."""
    count = 1 if training.optimizer == "sgd" else 2
    moments = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(count))
    return {"params": params, "moments": moments, "step": jnp.zeros((), jnp.int32)}


def spread(state):
    """The state with its classes over all devices of the active layout, where they divide.

    Features of a batch are small and go to every device; a head of 10,000 classes is not.
    """
    layout = mesh.active()
    if layout is None:
        return state

    def place(x):
        divides = x.ndim and x.shape[-1] % layout.num_shards == 0
        axes = [None] * (x.ndim - 1) + [layout.data_axes] if divides else []
        return NamedSharding(layout.mesh, PartitionSpec(*axes))

    return jax.device_put(state, jax.tree.map(place, state))


def logits(params, features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """{features: [G, B, C]} in the dtype of the parameters."""
    return {
        name: jnp.einsum(
            "BD,GDC->GBC", features[name].astype(p["kernel"].dtype), p["kernel"], precision=HIGHEST
        )
        + p["bias"][:, None, :]
        for name, p in params.items()
    }


def accuracies(
    params, heads: Sequence[Head], features: Mapping[str, np.ndarray], labels_N: np.ndarray
) -> np.ndarray:
    """Share [number of heads] of rows that each head tells right; 0 of one whose logits are NaN."""
    totals = np.zeros(len(heads))
    for first in range(0, len(labels_N), CHUNK):
        rows = slice(first, first + CHUNK)
        found = _right(params, {name: x[rows] for name, x in features.items()}, labels_N[rows])
        for name, numbers in grouped(heads).items():
            totals[numbers] += np.asarray(found[name])
    return totals / len(labels_N)


@jax.jit
def _right(params, features, labels_B) -> dict[str, jax.Array]:
    """{features: rows that are right int32 [G]}"""
    found = {}
    for name, logits_GBC in logits(params, features).items():
        right_GB = jnp.argmax(logits_GBC, axis=2) == labels_B[None]
        right_GB &= ~jnp.any(jnp.isnan(logits_GBC), axis=2)
        found[name] = jnp.sum(right_GB, axis=1, dtype=jnp.int32)
    return found


def losses(params, features, targets, training: Training) -> dict[str, jax.Array]:
    """{features: [G]}, each the mean over the batch (of sigmoid: over the classes too)."""
    return {
        name: jnp.mean(_loss(own_GBC, targets, training.loss), axis=1)
        for name, own_GBC in logits(params, features).items()
    }


def _loss(logits_GBC: jax.Array, targets: jax.Array, kind: str) -> jax.Array:
    """[G, B]"""
    if kind == "sigmoid":
        targets_1BC = targets.astype(logits_GBC.dtype)[None]
        each = jax.nn.softplus(logits_GBC) - logits_GBC * targets_1BC
        return jnp.mean(each, axis=2)
    picked_GB1 = jnp.take_along_axis(logits_GBC, targets[None, :, None], axis=2)
    return jax.nn.logsumexp(logits_GBC, axis=2) - picked_GB1[:, :, 0]


def update(state, features, targets, *, heads: tuple[Head, ...], training: Training):
    """One step: (the new state, {features: losses [G] before it}).

    features: {name: [B, D]}. targets: int [B], or 0/1 [B, C] for sigmoid. To be compiled with the
    heads and the training fixed.
    """

    def total(params):
        found = losses(params, features, targets, training)
        return sum(jnp.sum(value) for value in found.values()), found

    grads, found = jax.grad(total, has_aux=True)(state["params"])
    step = state["step"]
    params: dict[str, dict] = {}
    moments: dict[str, dict] = {}
    for name, numbers in grouped(heads).items():
        params[name], moments[name] = {}, {}
        for part, param in state["params"][name].items():
            column = (-1,) + (1,) * (param.ndim - 1)

            def each(values, column=column, dtype=param.dtype):
                return jnp.asarray(values, dtype).reshape(column)

            lr = each([heads[n].lr for n in numbers]) * share_of_lr(step, training, param.dtype)
            decay = each([heads[n].weight_decay for n in numbers])
            old = tuple(moment[name][part] for moment in state["moments"])
            rule = _sgd if training.optimizer == "sgd" else _adamw
            change, moments[name][part] = rule(grads[name][part], old, param, decay, step + 1)
            params[name][part] = param - lr * change
    split = tuple(
        {name: {part: m[i] for part, m in parts.items()} for name, parts in moments.items()}
        for i in range(len(state["moments"]))
    )
    return {"params": params, "moments": split, "step": step + 1}, found


def share_of_lr(step, training: Training, dtype=jnp.float32):
    """A half cosine over the steps: 1 at step 0, 0 after the last."""
    progress = jnp.asarray(step, dtype) / training.num_steps
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _sgd(grad, moments, param, decay, count):
    momentum = MOMENTUM * moments[0] + grad + decay * param
    return momentum, (momentum,)


def _adamw(grad, moments, param, decay, count):
    first = BETAS[0] * moments[0] + (1 - BETAS[0]) * grad
    second = BETAS[1] * moments[1] + (1 - BETAS[1]) * grad**2
    count = count.astype(param.dtype)
    mean, size = first / (1 - BETAS[0] ** count), second / (1 - BETAS[1] ** count)
    return mean / (jnp.sqrt(size) + EPS) + decay * param, (first, second)
