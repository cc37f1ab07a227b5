"""Guides within the objective: heads, losses, prototypes, and how several share the backbone."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp

from dinojax.losses import guides as losses
from dinojax.losses.specs import GuideSpec
from dinojax.models.guides import GuideHead, GuideHeadSpec
from dinojax.ops import rng

PART = "guide_"  # before a guide's name, among the parts of the student


@dataclasses.dataclass(frozen=True)
class Guidance:
    """The guides of a run. width: channels of a cls token; equalize: see `losses.equalising`."""

    specs: tuple[GuideSpec, ...]
    width: int
    equalize: str

    @property
    def heads(self) -> dict[str, GuideHead]:
        """Part of the student -> head, of guides that have one."""
        return {
            PART + spec.name: GuideHead(GuideHeadSpec(self.width, spec.hidden, spec.outputs))
            for spec in self.specs
            if spec.kind != "prototypes"
        }

    def new_prototypes(self, key: jax.Array) -> dict[str, dict]:
        """{part: state} of guides that have prototypes; key: of the seed."""
        key = rng.stream(rng.init_key(key), "prototypes")
        return {
            PART + spec.name: losses.new_prototypes(
                jax.random.fold_in(key, number), spec.outputs, self.width, spec.temperature
            )
            for number, spec in enumerate(self.specs)
            if spec.kind == "prototypes"
        }

    def rows(self, metadata: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        """{name: {"values", "weights"}} of a whole batch, of columns [B] with gaps."""
        return {spec.name: _rows(spec, metadata[spec.name]) for spec in self.specs}

    def moved(self, centers: dict, cls_BGD: jax.Array, rows: dict) -> dict:
        """The prototypes among `centers` after the teacher's cls tokens of the whole batch."""
        moved = {
            PART + spec.name: losses.moved_prototypes(
                centers[PART + spec.name],
                cls_BGD,
                rows[spec.name]["values"],
                momentum=spec.momentum,
            )
            for spec in self.specs
            if spec.kind == "prototypes"
        }
        return jax.lax.stop_gradient({**centers, **moved})

    def total(self, student: dict, cls_BGD, rows: dict, *, squares: dict | None, whole, now):
        """(what guides add to the loss, {term: value}); squares: of the whole batch, or None.

        Terms: the unweighted loss, and of the first crop the accuracy or squared error, of each.
        """
        num_parts = whole.get("num_parts", 1.0)
        factors = {} if squares is None else self.factors(squares, num_parts)
        added, told = jnp.zeros(()), dict[str, jax.Array]()
        for spec in self.specs:
            args = student, cls_BGD, rows[spec.name], whole, now["guide"]
            loss, metric = _loss(self, spec, *args)
            added += factors.get(spec.name, 1.0) * spec.weight * loss
            told |= {f"guide/{spec.name}": loss, f"guide_metric/{spec.name}": metric}
        return added, told | {f"guide_factor/{name}": x for name, x in factors.items()}

    def squares(self, student: dict, cls_BGD, rows: dict, whole: dict, now: dict) -> dict:
        """{name: squared norm of its weighted loss's gradient at the cls tokens}."""
        wide = jnp.promote_types(cls_BGD.dtype, jnp.float32)
        fixed_BGD = jax.lax.stop_gradient(cls_BGD.astype(wide))
        found = {}
        for spec in self.specs:

            def loss(x, spec=spec):
                args = student, x, rows[spec.name], whole, now["guide"]
                return spec.weight * _loss(self, spec, *args)[0]

            found[spec.name] = jnp.sum(jax.grad(loss)(fixed_BGD) ** 2)
        return jax.lax.stop_gradient(found)

    def factors(self, squares: dict, num_parts: float) -> dict:
        """{name: factor on its weighted loss}; squares: means over `num_parts` micro-batches."""
        weights = {spec.name: spec.weight for spec in self.specs}
        # A micro-batch's loss is a mean over its own images, the batch's over all.
        norms = {name: jnp.sqrt(square / num_parts) for name, square in squares.items()}
        return losses.equalising(norms, weights, how=self.equalize)


def _rows(spec: GuideSpec, values_B: jax.Array) -> dict[str, jax.Array]:
    if spec.kind == "regression":
        present_B = jnp.isfinite(values_B)
        values_B = (values_B - spec.low) / (spec.high - spec.low + 1e-8)
    else:
        present_B = values_B >= 0
    return {"values": values_B, "weights": losses.row_weights(present_B)}


def _loss(guidance: Guidance, spec: GuideSpec, student, cls_BGD, rows: dict, whole: dict, ramp):
    """(mean loss over images that have a value and crops, metric of the first crop)."""
    part, factor = PART + spec.name, -ramp if spec.reverse else ramp
    seen_BGD = losses.scaled_gradient(cls_BGD, factor)
    values_B = rows["values"]
    mean = functools.partial(_mean, weights_B=rows["weights"])
    if spec.kind == "prototypes":
        logits = losses.prototype_logits(
            seen_BGD, whole["prototypes"][part], min_temperature=spec.min_temperature
        )
    else:
        head = guidance.heads[part]
        logits = cast(Any, head.apply({"params": student[part]}, seen_BGD))
    if spec.kind == "regression":
        outputs = losses.ACTIVATIONS[spec.activation](logits)
        error_BG = losses.squared_error(outputs, values_B[:, None])
        return mean(error_BG), mean(jax.lax.stop_gradient(error_BG[:, :1]))
    right_B1 = (jnp.argmax(logits[:, :1], -1) == values_B[:, None]).astype(jnp.float32)
    return mean(losses.cross_entropy(logits, values_B)), mean(right_B1)


def _mean(values_BG: jax.Array, *, weights_B: jax.Array) -> jax.Array:
    return jnp.mean(values_BG * weights_B.astype(values_BG.dtype)[:, None])
