"""The table of formats, and how a file is told to be one of them."""

import re
from types import ModuleType
from typing import Any

from dinojax.weights import (
    hf,
    hf_convnext,
    hf_dinov2,
    meta,
    timm,
    timm_convnext,
    timm_dinov2,
)
from dinojax.weights.tensors import Tensors

# (format, family) -> a module that has
#   to_reference(tensors)          tensors in the reference's names, and the names it does not know
#   from_reference(tensors, spec)  the way back
#   left_out(spec)                 parameters it does not hold -> why that changes no feature
#   refusals(spec)                 why it cannot hold a backbone at all
#   given(config)                  fields of the spec that config.json tells
#   config(spec, preprocessing)    config.json
#   SNIPPET                        lines that open an export
LIBRARIES: dict[tuple[str, str], ModuleType] = {
    ("hf", "dinov3"): hf,
    ("hf", "dinov2"): hf_dinov2,
    ("hf", "convnext"): hf_convnext,
    ("timm", "dinov3"): timm,
    ("timm", "dinov2"): timm_dinov2,
    ("timm", "convnext"): timm_convnext,
}
# model_type of a config.json -> family
MODEL_TYPES = {
    hf.MODEL_TYPE: "dinov3",
    **{model_type: "dinov2" for _, model_type in hf_dinov2.CLASSES.values()},
    hf_convnext.MODEL_TYPE: "convnext",
}
# Pattern of a name that only this format has. Our own keeps the reference's names: per layer, so
# that no run-time choice is on disk; it is told by its config.json alone.
MARKS = {
    "hf": r"(model\.)?embeddings\..*|(model\.)?layer\.\d+\.attention\.[qkv]_proj.*"
    r"|encoder\.layer\..*|(model\.)?stages\.\d\.(downsample_layers|layers)\..*",
    "timm": r"reg_token|blocks\.\d+\.(gamma_[12]|attn\.q_bias)|stem\.\d\..*|stages\.\d\.blocks\..*",
    "meta": r"storage_tokens|register_tokens|mask_token|blocks\.[\d.]+\.ls[12]\.gamma"
    r"|rope_embed\.periods|downsample_layers\..*",
    "dinojax": r"(?!)",
}
# Patterns of a name that only one family has, in each library.
FAMILIES = {
    "hf": {
        "dinov2": r"encoder\.layer\..*|embeddings\.position_embeddings",
        "convnext": r"(model\.)?stages\..*",
    },
    "timm": {"dinov2": r"pos_embed", "convnext": r"stages\..*"},
}


def to_reference(format: str, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors in the reference's names, and the names that are none of this format."""
    if format in FAMILIES:
        return LIBRARIES[format, family(format, list(tensors))].to_reference(tensors)
    return _as_it_is(tensors)


def left_out(format: str, family: str, spec) -> dict[str, str]:
    """Parameters that a format does not hold -> why that changes no feature."""
    library = LIBRARIES.get((format, family))
    return {} if library is None else library.left_out(spec)


def family(format: str, names: list[str]) -> str:
    """dinov3, dinov2 or convnext, from names in a library's own words."""
    for found, pattern in FAMILIES[format].items():
        if any(re.fullmatch(pattern, name) for name in names):
            return found
    return "dinov3"


def given(format: str, names: list[str], config: dict[str, Any], source: str) -> dict[str, Any]:
    """Fields of the spec that a library's config.json tells.

    Raises ValueError where it speaks of another family than the names of the tensors.
    """
    own = family(format, names)
    if format == "hf":
        told = MODEL_TYPES.get(config["model_type"])
        if told is None:
            raise ValueError(
                f"{source}: config.json is of model_type {config['model_type']!r}; read are "
                f"{', '.join(MODEL_TYPES)}."
            )
        if told != own:
            raise ValueError(
                f"{source}: config.json is of model_type {config['model_type']}, but the names of "
                f"the tensors are those of {own}, such as {names[0]}."
            )
    return LIBRARIES[format, own].given(config)


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


def detect(names: list[str], config: dict[str, Any] | None, source: str) -> str:
    """The format of a file with these names beside this config.json.

    Raises ValueError that says what the names look like instead.
    """
    if config is not None:
        for key, found in (("model_type", "hf"), ("architecture", "timm")):
            if key in config:
                return found
        if config.get("format") in MARKS:
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
        f"{source} is of no known format ({', '.join(MARKS)}); its names begin with "
        f"{', '.join(names[:4])}."
    )


def check(format: str, names: list[str], source: str) -> str:
    """The format that was asked for, unless the names are clearly those of another.

    Raises ValueError for an unknown format and for names of another one.
    """
    if format not in MARKS:
        raise ValueError(f"format={format!r} is unknown; choose of {', '.join(MARKS)}.")
    fitting = _fitting(names)
    same = {"dinojax": "meta"}.get(format, format)  # these two have the same names
    if fitting and same not in fitting:
        attends = any("attn" in name or "attention" in name for name in names)
        how = f", which {'splits' if fitting[0] == 'hf' else 'fuses'} q, k and v" if attends else ""
        raise ValueError(
            f"{source} was to be read as format {format}, but its names are those of "
            f"{fitting[0]}{how}."
        )
    return format


def _fitting(names: list[str]) -> list[str]:
    found = set(names)
    if "pos_embed" in found and not found & {"mask_token", "register_tokens"}:
        return ["timm"]  # its DINOv2 has the reference's names, less the mask token
    return [
        name
        for name, marks in MARKS.items()
        if any(re.fullmatch(marks, tensor) for tensor in names)
    ]
