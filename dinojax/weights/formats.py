"""The table of formats, and how a file is told to be one of them."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from dinojax.models.vit import VitSpec
from dinojax.weights import hf, meta, timm
from dinojax.weights.tensors import Tensors


@dataclasses.dataclass(frozen=True)
class Format:
    """One way to keep a backbone on disk."""

    marks: str  # pattern of a name that only this format has
    to_reference: Callable[[Tensors], tuple[Tensors, list[str]]]
    left_out: Callable[[VitSpec], dict[str, str]]  # parameters it does not hold -> why


def _as_it_is(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors of the reference, and the names it does not have."""
    known, unknown = {}, []
    for name, tensor in tensors.items():
        if name == "register_tokens":  # DINOv2's word
            known["storage_tokens"] = tensor
        elif meta.BUFFERS.fullmatch(name) or meta.is_backbone(name):
            known[meta.without_chunk(name)] = tensor
        else:
            unknown.append(name)
    return known, unknown


def _nothing(spec: VitSpec) -> dict[str, str]:
    return {}


# Our own format keeps the reference's names: per layer, so that no run-time choice is on disk.
FORMATS = {
    "hf": Format(
        r"(model\.)?embeddings\..*|(model\.)?layer\.\d+\.attention\.[qkv]_proj.*",
        hf.to_reference,
        hf.left_out,
    ),
    "timm": Format(
        r"reg_token|blocks\.\d+\.(gamma_[12]|attn\.q_bias)", timm.to_reference, timm.left_out
    ),
    "meta": Format(
        r"storage_tokens|register_tokens|mask_token|blocks\.[\d.]+\.ls[12]\.gamma|rope_embed\.periods",
        _as_it_is,
        _nothing,
    ),
    "dinojax": Format(r"(?!)", _as_it_is, _nothing),  # told by its config.json alone
}


def detect(names: list[str], config: dict[str, Any] | None, source: str) -> str:
    """The format of a file with these names beside this config.json.

    Raises ValueError that says what the names look like instead.
    """
    if config is not None:
        for key, found in (("model_type", "hf"), ("architecture", "timm")):
            if key in config:
                return found
        if config.get("format") in FORMATS:
            return config["format"]
    fitting = _fitting(names)
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        raise ValueError(
            f"{source} mixes names of formats {' and '.join(fitting)}; give one with format=."
        )
    prefix = names[0].split(".")[0] + "." if names else ""
    if prefix and all(name.startswith(prefix) for name in names):
        inner = _fitting([name.removeprefix(prefix) for name in names])
        if inner:
            raise ValueError(
                f"{source}: all names begin with {prefix!r}; without it they are of format "
                f"{inner[0]}. Give prefix={prefix!r} if this is the network you mean."
            )
    raise ValueError(
        f"{source} is of no known format ({', '.join(FORMATS)}); its names begin with "
        f"{', '.join(names[:4])}."
    )


def check(format: str, names: list[str], source: str) -> str:
    """The format that was asked for, unless the names are clearly those of another.

    Raises ValueError for an unknown format and for names of another one.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; choose of {', '.join(FORMATS)}.")
    fitting = _fitting(names)
    same = {"dinojax": "meta"}.get(format, format)  # these two have the same names
    if fitting and same not in fitting:
        splits = {True: "splits", False: "fuses"}
        raise ValueError(
            f"{source} was to be read as format {format}, but its names are those of "
            f"{fitting[0]}, which {splits[fitting[0] == 'hf']} q, k and v."
        )
    return format


def _fitting(names: list[str]) -> list[str]:
    return [
        name
        for name, format in FORMATS.items()
        if any(re.fullmatch(format.marks, tensor) for tensor in names)
    ]
