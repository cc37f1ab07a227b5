"""One update of a head, as a pure function of (state, features, truth, now)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dinojax.eval import adamw, depth_losses, segmentation_losses
from dinojax.tasks import detection_losses, mask_targets
from dinojax.tasks.mask2former import Segmenter
from dinojax.tasks.network import HeadSpec

_GRADIENT = 0.5  # weight of the gradient loss beside the scale-invariant one


@struct.dataclass
class HeadState:
    """What training a head carries from step to step. All floats are float32."""

    variables: dict  # {"params", "batch_stats"}
    moments: adamw.Moments

    @classmethod
    def new(cls, variables: dict[str, Any]) -> "HeadState":
        # Copies: what is given away in a step may not be there twice.
        return cls(variables, jax.tree.map(jnp.copy, adamw.start(variables["params"])))


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a compiled step depends on."""

    head: HeadSpec
    clip: float
    seed: int


def loss(spec: HeadSpec, outputs, truth, key: jax.Array) -> jax.Array:
    """Of maps at the size of the truth [B, H, W]; of masks at points that the key draws; of boxes.

    Depth: scale-invariant and gradient losses of metres inside the range. Canopy: mean absolute
    error of heights below the greatest, those below 0 being 0. Classes: cross-entropy.
    """
    if spec.is_boxes:
        told = outputs.layers, outputs.many, outputs.proposals
        return detection_losses.of_all(*told, truth, spec.copies)
    truth_BHW = truth
    if spec.is_masks:
        assert isinstance(spec.module, Segmenter)
        own = spec.module.spec
        targets = mask_targets.segments(truth_BHW, own.classes, min(own.classes, own.queries))
        return mask_targets.loss(outputs, targets, key, spec.num_points)
    found = spec.at_size(outputs, (truth_BHW.shape[1], truth_BHW.shape[2]))
    if spec.depth is None:
        return segmentation_losses.cross_entropy(found, truth_BHW, over_valid=True)
    low, high = spec.depth
    if spec.is_canopy:
        known_BHW = jnp.isfinite(truth_BHW) & (truth_BHW < high)
        return depth_losses.l1_loss(found, jnp.maximum(truth_BHW, 0), known_BHW)
    valid_BHW = (truth_BHW > low) & (truth_BHW < high)
    total = depth_losses.sig_loss(found, truth_BHW, valid_BHW, with_variance=True)
    gradient = depth_losses.gradient_loss(found, truth_BHW, valid_BHW, log=True)
    return total + _GRADIENT * gradient


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def step(
    spec: StepSpec, state: HeadState, needed, features, truth, settings: adamw.Settings
) -> tuple[HeadState, dict[str, jax.Array]]:
    """(state, scalars) after an update; one that is not finite changes nothing.

    needed: what the head asks for besides features (HeadSpec.needed).
    """
    key = jax.random.fold_in(jax.random.key(spec.seed), state.moments.step)
    drop_key, point_key = jax.random.split(key)
    stats = state.variables["batch_stats"]
    inputs = spec.head.inputs(needed, features)

    def total(params):
        outputs, moved = spec.head.module.apply(
            {"params": params, "batch_stats": stats},
            *inputs,
            train=True,
            rngs={"dropout": drop_key},
            mutable=["batch_stats"],
        )
        return loss(spec.head, outputs, truth, point_key), moved.get("batch_stats", {})

    own = state.variables["params"]
    (value, stats), grads = jax.value_and_grad(total, has_aux=True)(own)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
    params, moments = adamw.adamw(own, grads, state.moments, settings, max_norm=spec.clip)
    new = HeadState({"params": params, "batch_stats": stats}, moments)
    ok = jnp.isfinite(value) & jnp.isfinite(norm)
    kept = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
    return kept, {"loss": value, "grad_norm": norm}
