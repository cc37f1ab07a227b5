"""What is in a data set, found by reading all of it once: `dinojax data check`."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinojax.data.decode import DecodeError, decode, describe
from dinojax.data.example import Source
from dinojax.data.progress import Progress
from dinojax.data.ranges import Use, look_at, told

CHUNK = 256  # images a process takes at a time
TIMED = 8  # every 8th image is decoded a second time, into the box, to measure the speed
NUM_TOLD = 100  # groups of duplicates whose names are reported
QUANTILES = {"smallest": 0, "1 %": 1, "median": 50, "99 %": 99, "largest": 100}

_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])


@dataclasses.dataclass
class Survey:
    """Counts over some images; those of two disjoint parts add up."""

    histogram_CV: np.ndarray  # pixels of each value, int64 [channels, 256]
    num_bytes: int = 0
    num_timed: int = 0  # images decoded into the box
    timed_seconds: float = 0.0  # of processor time
    values: Use = dataclasses.field(default_factory=Use)  # of images above 8 bits
    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bad: list[dict] = dataclasses.field(default_factory=list)  # id, name, reason
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (height, width)
    read: list[int] = dataclasses.field(default_factory=list)  # ids of files that exist
    digests: bytearray = dataclasses.field(default_factory=bytearray)  # 16 bytes for each of those

    def __iadd__(self, other: "Survey") -> "Survey":
        for field in dataclasses.fields(self):
            mine, more = getattr(self, field.name), getattr(other, field.name)
            mine += more
            setattr(self, field.name, mine)
        return self


def survey(source: Source, indexes: range, box_size: int) -> Survey:
    """Read and decode the images at `indexes`, whole and some also into the box (pixels)."""
    found = Survey(np.zeros((source.channels, 256), np.int64))
    for index in indexes:
        name = f"image {index}"
        try:
            image = source.encoded(index)
            name = image.name
            found.read.append(index)
            found.digests += hashlib.blake2b(image.data, digest_size=_DIGEST.itemsize).digest()
            found.num_bytes += len(image.data)
            options = source.read_options(index)
            pixels_HWC = decode(image.data, name=name, channels=source.channels, options=options)
            kind = describe(image.data)
            found.values += look_at(image.data, options)
        except (DecodeError, OSError) as error:
            found.bad.append({"id": index, "name": name, "reason": str(error)})
            continue
        found.kinds[kind] += 1
        found.sizes.append(pixels_HWC.shape[:2])
        for channel in range(source.channels):
            values = pixels_HWC[:, :, channel].ravel()
            found.histogram_CV[channel] += np.bincount(values, minlength=256)
        if index % TIMED == 0:
            began = time.process_time()
            source.read(index, box_size)
            found.timed_seconds += time.process_time() - began
            found.num_timed += 1
    return found


def check(source: Source, *, box_size: int, crop_sizes: dict[str, int], processes: int = 1) -> dict:
    """Everything about a data set, for `report.json`.

    crop_sizes: name -> pixels, compared with the short sides. processes: how many decode at once;
    they are spawned and import no accelerator library. Memory: some 100 bytes for each image.
    """
    progress = Progress("checked", len(source))
    found = Survey(np.zeros((source.channels, 256), np.int64))
    for part in _parts(source, box_size, processes):
        found += part
        progress.add(len(part.sizes) + len(part.bad))
    return {
        "images": len(source),
        "bytes": found.num_bytes,
        "fingerprint": source.fingerprint,
        "unreadable": len(found.bad),
        "unreadable_images": found.bad,
        "notes": list(source.notes),
        "stored_as": dict(found.kinds.most_common()),
        "values_above_8_bits": found.values.to_json(),
        "values_told": told(found.values, source.read_options(0)),
        "classes": _classes(source),
        "duplicates": _duplicates(source, found),
        **_statistics(found.histogram_CV),
        **_sides(np.array(found.sizes, np.int64).reshape(-1, 2), box_size, crop_sizes),
        "images_per_second_per_core": found.num_timed / max(found.timed_seconds, 1e-9),
    }


def _parts(source: Source, box_size: int, processes: int) -> Iterator[Survey]:
    starts = range(0, len(source), CHUNK)
    chunks = [range(start, min(start + CHUNK, len(source))) for start in starts]
    if processes == 1:
        yield from (survey(source, chunk, box_size) for chunk in chunks)
        return
    with concurrent.futures.ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy held locks
        initializer=_adopt,
        initargs=(source, box_size),
    ) as pool:
        yield from pool.map(_survey_adopted, chunks)


_adopted: dict[str, Any] = {}  # in a worker process: what all its chunks are read from


def _adopt(source: Source, box_size: int) -> None:
    _adopted.update(source=source, box_size=box_size)


def _survey_adopted(indexes: range) -> Survey:
    return survey(_adopted["source"], indexes, _adopted["box_size"])


def _statistics(histogram_CV: np.ndarray) -> dict:
    """Mean and standard deviation over all pixels of values scaled to 0..1, per channel."""
    counts_CV = histogram_CV.astype(np.float64)
    shares_CV = counts_CV / np.maximum(counts_CV.sum(axis=1, keepdims=True), 1)
    values_V = np.arange(256) / 255
    means_C = shares_CV @ values_V
    stds_C = np.sqrt(np.maximum(shares_CV @ values_V**2 - means_C**2, 0))
    return {"mean": means_C.tolist(), "std": stds_C.tolist()}


def _sides(sizes_N2: np.ndarray, box_size: int, crop_sizes: dict[str, int]) -> dict:
    """Quantiles of sides in pixels, and how many images are smaller than a crop."""
    if not len(sizes_N2):
        return {"sides": {}, "shorter_than": {}, "larger_than_box": 0}
    short_N, long_N = sizes_N2.min(axis=1), sizes_N2.max(axis=1)
    sides = {"short": short_N, "long": long_N}
    return {
        "sides": {
            kind: {name: int(np.percentile(side_N, q)) for name, q in QUANTILES.items()}
            for kind, side_N in sides.items()
        },
        "shorter_than": {name: int((short_N < size).sum()) for name, size in crop_sizes.items()},
        "larger_than_box": int((long_N > box_size).sum()),
    }


def _classes(source: Source) -> dict:
    if source.labels is None:
        return {"number": 0}
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    return {
        "number": len(source.class_names),
        "images_per_class": {
            name: int(np.percentile(counts, q)) for name, q in QUANTILES.items() if "%" not in name
        },
    }


def _duplicates(source: Source, found: Survey) -> dict:
    """Files with equal bytes: how many are one too many, and the names of the first groups."""
    digests_N = np.frombuffer(bytes(found.digests), _DIGEST)
    _, groups_N, counts = np.unique(digests_N, return_inverse=True, return_counts=True)
    order_N = np.argsort(groups_N, kind="stable")
    ends = np.cumsum(counts)
    told = []
    for group in np.flatnonzero(counts > 1)[:NUM_TOLD]:
        places = order_N[ends[group] - counts[group] : ends[group]]
        told.append([source.encoded(found.read[place]).name for place in places[:10].tolist()])
    return {
        "superfluous": int((counts - 1).sum()),
        "groups": int((counts > 1).sum()),
        "names": sorted(told),
    }
