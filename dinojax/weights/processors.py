"""preprocessor_config.json of transformers, read field by field and written.

What each field means is that of transformers 5, whose classes work on tensors of torchvision. A
class of 4.x that works on Pillow images differs from it by the rounding of bytes, and by one pixel
in where an image smaller than the cut is put. The default of the class stands for a field that is
not there; null is null: a step that is not taken, or a value that is missing.
"""

import dataclasses
from typing import Any

from dinojax.weights.pixel_fields import PixelFields
from dinojax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, as_tuple

FILE = "preprocessor_config.json"
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

STEPS = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "default_to_square": True,
}
BIT = {
    **STEPS,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "do_convert_rgb": True,
}
VIT = {
    **STEPS,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "image_mean": HALF,
    "image_std": HALF,
}
# Class -> defaults of its fields
CLASSES: dict[str, dict[str, Any]] = {
    "BitImageProcessor": BIT,
    "CLIPImageProcessor": BIT,
    "ViTImageProcessor": VIT,
    "DeiTImageProcessor": {
        **VIT,
        "size": {"height": 256, "width": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    },
    "ConvNextImageProcessor": {
        **VIT,
        "size": {"shortest_edge": 384},
        "default_to_square": False,
        "resample": 3,
        "crop_pct": 224 / 256,
    },
    "DINOv3ViTImageProcessor": {**VIT, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
}
# model_type of config.json -> class, where the file names none
CLASS_OF = {"dinov2": "BitImageProcessor", "dinov3_vit": "DINOv3ViTImageProcessor"}
# Fields that change no pixel of one image.
IGNORED = {
    "_name_or_path",
    "_processor_class",
    "_valid_processor_keys",
    "auto_map",
    "data_format",
    "device",
    "disable_grouping",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "input_data_format",
    "model_input_names",
    "processor_class",
    "return_tensors",
    "transformers_version",
    "use_fast",
}
READ = {*STEPS, *BIT, "do_pad", "pad_size", "normalize"}


def read(fields: dict[str, Any], channels: int, model_type: str = "") -> Preprocessing:
    """Our words for a preprocessor_config.json of weights that take so many channels.

    model_type: of the config.json beside it. Raises ValueError that names the field and its value
    for whatever is not exactly this.
    """
    name = _class(fields, model_type)
    own = PixelFields(fields, FILE, CLASSES[name])
    own.only({*READ, *IGNORED, *(("crop_pct",) if name == "ConvNextImageProcessor" else ())})
    if own.flag("do_convert_rgb") and channels != 3:
        raise own.refuse("do_convert_rgb", f"the weights take {channels} channels")
    as_floats = name == "DINOv3ViTImageProcessor" and own.flag("do_rescale")
    if name == "DINOv3ViTImageProcessor" and not as_floats and own.flag("do_normalize"):
        raise own.refuse("do_rescale", "this class normalises only what it has rescaled")
    found = Preprocessing(
        None,
        None,
        "none",
        None,
        None,
        resize_as="floats" if as_floats else "tensors",
        offset="down",
        scale=own.positive("rescale_factor") if own.flag("do_rescale") else 1.0,
        transparency="white" if own.flag("do_convert_rgb") else "drop",
    )
    found = dataclasses.replace(found, **_sizes(own, name), **_normalize(own, channels))
    return dataclasses.replace(found, pad_size=_pad(own, name, found))


def _class(fields: dict[str, Any], model_type: str) -> str:
    told = fields.get("image_processor_type")
    if told is None and isinstance(old := fields.get("feature_extractor_type"), str):
        told = old.replace("FeatureExtractor", "ImageProcessor")
    if told is None:
        told = CLASS_OF.get(model_type)
    base = str(told).removesuffix("Fast")
    if base not in CLASSES:
        raise PixelFields({"image_processor_type": told}, FILE, {}).refuse(
            "image_processor_type", f"read are {', '.join(CLASSES)} and their Fast"
        )
    return base


def _sizes(own: PixelFields, name: str) -> dict[str, Any]:
    """Fields of Preprocessing about resizing and cutting."""
    found: dict[str, Any] = {}
    if own.flag("do_resize"):
        resample = own["resample"]
        if type(resample) is not int or resample not in FILTERS:
            known = ", ".join(f"{number} ({filter})" for number, filter in FILTERS.items())
            raise own.refuse("resample", f"resized is with {known}")
        found |= {"filter": FILTERS[resample], **_resize(own)}
        if name == "ConvNextImageProcessor":
            found |= _convnext(own, found)
    if not own.flag("do_center_crop"):
        return found
    size = _size(own, "crop_size", square=True)
    if set(size) != {"height", "width"}:
        raise own.refuse("crop_size", "a cut needs height and width")
    cut = (size["height"], size["width"])
    if found.get("crop_size", cut) != cut:
        raise own.refuse("crop_size", f"this class has cut {found['crop_size']} before")
    return {**found, "crop_size": cut}


def _size(own: PixelFields, name: str, *, square: bool) -> dict[str, int]:
    """A size as a dictionary. A number is a square, or the short side alone."""
    value = own[name]
    if isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, list | tuple) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    if not isinstance(value, dict) or not value:
        raise own.refuse(name, "it must be a number, a pair or a dictionary")
    value = {key: side for key, side in value.items() if side is not None}
    return {key: own.side(name, side) for key, side in value.items()}


def _resize(own: PixelFields) -> dict[str, Any]:
    size = _size(own, "size", square=own.flag("default_to_square"))
    for keys, rule in (
        ({"shortest_edge"}, "short"),
        ({"shortest_edge", "longest_edge"}, "bounded"),
        ({"max_height", "max_width"}, "inside"),
        ({"height", "width"}, "exact"),
    ):
        if set(size) == keys:
            order = ("shortest_edge", "longest_edge", "max_height", "max_width", "height", "width")
            sides = tuple(size[key] for key in order if key in size)
            return {"rule": rule, "resize_size": sides[0] if len(sides) == 1 else sides}
    raise own.refuse("size", "no way to resize is known by these keys")


def _convnext(own: PixelFields, found: dict[str, Any]) -> dict[str, Any]:
    """Below 384 pixels a larger short side and a cut, else a square whatever the aspect."""
    if found["rule"] != "short":
        raise own.refuse("size", "this class takes shortest_edge alone")
    short = found["resize_size"]
    if short >= 384:
        return {"rule": "exact", "resize_size": (short, short)}
    return {"resize_size": own.larger("crop_pct", short), "crop_size": (short, short)}


def _normalize(own: PixelFields, channels: int) -> dict[str, Any]:
    told = own["normalize"]  # written by `write` alone
    if told not in (None, "per_crop"):
        raise own.refuse("normalize", "only per_crop is known")
    if not own.flag("do_normalize"):
        return {"normalize": told or "none"}
    if told is not None:
        raise own.refuse("normalize", "do_normalize is true as well")
    found = {key: own.statistics(f"image_{key}", channels) for key in ("mean", "std")}
    if min(found["std"]) <= 0:
        raise own.refuse("image_std", "it must be above 0")
    return {"normalize": "fixed", **found}


def _pad(own: PixelFields, name: str, found: Preprocessing) -> tuple[int, int] | None:
    if not own.flag("do_pad"):
        return None
    if name in ("ConvNextImageProcessor", "DINOv3ViTImageProcessor"):
        raise own.refuse("do_pad", f"{name} pads nothing")
    if own["pad_size"] is None:
        if found.out_size is None:
            raise own.refuse("do_pad", "without pad_size it depends on the other images")
        return None  # all have one size
    size = _size(own, "pad_size", square=True)
    if set(size) != {"height", "width"}:
        raise own.refuse("pad_size", "it needs height and width")
    wanted, had = (size["height"], size["width"]), found.out_size
    if had is not None and (had[0] > wanted[0] or had[1] > wanted[1]):
        raise own.refuse("pad_size", f"images of {had[0]}x{had[1]} pixels are larger")
    return wanted


def expressed(own: Preprocessing, channels: int) -> tuple[Preprocessing, list[str]]:
    """What a processor of transformers makes of it, and notes of what differs from `own`.

    Raises ValueError for what none can do.
    """
    own.check_statistics(channels)
    reasons = [
        reason
        for broken, reason in (
            (own.rule in ("cover", "contain"), f"resizing by the rule {own.rule}"),
            (own.filter not in FILTERS.values(), f"resizing with the filter {own.filter}"),
            (own.fill is not None and any(own.fill), "filling around an image with other than 0"),
            (own.resize_as == "floats" and own.pad_size is not None, "padding after floats"),
        )
        if broken
    ]
    if reasons:
        raise ValueError(f"--format hf: no image processor does {' or '.join(reasons)}.")
    notes = []
    if own.resize_as == "bytes" and own.resize_size is not None:
        notes.append("torchvision resizes, which rounds bytes otherwise than Pillow")
    white = "white" if channels == 3 else "drop"
    if own.crop_size is not None and own.offset != "down":
        notes.append("half a pixel of the cut's offset is rounded down, as transformers does")
    if own.transparency != white:
        notes.append("what is transparent in an image becomes white, as transformers does")
    as_tensors = "tensors" if own.resize_as == "bytes" else own.resize_as
    found = dataclasses.replace(
        own, offset="down", transparency=white, fill=None, resize_as=as_tensors
    )
    return found, notes


def write(own: Preprocessing, channels: int) -> dict[str, Any]:
    """preprocessor_config.json of what `expressed` gave; a processor cannot do per_crop.

    That is then written in a field of its own, which transformers does not read.
    """
    cut, size = own.crop_size, own.resize_size
    fields: dict[str, Any] = {
        # transformers 4 has classes of Pillow by the same names without Fast; 5 does not mind it.
        "image_processor_type": "BitImageProcessorFast"
        if own.resize_as != "floats"
        else "DINOv3ViTImageProcessorFast",
        "do_convert_rgb": channels == 3,
        "do_resize": size is not None,
        "do_center_crop": cut is not None,
        "do_rescale": True,
        "rescale_factor": own.scale,
        "do_normalize": own.normalize == "fixed",
        "default_to_square": own.rule != "short",
    }
    if size is not None:
        numbers = {filter: number for number, filter in FILTERS.items()}
        fields |= {"size": dict(zip(KEYS[own.rule], as_tuple(size), strict=True))}
        fields |= {"resample": numbers[own.filter]}
    if cut is not None:
        height, width = (cut, cut) if isinstance(cut, int) else cut
        fields |= {"crop_size": {"height": height, "width": width}}
    if own.normalize == "fixed":
        assert own.mean is not None and own.std is not None
        fields |= {"image_mean": list(own.mean), "image_std": list(own.std)}
    if own.normalize == "per_crop":
        fields |= {"normalize": "per_crop"}
    if own.pad_size is not None:
        height, width = own.pad_size
        fields |= {"do_pad": True, "pad_size": {"height": height, "width": width}}
    return fields


KEYS = {
    "short": ("shortest_edge",),
    "bounded": ("shortest_edge", "longest_edge"),
    "inside": ("max_height", "max_width"),
    "exact": ("height", "width"),
}
