"""The evaluation transform of timm (pretrained_cfg of its config.json), read and written."""

import dataclasses
import math
from typing import Any

from dinojax.weights.jsons import Fields
from dinojax.weights.pixel_fields import PixelFields
from dinojax.weights.pixels import FILTERS
from dinojax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, as_tuple

FILE = "config.json: pretrained_cfg"
DEFAULTS = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "fixed_input_size": False,
}
# Of the resolution at which timm tests where it is asked to (use_test_size).
TESTING = ("test_input_size", "test_crop_pct")
# Fields about files, the classifier and papers.
IGNORED = {
    "architecture",
    "classifier",
    "custom_load",
    "description",
    "file",
    "first_conv",
    "global_pool",
    "hf_hub_filename",
    "hf_hub_id",
    "label_descriptions",
    "label_names",
    "label_offset",
    "labels",
    "license",
    "min_input_size",
    "notes",
    "num_classes",
    "num_features",
    "origin_url",
    "paper_ids",
    "paper_name",
    "pool_size",
    "source",
    "tag",
    "test_pool_size",
    "url",
}


def read(config: dict[str, Any], channels: int) -> tuple[Preprocessing, list[str]]:
    """Our words for timm's config.json of weights that take so many channels, and notes.

    As timm, input_size is replaced by the arguments of the model where they say more. Raises
    ValueError that names the field and its value for whatever is not exactly this.
    """
    whole = Fields(config, "config.json")
    split = "pretrained_cfg" in config
    fields = whole.section("pretrained_cfg").content if split else config  # one in older files
    arguments = whole.section("model_args").content if split else {}
    own = PixelFields(_with_arguments(fields, arguments), FILE, DEFAULTS)
    own.only({*DEFAULTS, *TESTING, *IGNORED})
    own.flag("fixed_input_size")
    size = _input_size(own, "input_size", channels)
    notes = _testing(own, channels)
    if own["interpolation"] not in tuple(FILTERS):
        raise own.refuse("interpolation", f"read are {', '.join(FILTERS)}")
    if own["crop_mode"] not in ("center", "squash", "border"):
        raise own.refuse("crop_mode", "read are center, squash, border")
    larger = tuple(own.larger("crop_pct", side) for side in size)
    mean, std = _statistics(own, channels)
    if mean is None:
        notes.append(f"nothing tells the mean and std of {channels} channels; give them yourself")
    fill = tuple(round(255 * value) for value in mean or ())
    if own["crop_mode"] == "border" and not all(0 <= level <= 255 for level in fill):
        raise own.refuse("mean", "it is the colour of the border, between 0 and 1")
    rule = {"squash": "exact", "border": "contain"}.get(own["crop_mode"], "cover")
    if rule == "cover" and larger[0] == larger[1]:
        rule, larger = "short", larger[:1]
    return Preprocessing(
        crop_size=size,
        resize_size=larger[0] if rule == "short" else (larger[0], larger[1]),
        normalize=_normalize(config),
        mean=mean,
        std=std,
        rule=rule,
        filter=own["interpolation"],
        fill=fill if rule == "contain" else None,
    ), notes


def _with_arguments(fields: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """What timm makes of pretrained_cfg and the arguments of the model before it reads them."""
    found = {name: value for name, value in fields.items() if value not in (None, [], 0, "")}
    dynamic = arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False
    if dynamic or arguments.get("use_naflex"):
        found["fixed_input_size"] = False
    for name in ("input_size", "test_input_size"):
        wide = found.get(name) or (DEFAULTS[name] if name in DEFAULTS else None)
        if arguments.get("in_chans") is not None and isinstance(wide, list | tuple):
            found[name] = [arguments["in_chans"], *wide[1:]]
    size = arguments.get("img_size")
    if size is not None and found.get("fixed_input_size") is True:
        wide = found.get("input_size", DEFAULTS["input_size"])
        channels = wide[0] if isinstance(wide, list | tuple) else wide
        found["input_size"] = [channels, *(size if isinstance(size, list | tuple) else [size] * 2)]
    return found


def _input_size(own: PixelFields, name: str, channels: int) -> tuple[int, int]:
    value = own[name]
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise own.refuse(name, "it must be [channels, height, width]")
    depth, height, width = (own.side(name, side) for side in value)
    if depth != channels:
        raise own.refuse(name, f"the weights take {channels} channels")
    return height, width


def _statistics(own: PixelFields, channels: int):
    """mean and std; (None, None) where the default, of three channels, cannot be meant."""
    if channels != 3 and not {"mean", "std"} & own.given:
        return None, None
    mean, std = (own.statistics(name, channels) for name in ("mean", "std"))
    if min(std) <= 0:
        raise own.refuse("std", "it must be above 0")
    return mean, std


def _testing(own: PixelFields, channels: int) -> list[str]:
    """Notes about the resolution of tests, which timm uses only where it is asked to."""
    if own["test_input_size"] is not None:
        _input_size(own, "test_input_size", channels)
    if own["test_crop_pct"] is not None:
        own.positive("test_crop_pct")
    return [
        f"{name} = {own[name]} is left aside, as timm does without use_test_size"
        for name in TESTING
        if own[name] is not None
    ]


def _normalize(config: dict[str, Any]) -> str:
    told = Fields(config, "config.json")  # written by `write` alone
    return told.text("normalize", "fixed", choices=("per_crop",))


def expressed(own: Preprocessing, channels: int) -> tuple[Preprocessing, list[str]]:
    """What timm's transform makes of it, and notes of what differs from `own`.

    Raises ValueError for what it cannot do.
    """
    own.check_statistics(channels)
    cut = own.crop_size if own.crop_size is not None else own.out_size
    size = own.resize_size if own.resize_size is not None else cut
    found = dataclasses.replace(
        own, crop_size=cut, resize_size=size, resize_as="bytes", offset="even", transparency="drop"
    )
    found = _scaled_to_one(found, channels)
    reasons = [
        reason
        for broken, reason in (
            (cut is None, "images of differing sizes"),
            (own.resize_size is None, "no resizing"),
            (own.rule in ("bounded", "inside"), f"resizing by the rule {own.rule}"),
            (own.pad_size is not None, "padding at last"),
            (any(own.fill or ()) and own.fill != _border(found), "this colour around an image"),
            (any(_border(found)) and not any(own.fill or ()), "black around an image"),
            (cut is not None and size is not None and _share(found) is None, "these two sizes"),
        )
        if broken
    ]
    if reasons:
        raise ValueError(f"--format timm: its transform does not do {' or '.join(reasons)}.")
    notes = []
    if own.resize_as != "bytes":
        notes.append("Pillow resizes and rounds to bytes, as timm does")
    if own.offset != "even" and own.crop_size is not None:
        notes.append("half a pixel of the cut's offset is rounded to even, as timm does")
    if own.transparency != "drop":
        notes.append("transparency is dropped where an image is opened, as timm's users do")
    return found, notes


def _border(own: Preprocessing) -> tuple[int, ...]:
    """What timm puts around an image that is smaller than the cut."""
    if own.rule != "contain":
        return ()
    return tuple(round(255 * value) for value in own.mean or ())


def _scaled_to_one(own: Preprocessing, channels: int) -> Preprocessing:
    """With values in 0..1 and everything else in mean and std, as timm knows it alone."""
    if own.normalize == "per_crop":
        return own
    mean, std = own.mean or (0.0,) * channels, own.std or (1.0,) * channels
    if own.normalize == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    factor = 1.0 if own.scale == 1 / 255 else 255 * own.scale
    return dataclasses.replace(
        own,
        normalize="fixed",
        mean=tuple(value / factor for value in mean),
        std=tuple(value / factor for value in std),
        scale=1 / 255,
    )


def _share(own: Preprocessing) -> float | None:
    """crop_pct, from which timm makes the very sizes by rounding down; None if there is none."""
    assert own.crop_size is not None and own.resize_size is not None
    cut = as_tuple(own.crop_size) * (2 if isinstance(own.crop_size, int) else 1)
    size = as_tuple(own.resize_size) * (2 if isinstance(own.resize_size, int) else 1)
    if own.rule == "short" and cut[0] != cut[1]:
        return None
    low = max(side / (larger + 1) for side, larger in zip(cut, size, strict=True))
    high = min(side / larger for side, larger in zip(cut, size, strict=True))
    for share in (high, math.nextafter(high, 0), (low + high) / 2):
        if tuple(math.floor(side / share) for side in cut) == size:
            return share
    return None


def write(own: Preprocessing, channels: int) -> dict[str, Any]:
    """The fields of pretrained_cfg of what `expressed` gave; per_crop is left to the reader."""
    cut = own.crop_size
    share = _share(own)
    assert cut is not None and share is not None
    fields: dict[str, Any] = {
        "input_size": [channels, *((cut, cut) if isinstance(cut, int) else cut)],
        "fixed_input_size": False,
        "interpolation": own.filter,
        "crop_pct": share,
        "crop_mode": {"exact": "squash", "contain": "border"}.get(own.rule, "center"),
    }
    if own.normalize == "fixed":
        assert own.mean is not None and own.std is not None
        return {**fields, "mean": list(own.mean), "std": list(own.std)}
    return {**fields, "mean": [0.0] * channels, "std": [1.0] * channels}
