"""Stages of a recipe: what each may demand, of itself and of those before it; when anchors change.

Pure functions of config values; the words are explained in STAGES.md.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Values = Mapping[str, Any]  # dotted key -> value

PREVIOUS, NOTHING = "previous", "nothing"
EMA = "ema"
SIZES = ("global", "local", "gram")  # keys crops.X_size and crops.more_X
COUNTED = ("lr", "weight_decay", "momentum", "teacher_temperature")  # schedules that may continue
SIZE_STREAM = 0x517E5  # keeps the draws of sizes apart from other draws of a seed
SEED_STREAM = 0x57A6E

# What must not change where weights are taken over from the stage before.
BACKBONE_KEYS = tuple(
    f"model.{name}"
    for name in (
        *("name", "patch_size", "width", "depth", "num_heads", "ffn", "ffn_ratio"),
        *("num_registers", "position", "position_size", "norm", "qkv_bias", "proj_bias"),
        *("ffn_bias", "mask_k_bias", "untie_cls_norm", "untie_local_cls_norm"),
    )
) + ("image.channels",)
HEAD_KEYS = tuple(
    f"{head}.{name}"
    for head in ("dino_head", "ibot_head")
    for name in ("num_layers", "hidden", "bottleneck", "prototypes", "bias", "prototype_norm")
)
STATE_KEYS = ("losses.centering",)


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


# -- rules of one stage ---------------------------------------------------------------------------


def start_rules(values: Values) -> Iterator[str]:
    if values["start.what"] == "state" and values["start.heads"] == "new":
        yield (
            "start.what='state' takes the heads with their optimizer, but start.heads='new'; "
            "use start.what='ema', or start.heads='keep'."
        )
    if values["start.source"] == NOTHING:
        for key, plain in (("what", "ema"), ("heads", "keep"), ("schedules", "restart")):
            if values[f"start.{key}"] != plain:
                yield (
                    f"start.{key}={values[f'start.{key}']!r} needs something to start from, but "
                    f"start.source='nothing'; use start.source='previous' or a path, or "
                    f"start.{key}={plain!r}."
                )


def gram_rules(values: Values) -> Iterator[str]:
    gram = {name: values[f"gram.{name}"] for name in (f.name for f in dataclasses.fields(Anchor))}
    size = values["crops.gram_size"]
    if values["crops.gram_distortions"] and size is None:
        yield (
            "crops.gram_distortions=True but there are no gram crops; set crops.gram_size, or "
            "crops.gram_distortions=False."
        )
    if not values["gram.enabled"]:
        if size is not None:
            yield f"crops.gram_size={size} but gram.enabled is False; set one of them back."
        if gram["anchor"] or gram["refresh_every"] is not None:
            yield (
                f"gram.anchor={gram['anchor']!r}, gram.refresh_every={gram['refresh_every']} but "
                "gram.enabled is False; set gram.enabled=True, or both back."
            )
        return
    if values["gram.tokens"] != "all" and values["gram.per_image"]:
        yield (
            f"gram.tokens={values['gram.tokens']!r} needs gram.per_image=False; set it, or "
            "gram.tokens='all'."
        )
    weight = [values[f"schedules.gram_weight.{name}"] for name in ("start", "peak", "end")]
    if not any(weight):
        yield (
            "gram.enabled=True but schedules.gram_weight is 0 throughout; raise its peak or end "
            "(2.0 in DINOv3's second stage), or set gram.enabled=False."
        )
    yield from (_ema_rules if values["gram.teacher"] == EMA else _frozen_rules)(values, gram)


def _ema_rules(values: Values, gram: Mapping[str, Any]) -> Iterator[str]:
    if (size := values["crops.gram_size"]) is not None:
        yield (
            f"gram.teacher='ema' uses this step's global crops, but crops.gram_size={size}; "
            "set it to None, or gram.teacher='frozen'."
        )
    for name, plain in (("anchor", ""), ("anchor_step", 0), ("refresh_every", None)):
        if gram[name] != plain:
            yield (
                f"gram.teacher='ema' compares with every step's own ema and holds on to nothing, "
                f"but gram.{name}={gram[name]!r}; set it to {plain!r}, or gram.teacher='frozen'."
            )


def _frozen_rules(values: Values, gram: Mapping[str, Any]) -> Iterator[str]:
    steps, size = values["num_steps"], values["crops.gram_size"]
    if not gram["anchor"]:
        yield (
            "gram.teacher=frozen needs an earlier ema to hold on to, and gram.anchor is empty; "
            "set gram.anchor=STAGE/STEP (a checkpoint of this run; `dinojax gram pick RUN` "
            "recommends one), gram.anchor=ema (of this stage, at gram.anchor_step), a run or a "
            "file of weights, or gram.teacher=ema (each step's own)."
        )
    if gram["anchor_step"] and gram["anchor"] != EMA:
        yield (
            f"gram.anchor_step={gram['anchor_step']} says when the ema is copied, but "
            f"gram.anchor={gram['anchor']!r}; set it to 0, or gram.anchor='ema'."
        )
    if gram["anchor_step"] >= steps:
        yield (
            f"gram.anchor_step={gram['anchor_step']} is not before the stage's last step "
            f"(num_steps={steps}); use {steps - 1} or less."
        )
    if size is not None and size < values["crops.global_size"]:
        yield (
            f"crops.gram_size={size} is below crops.global_size={values['crops.global_size']}: the "
            "anchor would see less than the student; use "
            f"{2 * values['crops.global_size']} (twice, as DINOv3), or None for the same crops."
        )
    if gram["refresh_every"] is None:
        for name, plain in (("refresh_from", 0), ("max_refreshes", None)):
            if gram[name] != plain:
                yield (
                    f"gram.{name}={gram[name]} but gram.refresh_every is None, so that the anchor "
                    f"is never renewed; set refresh_every (DINOv3: 10,000), or {name} to {plain}."
                )
        return
    if gram["refresh_from"] < gram["anchor_step"]:
        yield (
            f"gram.refresh_from={gram['refresh_from']} comes before the anchor itself "
            f"(gram.anchor_step={gram['anchor_step']}); use {gram['anchor_step']} or more."
        )
    if not Anchor(**gram).refresh_steps(steps):
        yield (
            f"gram.refresh_every={gram['refresh_every']}, gram.refresh_from={gram['refresh_from']}:"
            f" no refresh comes within num_steps={steps}; lower them, or set refresh_every=None."
        )


def size_rules(values: Values) -> Iterator[str]:
    """Rules of crops.more_*."""
    more, patch = values["crops.more_rates"], values["model.patch_size"]
    lists = {name: values[f"crops.more_{name}"] for name in (*SIZES, "box")}
    for name, sizes in lists.items():
        optional = name == "box" or (name == "gram" and values["crops.gram_size"] is None)
        if len(sizes) != len(more) and (sizes or not optional):
            yield (
                f"crops.more_{name} has {len(sizes)} values and crops.more_rates {len(more)}; "
                "give one size per rate."
            )
        elif name == "gram" and sizes and values["crops.gram_size"] is None:
            yield "crops.more_gram is set but crops.gram_size is None; set both or neither."
        if name == "box":
            continue
        for size in sizes:
            if size % patch:
                around = f"{size // patch * patch} or {size // patch * patch + patch}"
                yield (
                    f"crops.more_{name}={sizes}: {size} is not a multiple of "
                    f"model.patch_size={patch}; use {around}."
                )
    for number, (gram, side) in enumerate(zip(lists["gram"], lists["global"], strict=False)):
        if gram < side:
            yield (
                f"crops.more_gram[{number}]={gram} is below crops.more_global[{number}]={side}; "
                "the anchor would see less than the student."
            )
    if sum(more) > 1.0 + 1e-9:
        yield (
            f"crops.more_rates={more} sum to {sum(more):.6g}; the sizes of crops.global_size keep "
            "what is left of 1, so stay at or below 1."
        )


# -- rules between stages -------------------------------------------------------------------------


def problems(stages: Sequence[Values]) -> list[str]:
    """What stages, in their order, demand of those before them and do not get."""
    found = []
    for number, values in enumerate(stages):
        before = stages[number - 1] if number else None
        told = [*_hand_over(values, before), *_anchored(values, stages[:number])]
        found += [f"stage {values['stage']}: {line}" for line in told]
    return found


def _hand_over(values: Values, before: Values | None) -> Iterator[str]:
    if values["start.source"] != PREVIOUS:
        return
    if before is None:
        for key, plain in (("what", "ema"), ("heads", "keep"), ("schedules", "restart")):
            value = values[f"start.{key}"]
            if value != plain and not (key == "schedules" and values["start.steps_before"]):
                yield (
                    f"start.{key}={value!r}, but no stage comes before this one; name a run or "
                    f"weights in start.source, or use start.{key}={plain!r}."
                )
        return
    keys = BACKBONE_KEYS + (HEAD_KEYS if values["start.heads"] == "keep" else ())
    keys += STATE_KEYS if values["start.what"] == "state" else ()
    for key in keys:
        if values[key] != before[key]:
            free = ", or set start.heads='new'" if key in HEAD_KEYS else ""
            yield (
                f"{key}={values[key]!r}, but the weights come from stage {before['stage']} with "
                f"{key}={before[key]!r}; keep that{free}."
            )


def _anchored(values: Values, earlier: Sequence[Values]) -> Iterator[str]:
    anchor = values["gram.anchor"] if values["gram.enabled"] else ""
    random = not earlier if values["start.source"] == PREVIOUS else False
    if (
        anchor == EMA
        and values["gram.anchor_step"] == 0
        and (random or values["start.source"] == NOTHING)
    ):
        yield (
            "gram.anchor='ema' at gram.anchor_step=0 would hold on to random weights; set "
            "gram.anchor_step to a later step, or let the stage start from a trained network."
        )
    place = in_run(anchor)
    if place is None or Path(anchor).exists():
        return
    names = [stage["stage"] for stage in earlier]
    if place[0] not in names:
        yield (
            f"gram.anchor={anchor!r}: {place[0]} is not a stage before this one "
            f"({', '.join(names) or 'there is none'}); in the same stage use gram.anchor='ema' "
            "with gram.anchor_step."
        )
        return
    owner = earlier[names.index(place[0])]
    kept = kept_steps(owner)
    if place[1] not in kept:
        near = sorted(kept, key=lambda step: abs(step - place[1]))[:3]
        yield (
            f"gram.anchor={anchor!r}: stage {place[0]} will have no checkpoint {place[1]} when it "
            f"is done (checkpoint.every={owner['checkpoint.every']}, keep_every="
            f"{owner['checkpoint.keep_every']}, keep_last={owner['checkpoint.keep_last']}); use "
            f"{' or '.join(map(str, sorted(near)))}, or set checkpoint.keep_every."
        )


def kept_steps(values: Values) -> list[int]:
    """Steps of a finished stage whose checkpoints are surely there."""
    steps, every = values["num_steps"], values["checkpoint.every"]
    saved = sorted({*range(every, steps + 1, every), steps})
    for_good = values["checkpoint.keep_every"]
    # Saves by the clock (checkpoint.minutes) push others out, so that only the last is sure.
    last = 1 if values["checkpoint.minutes"] is not None else values["checkpoint.keep_last"]
    return [s for s in saved if s in saved[-last:] or (for_good and s % for_good == 0)]
