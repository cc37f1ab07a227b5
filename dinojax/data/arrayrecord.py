"""ArrayRecord files: random access to millions of images in a few large files.

A record is either an image file as it is (no label), or one in our own envelope, which
`dinojax data convert` writes:

    8 bytes   b"dinojax1"
    4 bytes   number of bytes of the header, unsigned, little-endian
    header    JSON in UTF-8: {"name": str, "label": int or null}, "captions": [str] of an image
              that has some, and "unreadable": str, the reason, of an image that could not be read
              when it was converted
    the rest  the image file

Beside its shards a conversion keeps `dataset.json` (counts, class names, whether it is complete)
and, for labelled images, `labels.npy`.
"""

import bisect
import dataclasses
import functools
import io
import itertools
import json
import os
import struct
import threading
from typing import Any

import numpy as np

from dinojax.data import fields
from dinojax.data.decode import PLAIN, ReadOptions
from dinojax.data.encoded import (
    EncodedSource,
    check_one_decodes,
    checked_path,
    fingerprint,
    refuse_split,
    shards,
)
from dinojax.data.example import Encoded, Source
from dinojax.data.quarantine import FILE as BAD
from dinojax.data.storage import read_file

SUFFIXES = (".arrayrecord", ".array_record")
MAGIC = b"dinojax1"
DATASET, LABELS = "dataset.json", "labels.npy"

_LENGTH = struct.Struct("<I")


def pack(image: Encoded, *, unreadable: str = "") -> bytes:
    """A record in the envelope above."""
    fields: dict[str, Any] = {"name": image.name, "label": image.label}
    fields |= {"captions": list(image.captions)} if image.captions else {}
    header = json.dumps(fields | ({"unreadable": unreadable} if unreadable else {})).encode()
    return MAGIC + _LENGTH.pack(len(header)) + header + image.data


def unpack(record: bytes, *, name: str) -> Encoded:
    """The image of a record; `name` is for records without an envelope.

    Raises OSError for a damaged envelope, and for an image that was unreadable when it was packed.
    """
    if not record.startswith(MAGIC):
        return Encoded(data=record, label=None, name=name)
    try:
        (length,) = _LENGTH.unpack_from(record, len(MAGIC))
        start = len(MAGIC) + _LENGTH.size
        header = fields.parse(record[start : start + length], where="its header")
        label = fields.field(header, "label", (int, None), where="its header")
        own = fields.field(header, "name", str, where="its header")
        told = fields.field(header, "captions", [str], where="its header", default=[])
        found = Encoded(record[start + length :], label=label, name=own, captions=tuple(told))
    except (struct.error, ValueError) as error:
        raise OSError(f"{name}: its record is damaged ({error}).") from error
    if "unreadable" in header:
        raise OSError(f"{found.name}: unreadable when it was converted: {header['unreadable']}")
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class RecordFiles:
    """Images of all shards, one after the other. `ends`: images up to the end of each shard."""

    shards: tuple[str, ...]
    ends: tuple[int, ...]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def local_files(self) -> tuple[str, ...]:
        return self.shards

    def encoded(self, index: int) -> Encoded:
        shard = bisect.bisect_right(self.ends, index)
        place = index - (self.ends[shard - 1] if shard else 0)
        path = self.shards[shard]
        name = f"{os.path.basename(path)}/{place}"
        try:
            record = reader(path).read([place])[0]
        except (RuntimeError, IndexError) as error:
            raise OSError(f"cannot read record {place} of {path}: {error}") from error
        found = unpack(record, name=name)
        if self.labels is not None and found.label != self.labels[index]:
            raise OSError(
                f"{found.name} ({name}) has the label {found.label} in its record and "
                f"{self.labels[index]} in {LABELS}: one of the two belongs to other data."
            )
        return found


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
    *,
    path: str,
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> Source:
    """The source of one ArrayRecord file or a folder of them; `key` is what messages name.

    Raises FileNotFoundError, and ValueError for a damaged file or an unfinished conversion.
    """
    refuse_split(split, "ArrayRecord files have")
    where, found = f"{key}={path}", checked_path(path, key, "a folder of ArrayRecord files")
    files, notes = shards(found, key, SUFFIXES, besides=(DATASET, LABELS, BAD))
    counts = [num_records(file) for file in files]
    rows = list(zip(map(os.path.basename, files), counts, strict=True))
    dataset = _dataset(found, dict(rows), where)
    labels, class_names = _labels(found, dataset, sum(counts))
    sizes = [os.path.getsize(file) for file in files]
    source = EncodedSource(
        files=RecordFiles(tuple(files), tuple(itertools.accumulate(counts)), labels),
        channels=channels,
        class_names=class_names,
        fingerprint=fingerprint((*row, size) for row, size in zip(rows, sizes, strict=True)),
        options=options,
        notes=notes,
    )
    return check_one_decodes(source, where)


def _dataset(folder: str, counts: dict[str, int], where: str) -> dict | None:
    """The content of dataset.json where there is one, checked against the shards."""
    place = os.path.join(folder, DATASET)
    if not os.path.isfile(place):
        return None
    try:
        content = json.loads(read_file(place, max_bytes=None))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON file: {error}. Copy the folder again.") from error
    if wrong := _wrong_field(content):
        raise ValueError(f"{place} has no legal {wrong}. Copy the folder again.")
    if not content["complete"]:
        raise ValueError(f"{where} is an unfinished conversion; run its `data convert` again.")
    if content["shards"] != counts:
        wrong_shards = sorted(
            name
            for name in content["shards"].keys() | counts.keys()
            if content["shards"].get(name) != counts.get(name)
        )
        raise ValueError(
            f"{where}: its shards are not those that {DATASET} lists: "
            f"{', '.join(wrong_shards[:5])}. Copy the folder again."
        )
    if content["num_images"] != sum(counts.values()):
        raise ValueError(
            f"{place} tells of {content['num_images']} images, and its shards hold "
            f"{sum(counts.values())}. Copy the folder again."
        )
    return content


def _wrong_field(content: Any) -> str:
    """The first field of dataset.json that is missing or of another type; empty if none is."""
    if not isinstance(content, dict):
        return "content (it is no table of fields)"
    shards_, names = content.get("shards"), content.get("class_names")
    is_right = {
        "complete": isinstance(content.get("complete"), bool),
        "num_images": type(content.get("num_images")) is int,
        "shards": isinstance(shards_, dict) and all(type(n) is int for n in shards_.values()),
        "class_names": isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names),
    }
    return next((field for field, right in is_right.items() if not right), "")


def _labels(
    folder: str, dataset: dict | None, num_images: int
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels int32 [N] and the names of their classes, compared with the images."""
    place = os.path.join(folder, LABELS)
    if dataset is None or not dataset["class_names"]:
        if os.path.exists(place):
            raise ValueError(
                f"{place} labels images, but no {DATASET} names their classes. Copy the folder "
                "again, or remove the file to read the images without labels."
            )
        return None, ()
    try:
        labels_N = np.load(io.BytesIO(read_file(place, max_bytes=None)), allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{place} is missing. Copy the folder again.") from None
    except Exception as error:  # numpy evaluates the header and passes on what that raises
        raise ValueError(f"{place} is no array of labels: {error}. Copy it again.") from error
    classes = len(dataset["class_names"])
    if labels_N.shape != (num_images,) or labels_N.dtype.kind not in "iu":
        raise ValueError(
            f"{place} holds {labels_N.dtype} of shape {labels_N.shape}; its shards have "
            f"{num_images} images, each with one whole number. Copy the folder again."
        )
    if labels_N.min() < 0 or labels_N.max() >= classes:
        raise ValueError(
            f"{place} has labels from {labels_N.min()} to {labels_N.max()}; {DATASET} names "
            f"{classes} classes, 0 to {classes - 1}. Copy the folder again."
        )
    return labels_N.astype(np.int32), tuple(dataset["class_names"])
