"""What must happen to pixels before a backbone sees them, in our words and in other libraries'."""

import dataclasses
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3  # Pillow's number of the filter


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, cut the centre, scale to 0..1, normalise.

    mean and std are per channel; None where nobody has given them (a file without a word about it
    and channels other than three), or where `normalize` is per_crop and needs none.
    """

    crop_size: int  # pixels
    resize_size: int  # pixels of the short side
    normalize: str  # fixed | per_crop
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Preprocessing":
        tuples = {key: None if fields[key] is None else tuple(fields[key]) for key in STATISTICS}
        return cls(**{**fields, **tuples})


STATISTICS = ("mean", "std")


def assumed(channels: int) -> tuple[Preprocessing, str]:
    """What is used where a file says nothing, and a note that says so."""
    if channels != 3:
        note = f"nothing tells the mean and std of {channels} channels; give them yourself"
        return Preprocessing(224, 256, "fixed", None, None), note
    note = "preprocessing assumed: 224 pixels, ImageNet mean and std"
    return Preprocessing(224, 256, "fixed", IMAGENET_MEAN, IMAGENET_STD), note


def to_hf(own: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json. An image processor has no per-crop normalisation: none then."""
    fixed = own.normalize == "fixed" and own.mean is not None and own.std is not None
    fields: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": own.mean is None or len(own.mean) == 3,
        "do_resize": True,
        "size": {"shortest_edge": own.resize_size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": own.crop_size, "width": own.crop_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": fixed,
    }
    if fixed:
        fields |= {"image_mean": own.mean, "image_std": own.std}
    return fields


def from_hf(fields: dict[str, Any]) -> Preprocessing:
    """Our words for a preprocessor_config.json. Raises ValueError where it names no size."""
    crop = fields.get("crop_size") if fields.get("do_center_crop") else fields.get("size")
    if not isinstance(crop, dict) or not crop:
        raise ValueError("preprocessor_config.json names no size of images.")
    size = crop["height"] if "height" in crop else crop["shortest_edge"]
    resize = fields["size"].get("shortest_edge", size)
    mean, std = fields.get("image_mean"), fields.get("image_std")
    if not fields.get("do_normalize", True):
        mean = std = None
    return Preprocessing(
        crop_size=size,
        resize_size=resize,
        normalize="fixed",
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
    )


def to_timm(own: Preprocessing, channels: int) -> dict[str, Any]:
    """The fields of timm's pretrained_cfg."""
    fields: dict[str, Any] = {
        "input_size": [channels, own.crop_size, own.crop_size],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": own.crop_size / own.resize_size,
        "crop_mode": "center",
    }
    if own.normalize == "fixed" and own.mean is not None and own.std is not None:
        return {**fields, "mean": list(own.mean), "std": list(own.std)}
    return {**fields, "mean": [0.0] * channels, "std": [1.0] * channels}


def from_timm(fields: dict[str, Any]) -> Preprocessing:
    """Our words for timm's pretrained_cfg."""
    size = fields["input_size"][1]
    return Preprocessing(
        crop_size=size,
        resize_size=round(size / fields.get("crop_pct", 1.0)),
        normalize="fixed",
        mean=tuple(fields["mean"]),
        std=tuple(fields["std"]),
    )
