"""The table of formats, and how a file is told to be one of them."""

import functools
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
from dinojax.weights.facts import Claims
from dinojax.weights.jsons import Fields
from dinojax.weights.renames import Renamed
from dinojax.weights.tensors import Tensors

# (format, family) -> a module that has
#   to_reference(tensors)          tensors in the reference's names, and the names it does not know
#   from_reference(tensors, spec)  the way back
#   left_out(spec)                 parameters it does not hold -> why that changes no feature
#   refusals(spec)                 why it cannot hold a backbone at all
#   given(config)                  fields of the spec that config.json tells
#   claims(config, facts)          what it says that the tensors tell too
#   config(spec, preprocessing)    config.json
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
# What models for a task have after the backbone: left aside, and said so.
TASKS = {"hf": r"classifier\.(weight|bias)", "timm": r"head\.(fc\.)?(weight|bias)"}
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


def optional(format: str, family: str, spec) -> set[str]:
    """Parameters that a file of a format may lack, because they change no feature."""
    library = LIBRARIES.get((format, family))
    return {*left_out(format, family, spec), *getattr(library, "OPTIONAL", ())}


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


def told(format: str, names: list[str], config: Fields) -> tuple[dict[str, Any], Claims]:
    """Fields of the spec that a library's config.json tells, and what it says of the tensors.

    Raises ValueError where it speaks of another family than the names of the tensors.
    """
    own = family(format, names)
    if format == "hf":
        model_type = config.text("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(
                f"config.json is of model_type {model_type!r}; read are {', '.join(MODEL_TYPES)}."
            )
        if MODEL_TYPES[model_type] != own:
            raise ValueError(
                f"config.json is of model_type {model_type}, but the names of the tensors are "
                f"those of {own}, such as {names[0]}."
            )
    library = LIBRARIES[format, own]
    return library.given(config), functools.partial(library.claims, config)


def base(format: str, config: dict[str, Any], tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The backbone of a model for a task, and the names of what comes after it (TASKS)."""
    kept, after = {}, []
    prefix = f"{config['model_type']}." if format == "hf" and "model_type" in config else ""
    if prefix and any(name.startswith(f"{prefix}embeddings.") for name in tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if re.fullmatch(TASKS.get(format, r"(?!)"), name):
            after.append(name)
        else:
            kept[name] = tensor
    return kept, after


def _as_it_is(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors of the reference, and the names it does not have."""
    found = Renamed()
    for name, tensor in tensors.items():
        if name == "register_tokens":  # DINOv2's word
            found.put(name, "storage_tokens", tensor)
        elif meta.BUFFERS.fullmatch(name) or meta.is_backbone(name):
            found.put(name, meta.without_chunk(name), tensor)
        else:
            found.unknown.append(name)
    if "register_tokens" in tensors and "pos_embed" not in tensors:
        raise ValueError("register_tokens are DINOv2's, which has pos_embed; it is missing.")
    return found.result()


def detect(names: list[str], config: dict[str, Any] | None, source: str) -> str:
    """The format of a file with these names beside this config.json.

    Raises ValueError that says what the names look like instead.
    """
    if config is not None:
        for key, library in (("model_type", "hf"), ("architecture", "timm")):
            if key in config:
                return library
        if isinstance(told := config.get("format"), str) and told in MARKS:
            return told
    found = fitting(names)
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise ValueError(
            f"{source} mixes names of formats {' and '.join(found)}; give one with format=."
        )
    raise ValueError(
        f"{source} is of no known format ({', '.join(MARKS)}); its names begin with "
        f"{', '.join(names[:4]) or 'nothing: it is empty'}."
    )


def check(format: str, names: list[str], source: str) -> str:
    """The format that was asked for, unless the names are clearly those of another.

    Raises ValueError for an unknown format and for names of another one.
    """
    if format not in MARKS:
        raise ValueError(f"format={format!r} is unknown; choose of {', '.join(MARKS)}.")
    found = fitting(names)
    same = {"dinojax": "meta"}.get(format, format)  # these two have the same names
    if found and same not in found:
        attends = any("attn" in name or "attention" in name for name in names)
        how = f", which {'splits' if found[0] == 'hf' else 'fuses'} q, k and v" if attends else ""
        raise ValueError(
            f"{source} was to be read as format {format}, but its names are those of "
            f"{found[0]}{how}."
        )
    return format


def fitting(names: list[str]) -> list[str]:
    """The formats that have names such as these."""
    found = set(names)
    if "pos_embed" in found and not found & {"mask_token", "register_tokens"}:
        return ["timm"]  # its DINOv2 has the reference's names, less the mask token
    return [
        name
        for name, marks in MARKS.items()
        if any(re.fullmatch(marks, tensor) for tensor in names)
    ]
