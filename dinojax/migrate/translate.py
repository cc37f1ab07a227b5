"""A configuration file of the reference implementations (DINOv3, DINOv2) as a recipe of ours.

dinojax/migrate/tables.py says what becomes of every key: translated, ignored with the reason, or
refused because the run would be another one. A key in no table is unknown. Nothing is dropped in
silence.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable

from dinojax.config.recipe import flat, unknown
from dinojax.configs import base
from dinojax.migrate import tables
from dinojax.migrate.schedules import Refusal, Values, has_schedules, schedules

HUGE = 10**9  # steps; what stands for never in the reference
SIGNS = {  # keys that the files of one implementation alone have
    "dinov2": ("optim.base_lr", "student.num_register_tokens", "student.block_chunks"),
    "dinov3": ("compute_precision.param_dtype", "student.n_storage_tokens", "schedules.*"),
}


@dataclasses.dataclass(frozen=True)
class Migration:
    """What a file became. Every key of it is in exactly one of the four."""

    flavour: str  # dinov3 | dinov2: whose defaults fill in what the file leaves out
    values: Values  # of ours, where they differ from configs/base.py
    used: tuple[str, ...]
    ignored: dict[str, str]  # key -> reason
    refused: dict[str, str]  # key -> value, and what the run would need
    unknown: dict[str, str]  # key -> the nearest one that is known

    def report(self) -> list[str]:
        """All of it as lines of text."""
        lines = [f"{len(self.used)} keys translated; absent ones as in {self.flavour}'s defaults"]
        for title, found in (
            ("ignored", self.ignored),
            ("not supported", self.refused),
            ("unknown", self.unknown),
        ):
            lines += [f"{title}: {len(found)}"] if found else []
            lines += [f"  {key}: {reason}" for key, reason in found.items()]
        return lines


def migrate(given: Values, *, gpus: int, flavour: str | None = None) -> Migration:
    """The recipe of a reference file that was run on `gpus` GPUs.

    given: of `read_yaml`. flavour: dinov3 or dinov2, None = told from the keys.
    """
    if flavour is None:
        signs = {name: any(_any_of(key, SIGNS[name]) for key in given) for name in SIGNS}
        flavour = "dinov2" if signs["dinov2"] and not signs["dinov3"] else "dinov3"
    every = tables.DEFAULTS | (tables.DEFAULTS_2 if flavour == "dinov2" else {}) | given
    ours: Values = {"batch_size": gpus * every["train.batch_size_per_gpu"]}
    refused: dict[str, str] = {}
    for translate in (_renamed, _combined, _koleo, _gram, _anchor, _sizes, schedules):
        try:
            ours |= translate(every, flavour, ours)
        except Refusal as refusal:
            refused |= refusal.reasons
    used: list[str] = []
    ignored: dict[str, str] = {}
    strange: dict[str, str] = {}
    for key in every:
        kind, reason = _classify(key, every, flavour)
        if kind == "refused":
            refused[key] = reason
        elif key in given and key not in refused:
            if kind == "used":
                used.append(key)
            else:
                (ignored if kind == "ignored" else strange)[key] = reason
    return Migration(flavour, _changed(ours), tuple(used), ignored, refused, strange)


def _classify(key: str, every: Values, flavour: str) -> tuple[str, str]:
    """(used | ignored | refused | unknown, reason) of one key."""
    if _any_of(key, tables.VERSION_1) and has_schedules(every):
        return "ignored", "the section `schedules` takes its place"
    if key.startswith("gram.") and not every["gram.use_loss"] and key != "gram.use_loss":
        return "ignored", "gram.use_loss is off"
    if key in ("crops.gram_teacher_crops_size", "crops.gram_teacher_no_distortions"):
        if not every["gram.use_loss"]:
            return "ignored", "gram.use_loss is off"
    if key in tables.REFRESHES and not every["gram.rep_update"]:
        return "ignored", "counts with gram.rep_update alone"
    if key.startswith("dino.local_loss") and not every["dino.reweight_dino_local_loss"]:
        return "ignored", "dino.reweight_dino_local_loss is off"
    if flavour == "dinov3" and _any_of(key, tables.ONLY_DINOV2):
        return "ignored", tables.DEAD
    refused = tables.REFUSED | (tables.REFUSED_2 if flavour == "dinov2" else {})
    for pattern, (allowed, reason) in refused.items():
        if fnmatch.fnmatchcase(key, pattern):
            off = pattern.endswith(".*") and not every.get(f"{pattern[:-2]}.enabled")
            if every[key] in allowed or off:
                return "ignored", "as it is always here"
            return "refused", f"{every[key]!r}: {reason}"
    if key in tables.SAME or key in tables.RENAMED or _any_of(key, tables.COMBINED):
        return "used", ""
    if _any_of(key, tables.VERSION_1) or key.startswith("schedules."):
        return "used", ""
    for pattern, reason in tables.IGNORED.items():
        if fnmatch.fnmatchcase(key, pattern):
            return "ignored", reason
    known = [*tables.SAME, *tables.RENAMED, *tables.VERSION_1, *tables.IGNORED, *tables.COMBINED]
    return "unknown", unknown(key, known)


def _renamed(every: Values, flavour: str, _: Values) -> Values:
    """Keys that have one of ours, with their values or a table of them."""
    gram = every["gram.use_loss"]
    found = {
        ours: every[theirs]
        for theirs, ours in tables.SAME.items()
        if theirs in every and (gram or not theirs.startswith("gram."))
    }
    wrong = {}
    for theirs, (ours, choices) in tables.RENAMED.items():
        if theirs not in every:
            continue
        if theirs == "optim.scaling_rule":
            found[ours] = choices.get(every[theirs], "none")  # as the reference takes it
        elif every[theirs] in choices:
            found[ours] = choices[every[theirs]]
        else:
            wrong[theirs] = f"{every[theirs]!r} is none of {', '.join(map(repr, choices))}"
    for theirs in ("crops.global_crops_size", "crops.local_crops_size"):
        if isinstance(every[theirs], tuple):
            found.pop(tables.SAME[theirs])  # of _sizes
    if wrong:
        raise Refusal(wrong)
    return found


def _combined(every: Values, flavour: str, _: Values) -> Values:
    """Keys made of several of theirs, or whose meaning depends on the implementation."""
    names, networks = tables.ARCHITECTURES[flavour], tables.FFN[flavour]
    wrong = {}
    for key, choices in (("student.arch", names), ("student.ffn_layer", networks)):
        if every[key] not in choices:
            wrong[key] = f"{every[key]!r} is none of {', '.join(choices)}"
    if wrong:
        raise Refusal(wrong)
    keep = every["checkpointing.keep_every"]
    found: Values = {
        "model.name": names[every["student.arch"]],
        "model.ffn": networks[every["student.ffn_layer"]],
        "model.layer_scale": every["student.layerscale"] or None,
        "model.remat": "full" if every["train.checkpointing_full"] else "dots",
        "optim.clip": every["optim.clip_grad"] or None,
        "checkpoint.keep_every": None if keep >= HUGE else keep,
    }
    if not every["train.checkpointing"]:
        found["model.remat"] = "none"
    if flavour == "dinov2":
        found["model.position_size"] = every["crops.global_crops_size"]
        found |= {f"{head}.prototype_norm": "weight_norm" for head in ("dino_head", "ibot_head")}
        antialias, offset = every["student.interpolate_antialias"], every.get(_OFFSET)
        if bool(antialias) == bool(offset):
            raise Refusal(
                {
                    _OFFSET: f"{offset} with interpolate_antialias={antialias}: here an"
                    " offset of 0 means antialiasing and others none"
                }
            )
    return found


_OFFSET = "student.interpolate_offset"


def _koleo(every: Values, flavour: str, ours: Values) -> Values:
    """The images among which neighbours are sought."""
    if not every["dino.koleo_loss_distributed"]:
        return {}
    size = every["dino.koleo_distributed_loss_group_size"]
    return {"losses.koleo_group": ours["batch_size"] if size is None else size}


def _gram(every: Values, flavour: str, _: Values) -> Values:
    """The Gram loss."""
    if not every["gram.use_loss"]:
        return {}
    both, teacher = every["gram.remove_neg"], every["gram.remove_only_teacher_neg"]
    found: Values = {
        "gram.teacher": "ema" if every["gram.ema_teacher"] else "frozen",
        "gram.clip": "both" if both else "teacher" if teacher else "none",
    }
    if every[tables.SIZES["gram"]] is not None:
        found["crops.gram_distortions"] = not every["crops.gram_teacher_no_distortions"]
    return found


def _anchor(every: Values, flavour: str, _: Values) -> Values:
    """What the frozen Gram network is and when it is refreshed, in iterations of the file's run."""
    if not every["gram.use_loss"]:
        return {}
    file, start, refresh = (
        every[f"gram.{name}"] for name in ("ckpt", "it_load_ema_teacher", "rep_update")
    )
    if every["gram.ema_teacher"]:
        wrong = {"gram.ckpt": file is not None, "gram.rep_update": refresh}
        clash = "with gram.ema_teacher the reference refuses it, too; set it to"
        plain = {"gram.ckpt": "null", "gram.rep_update": "false"}
        told = {key: f"{every[key]!r}: {clash} {plain[key]}" for key in wrong if wrong[key]}
        if told:
            raise Refusal(told)
        return {}
    if file in (None, "", "ignore"):
        raise Refusal(
            {
                "gram.ckpt": f"{file!r} stands for the weights of the Gram network; put their path "
                "there: a run, a file or a folder"
            }
        )
    # Loaded again from the ema, the file matters only until then, at a weight that has to be 0.
    found: Values = {"gram.anchor": file}
    if start >= 0:
        found = {"gram.anchor": "ema", "gram.anchor_step": start}
    if refresh:
        found |= {ours: every[theirs] for theirs, ours in tables.REFRESHES.items()}
    return found


def _sizes(every: Values, flavour: str, _: Values) -> Values:
    """One size of crops, or several with their shares; the first keeps what the others leave."""
    wanted = [n for n in tables.SIZES if n != "gram" or every["gram.use_loss"]]
    sizes = {name: every[tables.SIZES[name]] for name in wanted}
    shares = every[tables.RATIOS]
    many = isinstance(shares, tuple)
    wrong = {
        tables.SIZES[name]: f"{size!r}, but {tables.RATIOS} is {shares!r}: give as many of each"
        for name, size in sizes.items()
        if isinstance(size, tuple) != many
        and not (many and name == "gram" and size is None)
        or (isinstance(size, tuple) and many and len(size) != len(shares))
    }
    if many and abs(sum(shares) - 1.0) > 1e-6:
        wrong[tables.RATIOS] = f"{shares!r}: they sum to {sum(shares):.6g}, not to 1"
    if wrong:
        raise Refusal(wrong)
    if not many:
        return {f"crops.{name}_size": size for name, size in sizes.items() if size is not None}
    found: Values = {"crops.more_rates": shares[1:]}
    for name, size in sizes.items():
        if size is not None:
            found |= {f"crops.{name}_size": size[0], f"crops.more_{name}": size[1:]}
    # Theirs are cut from images at full size; a box of twice the crop loses little.
    boxes = [2 * size for size in sizes["global"]]
    return found | {"data.box_size": boxes[0], "crops.more_box": tuple(boxes[1:])}


def _any_of(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _changed(ours: Values) -> Values:
    """What differs from configs/base.py, in its order."""
    default = flat(base.get_config())
    return {key: ours[key] for key in default if key in ours and ours[key] != default[key]}
