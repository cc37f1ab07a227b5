"""What the files beside weights of any format say about pixels."""

import dataclasses
from pathlib import Path
from typing import Any

from dinojax.weights import jsons, processors, transforms
from dinojax.weights.jsons import Fields
from dinojax.weights.preprocess import Preprocessing, assumed

# A file of transformers that goes before preprocessor_config.json where it holds a processor.
NESTED = "processor_config.json"


def processor(folder: Path) -> dict[str, Any] | None:
    """The fields of the image processor of a folder, None where it has none."""
    nested = Fields(jsons.read_if_there(folder / NESTED) or {}, NESTED)
    if "image_processor" in nested:
        return nested.section("image_processor").content
    return jsons.read_if_there(folder / processors.FILE)


def read(
    format: str,
    channels: int,
    *,
    config: dict[str, Any],
    processor: dict[str, Any] | None,
    provenance: dict[str, Any],
) -> tuple[Preprocessing, list[str]]:
    """The preprocessing of weights that take so many channels, and notes.

    Files of a library mean what the library makes of them, whoever wrote them. Raises ValueError
    that names the field and its value for what is not known.
    """
    own = _own("provenance.json", provenance) or _own("config.json", config)
    if format == "timm" and "architecture" in config:
        found, notes = transforms.read(config, channels)
        found, more = _compared(found, own, "config.json")
        return found, [*notes, *more]
    if processor is not None and (format == "hf" or own is None):
        processor, notes = _colours(processor, channels, ours=bool(provenance))
        found = processors.read(processor, channels, str(config.get("model_type", "")))
        found, more = _compared(found, own, processors.FILE)
        return found, [*notes, *more]
    if own is not None:
        return own, []
    found, note = assumed(channels)
    return found, [note]


def _own(name: str, content: dict[str, Any]) -> Preprocessing | None:
    """What one of our own files says."""
    if "preprocessing" not in content:
        return None
    return Preprocessing.from_json(Fields(content, name).section("preprocessing").content)


def _colours(
    processor: dict[str, Any], channels: int, *, ours: bool
) -> tuple[dict[str, Any], list[str]]:
    """Exports of dinojax 0.1.0 and before told do_convert_rgb of any number of channels."""
    if not ours or channels == 3 or processor.get("do_convert_rgb") is not True:
        return processor, []
    note = f"do_convert_rgb of {processors.FILE} is passed over: the weights take {channels}"
    return {**processor, "do_convert_rgb": False}, [f"{note} channels"]


def _compared(
    found: Preprocessing, own: Preprocessing | None, file: str
) -> tuple[Preprocessing, list[str]]:
    """The library's, with a note where provenance.json says otherwise.

    Exports of dinojax 0.1.0 and before told per_crop in provenance.json alone.
    """
    if own is None or own == found:
        return found, []
    if own.normalize == "per_crop":
        found = dataclasses.replace(found, normalize="per_crop", mean=None, std=None)
    changed = {
        name: (value, before)
        for name, value in found.to_json().items()
        if (before := own.to_json()[name]) != value
    }
    told = ", ".join(
        f"{name} {value} (there {before})" for name, (value, before) in changed.items()
    )
    return found, [f"{file} is followed where provenance.json differs: {told}"] if changed else []
