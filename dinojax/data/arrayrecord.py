"""ArrayRecord files: random access to millions of images in a few large files.

A record is either an image file as it is (no label), or one in our own envelope, which
`dinojax data convert` writes:

    8 bytes   b"dinojax1"
    4 bytes   number of bytes of the header, unsigned, little-endian
    header    JSON in UTF-8: {"name": str, "label": int or null}
    the rest  the image file

Beside its shards a conversion keeps `dataset.json` (counts, class names, whether it is complete)
and, for labelled images, `labels.npy`.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import os
import struct
import threading
from typing import Any

import numpy as np

from dinojax.data.encoded import (
    EncodedSource,
    check_one_decodes,
    checked_path,
    fingerprint,
    shards,
)
from dinojax.data.example import Encoded, Source

SUFFIXES = (".arrayrecord", ".array_record")
MAGIC = b"dinojax1"
DATASET, LABELS = "dataset.json", "labels.npy"

_LENGTH = struct.Struct("<I")


def pack(image: Encoded) -> bytes:
    """A record in the envelope above."""
    header = json.dumps({"name": image.name, "label": image.label}).encode()
    return MAGIC + _LENGTH.pack(len(header)) + header + image.data


def unpack(record: bytes, *, name: str) -> Encoded:
    """The image of a record; `name` is for records without an envelope.

    Raises OSError for a damaged envelope.
    """
    if not record.startswith(MAGIC):
        return Encoded(data=record, label=None, name=name)
    try:
        (length,) = _LENGTH.unpack_from(record, len(MAGIC))
        start = len(MAGIC) + _LENGTH.size
        header = json.loads(record[start : start + length])
        return Encoded(record[start + length :], label=header["label"], name=header["name"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise OSError(f"{name}: its record is damaged ({error}).") from error


@dataclasses.dataclass(frozen=True, eq=False)
class RecordFiles:
    """Images of all shards, one after the other. `ends`: images up to the end of each shard."""

    shards: tuple[str, ...]
    ends: tuple[int, ...]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return self.ends[-1]

    def encoded(self, index: int) -> Encoded:
        shard = bisect.bisect_right(self.ends, index)
        place = index - (self.ends[shard - 1] if shard else 0)
        path = self.shards[shard]
        name = f"{os.path.basename(path)}/{place}"
        try:
            record = reader(path).read([place])[0]
        except (RuntimeError, IndexError) as error:
            raise OSError(f"cannot read record {place} of {path}: {error}") from error
        return unpack(record, name=name)


def reader(path: str) -> Any:
    """An open reader of one file, shared by the threads of this process."""
    with _OPENING:
        return _open_reader(path)


_OPENING = threading.Lock()


@functools.lru_cache(maxsize=512)  # half of the files a process may usually have open
def _open_reader(path: str) -> Any:
    from array_record.python import array_record_module  # compiled; not needed by other sources

    return array_record_module.ArrayRecordReader(path)


def num_records(path: str) -> int:
    """Records of one file. Raises ValueError for a file that is cut, damaged or empty."""
    # Not `reader`: thousands of shards are counted here, of which few may be read.
    from array_record.python import array_record_module

    try:
        counter = array_record_module.ArrayRecordReader(path)
        found = counter.num_records()
        counter.close()
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged or no ArrayRecord file: {error}") from error
    if not found:  # the library says 0, not more, of a file that was cut
        raise ValueError(f"{path} has no records: it is empty, cut off, or no ArrayRecord file.")
    return found


def arrayrecord(
    *, path: str, channels: int, split: str = "train", key: str = "data.path"
) -> Source:
    """The source of one ArrayRecord file or a folder of them; `key` is what messages name.

    Raises FileNotFoundError, and ValueError for a damaged file or an unfinished conversion.
    """
    if split != "train":
        raise ValueError(f"ArrayRecord files have no split {split!r}: all of them are 'train'.")
    where, found = f"{key}={path}", checked_path(path, key, "a folder of ArrayRecord files")
    files = shards(found, key, SUFFIXES)
    counts = [num_records(file) for file in files]
    rows = list(zip(map(os.path.basename, files), counts, strict=True))
    dataset = _dataset(found, dict(rows), where)
    labels, class_names = _labels(found, dataset)
    sizes = [os.path.getsize(file) for file in files]
    source = EncodedSource(
        files=RecordFiles(tuple(files), tuple(itertools.accumulate(counts)), labels),
        channels=channels,
        class_names=class_names,
        fingerprint=fingerprint((*row, size) for row, size in zip(rows, sizes, strict=True)),
    )
    return check_one_decodes(source, where)


def _dataset(folder: str, counts: dict[str, int], where: str) -> dict | None:
    """The content of dataset.json where there is one, checked against the shards."""
    place = os.path.join(folder, DATASET)
    if not os.path.isfile(place):
        return None
    with open(place, encoding="utf-8") as file:
        content = json.load(file)
    if not content["complete"]:
        raise ValueError(f"{where} is an unfinished conversion; run its `data convert` again.")
    if content["shards"] != counts:
        wrong = sorted(
            name
            for name in content["shards"].keys() | counts.keys()
            if content["shards"].get(name) != counts.get(name)
        )
        raise ValueError(
            f"{where}: its shards are not those that {DATASET} lists: {', '.join(wrong[:5])}. "
            "Copy the folder again."
        )
    return content


def _labels(folder: str, dataset: dict | None) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if dataset is None or not dataset["class_names"]:
        return None, ()
    return np.load(os.path.join(folder, LABELS)), tuple(dataset["class_names"])
