"""Features on disk, so that evaluations share one forward pass and a killed one goes on.

Keyed by everything that features depend on: the weights' checksum, preprocessing and resolution,
the data's fingerprint, when its files were last changed, precision, and, as the name of a folder
each, layer and norm of an output.
"""

import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.data import fields
from dinojax.data.encoded import fingerprint as data_fingerprint
from dinojax.data.example import Example, Source
from dinojax.distributed import process_group
from dinojax.eval import features
from dinojax.files.drafts import open_new, write_json
from dinojax.runs.records import fingerprint
from dinojax.runs.scalars import duration

log = logging.getLogger(__name__)

PART = 1024  # images per file: what a killed evaluation computes again at most
KEY = "key.json"


@dataclasses.dataclass(frozen=True)
class _Range:
    """Some consecutive images of a source."""

    source: Source
    indexes: range

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: int) -> Example:
        return self.source[self.indexes[index]]

    def __getattr__(self, name: str) -> Any:
        if name == "source" or name.startswith("_"):
            raise AttributeError(name)  # protocols such as copy ask before there is one
        return getattr(self.source, name)

    labels = None  # taken of the whole source


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Outputs of one network in parts under `folder`."""

    folder: Path
    weights: dict[str, Any]  # JSON values that tell the network and its precision
    part_size: int = PART

    def extract(
        self,
        apply: Callable[..., dict],
        source: Source,
        names: Sequence[str],
        *,
        transform: Any,
        batch_size: int,
    ) -> dict[str, Any]:
        """As features.extract_outputs; parts that are there are read, others computed and written.

        apply: (images, names=names of outputs) -> {name: array}.
        """
        here = self._place(source, transform)
        numbers = range(math.ceil(len(source) / self.part_size))
        todo = [n for n in numbers if not all(_file(here, name, n).exists() for name in names)]
        began = time.monotonic()
        for count, number in enumerate(todo, start=1):
            first = number * self.part_size
            part = _Range(source, range(first, min(first + self.part_size, len(source))))
            lacking = [name for name in names if not _file(here, name, number).exists()]
            found = features.extract_outputs(
                functools.partial(apply, names=lacking),
                part,
                transform=transform,
                batch_size=batch_size,
                may_be_empty=True,
            )
            self._write(here, number, {name: found[name] for name in lacking}, found["bad"])
            seconds = time.monotonic() - began
            left = duration(seconds / count * (len(todo) - count))
            log.info("features: part %d of %d, %s left", count, len(todo), left)
        return self._read(here, source, names, numbers)

    def _write(self, here: Path, number: int, arrays: dict[str, np.ndarray], bad: dict) -> None:
        """The list of bad images first: a part is there when its arrays are."""
        write_json(_bad_file(here, number), {str(index): why for index, why in bad.items()})
        for name, rows in arrays.items():
            _file(here, name, number).parent.mkdir(exist_ok=True)
            with open_new(_file(here, name, number)) as file:
                np.save(file, rows, allow_pickle=False)

    def _read(self, here: Path, source: Source, names: Sequence[str], numbers: range) -> dict:
        bad: dict[int, str] = {}
        for number in numbers:
            path = _bad_file(here, number)
            content = fields.checked(fields.read(path), {str: str}, name="the whole", where=path)
            bad |= {number * self.part_size + int(n): why for n, why in content.items()}
        if len(bad) == len(source):
            raise ValueError(f"none of {len(bad)} images can be read, the first: {bad[0]}")
        kept = np.array([index for index in range(len(source)) if index not in bad])
        found: dict[str, Any] = {}
        for name in names:
            parts = [np.load(_file(here, name, n), allow_pickle=False) for n in numbers]
            found[name] = np.concatenate(parts)
            if len(found[name]) != len(kept):
                raise ValueError(
                    f"{here} holds features of {len(found[name])} images where {len(kept)} can be "
                    "read; remove that folder."
                )
        labels = None if source.labels is None else source.labels[kept]
        return {**found, "labels": labels, "kept": kept, "bad": bad}

    def _place(self, source: Source, transform: Any) -> Path:
        key = {
            "weights": self.weights,
            "data": source.fingerprint,
            "changed": process_group.current().settle("files changed", changed(source)),
            "images": len(source),
            "transform": repr(transform),
            "part_size": self.part_size,
        }
        here = self.folder / fingerprint(key)
        if not (here / KEY).exists():
            here.mkdir(parents=True, exist_ok=True)
            write_json(here / KEY, key)
        return here


def changed(source: Source) -> str:
    """Digest of when each local file of a source was last changed; "" of a source without any.

    A fingerprint has names and sizes alone, so that copies of data compare; a file that was
    replaced by another of its size is told by this.
    """
    files = getattr(source, "local_files", ())
    return data_fingerprint((path, _last_changed(path)) for path in files) if files else ""


def _last_changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:  # as reading it will tell
        return 0


def _file(here: Path, name: str, number: int) -> Path:
    """Of a part of an output, whose name tells layer and norm."""
    return here / name.replace(":", "-") / f"part-{number:05d}.npy"


def _bad_file(here: Path, number: int) -> Path:
    return here / f"bad-{number:05d}.json"
