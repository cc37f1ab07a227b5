"""Images that cannot be read: replaced or left out, always listed, counted and limited in share.

One rule for all readers. Where a batch or a picture must be full (training, mosaics, pictures) a
bad image is replaced, the same way in every run; where every image has a row of its own (k-NN,
`embed`) it is left out; `data convert` keeps its place. More than `max_share` of them end the
program.

The walk to a substitute (order.substitute) depends on the image alone, so any number of hosts,
worker processes and threads, and any restart, gives the same batches. Worker processes only note
what they met; the process that trains writes the list and decides when there are too many.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinojax.data import fields
from dinojax.data.decode import DecodeError
from dinojax.data.example import Example, Source
from dinojax.data.mixture import peers
from dinojax.data.order import substitute
from dinojax.files.drafts import open_append, write_bytes

NUM_ATTEMPTS = 100  # substitutes tried for one image; as many bad ones are no accident
MIN_BAD = 10  # images; fewer never end a run, unless max_share is 0
NUM_TOLD = 3  # images that the message names

log = logging.getLogger(__name__)

FILE = "bad_images.jsonl"
KNN_FILE = "bad_images.knn.jsonl"  # of the images of evaluations, which are another set


class TooManyBadImages(ValueError):
    """The message says how many, where they are listed, and the first reasons."""


@dataclasses.dataclass(frozen=True)
class BadImage:
    """An image that could not be read, why, and the image that took its place."""

    id: int
    reason: str
    substitute: int


def read_or_replace(
    source: Source, index: int, box_size: int | None
) -> tuple[Example, BadImage | None]:
    """The image at `index`, or its first readable substitute and the reason.

    In a mixture the substitute is of the same source. Raises TooManyBadImages when no substitute
    can be read either.
    """
    try:
        return source.read(index, box_size), None
    except (DecodeError, OSError) as error:
        reason = str(error)
    ids = peers(source, index)
    tries = min(NUM_ATTEMPTS, len(ids) - 1)
    for attempt in range(tries):
        other = ids[substitute(index - ids.start, attempt, len(ids))]
        try:
            return source.read(other, box_size), BadImage(index, reason, other)
        except (DecodeError, OSError):
            continue
    raise TooManyBadImages(
        f"image {index} cannot be read, nor can the {tries} others tried in its place: {reason}"
    )


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An image that an evaluation left out: its source, such as "bank", its index there, why."""

    source: str
    id: int
    reason: str


def list_skipped(path: Path, images: Sequence[Skipped]) -> None:
    """Add images to a list of its own, each once; the file is made by the first."""
    listed = {(row.get("source"), row["id"]) for row in read_list(path)}
    fresh = [image for image in images if (image.source, image.id) not in listed]
    if fresh:
        with open_append(path) as file:
            file.writelines(json.dumps(dataclasses.asdict(image)) + "\n" for image in fresh)


def allowed(max_share: float, num_read: int) -> float:
    """How many bad images of those read do not end a program."""
    return max(max_share * num_read, MIN_BAD) if max_share else 0


def note_skipped(
    images: Sequence[Skipped],
    *,
    what: str,
    num_read: int,
    max_share: float,
    path: Path | None = None,
) -> None:
    """List images that were left out or replaced, say so, and end where they are too many.

    what: whose they are, such as "k-NN" and "the bank" in one sentence. path: of the list, None =
    no list. Raises TooManyBadImages after listing.
    """
    if not images:
        return
    first = images[0].reason
    told = f"{what}: {len(images)} of {num_read} images cannot be read"
    log.warning("%s; the first: %s", told, first)
    if path is not None:
        list_skipped(path, images)
    if len(images) > allowed(max_share, num_read):
        where = f" All are listed in {path}." if path is not None else ""
        raise TooManyBadImages(
            f"{told}, more than max_bad_share={max_share} allows.{where} The first: {first}\n"
            "Repair or remove them (`dinojax data check` finds all), or raise max_bad_share."
        )


def read_all(
    source: Source,
    indexes: Sequence[int] | np.ndarray,
    *,
    what: str,
    max_share: float,
    path: Path | None = None,
) -> list[Example]:
    """Whole images for a picture or a mosaic; bad ones are replaced and noted as above."""
    pairs = [read_or_replace(source, int(index), None) for index in indexes]
    bad = [Skipped(what, image.id, image.reason) for _, image in pairs if image is not None]
    note_skipped(bad, what=what, num_read=len(pairs), max_share=max_share, path=path)
    return [example for example, _ in pairs]


class Quarantine:
    """The list of bad images of one host, `bad_images.jsonl` in the run directory.

    Each image is listed once, however often it is met and the run restarted. The run ends when
    the images found bad since the program started exceed `max_share` of the different images it
    can have read, and are more than ten; with max_share=0 the first one ends it. Every part of a
    mixture is judged by itself, or a small one could be all bad without a word.
    """

    def __init__(
        self, directory: str | Path, *, max_share: float, parts: dict[str, range], host: int = 0
    ):
        """parts: ids of the images by the name of their source, or one part without a name.

        Hosts after the first write `bad_images.HOST.jsonl`.
        """
        name = FILE if host == 0 else FILE.replace(".jsonl", f".{host}.jsonl")
        self.path = Path(directory) / name
        self._max_share, self._parts = max_share, parts
        self._num_read = dict.fromkeys(parts, 0)
        self._met: dict[int, str] = {}  # id -> reason, since the program started
        self._listed = {row["id"] for row in read_list(self.path)}

    def add(self, bad: Sequence[BadImage], ids: Sequence[int] | np.ndarray) -> None:
        """Note a batch of the images `ids`; raises TooManyBadImages, after listing them."""
        ids_B = np.asarray(ids)
        for name, own in self._parts.items():
            self._num_read[name] += int(np.sum((ids_B >= own.start) & (ids_B < own.stop)))
        # A batch larger than the data set meets an image more than once.
        fresh = {image.id: image for image in bad if image.id not in self._met}
        if not fresh:
            return
        self._met.update((image.id, image.reason) for image in fresh.values())
        self._list([image for image in fresh.values() if image.id not in self._listed])
        for name in self._parts:
            self._check(name)

    def _check(self, name: str) -> None:
        own = self._parts[name]
        met = [reason for id, reason in self._met.items() if id in own]
        seen = min(self._num_read[name], len(own))
        if len(met) > allowed(self._max_share, seen):
            told = "\n".join(f"  {reason}" for reason in met[:NUM_TOLD])
            raise TooManyBadImages(
                f"{len(met)} of {seen} images{f' of {name}' if name else ''} could not be read, "
                f"more than data.max_bad_share={self._max_share} allows. All are listed in "
                f"{self.path}; the first:\n{told}\nRepair or remove them (`dinojax data check` "
                "finds all), or raise data.max_bad_share; the run then continues from its last "
                "checkpoint."
            )

    def _list(self, images: Sequence[BadImage]) -> None:
        self._listed.update(image.id for image in images)
        with open_append(self.path) as file:
            file.writelines(json.dumps(self._row(image)) + "\n" for image in images)

    def _row(self, image: BadImage) -> dict:
        """What the list holds; in a mixture also the name of the source."""
        names = [name for name, own in self._parts.items() if image.id in own and name]
        return {**dataclasses.asdict(image), **({"source": names[0]} if names else {})}


def read_list(path: str | Path) -> list[dict]:
    """Rows of a list, {"id", "reason", "substitute"} and maybe "source"; a missing file has none.

    A last line without its end (the run was killed while writing) is cut off the file; any other
    line that is no such row raises ValueError.
    """
    path = Path(path)
    if path.is_file():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            write_bytes(path, data[: data.rfind(b"\n") + 1])
    found = []
    for where, row in fields.rows(path):
        fields.field(row, "id", int, where=where)
        fields.field(row, "reason", str, where=where)
        found.append(row)
    return found
