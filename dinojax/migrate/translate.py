"""A configuration file of the reference implementations (DINOv3, DINOv2) as a recipe of ours.

tables.py and untranslated.py say what becomes of every key: translated, ignored with the reason, or
refused because the run would be another one. A key in no table is unknown. Nothing is dropped in
silence.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable
from types import NoneType

from dinojax.config.recipe import ConfigError, flat, unknown
from dinojax.configs import base
from dinojax.migrate import kinds, tables
from dinojax.migrate.classify import KNOWN, classify
from dinojax.migrate.schedules import Refusal, Values, schedules

HUGE = 10**9  # steps; what stands for never in the reference
SIGNS = {  # keys that the files of one implementation alone have
    "dinov2": ("optim.base_lr", "student.num_register_tokens", "student.block_chunks"),
    "dinov3": ("compute_precision.param_dtype", "student.n_storage_tokens", "schedules.*"),
}


@dataclasses.dataclass(frozen=True)
class Migration:
    """What a file became. Every key of it is in exactly one of the last five."""

    flavour: str  # dinov3 | dinov2: whose defaults fill in what the file leaves out
    values: Values  # of ours, where they differ from configs/keys/
    used: tuple[str, ...]
    ignored: dict[str, str]  # key -> reason
    refused: dict[str, str]  # key -> value, and what the run would need
    unknown: dict[str, str]  # key -> value, and one that is known and alike
    left_out: dict[str, str]  # key -> value, by the wish of the user

    def report(self) -> list[str]:
        """All of it as lines of text."""
        lines = [f"{len(self.used)} keys translated; absent ones as in {self.flavour}'s defaults"]
        for title, found in (
            ("ignored", self.ignored),
            ("not supported", self.refused),
            ("unknown", self.unknown),
            ("left out as asked", self.left_out),
        ):
            lines += [f"{title}: {len(found)}"] if found else []
            lines += [f"  {key}: {reason}" for key, reason in found.items()]
        return lines


def migrate(
    given: Values, *, gpus: int, flavour: str | None = None, ignore: Iterable[str] = ()
) -> Migration:
    """The recipe of a reference file that was run on `gpus` GPUs.

    given: of `read_yaml`. flavour: dinov3 or dinov2, None = told from the keys. ignore: keys, or
    sections of keys, to take as if the file had not them. Raises ConfigError for one it has not.
    """
    left_out = {key: f"{given[key]!r}" for name in ignore for key in _named(name, given)}
    given = {key: value for key, value in given.items() if key not in left_out}
    if flavour is None:
        signs = {name: any(_any_of(key, SIGNS[name]) for key in given) for name in SIGNS}
        flavour = "dinov2" if signs["dinov2"] and not signs["dinov3"] else "dinov3"
    default = tables.DEFAULTS | (tables.DEFAULTS_2 if flavour == "dinov2" else {})
    found: dict[str, dict[str, str]] = {k: {} for k in ("used", "ignored", "refused", "unknown")}
    # What is no value of its key is told, and then taken as absent.
    for key, value in given.items():
        kind, reason = classify(key, default | given, flavour)
        wrong = kinds.wrong(key, value) if kind == "used" else None
        found[kind if wrong is None else "refused"][key] = reason if wrong is None else wrong
    every = default | {k: v for k, v in given.items() if k in found["used"] or k not in KNOWN}
    ours: Values = {"batch_size": gpus * every["train.batch_size_per_gpu"]}
    refused = found["refused"]
    for key in default:  # one of theirs may not be offered either
        if key not in given and key not in left_out:
            kind, reason = classify(key, every, flavour)
            refused |= {key: reason} if kind == "refused" else {}
    translators = (_renamed, _channels, _combined, _koleo, _gram, _anchor, _sizes, schedules)
    for translate in translators:
        try:
            ours |= translate(every, flavour, ours)
        except Refusal as refusal:
            refused |= {k: v for k, v in refusal.reasons.items() if k not in refused}
    used = tuple(key for key in found["used"] if key not in refused)
    return Migration(
        flavour, _changed(ours), used, found["ignored"], refused, found["unknown"], left_out
    )


def _named(name: str, given: Values) -> list[str]:
    """Keys of a file that --ignore means: one, or all of a section."""
    found = [key for key in given if key == name or key.startswith(f"{name}.")]
    if not found:
        raise ConfigError(f"--ignore {name}: {unknown(name, given, section=False)} of this file.")
    return found


def _renamed(every: Values, flavour: str, _: Values) -> Values:
    """Keys that have one of ours, with their values or a table of them."""
    gram = every["gram.use_loss"]
    found = {
        ours: every[theirs]
        for theirs, ours in tables.SAME.items()
        if theirs in every and (gram or not theirs.startswith("gram."))
    }
    if flavour == "dinov3":
        found.pop(tables.SAME[_OFFSET], None)
    if found.get("knn.every") is not None and found["knn.every"] <= 0:
        found["knn.every"] = None  # the references evaluate after multiples of a positive number
    wrong = {}
    for theirs, (ours, choices) in tables.RENAMED.items():
        if theirs not in every:
            continue
        if theirs == "optim.scaling_rule":
            choices = choices | dict.fromkeys((None, "", "none"), "none")
        if isinstance(every[theirs], (str, bool, NoneType)) and every[theirs] in choices:
            found[ours] = choices[every[theirs]]
        else:
            wrong[theirs] = f"{every[theirs]!r} is none of {', '.join(map(repr, choices))}"
    for theirs in ("crops.global_crops_size", "crops.local_crops_size"):
        if isinstance(every[theirs], tuple):
            found.pop(tables.SAME[theirs])  # of _sizes
    if wrong:
        raise Refusal(wrong)
    return found


def _channels(every: Values, flavour: str, _: Values) -> Values:
    """Channels of the images, and what colour operations are left with other than three."""
    channels = every["student.in_chans"]
    channels = 3 if channels is None else channels
    wrong = {}
    teacher = every.get("teacher.in_chans")
    if teacher not in (None, channels):
        wrong["teacher.in_chans"] = f"{teacher!r}, but student.in_chans is {channels}"
    for name in ("mean", "std"):
        values = every[f"crops.rgb_{name}"]
        if len(values) != channels:
            wrong["student.in_chans"] = (
                f"{channels!r}, but crops.rgb_mean and crops.rgb_std do not have {channels} values "
                "each; give those of the data"
            )
    if wrong:
        raise Refusal(wrong)
    # Of one channel torchvision's saturation, hue and grayscale are the identity.
    colours = ("saturation", "hue", "grayscale_rate") if channels != 3 else ()
    return {"image.channels": channels} | {f"augment.{name}": 0.0 for name in colours}


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
        "checkpoint.keep_every": None if keep is None or keep >= HUGE else keep,
    }
    if not every["train.checkpointing"]:
        found["model.remat"] = "none"
    if flavour == "dinov2":
        size = every["crops.global_crops_size"]
        found["model.position_size"] = size[0] if isinstance(size, tuple) else size
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
    if start == 0:
        reason = "0: the ema of random weights would take the place of gram.ckpt; -1 keeps that"
        raise Refusal({"gram.it_load_ema_teacher": reason})
    # Loaded again from the ema, the file matters only until then, at a weight that has to be 0.
    found: Values = {"gram.anchor": file}
    if start > 0:
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
    """What differs from configs/keys/, in its order."""
    default = flat(base.get_config())
    return {key: ours[key] for key in default if key in ours and ours[key] != default[key]}
