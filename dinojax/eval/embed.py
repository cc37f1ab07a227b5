"""Features of every image of a source, in parts, on all devices, resumable."""

import dataclasses
import functools
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinojax.data import fields
from dinojax.data.decode import DecodeError
from dinojax.data.example import Source
from dinojax.data.quarantine import FILE, Skipped, note_skipped
from dinojax.eval.feature_files import WRITERS
from dinojax.files.drafts import draft, is_empty, write_json
from dinojax.models.zoo import Spec, module
from dinojax.runs.scalars import duration
from dinojax.weights.load import Backbone
from dinojax.weights.preprocess import Preprocessing

TOKENS = ("cls", "registers", "patches")
LAYER = re.compile(r"layer=(-?\d+)")
INDEX = "index.json"
FREE = ("batch_size", "max_bad_share")  # what a job may continue with another value of


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed from which images, and how it is cut into files."""

    outputs: tuple[str, ...]  # cls, registers, patches, layer=N
    format: str  # a key of WRITERS
    batch_size: int  # images per forward pass, over all devices
    part_size: int  # images per file
    max_bad_share: float = 0.001  # of images that cannot be read; ten are allowed, 0 = none

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
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"--max-bad-share {self.max_bad_share} is not between 0 and 1.")


def embed(backbone: Backbone, source: Source, out: str | Path, job: Job, origin: str) -> int:
    """Write `out`/part-00000.npz (or .parquet), ...; returns how many parts were computed.

    Each part holds the names of its images, labels where there are any, and an array per output:
    cls [N, D], registers [N, R, D], patches [N, P, D] and layer=N [N, 1 + R + P, D] (all tokens
    after that block, final norm applied), float32, in the order of the source. Images that cannot
    be read are left out and listed in `out`/bad_images.jsonl. Parts that exist are kept, so a
    killed job continues; processes share the parts between them.
    Raises ValueError if `out` holds parts of other weights, images or settings, and
    TooManyBadImages, a ValueError too, after listing them.
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
    bad: list[Skipped] = []
    for count, number in enumerate(todo, start=1):
        first = number * job.part_size
        indexes = range(first, min(first + job.part_size, len(source)))
        content, reasons = _part(apply, source, transform, indexes, job)
        bad += [Skipped("data", index, reason) for index, reason in reasons.items()]
        done += len(indexes)
        note_skipped(
            bad if reasons else [],
            what="left out",
            num_read=done,
            max_share=job.max_bad_share,
            path=out / bad_list(jax.process_index()),
        )
        with draft(_path(out, number, job)) as made:
            WRITERS[job.format](made, content)
        seconds = time.monotonic() - began
        left = duration(seconds / count * (len(todo) - count))
        print(f"part {count}/{len(todo)}: {done / seconds:.1f} images/s, {left} left", flush=True)
    return len(todo)


def embed_part(
    backbone: Backbone, source: Source, indexes: range, job: Job
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Of some images what a part of `embed` holds, and why any of them (by index) is missing."""
    transform = _transform(backbone)
    return _part(_apply(backbone.over(jax.local_devices()), job), source, transform, indexes, job)


def part_files(out: str | Path, num_images: int, job: Job) -> list[Path]:
    """The files that `embed` makes of so many images, in their order."""
    return [_path(Path(out), n, job) for n in range(math.ceil(num_images / job.part_size))]


def bad_list(index: int) -> str:
    """The file in which a process lists the images that cannot be read."""
    return FILE if index == 0 else FILE.replace(".jsonl", f".{index}.jsonl")


def _transform(backbone: Backbone) -> Preprocessing:
    own = backbone.preprocessing
    own.check_statistics(backbone.spec.channels)
    if own.out_size is None:
        raise ValueError(
            f"the preprocessing of these weights (rule={own.rule}, resize_size={own.resize_size}, "
            "no cut) makes images of differing sizes, which do not go into one batch; give their "
            "file a cut (do_center_crop and crop_size)."
        )
    return own


def _claim(out: Path, backbone: Backbone, source: Source, job: Job, origin: str) -> None:
    """Make the folder, or make sure that it was begun with the same weights, images and job."""
    index = {
        "weights": origin,
        "elements": backbone.report.elements,
        "images": len(source),
        "fingerprint": source.fingerprint,
        "preprocessing": backbone.preprocessing.to_json(),
        "value_range": list(source.read_options(0).value_range) or None,
        **dataclasses.asdict(job),
    }
    index = json.loads(json.dumps(index))  # tuples become lists, as they will be read
    path = out / INDEX
    if path.exists():
        saved = fields.checked(fields.read(path), dict, name="the whole", where=path)
        changed = [key for key in index if key not in FREE and saved.get(key) != index[key]]
        if changed:
            told = "; ".join(f"{key}: {saved.get(key)!r} there, {index[key]!r}" for key in changed)
            raise ValueError(f"{out} was begun otherwise ({told}); give another --out.")
    elif out.exists() and not is_empty(out):
        raise ValueError(f"{out} is not empty and holds no {INDEX}; give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, index)


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


def _part(
    apply, source: Source, transform: Preprocessing, indexes: range, job: Job
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """(names, labels and outputs of some images, index of each that cannot be read: why)."""
    names: list[str] = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in job.outputs}
    bad: dict[int, str] = {}
    for batch in _batches(source, transform, indexes, job.batch_size):
        kept = [row for row, read in enumerate(batch) if not isinstance(read.pixels, str)]
        bad |= {read.index: read.pixels for read in batch if isinstance(read.pixels, str)}
        if not kept and len(bad) < len(indexes):
            continue
        # Every batch is filled, so that nothing compiles twice; of none readable, for the shapes.
        assert transform.out_size is not None  # as `_transform` found
        shape = (job.batch_size, *transform.out_size, source.channels)
        images_BHWC = np.zeros(shape, np.float32)
        for row in kept:
            images_BHWC[row] = batch[row].pixels
        for name, value in apply(images_BHWC).items():
            found[name].append(value[kept].astype(np.float32))
        names += [batch[row].name for row in kept]
    content: dict[str, np.ndarray] = {"name": np.asarray(names, dtype=np.str_)}
    if source.labels is not None:
        content["label"] = source.labels[[index for index in indexes if index not in bad]]
    return content | {name: np.concatenate(found[name]) for name in job.outputs}, bad


@dataclasses.dataclass(frozen=True)
class _Read:
    """An image for the network, or why there is none."""

    index: int
    name: str
    pixels: np.ndarray | str


def _batches(
    source: Source, transform: Preprocessing, indexes: range, batch_size: int
) -> Iterator[list[_Read]]:
    """Images; the next batch is decoded while the caller works on this one."""

    def read(index: int) -> _Read:
        try:
            example = source[index]
        except (DecodeError, OSError) as error:
            return _Read(index, "", str(error))
        return _Read(index, example.name, transform(example.pixels))

    starts = range(indexes.start, indexes.stop, batch_size)
    with ThreadPoolExecutor() as pool:
        ahead: list[list] = []
        for start in starts:
            batch = range(start, min(start + batch_size, indexes.stop))
            ahead.append([pool.submit(read, index) for index in batch])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.pop(0)]
        for futures in ahead:
            yield [future.result() for future in futures]
