"""Stages of a recipe: when anchors change, which size a step has, what is kept. See docs/stages.md.

Pure functions of config values; what values a stage may have is in stage_rules.py.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Values = Mapping[str, Any]  # dotted key -> value

PREVIOUS, NOTHING = "previous", "nothing"
EMA = "ema"
SIZES = ("global", "local", "gram")  # keys crops.X_size and crops.more_X
COUNTED = ("lr", "weight_decay", "momentum", "teacher_temperature")  # schedules that may continue
SIZE_STREAM = 0x517E5  # keeps the draws of sizes apart from other draws of a seed
SEED_STREAM = 0x57A6E


@dataclasses.dataclass(frozen=True)
class Anchor:
    """When the frozen gram network becomes a copy of the ema. The fields are keys of `gram`."""

    anchor: str
    anchor_step: int
    refresh_every: int | None
    refresh_from: int
    max_refreshes: int | None

    def renews(self, number: int) -> bool:
        """Whether the ema is copied once `number` steps of the stage are done; number >= 1."""
        return (self.anchor == EMA and number == self.anchor_step) or self.refreshes(number)

    def refreshes(self, number: int) -> bool:
        """Whether a refresh follows `number` steps: a function of the number alone."""
        every = self.refresh_every
        if every is None or number % every or number < max(self.refresh_from, 1):
            return False
        first = -(-max(self.refresh_from, 1) // every)
        return self.max_refreshes is None or number // every - first < self.max_refreshes

    def refresh_steps(self, num_steps: int) -> list[int]:
        """Steps done at each refresh of a stage of that length."""
        if self.refresh_every is None:
            return []
        first = -(-max(self.refresh_from, 1) // self.refresh_every) * self.refresh_every
        return list(range(first, num_steps + 1, self.refresh_every))[: self.max_refreshes]


@dataclasses.dataclass(frozen=True)
class SizeDraw:
    """Which of several sizes a step has: 0 for the plain keys, then crops.more_*, from the seed.

    A function of (seed, step): the same on every host and after a resume.
    """

    seed: int
    more_rates: tuple[float, ...]

    def __call__(self, step: int) -> int:
        """step: from 0, updates done before it."""
        if not self.more_rates:
            return 0
        words = np.random.SeedSequence([self.seed, SIZE_STREAM, step]).generate_state(1, np.uint64)
        share = int(words[0]) / 2.0**64
        ends = np.cumsum(rates(self.more_rates)[:-1])
        return int(np.searchsorted(ends, share, side="right"))


@dataclasses.dataclass(frozen=True)
class BoxDraw:
    """The box in pixels of a step's images; the loader asks for it by the number of the step."""

    draw: SizeDraw
    boxes: tuple[int, ...]

    def __call__(self, step: int) -> int:
        return self.boxes[self.draw(step)]

    @property
    def largest(self) -> int:
        return max(self.boxes)


def rates(more_rates: Sequence[float]) -> list[float]:
    """Probability of every size, that of the plain keys first."""
    return [max(1.0 - sum(more_rates), 0.0), *more_rates]


def sizes(crops: Any, box_size: int) -> list[dict[str, int | None]]:
    """For every size that a stage's steps may have the keys it sets; the plain ones first.

    crops: the config's section.
    """
    names = ("crops.global_size", "crops.local_size", "crops.gram_size", "data.box_size")
    rows = [(crops.global_size, crops.local_size, crops.gram_size, box_size)]
    if num := len(crops.more_rates):
        columns = (crops.more_global, crops.more_local, crops.more_gram or (None,) * num)
        rows += zip(*columns, crops.more_box or (box_size,) * num, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def patch_of_crops(values: Values) -> tuple[str, int]:
    """Pixels that a patch has in the crops as they are cut, and the key that says so."""
    key = "model.patch_size" if values["crops.patch_size"] is None else "crops.patch_size"
    return key, values[key]


def stage_seed(seed: int, steps_before: int) -> int:
    """The seed of a stage's draws and order of images: that of the run in its first stage.

    Later stages count their steps anew and must not see the same crops of the same images again.
    """
    if not steps_before:
        return seed
    words = np.random.SeedSequence([seed, SEED_STREAM, steps_before]).generate_state(1)
    return int(words[0]) >> 1  # jax takes 31 bits whatever its settings


def in_run(anchor: str) -> tuple[str, int] | None:
    """(stage, step) of a text STAGE/STEP, None for other texts, such as paths."""
    match = re.fullmatch(r"([\w-]+)/(\d+)", anchor)
    return (match[1], int(match[2])) if match else None


def kept_steps(values: Values) -> list[int]:
    """Steps of a finished stage whose checkpoints are surely there."""
    steps, every = values["num_steps"], values["checkpoint.every"]
    saved = sorted({*range(every, steps + 1, every), steps})
    for_good = values["checkpoint.keep_every"]
    # Saves by the clock (checkpoint.minutes) push others out, so that only the last is sure.
    last = 1 if values["checkpoint.minutes"] is not None else values["checkpoint.keep_last"]
    return [s for s in saved if s in saved[-last:] or (for_good and s % for_good == 0)]
