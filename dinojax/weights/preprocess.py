"""What must happen to pixels before a backbone sees them, in our words, and doing it."""

import dataclasses
from typing import Any

import numpy as np

from dinojax.weights import pixels
from dinojax.weights.pixel_fields import PixelFields

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize, cut the centre, scale, normalise, pad: uint8 [H, W, C] to float32 [h, w, C].

    With the defaults of all but the sizes it is the evaluation of the reference: the short side
    resized with antialiased bicubic on bytes, the centre cut, values in 0..1. The other values
    say what processors of transformers and transforms of timm do.

    crop_size: side, or (height, width) where they differ; None = nothing is cut.
    resize_size: side, or two as `rule` (a key of pixels.RULES) wants them; None = no resizing.
    normalize: fixed, by mean and std per channel (None where nobody has given them: a file without
    a word about it and channels other than three); per_crop, each by its own; or none.
    filter: a key of pixels.FILTERS. resize_as: bytes (rounded again, as Pillow does it), tensors
    (the same, as torchvision does it with tensors of bytes), or floats (scaled before).
    offset: of the cut, where half a pixel is left, rounded to even or down. fill: 0..255 per
    channel around an image that is smaller than the cut, None = 0. scale: factor of the bytes.
    pad_size: (height, width) filled up with zeros at last. transparency: of RGBA images, dropped,
    or laid over white.
    """

    crop_size: int | tuple[int, int] | None
    resize_size: int | tuple[int, int] | None
    normalize: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    rule: str = "short"
    filter: str = "bicubic"
    resize_as: str = "bytes"
    offset: str = "even"
    fill: tuple[int, ...] | None = None
    scale: float = 1 / 255
    pad_size: tuple[int, int] | None = None
    transparency: str = "drop"

    def __post_init__(self):
        crop = self.crop_size
        if isinstance(crop, tuple) and crop[0] == crop[1]:
            object.__setattr__(self, "crop_size", crop[0])
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"preprocessing: {field}={getattr(self, field)!r} is unknown; choose of "
                    f"{', '.join(known)}."
                )
        if self.resize_size is not None:
            sides, wanted = as_tuple(self.resize_size), pixels.NUM_SIZES.get(self.rule, 2)
            if len(sides) != wanted:
                raise ValueError(
                    f"preprocessing: resize_size={self.resize_size} are {len(sides)} sizes; "
                    f"rule={self.rule} takes {wanted}."
                )

    def __call__(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] (or [H, W]) of any size to float32 [h, w, C].

        Raises ValueError where mean and std are not known, or are of other channels.
        """
        if pixels_HWC.ndim == 2:
            pixels_HWC = pixels_HWC[:, :, None]
        self.check_statistics(pixels_HWC.shape[2])
        values_HWC = pixels_HWC
        if self.resize_as == "floats":
            values_HWC = self._scaled(values_HWC)
        if self.resize_size is not None:
            values_HWC = pixels.resized(
                values_HWC,
                self.rule,
                as_tuple(self.resize_size),
                self.filter,
                tensors=self.resize_as != "bytes",
            )
        if self.crop_size is not None:
            values_HWC = pixels.center_crop(
                values_HWC, self.crop_size, offset=self.offset, fill=self.fill
            )
        if self.resize_as != "floats":
            values_HWC = self._scaled(values_HWC)
        normalized = pixels.NORMALIZE[self.normalize]
        values_HWC = normalized(values_HWC, self.mean, self.std).astype(np.float32)
        return values_HWC if self.pad_size is None else pixels.padded(values_HWC, self.pad_size)

    def _scaled(self, values_HWC: np.ndarray) -> np.ndarray:
        return values_HWC.astype(np.float32) / np.float32(1 / self.scale)

    def check_statistics(self, channels: int) -> None:
        """Raise ValueError where images of so many channels cannot be normalised."""
        if self.normalize != "fixed":
            return
        if self.mean is None or self.std is None:
            raise ValueError(
                f"these weights come without mean and std of their {channels} channels; "
                "give them once with `dinojax import --mean ... --std ...`."
            )
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"preprocessing has {len(self.mean)} means and {len(self.std)} standard deviations "
                f"for images of {channels} channels."
            )

    @property
    def out_size(self) -> tuple[int, int] | None:
        """(height, width) of what comes out; None if it depends on the image."""
        if self.pad_size is not None:
            return self.pad_size
        if self.crop_size is not None:
            return (self.crop_size,) * 2 if isinstance(self.crop_size, int) else self.crop_size
        if self.rule == "exact" and isinstance(self.resize_size, tuple):
            return self.resize_size
        return None

    @property
    def side(self) -> int:
        """Pixels of the square that stands for what comes out, where one number is asked for."""
        if self.out_size is not None:
            return self.out_size[0]
        return 224 if self.resize_size is None else as_tuple(self.resize_size)[0]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Preprocessing":
        """Of what `to_json` gave. Raises ValueError naming the field for anything else."""
        own = PixelFields(fields, "preprocessing", {})
        known = [field.name for field in dataclasses.fields(cls)]
        own.only(known)
        if missing := [name for name in known[:5] if name not in own]:
            raise ValueError(f"preprocessing has no {missing[0]}.")
        told = {name: value for name, value in fields.items() if name in known}
        for name in ("crop_size", "resize_size", "pad_size"):
            if isinstance(told.get(name), list) or (name == "pad_size" and told.get(name)):
                told[name] = own.wholes(name, count=2)
            elif told.get(name) is not None:
                told[name] = own.whole(name)
        for name in ("mean", "std", "fill"):
            if told.get(name) is not None:
                told[name] = own.per_channel(name)
        if min(told["std"] or (1,)) <= 0:
            raise own.refuse("std", "it must be above 0")
        if min(fill := told.get("fill") or (0,)) < 0 or max(fill) > 255:
            raise own.refuse("fill", "it must be bytes")
        return cls(**{**told, "scale": own.real("scale", 1 / 255)})


CHOICES: dict[str, tuple[str, ...]] = {
    "normalize": tuple(pixels.NORMALIZE),
    "rule": tuple(pixels.RULES),
    "filter": tuple(pixels.FILTERS),
    "resize_as": ("bytes", "tensors", "floats"),
    "offset": tuple(pixels.OFFSETS),
    "transparency": ("drop", "white"),
}


def as_tuple(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else size


def assumed(channels: int) -> tuple[Preprocessing, str]:
    """What is used where a file says nothing, and a note that says so."""
    if channels != 3:
        note = f"nothing tells the mean and std of {channels} channels; give them yourself"
        return Preprocessing(224, 256, "fixed", None, None), note
    note = "preprocessing assumed: 224 pixels, ImageNet mean and std"
    return Preprocessing(224, 256, "fixed", IMAGENET_MEAN, IMAGENET_STD), note
