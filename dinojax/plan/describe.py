"""`dinojax plan --words RECIPE`: what every stage will do, said before anything runs.

From the configs alone: no image, weight or device is looked at.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinojax.config import Config, load_stages, load_students, stages, student_names, text_rules
from dinojax.config.stage_rules import IN_A_ROW
from dinojax.configs.keys import TERMS
from dinojax.models import zoo
from dinojax.runs.loss_ranges import loss_ranges
from dinojax.train import optim

NUM_GLOBAL = 2
TIGHT = 0.5  # floor over chance above which a loss says little


def words_command(recipe: str | Path, overrides: Sequence[str], num_images: int | None) -> None:
    """Print the plan of a recipe. num_images: in the data, for epochs."""
    if not student_names(recipe):
        families = {"": load_stages(recipe, overrides)}
    else:
        families = dict(load_students(recipe, overrides))
    for name, found in families.items():
        if name:
            print(f"student {name}: RUN/{name}\n")
        stages_told = (stage_lines(found, i, num_images) for i in range(len(found)))
        print("\n\n".join(map("\n".join, stages_told)) + ("\n" if name else ""))


def stage_lines(found: Sequence[Config], number: int, num_images: int | None = None) -> list[str]:
    """The plan of one stage of a recipe, line by line."""
    config = found[number]
    values = config.values()
    steps, batch = values["num_steps"], values["batch_size"]
    epochs = "" if num_images is None else f", {steps * batch / num_images:,.1f} epochs"
    lines = [
        f"stage {values['stage']} ({number + 1} of {len(found)}): {steps:,} steps",
        *_starts(values, found[number - 1].values() if number else None),
        *_teacher(values),
        f"  images: {batch:,} a step ({_micro(values)}), {steps * batch:,} in all{epochs}",
        *_ends(values),
    ]
    if values["text.enabled"]:
        return [*lines, *_text(config), *_learning_rate(config)]
    lines += [
        *_trains(values),
        *_sizes(config),
        *_losses(config),
        *_gram(config),
        *_floors(values),
        *_rates(config),
    ]
    return lines


def _micro(values: Mapping[str, Any]) -> str:
    parts = values["accumulate"]
    split = "at once" if parts == 1 else f"in {parts} micro-batches, same result"
    return f"{split}, groups of {values['group_size']}"


def _starts(values: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[str]:
    source, what = values["start.source"], values["start.what"]
    heads = ", heads new" if values["start.heads"] == "new" else ""
    if source == stages.PREVIOUS and before is not None:
        last = f"checkpoint {before['num_steps']}"
        last = last if before["until.left_chance"] is None else "its last checkpoint"
        source = f"stage {before['stage']}, {last}"
    if source in (stages.PREVIOUS, stages.NOTHING):
        yield f"  starts from: random weights, seed {values['seed']}"
    elif what == "ema":
        yield f"  starts from: the ema of {source}, into student and ema{heads}; optimizer anew"
    else:
        yield f"  starts from: {source}: student, ema and optimizer as they were"
    if before is not None:
        on = values["start.schedules"] == "continue"
        offset = values["start.steps_before"]
        yield (
            f"  schedules: {', '.join(stages.COUNTED)} count on from step {offset:,}; loss weights"
            " from 0"
            if on
            else "  schedules: all count from this stage's step 0"
        )


def _teacher(values: Mapping[str, Any]) -> Iterator[str]:
    if not values["distill.enabled"]:
        return
    named = values["distill.teacher"] or "(none yet: set distill.teacher)"
    dtype = values["distill.compute"] or values["precision.compute"]
    strategy = values["distill.strategy"] or values["mesh.strategy"]
    yield f"  teacher: {named}, frozen, in {dtype}, sharded as {strategy}; never in checkpoints"
    if values["distill.targets"] == "features":
        yield (
            "    targets: its features of cls and patches; the heads become projectors to its "
            "width, and dino and ibot are cosine distances"
        )
    else:
        yield "    targets: of its own trained heads over the same prototypes"
    yield "    the student sees whole crops; masks choose the patches that ibot compares"


def _ends(values: Mapping[str, Any]) -> Iterator[str]:
    """What may end the stage, or the run, before its last step."""
    share, steps = values["until.left_chance"], values["num_steps"]
    if share is not None:
        yield (
            f"  ends: when the losses have gone {share:.3g} of the way from chance to their floors "
            f"(looks every {values['until.every']} steps, {IN_A_ROW} in a row), at the latest "
            f"after {steps:,} steps, and then no stage goes on from it"
        )
    if values["knn.alarm"] is not None:
        end = "ends the run, exit code 3" if values["knn.alarm_stops"] else "a warning"
        yield (
            "  alarm: when k-NN (without labels the dense metric) has lost "
            f"{values['knn.alarm']:.3g} of its value at step 0: {end}"
        )


def _trains(values: Mapping[str, Any]) -> Iterator[str]:
    if values["optim.freeze_backbone"]:
        yield "  trains: the heads; backbone and its ema stay as they are"
    elif values["adapter.rank"]:
        told = ", ".join(values["adapter.targets"])
        yield f"  trains: the heads, and adapters of rank {values['adapter.rank']} on {told}"


def _text(config: Config) -> Iterator[str]:
    """What a stage of text alignment trains, on what."""
    text, patch = config.text, config.model.patch_size
    tower = f"the text tower of {text.tower} frozen" if text.freeze_tower else "a text tower"
    yield (
        f"  trains: {text.vision_depth} blocks on the tokens of the frozen backbone, {tower} "
        f"({text.depth} blocks of {text.width} channels, vocabulary {text.vocabulary})"
        + (f", {text.head_depth} blocks on it" if text.head_depth else "")
    )
    side = config.crops.global_size
    yield (
        f"  crops: one of {side} px from boxes of {config.data.box_size} px; "
        f"{(side // patch) ** 2:,} patches an image, {text.context} tokens a caption"
    )
    gram = f", gram {text.gram:g}" if text.gram else ""
    yield (
        f"  {text.loss}: over all {config.batch_size:,} pairs of a step, chance "
        f"{loss_ranges(config.values())[text.loss].chance:.2f} nats{gram}"
    )


def _sizes(config: Config) -> Iterator[str]:
    found = stages.sizes(config.crops, config.data.box_size)
    patch = config.crops.patch_size or config.model.patch_size
    factor = patch // config.model.patch_size
    for share, keys in zip(stages.rates(config.crops.more_rates), found, strict=True):
        whole, local, gram, box = keys.values()
        assert whole is not None and local is not None
        tokens = NUM_GLOBAL * (whole // patch) ** 2 + config.crops.num_local * (local // patch) ** 2
        seen = "" if gram is None else f", gram {gram}"
        reduced = f", seen as {whole // factor} and {local // factor} px" if factor > 1 else ""
        yield (
            f"  crops ({100 * share:.4g} % of the steps): {NUM_GLOBAL} global {whole}, "
            f"{config.crops.num_local} local {local}{seen} px from boxes of {box} px"
            f"{reduced}; {tokens:,} patches an image"
        )
    if len(found) > 1:
        yield f"  programs: {len(found)}, all compiled before the first step"


def _losses(config: Config) -> Iterator[str]:
    now, steps = _schedules(config), config.num_steps
    weights = {key: config.values()[key] for key in TERMS if key.startswith("losses.")}
    told = ", ".join(f"{key.removeprefix('losses.')} {w:g}" for key, w in weights.items())
    yield f"  loss weights: {told}, local DINO terms x {_course(now, 'local_weight', steps)}"
    if config.gram.enabled:
        yield f"  gram weight: {_course(now, 'gram_weight', steps)}; on from step {_on(config)}"


def _on(config: Config) -> str:
    """The first step at which the gram weight is above 0; it is monotone in each of its parts."""
    now, low, high = _schedules(config), 0, config.num_steps - 1
    if now(0)["gram_weight"]:
        return "0"
    if not now(high)["gram_weight"]:
        return "never (its weight ends at 0)"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if now(middle)["gram_weight"] else (middle, high)
    return f"{high:,}"


def _course(now, name: str, steps: int) -> str:
    """A value over a stage: constant, or from first to last."""
    places = sorted({round(share * (steps - 1)) for share in (0, 0.01, 0.1, 0.5, 1)})
    found = [now(place)[name] for place in places]
    if max(found) - min(found) < 1e-12:
        return f"{found[0]:g}"
    told = ", ".join(f"{v:.3g} at {p:,}" for p, v in zip(places, found, strict=True))
    return f"({told})"


def _gram(config: Config) -> Iterator[str]:
    gram = config.gram
    if not gram.enabled:
        return
    if gram.teacher == stages.EMA:
        yield "  gram anchor: none; patches are compared with those of this step's ema"
        return
    anchor = zoo.fill(stages.Anchor, gram)
    source = f"checkpoint {gram.anchor}"
    if gram.anchor == stages.EMA:
        source = f"this stage's ema at step {gram.anchor_step:,}"
    elif stages.in_run(gram.anchor) is None:
        source = gram.anchor
    factor = (config.crops.gram_size or config.crops.global_size) / config.crops.global_size
    kind = "distorted" if config.crops.gram_distortions else "undistorted"
    kind = "the student's global crops" if config.crops.gram_size is None else f"{kind} crops"
    yield f"  gram anchor: {source}; sees {kind}, {factor:.3g} times as large"
    renewed = anchor.refresh_steps(config.num_steps)
    told = ", ".join(f"{step:,}" for step in renewed[:5]) + (" ..." if len(renewed) > 5 else "")
    yield f"  gram refreshes: {f'{len(renewed)}, after steps {told}' if renewed else 'none'}"


def _floors(values: Mapping[str, Any]) -> Iterator[str]:
    """How far the losses can fall, and what to do where that is too little."""
    if values["distill.enabled"] and values["distill.targets"] == "features":
        return
    ranges = loss_ranges(dict(values))
    for term, head in (("dino_local", "dino_head"), ("ibot", "ibot_head")):
        reach, prototypes = ranges[term], values[f"{head}.prototypes"]
        name = term.split("_")[0]
        yield (
            f"  {name}: chance {reach.chance:.2f}, floor {reach.floor:.2f} nats "
            f"(K = {prototypes:,} prototypes)"
        )
        if reach.floor > TIGHT * reach.chance:
            # Sinkhorn gives no target above rows / K: floor = share of log(K / rows).
            share = reach.chance / math.log(prototypes)
            rows = prototypes / math.exp(reach.floor / share)
            most = 2 ** int(math.log2(max(rows, 2) ** 2))
            yield (
                f"    advice: {rows:,.0f} teacher rows are few for K = {prototypes:,}; set "
                f"{head}.prototypes to {most:,} or less, or raise batch_size"
            )


def _learning_rate(config: Config) -> Iterator[str]:
    rule, lr = config.optim.lr_scaling, config.schedules.lr
    key = "end" if lr.end > lr.peak else "peak"
    value = max(lr.peak, lr.end)
    factor = optim.LR_FACTORS[rule](config.batch_size)
    now, steps = _schedules(config), config.num_steps
    formula = {
        "sqrt_1024": f"4 sqrt({config.batch_size} / 1024)",
        "linear_256": f"{config.batch_size} / 256",
        "none": "1",
    }[rule]
    yield f"  learning rate: {rule}, x {formula} = {factor:.4g}; {_course(now, 'lr', steps)}"
    yield f"    (schedules.lr.{key} {value:g} -> {value * factor:.4g})"


def _rates(config: Config) -> Iterator[str]:
    now, steps = _schedules(config), config.num_steps
    yield from _learning_rate(config)
    yield f"  momentum: {_course(now, 'momentum', steps)}"
    yield f"  teacher temperature: {_course(now, 'teacher_temperature', steps)}"
    if config.optim.freeze_last_layer:
        yield f"  prototypes: frozen for {config.optim.freeze_last_layer:,} steps"


def _schedules(config: Config):
    on = config.start.schedules == "continue"
    return optim.schedules(
        config.schedules,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        freeze_last_layer=config.optim.freeze_last_layer,
        lr_scaling=config.optim.lr_scaling,
        steps_before=config.start.steps_before if on else 0,
        **({"names": text_rules.SCHEDULES} if config.text.enabled else {}),
    )
