"""What is saved beside the arrays of a checkpoint: proven to be what was saved, as these are.

Two items of JSON: `meta`, which says where to go on, and `arrays`, the sums of the state. `meta`
holds a digest of both. Checkpoints of versions before it have none; what their values say of each
other is compared.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dinojax.data import fields

DIGEST, ARRAYS = "digest", "arrays_digest"  # keys of meta
# What a run reads of the JSON values that it saved with a state.
KINDS: dict[str, Any] = {"step": int, "position": int, "num_images": int, "seconds": float}
ALWAYS = ("position", "seconds", "fingerprint", "num_images", "config")  # of every release
KINDS |= {"fingerprint": str, "teacher": str, "config": dict, "versions": dict}


def sealed(meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """meta with the digests of itself and of the sums of the arrays."""
    whole = {**meta, ARRAYS: _digest(arrays)}
    return {**whole, DIGEST: _digest(whole)}


def fault(meta: Any, step: int, format_version: int) -> str | None:
    """What is wrong with the meta of a step, in words; None if nothing is."""
    if not isinstance(meta, dict) or "format_version" not in meta:
        return "its meta is no meta of a checkpoint"
    if meta["format_version"] != format_version:
        return None  # of another version, which is told as that
    if DIGEST in meta:
        own = {name: value for name, value in meta.items() if name != DIGEST}
        if _digest(own) != meta[DIGEST]:
            return "its meta is not what was saved"
    if meta.get("step") != step:
        return f"its meta is of step {meta.get('step')!r}"
    return None if DIGEST in meta else _contradiction(meta, step)


def arrays_fault(meta: Mapping[str, Any], arrays: Any) -> str | None:
    """The same of the sums of the arrays."""
    if not isinstance(arrays, dict):
        return "its list of arrays is none"
    if ARRAYS in meta and _digest(arrays) != meta[ARRAYS]:
        return "its list of arrays is not what was saved"
    return None


def opened(meta: Mapping[str, Any]) -> dict[str, Any]:
    """meta as it was given to be saved."""
    return {name: value for name, value in meta.items() if name not in (DIGEST, ARRAYS)}


def _contradiction(meta: Mapping[str, Any], step: int) -> str | None:
    """Of a checkpoint without a digest: a stage takes whole batches from image 0 on."""
    if lost := [name for name in ALWAYS if name not in meta]:
        return f"its meta has no {lost[0]}"
    config = meta["config"]
    if not isinstance(config, dict) or "batch_size" not in config:
        return "the config of its meta has no batch_size"
    position = step * config["batch_size"]
    if meta["position"] == position:
        return None
    return (
        f"its meta says position {meta['position']!r}, where {step} steps of "
        f"{config['batch_size']} images make {position}"
    )


def _digest(content: Any) -> str:
    """The same before saving and after: as JSON has it, tuples as lists and all keys as text."""
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def checked(meta: Any) -> dict:
    """The metadata of a checkpoint; ValueError for a value of another kind."""
    fields.field(meta, "format_version", int, where="its metadata")
    fields.field(meta, "step", int, where="its metadata")
    for name in KINDS.keys() & meta.keys():
        fields.field(meta, name, KINDS[name], where="its metadata")
    return meta
