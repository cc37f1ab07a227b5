"""What a field of a spec may be, judged before a backbone is made of it."""

import dataclasses
import math
from typing import Any

from dinojax.models.convnext import NUM_STAGES, ConvNextSpec
from dinojax.models.layers import FFNS, NORMS
from dinojax.models.remat import REMAT
from dinojax.models.rope import RopeSpec
from dinojax.models.vit import VitSpec
from dinojax.weights.jsons import shown

WHOLE = {name: 1 for name in ("width", "depth", "num_heads", "patch_size", "channels")}
WHOLE |= {
    "position_size": 1,
    "num_registers": 0,
    "unroll": 1,
}  # field -> its smallest value
REAL: tuple[str, ...] = (
    "ffn_ratio",
    "layer_scale",
    "rope.base",
    "rope.min_period",
    "rope.max_period",
)
REAL += ("rope.shift", "rope.jitter", "rope.rescale")
SHARES = ("position_offset", "drop_path")  # 0 is allowed, 1 is not
SIZES = ("depths", "widths")  # of the stages of a ConvNeXt
DTYPES = ("float32", "bfloat16", "float64")
CHOICES: dict[str, tuple[str, ...]] = {
    "ffn": tuple(FFNS),
    "norm": tuple(NORMS),
    "position": ("rope", "learned"),
    "remat": tuple(REMAT),
    "rope.coords": ("separate", "max", "min"),
    "rope.dtype": DTYPES,
    "rope.periods_dtype": DTYPES,
}
OPTIONAL: tuple[str, ...] = ("layer_scale", "rope.base", "rope.min_period", "rope.max_period")
OPTIONAL += ("rope.shift", "rope.jitter", "rope.rescale")


def names(kind: type) -> set[str]:
    """The fields of VitSpec or ConvNextSpec that may be told, those of RoPE with `rope.` before."""
    found = {field.name for field in dataclasses.fields(kind)} - {"rope", "dtype", "reduce"}
    if kind is VitSpec:
        found |= {f"rope.{field.name}" for field in dataclasses.fields(RopeSpec)}
    return found


def check(kind: type, name: str, value: Any) -> None:
    """Raise ValueError, with the field and its value, for what is no field or no value of it."""
    assert kind in (VitSpec, ConvNextSpec)
    if name not in names(kind):
        raise ValueError(
            f"{name!r} is no field of a backbone; choose of {', '.join(sorted(names(kind)))}."
        )
    wanted = _wanted(name, value)
    if wanted:
        raise ValueError(f"{name}={shown(value)}: it must be {wanted}.")


def _wanted(name: str, value: Any) -> str:
    """What the field must be, or nothing where the value is that."""
    if value is None:
        return "" if name in OPTIONAL else "given"
    if name in CHOICES:
        return "" if value in CHOICES[name] else f"one of {', '.join(CHOICES[name])}"
    if name in WHOLE:
        good = type(value) is int and WHOLE[name] <= value < 2**31
        return "" if good else f"a whole number of at least {WHOLE[name]}"
    number = type(value) in (int, float) and math.isfinite(value)
    if name in REAL:
        return "" if number and value > 0 else "a finite positive number"
    if name in SHARES:
        return "" if number and 0 <= value < 1 else "a number from 0 to below 1"
    if name in SIZES:
        good = isinstance(value, (tuple, list)) and len(value) == NUM_STAGES
        good = good and all(type(size) is int and 0 < size < 2**31 for size in value)
        return "" if good else f"{NUM_STAGES} whole numbers"
    if name == "attention":
        return "" if isinstance(value, str) else "text"
    return "" if type(value) is bool else "true or false"
