"""Any source to ArrayRecord: shards of consecutive images, each written whole or not at all.

Image files are copied as they are, damaged ones too; nothing is decoded. An image whose file cannot
be read keeps its place, without bytes, and is listed. A conversion that was stopped goes on with
the first shard that is missing.
"""

from pathlib import Path

import numpy as np

from dinojax.data import fields
from dinojax.data.arrayrecord import DATASET, LABELS, SUFFIXES, num_records, pack
from dinojax.data.example import Encoded, Source
from dinojax.data.progress import Progress
from dinojax.data.quarantine import FILE, Skipped, note_skipped
from dinojax.files.drafts import draft, is_empty, open_new, write_json

SHARD_IMAGES = 10_000  # of a shard, when the number of shards is not given
# One image is read at a time, and image files do not get smaller.
OPTIONS = "group_size:1,uncompressed"


def convert(
    source: Source,
    out: str | Path,
    *,
    num_shards: int | None = None,
    max_bad_share: float = 0.001,
) -> list[Skipped]:
    """Write `source` to the folder `out`, made if absent, or finish what was begun there.

    Returns the images without bytes, listed in `out`/bad_images.jsonl, of the shards written now.
    Raises ValueError if `out` holds anything else, or a conversion of other images or into another
    number of shards; TooManyBadImages, after listing, for more than max_bad_share and ten.
    """
    directory, total = Path(out), len(source)
    ends = _ends(total, num_shards or -(-total // SHARD_IMAGES))
    names = [f"images-{i:05}-of-{len(ends):05}{SUFFIXES[0]}" for i in range(len(ends))]
    starts = [0, *ends[:-1]]
    counts = {name: b - a for name, a, b in zip(names, starts, ends, strict=True)}
    plan = {
        "format": "dinojax-arrayrecord",
        "version": 1,
        "complete": False,
        "num_images": total,
        "shards": counts,
        "class_names": list(source.class_names),
        "fingerprint": source.fingerprint,
    }
    _claim(directory, plan)
    progress = Progress("converted", total)
    bad: list[Skipped] = []
    for name, start in zip(names, starts, strict=True):
        path = directory / name
        if _is_whole(path, counts[name]):
            progress.skip(counts[name])
        else:
            indexes = range(start, start + counts[name])
            with draft(path) as made:
                fresh = _write_shard(source, made, indexes, progress)
                bad += fresh
                note_skipped(
                    bad if fresh else [],
                    what="kept without bytes",
                    num_read=indexes.stop,
                    max_share=max_bad_share,
                    path=directory / FILE,
                )
    for name, count in counts.items():
        found = num_records(str(directory / name))
        if found != count:
            raise ValueError(f"{directory / name} has {found} images, not {count}; convert again.")
    if source.class_names:
        with open_new(directory / LABELS) as file:
            np.save(file, np.asarray(source.labels, np.int32))
    write_json(directory / DATASET, {**plan, "complete": True})
    return bad


def _ends(total: int, num_shards: int) -> list[int]:
    """Images up to the end of each shard; shards differ by one image at most."""
    if not 1 <= num_shards <= total:
        raise ValueError(f"--shards {num_shards}: {total} images make 1 to {total} shards.")
    return [total * (number + 1) // num_shards for number in range(num_shards)]


def _claim(directory: Path, plan: dict) -> None:
    """Make the folder and its dataset.json, or make sure that they are of this conversion."""
    path = directory / DATASET
    if path.exists():
        found = fields.checked(fields.read(path), dict, name="the whole", where=path)
        differing = [key for key in plan if key != "complete" and found.get(key) != plan[key]]
        if differing:
            raise ValueError(
                f"{directory} holds a conversion of other images or into other shards (differing: "
                f"{', '.join(differing)}); use another --out."
            )
        return
    if directory.exists() and not is_empty(directory):
        raise ValueError(f"{directory} is not empty and no conversion; use another --out.")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)


def _is_whole(path: Path, count: int) -> bool:
    try:
        return path.exists() and num_records(str(path)) == count
    except ValueError:
        return False


def _write_shard(source: Source, path: Path, indexes: range, progress: Progress) -> list[Skipped]:
    """A shard; returns the images whose files cannot be read."""
    from array_record.python import array_record_module

    bad: list[Skipped] = []
    writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
    try:
        for index in indexes:
            try:
                record = pack(source.encoded(index))
            except OSError as error:
                bad.append(Skipped("data", index, str(error)))
                label = None if source.labels is None else int(source.labels[index])
                record = pack(Encoded(b"", label, f"image {index}"), unreadable=str(error))
            writer.write(record)
            progress.add()
    finally:
        writer.close()
    return bad
