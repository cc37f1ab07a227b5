"""Factors that rise within a stage (guides, a frozen trunk), and a weight that rises too early."""

import functools
import math
from collections.abc import Callable

import numpy as np

RAMPS: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda share: 2.0 / (1.0 + math.exp(-10.0 * share)) - 1.0,
    "linear": lambda share: share,
    "constant": lambda share: 1.0,
}


def guide_ramp(step: int, *, shape: str, start: int, num_steps: int) -> float:
    """Factor on the gradient that guides send to the backbone; 0 before `start`.

    sigmoid: arXiv:1409.7495, section 4.2. Raises ValueError for another shape.
    """
    if shape not in RAMPS:
        raise ValueError(f"guides.ramp={shape!r} is not one of {', '.join(RAMPS)}.")
    if step < start:
        return 0.0
    return RAMPS[shape](min((step - start) / max(1, num_steps - start), 1.0))


def trunk_factor(step: int, *, frozen: int, warmup: int) -> float:
    """Factor on learning rate and decay of the trunk: 0, then a linear rise to 1."""
    if step < frozen:
        return 0.0
    return min((step - frozen + 1) / warmup, 1.0) if warmup else 1.0


def with_ramps(now: Callable, *, optim, guides, num_steps: int) -> Callable:
    """The scalars of a step with those of guides (`guide`) and of the trunk (`trunk`), if any.

    optim, guides: sections of the config.
    """
    ramps: dict[str, Callable[[int], float]] = {}
    if guides.rows:
        own = dict(shape=guides.ramp, start=guides.ramp_start, num_steps=num_steps)
        ramps["guide"] = functools.partial(guide_ramp, **own)
    if optim.freeze_trunk or optim.trunk_warmup:
        parts = dict(frozen=optim.freeze_trunk, warmup=optim.trunk_warmup)
        ramps["trunk"] = functools.partial(trunk_factor, **parts)
    return lambda step: now(step) | {name: ramp(step) for name, ramp in ramps.items()}


def check_gram_weight(schedules: Callable, anchor_step: int) -> None:
    """Raises ValueError if the Gram loss counts before there is an anchor.

    A weight is linear, then half a cosine, then constant: 0 at many places, it is 0 throughout.
    """
    for step in sorted({*np.linspace(0, max(anchor_step - 1, 0), 99).astype(int).tolist()}):
        weight = schedules(step)["gram_weight"]
        if step < anchor_step and weight:
            raise ValueError(
                f"schedules.gram_weight is {weight:.3g} at step {step}, before the anchor is there "
                f"(gram.anchor_step={anchor_step}); keep it at 0 until then: start=0, peak=0, "
                f"warmup={anchor_step}, and its value as end."
            )
