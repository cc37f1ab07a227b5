"""What saved checkpoints hold, told without an accelerator and without reading an array."""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dinojax.checkpoint import meta as metas
from dinojax.checkpoint.manager import COMMITTED, FORMAT_VERSION
from dinojax.checkpoint.orbax import COPY
from dinojax.config.recipe import flat
from dinojax.configs import base
from dinojax.data import fields
from dinojax.data.fields import shown

UNFINISHED = {  # in a directory's name -> why it is torn
    ".orbax-checkpoint-tmp": "being written, or its run was killed while writing",
    ".torn": "set aside by a later start of the run, because it was never completed",
}
NEEDED_META = ("format_version", "step", "config", "versions")
NAMED_META = ("config", "versions")  # shown on their own; the rest of the metadata in one line


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a saved state."""

    path: str  # dotted, such as ema.backbone.cls_token
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    mesh: dict[str, int] | None  # device axis -> size; None where orbax recorded no named sharding
    sharding: list[Any] | None  # per array axis: device axis, list of them, or None = whole


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint."""

    path: str
    stage: str
    step: int
    disk_bytes: int
    meta: dict[str, Any]  # position, fingerprint and what else was saved beside the state
    versions: dict[str, str]
    config: dict[str, dict]  # key that differs from configs/keys/ -> {"saved", "base"}
    mesh: dict[str, int] | None  # of the array on most devices
    parts: dict[str, int]  # student, ema, opt_state, ...: bytes in memory
    arrays: list[Array]


@dataclasses.dataclass(frozen=True)
class Torn:
    """A directory that should have become a checkpoint."""

    path: str
    stage: str
    torn: str  # why


def inspect_command(path: Path, as_json: bool) -> None:
    """`dinojax ckpt inspect`: prints; see `inspect`. This process then computes on its CPU only."""
    jax.config.update("jax_platforms", "cpu")  # orbax asks for devices, if only for their number
    found, is_step = inspect(path)
    if as_json:
        print(json.dumps([_record(one, arrays=is_step) for one in found], indent=1))
    else:
        print("\n".join(_lines(found, arrays=is_step)))


def inspect(path: Path) -> tuple[list[Checkpoint | Torn], bool]:
    """Every checkpoint of a run, of a checkpoints/STAGE, or one STEP; whether it was one.

    Raises FileNotFoundError if there is no such path or no checkpoint in it, ValueError if there
    are only torn ones, or if one was saved in a format that this version does not read.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no directory {path}; give a run, checkpoints/STAGE or a STEP.")
    is_step = _is_step(path.resolve())
    steps = [path] if is_step else _steps(path)
    if not steps:
        raise FileNotFoundError(
            f"{path} holds no checkpoints. Give a run directory, its checkpoints/STAGE, or one "
            "STEP of that; a run saves its first after checkpoint.every steps."
        )
    found = [read(step) for step in steps]
    torn = [one for one in found if isinstance(one, Torn)]
    if len(torn) == len(found):
        reasons = "\n".join(f"  {one.path}: {one.torn}" for one in torn)
        raise ValueError(
            f"{path}: no complete checkpoint, only torn:\n{reasons}\n"
            "Unless a run is writing just now, they are lost; `dinojax train` goes on from the "
            "last complete one of its run, or from the beginning."
        )
    return found, is_step


def read(step: Path) -> Checkpoint | Torn:
    """One checkpoint directory; raises ValueError for another format."""
    stage = step.resolve().parent.name
    if reason := _torn(step):
        return Torn(str(step), stage, reason)
    try:
        meta = ocp.JsonCheckpointHandler().restore((step / "meta").absolute())
        tree = ocp.StandardCheckpointHandler().metadata((step / "state").absolute()).tree
        disk_bytes = sum(file.stat().st_size for file in step.rglob("*") if file.is_file())
    except (OSError, ValueError, KeyError) as error:
        return Torn(str(step), stage, f"unreadable: {type(error).__name__}: {error}")
    if not isinstance(meta, dict):
        return Torn(str(step), stage, f"not of `dinojax train`: its metadata is {shown(meta)}")
    if lacking := [name for name in NEEDED_META if name not in meta]:
        return Torn(str(step), stage, f"not of `dinojax train`: no {', '.join(lacking)} saved")
    kinds = {"step": int, "config": dict, "versions": {str: str}}
    try:
        for name, kind in kinds.items():
            fields.field(meta, name, kind, where="its metadata")
    except ValueError as error:
        return Torn(str(step), stage, f"not of `dinojax train`: {error}")
    if step.name.isdigit() and (fault := metas.fault(meta, int(step.name), FORMAT_VERSION)):
        return Torn(str(step), stage, f"damaged: {fault}")
    meta = metas.opened(meta)
    if meta["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{step} has format {meta['format_version']}, this version of dinojax reads format "
            f"{FORMAT_VERSION}."
        )
    arrays = [_array(name, leaf) for name, leaf in _leaves(tree)]
    return Checkpoint(
        path=str(step),
        stage=stage,
        step=meta["step"],
        disk_bytes=disk_bytes,
        meta={name: value for name, value in meta.items() if name not in NAMED_META},
        versions=meta["versions"],
        config=_changes(meta["config"]),
        mesh=max((a.mesh for a in arrays if a.mesh), key=_num_devices, default=None),
        parts=_totals(arrays),
        arrays=arrays,
    )


def _is_step(path: Path) -> bool:
    """By its name, or else by what is in it; path: absolute."""
    unfinished = any(suffix in path.name for suffix in UNFINISHED)
    in_a_stage = path.name.isdigit() and path.parent.parent.name == "checkpoints"
    return unfinished or in_a_stage or (path / "_CHECKPOINT_METADATA").exists()


def _steps(path: Path) -> list[Path]:
    """Directories of checkpoints in a run, in its checkpoints/, or in a stage; oldest first."""
    inner = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    stages = sorted(inner.iterdir()) if inner.resolve().name == "checkpoints" else [inner]
    found = []
    for stage in filter(Path.is_dir, stages):
        steps = [p for p in stage.iterdir() if p.is_dir() and p.name.split(".")[0].isdigit()]
        found += sorted(steps, key=lambda p: (int(p.name.split(".")[0]), p.name))
    return found


def _torn(step: Path) -> str | None:
    """Why a directory is no complete checkpoint, by what its name and files tell."""
    for suffix, reason in UNFINISHED.items():
        if suffix in step.name:
            return reason
    needed = (COMMITTED, "meta/metadata", "state/_METADATA", "state/manifest.ocdbt")
    if lacking := [name for name in needed if not (step / name).exists()]:
        return f"lacks {', '.join(lacking)}: never completed, or copied in part"
    return None


def _leaves(tree: Any) -> Iterable[tuple[str, ocp.metadata.ArrayMetadata]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def _array(path: str, leaf: ocp.metadata.ArrayMetadata) -> Array:
    dtype, named, mesh = np.dtype(leaf.dtype), None, None
    if isinstance(leaf.sharding, ocp.metadata.NamedShardingMetadata):
        named = leaf.sharding
        mesh = dict(zip(named.axis_names, (int(n) for n in named.shape.flat), strict=True))
        mesh.pop(COPY, None)  # a label alone, of devices that were none of the run's
    return Array(
        path=path,
        shape=tuple(leaf.shape),
        dtype=dtype.name,
        bytes=math.prod(leaf.shape) * dtype.itemsize,
        mesh=mesh,
        sharding=named and list(named.partition_spec),
    )


def _changes(saved: dict) -> dict[str, dict]:
    """Keys whose saved value is not that of configs/keys/; `base` is absent for unknown keys."""
    default = json.loads(json.dumps(flat(base.get_config())))  # tuples as lists, as in JSON
    return {
        key: {"saved": value} | ({"base": default[key]} if key in default else {})
        for key, value in flat(saved).items()
        if key not in default or value != default[key]
    }


def _totals(arrays: Iterable[Array]) -> dict[str, int]:
    """Part of the state -> bytes of its arrays."""
    totals: dict[str, int] = {}
    for array in arrays:
        part = array.path.split(".")[0]
        totals[part] = totals[part] + array.bytes if part in totals else array.bytes
    return totals


def _num_devices(mesh: dict[str, int]) -> int:
    return math.prod(mesh.values())


def _record(one: Checkpoint | Torn, *, arrays: bool) -> dict[str, Any]:
    record = dataclasses.asdict(one)
    if not arrays and isinstance(one, Checkpoint):
        del record["arrays"]
    return {"complete": isinstance(one, Checkpoint), **record}


def _lines(found: list[Checkpoint | Torn], *, arrays: bool) -> Iterable[str]:
    """The text for people; versions and config only where they change."""
    before: Checkpoint | None = None
    for one in found:
        if isinstance(one, Torn):
            yield f"{one.path}: TORN, {one.torn}"
            continue
        yield f"{one.path}: complete, {_size(one.disk_bytes)} on disk"
        yield "  " + ", ".join(f"{name} {value}" for name, value in one.meta.items())
        yield f"  saved on {_devices(one.mesh)}"
        if before is None or before.versions != one.versions:
            yield "  " + ", ".join(f"{name} {version}" for name, version in one.versions.items())
        if before is None or before.config != one.config:
            yield f"  {len(one.config)} config keys differ from their defaults:"
            yield from (f"    {key} = {_change(values)}" for key, values in one.config.items())
        else:
            yield f"  config as in step {before.step}"
        totals = ", ".join(f"{part} {_size(size)}" for part, size in one.parts.items())
        yield f"  in memory {_size(sum(one.parts.values()))}: {totals}"
        if arrays:
            yield from _table(one.arrays)
        before = one


def _table(arrays: list[Array]) -> Iterable[str]:
    width = max(len(array.path) for array in arrays)
    for array in arrays:
        shape = "x".join(map(str, array.shape)) or "scalar"
        spread = "no named sharding" if array.sharding is None else _spread(array.sharding)
        yield f"  {array.path:{width}s} {array.dtype:8s} {shape:>18s} {array.bytes:>14,d}  {spread}"


def _spread(sharding: list[Any]) -> str:
    """Device axes of the array's axes, `-` for one that is whole."""
    if not any(sharding):
        return "replicated"
    names = ["+".join([axes] if isinstance(axes, str) else axes or "-") for axes in sharding]
    return f"({', '.join(names)})"


def _devices(mesh: dict[str, int] | None) -> str:
    if mesh is None:
        return "devices that orbax recorded no mesh of"
    number = _num_devices(mesh)
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.items())
    return f"{number} device{'s' if number > 1 else ''} ({axes})"


def _change(values: dict) -> str:
    told = f"base: {values['base']!r}" if "base" in values else "no key of this version"
    return f"{values['saved']!r}  ({told})"


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
