"""What becomes of a key of a reference's file: read, ignored with a reason, refused or unknown."""

import fnmatch

from dinojax.config.recipe import unknown
from dinojax.migrate import tables, untranslated
from dinojax.migrate.schedules import Values, has_schedules

# Keys that the translators read.
KNOWN = {*tables.SAME, *tables.RENAMED, *tables.VERSION_1, *tables.CURVES}
KNOWN |= {*tables.DEFAULTS, *tables.DEFAULTS_2, *tables.NULLABLE}


def classify(key: str, every: Values, flavour: str) -> tuple[str, str]:
    """(used | ignored | refused | unknown, reason) of one key."""
    if (gate := _gate(key, every, flavour)) is not None:
        return "ignored", gate
    fixed = untranslated.FIXED_IN[flavour] | untranslated.FIXED
    for pattern, (allowed, reason, other) in fixed.items():
        if fnmatch.fnmatchcase(key, pattern):
            if every[key] in allowed:
                return "ignored", reason
            dead = f"{reason}, and there it is {' or '.join(map(repr, allowed[:2]))}"
            return "refused", f"{every[key]!r}: {other or dead}"
    if key in KNOWN:
        return "used", ""
    for pattern, reason in untranslated.IGNORED.items():
        if fnmatch.fnmatchcase(key, pattern):
            return "ignored", reason
    known = [*KNOWN, *(k for k in (*fixed, *untranslated.IGNORED) if "*" not in k)]
    return "unknown", f"{every[key]!r}: {unknown(key, known)}"


def _gate(key: str, every: Values, flavour: str) -> str | None:
    """Why nothing reads a key in this file; None if something does."""
    if key in tables.VERSION_1 and has_schedules(every):
        return "the section `schedules` takes its place"
    for section, switches in untranslated.SWITCHES.items():
        is_off = not any(every.get(switch) for switch in switches)
        if is_off and key.startswith(f"{section}.") and key not in switches:
            return f"{' and '.join(switches)} {'is' if len(switches) == 1 else 'are'} off"
    if key in GRAM_CROPS and not every["gram.use_loss"]:
        return "gram.use_loss is off"
    if key in tables.REFRESHES and not every["gram.rep_update"]:
        return "counts with gram.rep_update alone"
    if key == "gram.loss_weight" and "gram.loss_weight_schedule.peak" in every:
        return "gram.loss_weight_schedule takes its place"
    if key in tables.CURVES and key.endswith("_epochs"):
        iterations = key.removesuffix("epochs") + "iterations"
        if every.get(iterations) is not None:
            return f"{iterations} takes its place"
    if key == "dino.koleo_distributed_loss_group_size" and not every["dino.koleo_loss_distributed"]:
        return "dino.koleo_loss_distributed is off"
    if key == "train.checkpointing_full" and not every["train.checkpointing"]:
        return "train.checkpointing is off"
    if key == "optim.lr" and flavour == "dinov2":
        return "optim.base_lr takes its place"
    if key.startswith("schedules.lr.freeze_") or key == "schedules.lr.backbone_warmup_after_freeze":
        frozen = every.get("schedules.lr.freeze_student_iterations")
        if key.rpartition(".")[2] in FROZEN_ALONE and not frozen:
            return "schedules.lr.freeze_student_iterations is off"
    return None


GRAM_CROPS = ("crops.gram_teacher_crops_size", "crops.gram_teacher_no_distortions")
FROZEN_ALONE: tuple[str, ...] = ("freeze_patch_embed", "freeze_cls_token", "freeze_mask_token")
FROZEN_ALONE += ("backbone_warmup_after_freeze",)
