"""What a stage of a recipe may demand, of itself and of those before it. See docs/stages.md."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinojax.config.stages import EMA, NOTHING, PREVIOUS, Anchor, Values, in_run, kept_steps

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
IN_A_ROW = 3  # looks at the losses that have to agree: one may be luck
ADAPTER_KEYS = tuple(f"adapter.{name}" for name in ("rank", "targets", "norms"))
STATE_KEYS = ("losses.centering", "optim.freeze_backbone", *ADAPTER_KEYS)


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


def freeze_rules(values: Values) -> Iterator[str]:
    """Rules of optim.freeze_backbone."""
    if not values["optim.freeze_backbone"]:
        return
    frozen = "optim.freeze_backbone=True"
    if values["start.what"] == "state":
        yield (
            f"start.what='state' brings a student and an ema that differ, so under {frozen} the "
            "ema would still move; use start.what='ema'."
        )
    if values["adapter.rank"]:
        yield (
            f"adapter.rank={values['adapter.rank']} trains adapters of the backbone that {frozen} "
            "holds; set adapter.rank=0 here and use adapters in the next stage."
        )
    if values["gram.enabled"]:
        yield (
            f"gram.enabled=True moves patches of the backbone that {frozen} holds; set it to "
            "False here and anchor the next stage."
        )


def end_rules(values: Values) -> Iterator[str]:
    """Rules of what ends a stage, or a run, before its last step."""
    every, steps = values["until.every"], values["num_steps"]
    if values["until.left_chance"] is not None:
        if steps < IN_A_ROW * every:
            yield (
                f"until.left_chance needs {IN_A_ROW} looks in a row, one every until.every={every} "
                f"steps, and num_steps={steps} has fewer; set until.every={steps // IN_A_ROW} "
                f"or less, or raise num_steps to {IN_A_ROW * every} or more."
            )
        if not values["losses.dino"] and not values["losses.ibot"]:
            yield (
                "until.left_chance watches losses with a weight, but losses.dino and losses.ibot "
                "are 0; give one a weight, or set until.left_chance=None."
            )
    if values["knn.alarm"] is not None and values["knn.every"] is None:
        yield (
            f"knn.alarm={values['knn.alarm']} needs evaluations to compare, but knn.every is None; "
            "set knn.every, or knn.alarm=None."
        )
    if values["knn.alarm_stops"] and values["knn.alarm"] is None:
        yield "knn.alarm_stops=True but knn.alarm is None; set it, 0.05 for example, or unset both."


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
            "file of weights, or gram.teacher=ema (each step's own), or gram.enabled=False."
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
    if before["until.left_chance"] is not None and values["start.schedules"] == "continue":
        yield (
            f"start.schedules='continue' counts on from the last step of stage {before['stage']}, "
            f"which may end before it (until.left_chance={before['until.left_chance']}); use "
            "start.schedules='restart'."
        )
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
    if owner["until.left_chance"] is not None:
        yield (
            f"gram.anchor={anchor!r}: stage {place[0]} may end before that step "
            f"(until.left_chance={owner['until.left_chance']}); use gram.anchor='ema', which at "
            "step 0 is the network that this stage starts from."
        )
        return
    kept = kept_steps(owner)
    if place[1] not in kept:
        near = sorted(kept, key=lambda step: abs(step - place[1]))[:3]
        yield (
            f"gram.anchor={anchor!r}: stage {place[0]} will have no checkpoint {place[1]} when it "
            f"is done (checkpoint.every={owner['checkpoint.every']}, keep_every="
            f"{owner['checkpoint.keep_every']}, keep_last={owner['checkpoint.keep_last']}); use "
            f"{' or '.join(map(str, sorted(near)))}, or set checkpoint.keep_every."
        )
