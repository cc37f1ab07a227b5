"""The static side of the views: sizes, rates and ranges, checked before any device work."""

import dataclasses
import math
from typing import Any

from dinojax.augment.masks import MaskSpec
from dinojax.augment.photometric import Strengths

NUM_GLOBAL = 2  # G, global crops per image


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """What `make_views` needs to know at compile time; hashable. Units as in configs/keys/."""

    group_size: int  # V, images per group
    global_size: int  # of crops as they are cut, like all sizes here
    local_size: int
    gram_size: int | None  # None = no gram crops
    gram_distortions: bool
    num_local: int  # L
    global_area: tuple[float, float]
    local_area: tuple[float, float]
    aspect: tuple[float, float]
    flip_rate: float
    strengths: Strengths
    blur_rates: tuple[float, float, float]  # first global crop, second, each local crop
    solarize_rate: float  # second global crop only
    normalize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    masks: MaskSpec
    # The side of a crop as it is cut over that of the copy which a network sees.
    reduction: int = 1
    teacher_reduction: int = 1

    @property
    def base_size(self) -> int:
        """Pixels at which a global crop is cut: enough for the gram crop of the same box."""
        return max(self.global_size, self.gram_size or 0)

    @classmethod
    def from_sections(
        cls,
        *,
        image: Any,
        crops: Any,
        augment: Any,
        masks: Any,
        patch_size: int,
        group_size: int,
        teacher_patch_size: int | None = None,
    ) -> "ViewSpec":
        """The spec of the sections of a config; ValueError lists everything that is wrong.

        patch_size: pixels, of the student; teacher_patch_size: of a frozen teacher, None = as the
        student's.
        """
        cut = patch_of_crops(crops, patch_size)
        problems = [
            *_size_problems(crops, patch_size, group_size),
            *teacher_problems(crops, patch_size, teacher_patch_size or patch_size),
            *_channel_problems(image, augment),
            *_range_problems(crops, augment, masks),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return cls(
            group_size=group_size,
            global_size=crops.global_size,
            local_size=crops.local_size,
            gram_size=crops.gram_size,
            gram_distortions=crops.gram_distortions,
            num_local=crops.num_local,
            global_area=_floats(crops.global_area),
            local_area=_floats(crops.local_area),
            aspect=_floats(crops.aspect),
            flip_rate=augment.flip_rate,
            strengths=_strengths(augment),
            blur_rates=_floats(augment.blur_rates),
            solarize_rate=augment.solarize_rate,
            normalize=image.normalize,
            mean=_floats(image.mean),
            std=_floats(image.std),
            masks=_mask_spec(masks, crops.global_size // cut, group_size),
            reduction=cut // patch_size,
            teacher_reduction=cut // (teacher_patch_size or patch_size),
        )

    def notes(self, box_size: int) -> list[str]:
        """Sentences for the log about crops that must be up-sampled from boxes of this size."""
        kinds = {
            "global": (self.global_area[0], self.base_size),
            "local": (self.local_area[0], self.local_size),
        }
        notes = []
        for kind, (area, size) in kinds.items():
            smallest = area**0.5 * box_size
            if smallest < size - 1:
                enough = 16 * -(-int(size / area**0.5) // 16)
                notes.append(
                    f"data.box_size={box_size}: the smallest {kind} crop has a side of about "
                    f"{smallest:.0f} pixels and is enlarged to {size}; {enough} would avoid it."
                )
        return notes


def patch_of_crops(crops: Any, patch_size: int) -> int:
    """Pixels that a patch has in crops as they are cut; patch_size: of the student."""
    return crops.patch_size or patch_size


def _strengths(augment: Any) -> Strengths:
    return Strengths(
        jitter_rate=augment.jitter_rate,
        brightness=augment.brightness,
        contrast=augment.contrast,
        saturation=augment.saturation,
        hue=augment.hue,
        grayscale_rate=augment.grayscale_rate,
        blur_sigma=_floats(augment.blur_sigma),
        blur_kernel=augment.blur_kernel,
        solarize_threshold=float(augment.solarize_threshold),
    )


def _mask_spec(masks: Any, side: int, group_size: int) -> MaskSpec:
    return MaskSpec(
        side=side,
        num_rows=group_size * NUM_GLOBAL,
        rate=masks.rate,
        ratio=_floats(masks.ratio),
        min_block=masks.min_block,
        aspect=_floats(masks.aspect),
        roll=masks.roll,
    )


def _size_problems(crops: Any, patch_size: int, group_size: int) -> list[str]:
    problems = []
    key, cut = _named_patch(crops, patch_size)
    if cut % patch_size:
        problems.append(
            f"{key}={cut} is not a multiple of model.patch_size={patch_size}; "
            f"use {math.lcm(cut, patch_size)}."
        )
    sizes = {"global_size": crops.global_size, "local_size": crops.local_size}
    if crops.gram_size is not None:
        sizes["gram_size"] = crops.gram_size
    for name, size in sizes.items():
        if size < cut or size % cut:
            below = size // cut * cut
            choices = " or ".join(str(s) for s in (below, below + cut) if s > 0)
            problems.append(f"crops.{name}={size} is not a multiple of {key}={cut}; use {choices}.")
    if group_size < 1:
        problems.append(f"group_size={group_size} must be at least 1.")
    if crops.num_local < 1:
        problems.append(f"crops.num_local={crops.num_local} must be at least 1.")
    return problems


def _named_patch(crops: Any, patch_size: int) -> tuple[str, int]:
    """`patch_of_crops` and the key that says so."""
    key = "model.patch_size" if crops.patch_size is None else "crops.patch_size"
    return key, patch_of_crops(crops, patch_size)


def teacher_problems(crops: Any, patch_size: int, teacher: int) -> list[str]:
    """In words, why patches of a frozen teacher cannot lie on those of the student.

    patch_size: of the student; teacher: of the teacher, which sees the crops reduced by a whole
    number.
    """
    (key, cut), size = _named_patch(crops, patch_size), crops.global_size
    if cut % teacher == 0:
        return []
    side, others, above = size // cut, size // teacher, -(-cut // teacher)
    below = [n for n in range(1, cut + 1) if cut % n == 0]
    use, larger = f"crops.patch_size={math.lcm(patch_size, teacher)}", ""
    if crops.patch_size is None:
        larger = f" Or set {use} and sizes of crops that it divides: both then see them reduced."
        valid = " or ".join(str(n * teacher) for n in (above - 1, above) if n)
        use = f"a student of patch_size {valid}"
    return [
        f"crops.global_size={size} is {side} x {side} patches of {key}={cut} to "
        f"the student and {others} x {others} patches of {teacher} pixels to the teacher, and no "
        f"reduction of its crops by a whole number makes the grids one; use {use}, or a teacher "
        f"of patch_size {', '.join(map(str, below))}.{larger}"
    ]


def _channel_problems(image: Any, augment: Any) -> list[str]:
    problems = []
    channels = image.channels
    if channels != 3:
        for name in ("saturation", "hue", "grayscale_rate"):
            value = getattr(augment, name)
            if value:
                problems.append(
                    f"augment.{name}={value} needs three colour channels, but "
                    f"image.channels={channels}; set augment.{name}=0."
                )
    if image.normalize not in ("fixed", "per_crop"):
        problems.append(f"image.normalize={image.normalize!r}; use 'fixed' or 'per_crop'.")
    if image.normalize != "fixed":
        return problems
    for name, values in (("mean", image.mean), ("std", image.std)):
        if len(values) != channels:
            why = "" if channels == 3 else " ImageNet statistics are not applied to non-RGB data:"
            problems.append(
                f"image.{name} has {len(values)} values, but image.channels={channels}.{why} "
                f"give {channels} values of your data, or set image.normalize='per_crop'."
            )
    problems += [f"image.std={image.std} must be above 0."] * any(s <= 0 for s in image.std)
    return problems


def _range_problems(crops: Any, augment: Any, masks: Any) -> list[str]:
    problems = []
    rates = {
        **{f"augment.{n}": getattr(augment, n) for n in ("flip_rate", "jitter_rate")},
        **{f"augment.{n}": getattr(augment, n) for n in ("grayscale_rate", "solarize_rate")},
        **{f"augment.blur_rates[{i}]": rate for i, rate in enumerate(augment.blur_rates)},
        "masks.rate": masks.rate,
    }
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            problems.append(f"{name}={rate} is a probability; use a value from 0 to 1.")
    limits = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
    for name, limit in limits.items():
        if not 0 <= getattr(augment, name) <= limit:
            problems.append(f"augment.{name}={getattr(augment, name)}; use 0 to {limit}.")
    for name, (low, high) in (("global_area", crops.global_area), ("local_area", crops.local_area)):
        if not 0 < low <= high <= 1:
            problems.append(
                f"crops.{name}={(low, high)} must be ascending shares above 0, up to 1."
            )
    for name, (low, high) in (("crops.aspect", crops.aspect), ("masks.aspect", masks.aspect)):
        if not 0 < low <= high:
            problems.append(f"{name}={(low, high)} must be ascending and above 0.")
    if not 0 <= masks.ratio[0] < masks.ratio[1] <= 1:
        problems.append(f"masks.ratio={tuple(masks.ratio)} must be ascending shares from 0 to 1.")
    if len(augment.blur_rates) != 3:
        problems.append("augment.blur_rates needs 3 values: global crop 1, global crop 2, locals.")
    if not 0 < augment.blur_sigma[0] <= augment.blur_sigma[1]:
        problems.append(f"augment.blur_sigma={augment.blur_sigma} must be ascending and above 0.")
    smallest = min(crops.global_size, crops.local_size)
    if augment.blur_kernel < 1 or augment.blur_kernel % 2 == 0:
        problems.append(f"augment.blur_kernel={augment.blur_kernel} must be odd.")
    elif any(augment.blur_rates) and augment.blur_kernel // 2 >= smallest:
        problems.append(
            f"augment.blur_kernel={augment.blur_kernel} reaches past the border of crops of "
            f"{smallest} pixels; use at most {2 * smallest - 1}."
        )
    return problems


def _floats(values: Any) -> tuple:
    return tuple(float(v) for v in values)
