"""Steps that are not finite, on demand."""

import dataclasses

import jax
import numpy as np

from dinojax.train.objective import Objective
from dinojax.train.step import Step

TERMS = ("dino_local", "dino_global", "ibot", "koleo")

FINE = {f"poison/{name}": np.float32(1.0) for name in (*TERMS, "grads")}


@dataclasses.dataclass(frozen=True)
class Poisoned(Objective):
    """Each term times a number that the test chooses, so that gradients go bad as well."""

    def _total(self, terms, now, num_global, *, num_local):
        for name in terms:
            terms[name] = terms[name] * now[f"poison/{name}"]
        return super()._total(terms, now, num_global, num_local=num_local)


@dataclasses.dataclass(frozen=True)
class PoisonedStep(Step):
    """And the gradient of one layer, times another."""

    def gradients(self, student, parts, targets, now):
        grads, terms = super().gradients(student, parts, targets, now)
        layer = grads["backbone"]["blocks"]
        name = sorted(layer)[-1]
        bad = jax.tree.map(lambda x: x * now["poison/grads"], layer[name])
        backbone = {**grads["backbone"], "blocks": {**layer, name: bad}}
        return {**grads, "backbone": backbone}, terms
