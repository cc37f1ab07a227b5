"""`dinojax embed`: features of every image of a folder, in parts, on all devices, resumable."""

import dataclasses
import functools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinojax.data.example import Source
from dinojax.data.folder import folder
from dinojax.eval.features import EvalTransform
from dinojax.models.zoo import Spec, module
from dinojax.runs.scalars import duration
from dinojax.weights import run
from dinojax.weights.load import Backbone

TOKENS = ("cls", "registers", "patches")
LAYER = re.compile(r"layer=(-?\d+)")
INDEX = "index.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed from which images, and how it is cut into files."""

    outputs: tuple[str, ...]  # cls, registers, patches, layer=N
    format: str  # a key of WRITERS
    batch_size: int  # images per forward pass, over all devices
    part_size: int  # images per file

    def __post_init__(self):
        known = [name in TOKENS or LAYER.fullmatch(name) for name in self.outputs]
        if not self.outputs or not all(known) or len(set(self.outputs)) < len(self.outputs):
            raise ValueError(
                f"--outputs {','.join(self.outputs)}: give some of cls, registers, patches and "
                "layer=N (a block's number, or -1 for the last), each once."
            )
        if self.format not in WRITERS:
            raise ValueError(f"--format {self.format} is unknown; choose of {', '.join(WRITERS)}.")
        if self.batch_size < 1 or self.part_size < 1:
            raise ValueError("--batch-size and --part-size must be at least 1.")


def embed(backbone: Backbone, source: Source, out: str | Path, job: Job, origin: str) -> int:
    """Write `out`/part-00000.npz (or .parquet), ...; returns how many parts were computed.

    Each part holds the names of its images, labels where there are any, and an array per output:
    cls [N, D], registers [N, R, D], patches [N, P, D] and layer=N [N, 1 + R + P, D] (all tokens
    after that block, final norm applied), float32, in the order of the source. Parts that exist
    are kept, so a killed job continues; processes share the parts between them.
    Raises ValueError if `out` holds parts of other weights, images or settings.
    """
    out = Path(out)
    transform = _transform(backbone)
    _claim(out, backbone, source, job, origin)
    apply = _apply(backbone.over(jax.local_devices()), job)
    numbers = range(
        jax.process_index(), math.ceil(len(source) / job.part_size), jax.process_count()
    )
    todo = [number for number in numbers if not _path(out, number, job).exists()]
    began, done = time.monotonic(), 0
    for count, number in enumerate(todo, start=1):
        first = number * job.part_size
        indexes = range(first, min(first + job.part_size, len(source)))
        content = _part(apply, source, transform, indexes, job)
        draft = _path(out, number, job).with_suffix(".draft")
        WRITERS[job.format](draft, content)
        os.replace(draft, _path(out, number, job))
        done += len(indexes)
        seconds = time.monotonic() - began
        left = duration(seconds / count * (len(todo) - count))
        print(f"part {count}/{len(todo)}: {done / seconds:.1f} images/s, {left} left", flush=True)
    return len(todo)


def _transform(backbone: Backbone) -> EvalTransform:
    own = backbone.preprocessing
    if own.normalize == "fixed" and (own.mean is None or own.std is None):
        raise ValueError(
            f"these weights come without mean and std of their {backbone.spec.channels} channels; "
            "give them once with `dinojax import --mean ... --std ...`."
        )
    return EvalTransform(
        resize_size=own.resize_size,
        crop_size=own.crop_size,
        normalize=own.normalize,
        mean=own.mean or (),
        std=own.std or (),
    )


def _claim(out: Path, backbone: Backbone, source: Source, job: Job, origin: str) -> None:
    """Make the folder, or make sure that it was begun with the same weights, images and job."""
    index = {
        "weights": origin,
        "elements": backbone.report.elements,
        "images": len(source),
        "fingerprint": source.fingerprint,
        "preprocessing": backbone.preprocessing.to_json(),
        **dataclasses.asdict(job),
    }
    index = json.loads(json.dumps(index))  # tuples become lists, as they will be read
    path = out / INDEX
    if path.exists():
        saved = json.loads(path.read_text())
        changed = [key for key in index if key != "batch_size" and saved.get(key) != index[key]]
        if changed:
            told = "; ".join(f"{key}: {saved.get(key)!r} there, {index[key]!r}" for key in changed)
            raise ValueError(f"{out} was begun otherwise ({told}); give another --out.")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {INDEX}; give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    draft = out / f"{INDEX}.{jax.process_index()}"
    draft.write_text(json.dumps(index, indent=1) + "\n")
    os.replace(draft, path)


def _path(out: Path, number: int, job: Job) -> Path:
    return out / f"part-{number:05d}.{job.format}"


def _apply(backbone: Backbone, job: Job) -> Callable[[np.ndarray], dict]:
    """images [B, H, W, C] -> the outputs of a job, computed on the backbone's devices."""
    depth = backbone.spec.depth
    layers = {name: int(match[1]) for name in job.outputs if (match := LAYER.fullmatch(name))}
    if any(not -depth <= layer < depth for layer in layers.values()):
        raise ValueError(
            f"--outputs {','.join(layers)}: this backbone has blocks 0 to {depth - 1}."
        )

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(spec, params, images_BHWC):
        return _outputs(spec, params, images_BHWC, job.outputs, layers)

    def apply(images_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        found = backbone.run(outputs, images_BHWC)
        return {name: np.asarray(value) for name, value in found.items()}

    return apply


def _outputs(spec: Spec, params, images_BHWC, outputs, layers: dict[str, int]):
    net: Any = module(spec)
    variables = {"params": params}
    found: dict[str, Any] = {}
    if any(name in TOKENS for name in outputs):
        features = net.apply(variables, [images_BHWC])[0]
        found = {name: getattr(features, name) for name in outputs if name in TOKENS}
    for name, layer in layers.items():
        (at,) = net.apply(variables, images_BHWC, [layer % spec.depth], method="intermediate")
        found[name] = jax.numpy.concatenate([at.cls[:, None], at.registers, at.patches], axis=1)
    return found


def _part(apply, source: Source, transform: EvalTransform, indexes: range, job: Job):
    """Names, labels and outputs of some images."""
    names: list[str] = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in job.outputs}
    for batch_names, images_BHWC in _batches(source, transform, indexes, job.batch_size):
        num = len(images_BHWC)
        short = job.batch_size - num  # the last batch is filled, so that nothing compiles twice
        images_BHWC = np.pad(images_BHWC, ((0, short), (0, 0), (0, 0), (0, 0)))
        for name, value in apply(images_BHWC).items():
            found[name].append(value[:num].astype(np.float32))
        names += batch_names
    content: dict[str, np.ndarray] = {"name": np.asarray(names)}
    if source.labels is not None:
        content["label"] = source.labels[indexes.start : indexes.stop]
    return content | {name: np.concatenate(found[name]) for name in job.outputs}


def _batches(
    source: Source, transform: EvalTransform, indexes: range, batch_size: int
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and images; the next batch is decoded while the caller works on this one."""

    def read(index: int):
        example = source[index]
        return example.name, transform(example.pixels)

    starts = range(indexes.start, indexes.stop, batch_size)
    with ThreadPoolExecutor() as pool:
        ahead: list[list] = []
        for start in starts:
            batch = range(start, min(start + batch_size, indexes.stop))
            ahead.append([pool.submit(read, index) for index in batch])
            if len(ahead) > 1:
                yield _gather(ahead.pop(0))
        for futures in ahead:
            yield _gather(futures)


def _gather(futures: list) -> tuple[list[str], np.ndarray]:
    names, images = zip(*(future.result() for future in futures), strict=True)
    return list(names), np.stack(images)


def _write_npz(path: Path, content: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **content)  # type: ignore[arg-type]


def _write_parquet(path: Path, content: dict[str, np.ndarray]) -> None:
    """A row per image; arrays are flat lists, their shapes in the metadata of the columns."""
    pyarrow, parquet = _pyarrow()
    columns, fields = [], []
    for name, array in content.items():
        flat = array.reshape(len(array), -1)
        column = pyarrow.array(array.tolist() if array.dtype.kind == "U" else array.reshape(-1))
        if array.ndim > 1:
            column = pyarrow.FixedSizeListArray.from_arrays(column, flat.shape[1])
        columns.append(column)
        shape = {"shape": json.dumps(array.shape[1:])}
        fields.append(pyarrow.field(name, column.type, metadata=shape))
    parquet.write_table(pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields)), path)


def _pyarrow():
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "--format parquet needs pyarrow: pip install pyarrow, or give --format npz."
        ) from None
    return pyarrow, parquet


WRITERS = {"npz": _write_npz, "parquet": _write_parquet}


def embed_command(
    weights: str,
    data: str,
    out: str,
    *,
    outputs: str,
    format: str,
    batch_size: int,
    part_size: int,
    overrides: Sequence[str],
) -> None:
    """`dinojax embed`."""
    job = Job(tuple(outputs.split(",")), format, batch_size, part_size)
    if format == "parquet":
        _pyarrow()
    backbone = run.load(weights, overrides=run.parse_overrides(overrides))
    print(backbone.report)
    source = folder(path=data, channels=backbone.spec.channels, key="--data")
    computed = embed(backbone, source, out, job, os.path.abspath(weights))
    print(f"{len(source)} images in {out}, {computed} parts computed")
