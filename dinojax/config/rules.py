"""What a config may hold: choices, optional values, ranges, and what keys demand of each other."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dinojax.config import data_rules, distill_rules, guide_rules, stage_rules, stages, text_rules
from dinojax.configs.keys import KEYS
from dinojax.configs.keys.key import COUNT, FLOAT
from dinojax.data.fields import shown
from dinojax.eval import suite

Values = Mapping[str, Any]  # dotted key -> value

# What the rows of configs/keys/ say, by what they say: dotted key -> value.
LIMITS = {key: row.limits for key, row in KEYS.items() if row.limits is not None}
CHOICES = {key: row.choices for key, row in KEYS.items() if row.choices}
OPTIONAL = {key: row.optional for key, row in KEYS.items() if row.optional is not None}
MANY = {key: row.many for key, row in KEYS.items() if row.many is not None}
NAMED = {key: row.named for key, row in KEYS.items() if row.named}
TABLES = {key: row.columns for key, row in KEYS.items() if row.columns}
SCHEDULES = tuple(key.removesuffix(".cosine") for key in KEYS if key.endswith(".cosine"))


def violations(values: Values) -> list[str]:
    """Every rule that the config breaks, one sentence each, ending with a move."""
    # A value out of its range or list would make the rules between keys talk nonsense.
    single = of_single_keys(values)
    own = (_batch, _sizes, _more_sizes, _rope, _steps, _pairs, _adapter, _precision)
    staged = (stage_rules.start_rules, stage_rules.freeze_rules, stage_rules.end_rules)
    others = (data_rules.rules, distill_rules.rules, stage_rules.gram_rules, text_rules.rules)
    rules = (*own, *staged, *others, guide_rules.rules)
    return single or [message for rule in rules for message in rule(values)]


def of_single_keys(values: Values) -> list[str]:
    """Every value that is out of its range or list, whatever the others are."""
    return [*_choices(values), *_limits(values), *_stage(values)]


def valid_group_sizes(batch_size: int, num_shards: int, accumulate: int = 1) -> list[int]:
    """Group sizes that divide the images one data shard holds of a micro-batch; ascending.

    Empty when the batch itself does not split into num_shards * accumulate equal parts.
    """
    images, rest = divmod(batch_size, num_shards * accumulate)
    return [] if rest else [size for size in range(1, images + 1) if images % size == 0]


def _choices(values: Values) -> Iterator[str]:
    for key, choices in CHOICES.items():
        value = values[key]
        if value not in choices and not (value is None and key in OPTIONAL):
            yield f"{key}={shown(value)} is not a choice; use {', '.join(map(repr, choices))}."


def _limits(values: Values) -> Iterator[str]:
    for key, (low, high) in LIMITS.items():
        value = values[key]
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if not low <= number <= high:
                is_open = number < low and high in (COUNT, FLOAT)
                bounds = f"at least {low}" if is_open else f"between {low} and {high}"
                yield f"{key}={shown(value)} is out of range; use a value {bounds}."
                break


STAGE = r"\w[\w.-]{0,63}"


def _stage(values: Values) -> Iterator[str]:
    name = values["stage"]
    if not re.fullmatch(STAGE, name):
        yield (
            f"stage={name[:80]!r} names a folder of checkpoints; use letters, digits, _, - and ., "
            "64 at most."
        )


def _batch(values: Values) -> Iterator[str]:
    batch, group, parts = values["batch_size"], values["group_size"], values["accumulate"]
    if batch % parts:
        yield (
            f"batch_size={batch} does not split into accumulate={parts} micro-batches; "
            f"use batch_size={_around(batch, parts)}."
        )
        return
    micro = batch // parts
    sizes = valid_group_sizes(batch, 1, parts)
    for key, size in (("group_size", group), ("losses.koleo_group", values["losses.koleo_group"])):
        if size is not None and micro % size:
            near = " or ".join(map(str, sorted(sorted(sizes, key=lambda s: abs(s - size))[:2])))
            yield (
                f"{key}={size} does not divide the {micro} images of a micro-batch "
                f"(batch_size={batch}, accumulate={parts}); use {near}."
            )


def _sizes(values: Values) -> Iterator[str]:
    names = ("crops.global_size", "crops.local_size", "crops.gram_size")
    patches = dict.fromkeys(names, stages.patch_of_crops(values))
    cuts = [key for key, _ in suite.keys() if key.endswith(".crop_size")]
    patches |= {key: ("model.patch_size", values["model.patch_size"]) for key in cuts}
    for name, (key, patch) in patches.items():
        size = values[name]
        if size is not None and size % patch:
            yield f"{name}={size} is not a multiple of {key}={patch}; use {_around(size, patch)}."
    for key in cuts:
        crop, other = values[key], key.replace(".crop_size", ".resize_size")
        if crop is not None and values.get(other, crop) < crop:
            yield f"{other}={values[other]} is smaller than {key}={crop}; use {crop} or more."
    channels = values["image.channels"]
    for name in ("image.mean", "image.std"):
        if values["image.normalize"] == "fixed" and len(values[name]) != channels:
            yield (
                f"{name}={values[name]} has {len(values[name])} values for "
                f"image.channels={channels}; give {channels} "
                "(`dinojax data check` tells them), or set image.normalize=per_crop."
            )
    if values["augment.blur_kernel"] % 2 == 0:
        yield f"augment.blur_kernel={values['augment.blur_kernel']} is even; use an odd number."


def _more_sizes(values: Values) -> Iterator[str]:
    """Rules of crops.more_*."""
    more, (key, patch) = values["crops.more_rates"], stages.patch_of_crops(values)
    lists = {name: values[f"crops.more_{name}"] for name in (*stages.SIZES, "box")}
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
                yield (
                    f"crops.more_{name}={sizes}: {size} is not a multiple of {key}={patch}; "
                    f"use {_around(size, patch)}."
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


def _rope(values: Values) -> Iterator[str]:
    base, low, high = (values[f"rope.{name}"] for name in ("base", "min_period", "max_period"))
    if base is not None and (low is not None or high is not None):
        yield (
            f"rope.base={base} excludes rope.min_period={low} and rope.max_period={high}; "
            "set base to None, or both periods to None."
        )
    elif base is None and (low is None or high is None):
        yield (
            f"rope.base is None, rope.min_period={low}, rope.max_period={high}; "
            "set base, or both periods."
        )
    elif base is None and low >= high:
        yield f"rope.min_period={low} is not below rope.max_period={high}; swap them."


def _steps(values: Values) -> Iterator[str]:
    for name in SCHEDULES:
        if not text_rules.has_schedule(values, name):
            continue
        steps = _length(values, name)
        warmup, cosine = values[f"{name}.warmup"], values[f"{name}.cosine"]
        if warmup > steps:
            yield f"{name}.warmup={warmup} exceeds num_steps={steps}; use {steps} or fewer."
        elif cosine is not None and warmup + cosine > steps:
            yield (
                f"{name}.warmup={warmup} and cosine={cosine} exceed num_steps={steps}; "
                f"use cosine={steps - warmup} or fewer, or None for all that remain."
            )
    freeze, steps = values["optim.freeze_last_layer"], _length(values, "schedules.lr")
    if freeze > steps and not values["text.enabled"]:
        yield f"optim.freeze_last_layer={freeze} exceeds num_steps={steps}; use {steps} or fewer."


def _length(values: Values, schedule: str) -> int:
    """Steps that a schedule covers: also those of earlier stages, if it counts on from them."""
    on = values["start.schedules"] == "continue" and schedule.split(".")[1] in stages.COUNTED
    return values["num_steps"] + on * values["start.steps_before"]


def _pairs(values: Values) -> Iterator[str]:
    names = ("crops.global_area", "crops.local_area", "crops.aspect")
    for name in (*names, "augment.blur_sigma", "masks.ratio", "masks.aspect"):
        low, high = values[name]
        if low > high:
            yield f"{name}={values[name]} is not ascending; use {(high, low)}."


def _adapter(values: Values) -> Iterator[str]:
    targets, known = values["adapter.targets"], ("qkv", "proj", "ffn")
    if not targets or not set(targets) <= set(known) or len(set(targets)) < len(targets):
        yield f"adapter.targets={targets}; use one or more of {', '.join(known)}, each once."


def _precision(values: Values) -> Iterator[str]:
    reduce, compute = values["precision.reduce"], values["precision.compute"]
    if (reduce, compute) == ("bfloat16", "float32"):
        yield (
            f"precision.reduce={reduce} would round the float32 gradients of "
            f"precision.compute={compute}; use precision.reduce=float32, or bfloat16 for both."
        )


def _around(value: int, step: int) -> str:
    below = value // step * step
    return f"{below} or {below + step}" if below else f"{step}"
