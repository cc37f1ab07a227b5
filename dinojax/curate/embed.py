"""Embeddings of every image of a source, as the Parquet parts that pool.py reads.

Parts are cut in the order of the source, of those images that have no row yet: so a job that was
killed goes on, and a pool that has grown gets new parts behind the old ones.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.curate.hashes import hash_of, need_imagehash
from dinojax.curate.parts import need_parquet, told_of, write_part
from dinojax.curate.pool import INDEX, PART
from dinojax.data import fields
from dinojax.data.decode import DecodeError
from dinojax.data.encoded import EncodedSource
from dinojax.data.example import Source
from dinojax.data.folder import FolderFiles
from dinojax.data.manifest import ManifestFiles
from dinojax.data.progress import Progress
from dinojax.data.quarantine import FILE, Skipped, note_skipped
from dinojax.distributed import process_group
from dinojax.files.drafts import draft, is_empty, write_json
from dinojax.models.zoo import module
from dinojax.weights.load import Backbone

FEATURES = ("cls", "patches", "both")

Apply = Callable[[np.ndarray], np.ndarray]  # images [B, H, W, C] -> float32 [B, D]


@dataclasses.dataclass(frozen=True)
class _Row:
    """An image of a part, or why it has no row."""

    id: str
    pixels_HWC: np.ndarray | None  # for the network
    columns: dict[str, Any]  # label, pixels, phash
    reason: str = ""


def embed(backbone: Backbone, source: Source, out: str | Path, settings, *, origin: str) -> int:
    """Write the embeddings of all images of `source` that have none yet; how many there are now.

    settings: the section `embed` of a recipe. origin: where the weights are from, for people.
    Raises ValueError if `out` holds rows of other weights or settings, or of images that are gone
    from the source, for an id that comes twice, and TooManyBadImages, after listing them.
    """
    need_imagehash()
    out, group = Path(out), process_group.current()
    size = backbone.preprocessing.out_size
    backbone.preprocessing.check_statistics(backbone.spec.channels)
    if size is None:
        raise ValueError(f"{origin}: its preprocessing cuts no crop, so images differ in size.")
    apply = embedder(backbone.over(jax.local_devices()), settings.features)
    index = _index(backbone, source, settings, origin)
    if group.is_main:
        _claim(out, index)
    group.settle("embeddings begun")
    ids = ids_of(source)
    todo = _todo(out, ids, settings.part_size)
    group.settle("parts known")
    progress = Progress("embedded", len(ids))
    progress.skip(len(ids) - sum(len(rows) for _, rows in todo))
    bad: list[Skipped] = []
    for number, rows in todo[group.index :: group.count]:
        columns, reasons = _part(apply, backbone, source, ids, rows, settings.batch_size, progress)
        told = {"weights": index["digest"], "bad": [ids[row] for row in reasons]}
        bad += [Skipped("pool", row, reason) for row, reason in reasons.items()]
        note_skipped(
            bad if reasons else [],
            what="left out",
            num_read=len(ids),
            max_share=settings.max_bad_share,
            path=out / (FILE if group.is_main else f"bad_images.{group.index}.jsonl"),
        )
        with draft(out / f"part-{number:05d}.parquet") as made:
            write_part(made, columns, dtype=settings.dtype, told=told)
    group.settle("embedded")
    parts = {path.name: _rows(path) for path in _parts(out)}
    parts = {name: rows for name, rows in parts.items() if rows}
    if not parts:
        raise ValueError(f"none of the {len(ids)} images of the pool can be read.")
    if group.is_main and fields.read(out / INDEX) != {**index, "parts": parts}:
        write_json(out / INDEX, {**index, "parts": parts})
    group.settle("embeddings finished")
    return sum(parts.values())


@functools.partial(jax.jit, static_argnums=(0, 3))
def features_of(spec, params, images_BHWC, features: str):
    """The features of images, float32 [B, D]; as `embedder`."""
    net: Any = module(spec)
    found = net.apply({"params": params}, [images_BHWC])[0]
    cls_BD = found.cls.astype(jnp.float32)
    mean_BD = jnp.mean(found.patches.astype(jnp.float32), axis=1)
    if features == "both":
        units = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (cls_BD, mean_BD)]
        return jnp.concatenate(units, axis=1)
    return cls_BD if features == "cls" else mean_BD


def embedder(backbone: Backbone, features: str) -> Apply:
    """The features of a recipe: cls, the mean of the patches, or both, each of unit length."""

    def apply(images_BHWC: np.ndarray) -> np.ndarray:
        return np.asarray(backbone.run(features_of, images_BHWC, features), np.float32)

    return apply


def ids_of(source: Source) -> list[str]:
    """What images are called: their path, or their number in sources that have no paths."""
    files = source.files if isinstance(source, EncodedSource) else None
    if isinstance(files, FolderFiles):
        ids = list(files.names)
    elif isinstance(files, ManifestFiles):
        ids = list(files.paths)
    else:
        ids = [f"{index:012d}" for index in range(len(source))]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the pool has the image {twice!r} twice; every id must come once.")
    return ids


def _index(backbone: Backbone, source: Source, settings, origin: str) -> dict[str, Any]:
    """What all rows of a folder have in common. The weights are told by their bytes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(backbone.params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    made = {
        "weights": digest.hexdigest(),
        "spec": repr(backbone.spec),
        "preprocessing": backbone.preprocessing.to_json(),
        "value_range": list(source.read_options(0).value_range),
        "features": settings.features,
        "dtype": settings.dtype,
    }
    told = json.dumps(made, sort_keys=True, default=str)
    times = 2 if settings.features == "both" else 1
    return {
        "format": "dinojax-embeddings",
        "digest": hashlib.sha256(told.encode()).hexdigest(),
        "origin": origin,
        "features": settings.features,
        "dtype": settings.dtype,
        "width": times * _width(backbone),
        "parts": None,
    }


def _width(backbone: Backbone) -> int:
    spec: Any = backbone.spec
    return spec.widths[-1] if hasattr(spec, "widths") else spec.width


def _claim(out: Path, index: dict[str, Any]) -> None:
    """Make the folder, or make sure that it was begun with the same weights and settings."""
    path = out / INDEX
    if path.exists():
        saved = fields.checked(fields.read(path), dict, name="the whole", where=path)
        if saved.get("digest") != index["digest"]:
            keys = [k for k in ("origin", "features", "dtype", "width") if saved.get(k) != index[k]]
            raise ValueError(
                f"{out} was begun with other weights or settings ({', '.join(keys) or 'weights'} "
                "differ), and rows of different networks cannot be compared; give another --out."
            )
        return
    if out.exists() and not is_empty(out):
        raise ValueError(f"{out} is not empty and holds no {INDEX}; give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, index)


def _parts(out: Path) -> list[Path]:
    return sorted((p for p in out.iterdir() if PART.fullmatch(p.name)), key=lambda p: p.name)


def _rows(path: Path) -> int:
    return need_parquet().read_metadata(path).num_rows


def _todo(out: Path, ids: list[str], part_size: int) -> list[tuple[int, list[int]]]:
    """(number, indexes of images) of each part that is to be made.

    A part that is missing among others had part_size images, so what is left is cut as before.
    """
    seen: set[str] = set()
    for path in _parts(out):
        seen.update(need_parquet().read_table(path, columns=["id"]).column("id").to_pylist())
        seen.update(told_of(path).get("bad", []))
    if gone := seen - set(ids):
        raise ValueError(
            f"{out} has embeddings of {len(gone):,} images that the pool no longer has, such as "
            f"{min(gone)}; bring them back, or give another --out."
        )
    left = [row for row, name in enumerate(ids) if name not in seen]
    taken = {int(PART.fullmatch(path.name)[1]) for path in _parts(out)}  # type: ignore[index]
    free = (number for number in range(len(ids) + len(taken) + 1) if number not in taken)
    firsts = range(0, len(left), part_size)
    return [(next(free), left[first : first + part_size]) for first in firsts]


def _part(
    apply, backbone: Backbone, source: Source, ids, rows, batch_size, progress
) -> tuple[dict[str, Any], dict[int, str]]:
    """(columns of a part, why images have no row)."""
    found: list[np.ndarray] = []
    kept: list[_Row] = []
    bad: dict[int, str] = {}
    for batch in _read(source, ids, backbone.preprocessing, rows, batch_size):
        shape = (batch_size, *backbone.preprocessing.out_size, source.channels)  # type: ignore[misc]
        images_BHWC = np.zeros(shape, np.float32)
        good = [(at, row) for at, (_, row) in enumerate(batch) if row.pixels_HWC is not None]
        bad |= {index: row.reason for index, row in batch if row.pixels_HWC is None}
        for at, row in good:
            images_BHWC[at] = row.pixels_HWC
        features_BD = apply(images_BHWC)
        _refuse_nan(features_BD, good)
        found.append(features_BD[[at for at, _ in good]])
        kept += [dataclasses.replace(row, pixels_HWC=None) for _, row in good]
        progress.add(len(batch))
    columns: dict[str, Any] = {"id": [row.id for row in kept], "embedding": np.concatenate(found)}
    for name in ("label", "pixels", "phash"):
        if kept and name in kept[0].columns:
            columns[name] = [row.columns[name] for row in kept]
    return columns, bad


def _refuse_nan(features_BD: np.ndarray, rows: list) -> None:
    for at, row in rows:
        if not np.isfinite(features_BD[at]).all():
            raise ValueError(
                f"the embedding of {row.id} holds NaN or infinity; look at the weights with "
                "dinojax doctor, and at that image."
            )


def _read(source, ids, transform, rows: list[int], batch_size: int) -> Iterator[list]:
    """Batches of (index, _Row); the next one is decoded while the caller works on this one."""

    def read(index: int) -> tuple[int, _Row]:
        try:
            example = source[index]
        except (DecodeError, OSError) as error:
            return index, _Row(ids[index], None, {}, str(error))
        columns: dict[str, Any] = {"pixels": int(np.prod(example.pixels.shape[:2]))}
        columns["phash"] = hash_of(example.pixels)
        if source.labels is not None:
            columns["label"] = source.class_names[int(source.labels[index])]
        return index, _Row(ids[index], transform(example.pixels), columns)

    with ThreadPoolExecutor() as pool:
        ahead: list[list] = []
        for start in range(0, len(rows), batch_size):
            ahead.append([pool.submit(read, index) for index in rows[start : start + batch_size]])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.pop(0)]
        for futures in ahead:
            yield [future.result() for future in futures]
