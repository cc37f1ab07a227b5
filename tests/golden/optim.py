"""Replays of recorded schedules and parameter groups."""

import re
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from dinojax.configs.base import get_config, schedule
from dinojax.train.optim import LR_FACTORS, multipliers, schedules
from dinojax.weights.meta import BUFFERS, our_path, to_ours
from tests.golden.record import FLOAT64_RELATIVE, Check, Record, Skip

SCALINGS = {"sqrt_wrt_1024": "sqrt_1024", "linear_wrt_256": "linear_256"}
# Recorded name -> ours.
SCALARS = {
    "lr": "lr",
    "last_layer_lr": "last_layer_lr",
    "wd": "weight_decay",
    "momentum": "momentum",
    "teacher_temp": "teacher_temperature",
    "dino_local_loss_weight": "local_weight",
    "gram_loss_weight": "gram_weight",
}


def replay_schedules(record: Record) -> Iterator[Check]:
    for name, entry in record.entries.items():
        if "config" not in entry:
            yield from _single_schedule(name, entry["samples"])
            continue
        config = entry["config"]
        now = _our_schedules(record, name)
        points = {point["it"]: point for point in entry["samples"] + entry["edges"]}
        after = {k: v for k, v in entry["value_at_it_equal_total_v1"].items() if v is not None}
        for scalar in points[0]:
            if scalar == "it":
                continue
            recorded = {step: point[scalar] for step, point in points.items()}
            if scalar in after:
                recorded[config["total"]] = after[scalar]
            yield _at_steps(f"{name}/{scalar}", now, SCALARS[scalar], recorded)


def _at_steps(quantity: str, now, scalar: str, recorded: dict[int, float]) -> Check:
    ours = np.array([now(step)[scalar] for step in recorded])
    values = np.array(list(recorded.values()))
    rounding = 1e-15 * np.max(np.abs(values))  # of float64, where values grow from 0
    return Check(quantity, ours, values, FLOAT64_RELATIVE * np.abs(values) + rounding)


def _our_schedules(record: Record, name: str):
    config = record[name]["config"]
    epoch = config["OFFICIAL_EPOCH_LENGTH"]
    batch_size = config["world_size"] * config["batch_size_per_gpu"]
    section = get_config().schedules
    section.version = int(config["version"].removeprefix("v"))
    if section.version == 1:
        v1 = config["v1"]
        section.truncate_extra = v1["schedule_trunc_extra"]
        section.lr = schedule(
            0.0, _unscaled_lr(record, name), v1["min_lr"], v1["warmup_epochs"] * epoch
        )
        decay, teacher = v1["weight_decay"], v1["teacher"]
        section.weight_decay = schedule(decay, decay, v1["weight_decay_end"])
        momentum = teacher["momentum_teacher"]
        section.momentum = schedule(momentum, momentum, teacher["final_momentum_teacher"])
        section.teacher_temperature = schedule(
            teacher["warmup_teacher_temp"],
            teacher["teacher_temp"],
            teacher["teacher_temp"],
            teacher["warmup_teacher_temp_epochs"] * epoch,
        )
        freeze = v1["freeze_last_layer_epochs"]
    else:
        specs = config["schedules"]
        for theirs in ("lr", "wd", "momentum", "teacher_temp"):
            spec = specs["weight_decay" if theirs == "wd" else theirs]
            section[SCALARS[theirs]] = _version_2(spec, epoch)
        freeze = specs["lr"]["freeze_last_layer_epochs"]
    for theirs, ours in (("dino_local", "local_weight"), ("gram", "gram_weight")):
        if config[theirs] is not None:
            section[ours] = _version_2(config[theirs], epoch)
    return schedules(
        section,
        num_steps=config["total"],
        batch_size=batch_size,
        freeze_last_layer=freeze * epoch,
        lr_scaling=SCALINGS.get(config["scaling_rule"], "none"),
    )


def _version_2(spec: dict, epoch: int) -> ConfigDict:
    cosine = spec.get("cosine_epochs")
    return schedule(
        spec["start"],
        spec["peak"],
        spec["end"],
        spec["warmup_epochs"] * epoch,
        None if cosine is None else cosine * epoch,
    )


def _unscaled_lr(record: Record, name: str) -> float:
    """Recorded are scaled rates: undo it at the smallest world, so the larger ones are tests."""
    siblings = [n for n in record.entries if n.rsplit("/", 1)[0] == name.rsplit("/", 1)[0]]
    smallest = min((record[n]["config"] for n in siblings), key=lambda c: c["world_size"])
    batch_size = smallest["world_size"] * smallest["batch_size_per_gpu"]
    scaling = SCALINGS.get(smallest["scaling_rule"], "none")
    return smallest["v1"]["lr_after_scaling"] / LR_FACTORS[scaling](batch_size)


def _single_schedule(name: str, samples: list[dict]) -> Iterator[Check]:
    """An entry whose name says what it is: version, and parts in steps."""
    parts = dict(
        re.findall(r"_(trunc_extra|freeze|total|warm|base|final)([\d.]+(?:e-?\d+)?)", name)
    )
    # A schedule that starts late is ours with fewer steps, moved; the recipes do not use it.
    late = int(parts.get("freeze", 0))
    section = get_config().schedules
    section.version = int(name[1])
    section.truncate_extra = float(parts.get("trunc_extra", 0.0))
    section.lr = schedule(0.0, float(parts["base"]), float(parts["final"]), int(parts["warm"]))
    total = int(parts["total"]) - late
    section.teacher_temperature = schedule(1.0, 1.0, 1.0)
    now = schedules(section, num_steps=total, batch_size=1, freeze_last_layer=0, lr_scaling="none")
    recorded = {max(p["it"] - late, 0): p["lr"] for p in samples}
    yield _at_steps(f"{name}/lr", now, "lr", recorded)


def replay_param_groups(record: Record) -> Iterator[Check | Skip]:
    for name, groups in record.entries.items():
        model, decay, *rest = name.split("/")
        if "UNUSED" in model:
            yield Skip(name, "a function the reference's training does not call")
        elif rest != ["n_fused_groups"]:
            fused = f"{name}/n_fused_groups"
            ratio = record.meta.get("patch_embed_lr_mult", get_config().optim.patch_embed_lr)
            found = _our_groups(groups, float(decay.removeprefix("decay")), ratio)
            for key, ours in found.items():
                recorded = np.array([group[key] for group in groups])
                yield Check(f"{name}/{key}", ours, recorded, FLOAT64_RELATIVE * np.abs(recorded))
            if fused in record:
                rounded = [np.round(values.astype(float), 12) for values in found.values()]
                distinct = len(set(zip(*rounded, strict=True)))
                yield Check(fused, distinct, record[fused], 0)


def _our_groups(groups: list[dict], decay: float, ratio: float) -> dict[str, np.ndarray]:
    """Our factors of the recorded parameters, in their order."""
    names = [group["name"] for group in groups]
    # Zeros of a byte each: only names and shapes matter, and the number of heads does not.
    tensors = {g["name"]: np.zeros(g["shape"], np.int8) for g in groups}
    part = "dino_head" if any(name.startswith("last_layer") for name in names) else "backbone"
    paths = {name: our_path(name) for name in names if not BUFFERS.fullmatch(name)}
    blocks = [block for path, block in paths.values() if path[0] == "blocks" and block is not None]
    depth = 1 + max(blocks, default=-1)
    factors = multipliers(
        {part: to_ours(tensors, num_heads=1)}, depth=depth, layer_decay=decay, patch_embed_lr=ratio
    )

    def of(tree, name):
        path, block = paths[name]
        for key in (part, *path):
            tree = tree[key]
        return np.ravel(tree)[block] if np.ndim(tree) else tree

    trees = {
        "lr_multiplier": factors.lr,
        "wd_multiplier": factors.weight_decay,
        "is_last_layer": factors.is_last,
    }
    return {key: np.array([of(tree, name) for name in names]) for key, tree in trees.items()}
