"""Image files behind an index, wherever they are stored: the part that all such sources share."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from dinojax.data.decode import PLAIN, DecodeError, ReadOptions, WrongChannels, decode
from dinojax.data.example import Encoded, Example
from dinojax.data.formats import hint

NUM_TRIED = 1000  # images, of which at least one must decode before a run starts
NUM_WRONG = 8  # images of another number of channels, without one of the right number, are enough
NUM_EXTENSIONS = 5  # kinds of other files that a note lists


class Files(Protocol):
    """Encoded images by index. Pickled to worker processes, so it holds no open file."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class index of every image, int32 [N], or None without labels."""

    def __len__(self) -> int: ...

    def encoded(self, index: int) -> Encoded:
        """Raises OSError naming the file if it cannot be read."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSource:
    """A Source that decodes `files` one at a time."""

    files: Files
    channels: int
    class_names: tuple[str, ...]
    fingerprint: str
    options: ReadOptions = PLAIN
    notes: tuple[str, ...] = ()
    captioned: bool = False  # an image without a caption cannot be read
    # Reads further columns of where images are listed, as texts, "" for a gap (metadata.py).
    metadata: Callable[[], Mapping[str, list[str]]] | None = None

    @property
    def labels(self) -> np.ndarray | None:
        return self.files.labels

    @property
    def local_files(self) -> tuple[str, ...]:
        """Paths of the local files that hold the images; () where `files` does not tell."""
        return getattr(self.files, "local_files", ())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        return self.read(index)

    def encoded(self, index: int) -> Encoded:
        return self.files.encoded(index)

    def read(self, index: int, box_size: int | None = None) -> Example:
        """One decoded image. Raises DecodeError, OSError or ValueError; each names the file."""
        found = self.files.encoded(index)
        if self.captioned and not found.captions:
            raise DecodeError(f"{found.name} has no caption.")
        pixels = decode(
            found.data,
            name=found.name,
            channels=self.channels,
            box_size=box_size,
            options=self.options,
        )
        return Example(pixels, label=found.label, name=found.name, captions=found.captions)

    def read_options(self, index: int) -> ReadOptions:
        return self.options


def check_one_decodes(source: EncodedSource, where: str) -> EncodedSource:
    """Reads from the start until one image decodes: wrong data fail now, not in a worker.

    Raises ValueError when none of the first thousand does, or when the first that are fine have
    another number of channels than the source.
    """
    first_error: Exception | None = None
    first_wrong: WrongChannels | None = None
    num_wrong = 0
    tried = min(len(source), NUM_TRIED)
    for index in range(tried):
        try:
            source.read(index)
            return source
        except WrongChannels as error:
            first_wrong, num_wrong = first_wrong or error, num_wrong + 1
            if num_wrong >= NUM_WRONG:
                break
        except (DecodeError, OSError) as error:
            first_error = first_error or error
    if first_wrong is not None:
        raise WrongChannels(f"{where}: {first_wrong}", first_wrong.found)
    raise ValueError(
        f"{where}: none of its first {tried} images can be decoded. First error: {first_error}"
    )


def checked_path(path: str, key: str, what: str) -> str:
    """The absolute local path. Raises ValueError for none or a URL, else FileNotFoundError."""
    if not path:
        raise ValueError(f"{key} is empty; set it to {what}: --set {key}=PATH")
    if "://" in path:
        raise ValueError(
            f"{key}={path} is a URL; only a manifest may hold URLs. Copy the data to a local or "
            "mounted path, or list the images in a manifest (data.source=manifest)."
        )
    found = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(found):
        raise FileNotFoundError(f"{key}={path} does not exist (looked at {found}).")
    return found


def refuse_split(split: str, what: str) -> None:
    """Raise ValueError for another split than the only one of data without splits."""
    if split != "train":
        raise ValueError(f"{what} no split {split!r}: all of it is 'train'.")


def label_of(labels: np.ndarray | None, index: int) -> int | None:
    """The class of an image; None without labels."""
    return None if labels is None else int(labels[index])


def numbered(classes: Iterable[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int32 [N] and the class names in order: as numbers if all are, else bytewise."""
    classes = list(classes)
    distinct = set(classes)
    if all(name.isdecimal() for name in distinct):
        names = tuple(sorted(distinct, key=lambda name: (int(name), name)))
    else:
        names = tuple(sorted(distinct, key=os.fsencode))
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[name] for name in classes], dtype=np.int32), names


def fingerprint(rows: Iterable[tuple]) -> str:
    """Digest of rows of str and int; any change of a value or of the order changes it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(b"\0".join(os.fsencode(str(value)) for value in row) + b"\n")
    return digest.hexdigest()


def skipped(extensions: Iterable[str]) -> tuple[str, ...]:
    """What to say of files that are not read: no sentence for none, else one."""
    counts = collections.Counter(extensions)
    if not counts:
        return ()
    total = counts.total()
    hints = [f"; for .{name} {hint(name)}" for name in sorted(counts) if hint(name)]
    return (f"{total:,} other file{'s' * (total > 1)} skipped ({listed(counts)}){''.join(hints)}",)


def listed(counts: collections.Counter[str]) -> str:
    """Such as ".heic 12, .txt 3": the commonest extensions with their files."""
    told = [
        f"{'.' + name if name else 'without extension'} {number:,}"
        for name, number in counts.most_common(NUM_EXTENSIONS)
    ]
    rest = len(counts) - NUM_EXTENSIONS
    return ", ".join([*told, *([f"{rest:,} further kinds"] if rest > 0 else [])])


def extension_of(name: str) -> str:
    """Of a file name, in lower case and without its dot."""
    return os.path.splitext(name)[1].lower().removeprefix(".")


def shards(
    path: str, key: str, extensions: tuple[str, ...], *, besides: tuple[str, ...] = ()
) -> tuple[list[str], tuple[str, ...]]:
    """The file at `path`, or those directly in the folder there, and a note on the others.

    In bytewise order of names. besides: names that need no note. Raises ValueError when the folder
    has none, or when the path is neither a folder nor a regular file.
    """
    if os.path.isfile(path):
        return [path], ()
    if not os.path.isdir(path):
        raise ValueError(f"{key}={path} is neither a regular file nor a folder.")
    names = sorted((n for n in os.listdir(path) if not n.startswith(".")), key=os.fsencode)
    found = [os.path.join(path, name) for name in names if is_shard(name, extensions)]
    if not found:
        raise ValueError(
            f"{key}={path} holds no {' or '.join(extensions)} file; found {len(names)} entries"
            f"{' such as ' + ', '.join(names[:3]) if names else ''}."
        )
    if strange := [place for place in found if not os.path.isfile(place)]:
        raise ValueError(f"{key}={path}: {strange[0]} is no regular file.")
    others = [name for name in names if not is_shard(name, extensions) and name not in besides]
    return found, skipped(extension_of(name) for name in others)


def is_shard(name: str, extensions: tuple[str, ...]) -> bool:
    """Whether a file name ends with an extension, also when numbered: a.tar, a.tar-00001-of-4."""
    stem = name.lower().split("-of-")[0].rstrip("0123456789").rstrip("-")
    return name.lower().endswith(extensions) or ("-of-" in name and stem.endswith(extensions))
