"""AdamW with learning-rate and decay factors per parameter, and schedules of scalars over steps.

Conventions are those of DINOv3 (arXiv:2508.10104) and DINOv2 (arXiv:2304.07193) training.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Tree = Any  # nested dicts of arrays, or of one number per array

LR_FACTORS: dict[str, Callable[[int], float]] = {
    "sqrt_1024": lambda batch_size: 4.0 * math.sqrt(batch_size / 1024.0),
    "linear_256": lambda batch_size: batch_size / 256.0,
    "none": lambda batch_size: 1.0,
}
# Scalars whose schedule follows `schedules.version`; the weights of losses are always version 2.
VERSIONED = ("lr", "weight_decay", "momentum", "teacher_temperature")
LOSS_WEIGHTS = ("local_weight", "gram_weight")
CONVNEXT = re.compile(r"(downsamples|stages)_\d+")  # first names of its parameters


class Curve(NamedTuple):
    """Linear start -> peak over `warmup` steps, half-cosine to end over `cosine`, then end."""

    start: float
    peak: float
    end: float
    warmup: int
    cosine: int
    version: int  # 1: warm-up includes its last point, cosine excludes it; 2: the reverse
    truncate_extra: float  # version 1: the cosine is this share longer, cut and stretched to end

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            points = self.warmup - 1 if self.version == 1 else self.warmup
            return self.start + (self.peak - self.start) * (step / max(points, 1))
        if step < self.warmup + self.cosine:
            return self.end + (self.peak - self.end) * self._share(step - self.warmup)
        return self.end

    def _share(self, step: int) -> float:
        """Share of the peak left after `step` steps of the cosine."""
        n = self.cosine
        if self.version == 2:
            return _half_cosine(step, n - 1)
        if not self.truncate_extra:
            return _half_cosine(step, n)
        points = int((1.0 + self.truncate_extra) * n) - 1
        last = _half_cosine(n - 1, points)
        return (_half_cosine(step, points) - last) / (1.0 - last) if last < 1.0 else 0.0


def _half_cosine(step: int, length: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / length)) if length else 1.0


def schedules(
    section,
    *,
    num_steps: int,
    batch_size: int,
    freeze_last_layer: int,
    lr_scaling: str,
    steps_before: int = 0,
    names: tuple[str, ...] = (*VERSIONED, *LOSS_WEIGHTS),
) -> Callable[[int], dict[str, float]]:
    """The scalars of a step, as a function of its number from 0; float64, on the host.

    section: `schedules` of the config. Keys of the result: lr, last_layer_lr (0 during the first
    freeze_last_layer steps), weight_decay, momentum, teacher_temperature, local_weight,
    gram_weight. lr_scaling multiplies the peak of lr, in version 2 also its end. steps_before:
    steps that the first four have behind them, of stages whose curves go on here; the weights of
    losses always count from the start of their stage. names: of those that are wanted, lr always.

    Raises ValueError for unknown versions and scalings, and parts longer than num_steps.
    """
    if section.version not in (1, 2):
        raise ValueError(f"schedules.version={section.version} is not 1 or 2.")
    if lr_scaling not in LR_FACTORS:
        raise ValueError(f"optim.lr_scaling={lr_scaling!r} is not one of {', '.join(LR_FACTORS)}.")
    if section.truncate_extra < 0.0 or (section.truncate_extra and section.version == 2):
        raise ValueError(
            f"schedules.truncate_extra={section.truncate_extra} is for schedules.version=1 and not"
            " below 0; use 0.0."
        )
    offsets = dict.fromkeys(VERSIONED, steps_before) | dict.fromkeys(LOSS_WEIGHTS, 0)
    curves = {name: _curve(section, name, num_steps=num_steps + offsets[name]) for name in names}
    lr, factor = curves["lr"], LR_FACTORS[lr_scaling](batch_size)
    end = lr.end * factor if section.version == 2 else lr.end
    curves["lr"] = lr._replace(peak=lr.peak * factor, end=end)

    def now(step: int) -> dict[str, float]:
        values = {name: float(curve(step + offsets[name])) for name, curve in curves.items()}
        frozen = step + steps_before < freeze_last_layer
        values["last_layer_lr"] = 0.0 if frozen else values["lr"]
        return values

    return now


def _curve(section, name: str, *, num_steps: int) -> Curve:
    spec = getattr(section, name)
    cosine = num_steps - spec.warmup if spec.cosine is None else spec.cosine
    if spec.warmup < 0 or cosine < 0 or spec.warmup + cosine > num_steps:
        raise ValueError(
            f"schedules.{name}: warmup={spec.warmup} and cosine={spec.cosine} steps do not fit into"
            f" num_steps={num_steps}; shorten them or raise num_steps."
        )
    version, extra = (section.version, section.truncate_extra) if name in VERSIONED else (2, 0.0)
    return Curve(spec.start, spec.peak, spec.end, spec.warmup, cosine, version, extra)


class Multipliers(NamedTuple):
    """Factors per parameter, in the shape of the parameter tree."""

    lr: Tree  # float, or an array [depth, 1, ...] for stacked blocks
    weight_decay: Tree  # 0.0 or 1.0
    is_last: Tree  # bool: follows last_layer_lr
    is_trunk: Tree  # bool: of the backbone, but not its patch embedding


def multipliers(
    params: Tree, *, depth: int, layer_decay: float, patch_embed_lr: float
) -> Multipliers:
    """Learning-rate and weight-decay factors of {"backbone": ..., "dino_head": ..., ...}.

    Learning rate: layer_decay to the power depth - i in block i, depth + 1 in tokens, learned
    positions and patch embedding (there also times patch_embed_lr), 0 in final norms, heads and
    all of a ConvNeXt. Weight decay: none for biases, norms and LayerScale; cls, register and mask
    tokens, learned positions, the scale of weight-normalised prototypes and the scales of norms
    beside a ConvNeXt's downsampling are decayed, as in the reference implementation. The arrays
    of params may be abstract.

    Raises ValueError for a backbone parameter it does not know, or another number of blocks.
    """

    def lr(path, leaf):
        part, *names = (key.key for key in path)
        if part != "backbone" or "norm" in names[0] or CONVNEXT.match(names[0]):
            return 1.0
        if names[0] == "blocks":
            if leaf.shape[0] != depth:
                raise ValueError(f"{'.'.join(names)}: {leaf.shape[0]} blocks, but depth={depth}.")
            return layer_decay ** np.arange(depth, 0, -1.0).reshape(-1, *[1] * (leaf.ndim - 1))
        if names[0] == "patch_embed":
            return layer_decay ** (depth + 1) * patch_embed_lr
        if names[0] in ("cls_token", "mask_token", "registers", "positions"):
            return layer_decay ** (depth + 1)
        raise ValueError(f"No learning-rate factor is known for backbone.{'.'.join(names)}.")

    def weight_decay(path, leaf):
        _, *names = (key.key for key in path)
        if names[-1] in ("bias", "scale1", "scale2"):
            return 0.0
        # The reference goes by names, and the norms beside its downsampling have none.
        in_downsample = names[0].startswith("downsamples_")
        return 0.0 if any("norm" in n for n in names) and not in_downsample else 1.0

    def is_last(path, leaf):
        return any(key.key == "prototypes" for key in path)

    def is_trunk(path, leaf):
        return path[0].key == "backbone" and path[1].key != "patch_embed"

    over = jax.tree_util.tree_map_with_path
    return Multipliers(*(over(f, params) for f in (lr, weight_decay, is_last, is_trunk)))


def text_multipliers(params: Tree) -> Multipliers:
    """Factors of the parts of a text stage (models/text_networks.py): one learning rate for all.

    Weight decay: of kernels, embeddings of tokens and positions; none for biases, norms,
    LayerScale and the scale of the logits.
    """

    def weight_decay(path, _):
        return float(path[-1].key in ("kernel", "tokens", "positions"))

    over = jax.tree_util.tree_map_with_path
    ones, never = (jax.tree.map(lambda _, x=x: x, params) for x in (1.0, False))
    return Multipliers(ones, over(weight_decay, params), never, never)


def part_norms(grads: Tree) -> dict[str, jax.Array]:
    """L2 norm of the gradients of each part (top-level key), float32 at least."""
    return {part: optax.tree.norm(_wide(tree)) for part, tree in grads.items()}


def build(section, *, multipliers: Multipliers) -> optax.GradientTransformationExtraArgs:
    """AdamW with clipping per part; `update(grads, state, params, now=...)`.

    section: `optim` of the config (beta1, beta2, eps, clip). now: the scalars lr, last_layer_lr,
    weight_decay and, where there is one, trunk of the step, so that nothing recompiles when they
    change. Moments are float32 at least. A part's gradients are scaled by min(1, clip / (norm +
    1e-6)). With learning rate 0 parameters stay, weight decay included, while moments accumulate.
    AdamW: arXiv:1711.05101.

    Raises ValueError when clip is not positive.
    """
    if section.clip is not None and section.clip <= 0:
        raise ValueError(f"optim.clip={section.clip} is not positive; None means no clipping.")
    betas, eps = (section.beta1, section.beta2), section.eps

    def init(params):
        return optax.scale_by_adam().init(_wide(params))

    def update(grads, state, params=None, *, now, **_):
        if params is None:
            raise ValueError("Weight decay needs params: update(grads, state, params, now=...).")
        grads = _wide(grads)
        if section.clip is not None:
            norms = part_norms(grads)
            scales = {k: jnp.minimum(1.0, section.clip / (n + 1e-6)) for k, n in norms.items()}
            grads = {k: jax.tree.map(lambda g, s=scales[k]: g * s, v) for k, v in grads.items()}
        updates, state = _adam(grads, state, betas=betas, eps=eps)

        def step(update, param, lr_factor, decay_factor, is_last, is_trunk):
            lr = jnp.asarray(now["last_layer_lr" if is_last else "lr"], update.dtype)
            decay = jnp.asarray(now["weight_decay"], update.dtype) * decay_factor
            if is_trunk and "trunk" in now:  # AdamW multiplies the two: decay falls by the square
                trunk = jnp.asarray(now["trunk"], update.dtype)
                lr, decay = lr * trunk, decay * trunk
            return -lr * jnp.asarray(lr_factor, update.dtype) * (update + decay * param)

        return jax.tree.map(step, updates, params, *multipliers), state

    return optax.GradientTransformationExtraArgs(init, update)


def frozen(
    make_optimizer: Callable[[Multipliers], optax.GradientTransformationExtraArgs],
    *,
    multipliers: Multipliers,
    part: str = "backbone",
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that leaves one part of the parameters as it is, to the last bit.

    make_optimizer: from the factors of all else. The part has no moments and no memory for them.
    """

    def others(tree: Tree) -> Tree:
        return {name: value for name, value in tree.items() if name != part}

    inner = make_optimizer(Multipliers(*map(others, multipliers)))

    def init(params):
        return inner.init(others(params))

    def update(grads, state, params=None, *, now, **_):
        if params is None:
            raise ValueError("Weight decay needs params: update(grads, state, params, now=...).")
        updates, state = inner.update(others(grads), state, others(params), now=now)
        return {**updates, part: jax.tree.map(jnp.zeros_like, params[part])}, state

    return optax.GradientTransformationExtraArgs(init, update)


def _adam(grads: Tree, state: optax.ScaleByAdamState, *, betas: tuple[float, float], eps: float):
    """(updates, next state) of Adam, arXiv:1412.6980, algorithm 1.

    optax's own takes 1 - beta^t of rounded float32 numbers: for beta 0.999 an update comes out
    6e-6 too long at first, which a loss shows after a few steps. expm1 keeps every digit.
    """
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(grads, state.mu, betas[0], 1)
    nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, betas[1], 2)

    def update(mu, nu):
        unbiased = [-jnp.expm1(count.astype(mu.dtype) * math.log(beta)) for beta in betas]
        return (mu / unbiased[0]) / (jnp.sqrt(nu / unbiased[1]) + eps)

    return jax.tree.map(update, mu, nu), optax.ScaleByAdamState(count, mu, nu)


def _wide(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)
