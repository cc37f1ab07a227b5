"""Any nested folder of images, as it is: no labels, no index file, no preparation."""

import collections
import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from dinojax.data.decode import EXTENSIONS
from dinojax.data.encoded import EncodedSource, check_one_decodes, fingerprint
from dinojax.data.example import Encoded, Source


@dataclasses.dataclass(frozen=True, eq=False)
class FolderFiles:
    """Image files below `root`, in bytewise order of their relative paths with '/' between parts.

    A class is the name of the first sub-folder; there are labels when every image has one.
    """

    root: str
    names: tuple[str, ...]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, index: int) -> Encoded:
        with open(os.path.join(self.root, self.names[index]), "rb") as file:
            data = file.read()
        label = None if self.labels is None else int(self.labels[index])
        return Encoded(data=data, label=label, name=self.names[index])


def folder(*, path: str, channels: int, split: str = "train", key: str = "data.path") -> Source:
    """The source of a folder; `key` is the config key that messages name.

    Raises FileNotFoundError or NotADirectoryError for a path that is no folder, and ValueError
    without image files, when no file can be decoded, or when the first that can be has another
    number of channels than `channels`.
    """
    if split != "train":
        raise ValueError(f"a folder has no split {split!r}: all of it is 'train'.")
    root = _checked_root(path, key)
    sizes: dict[str, int] = {}
    others: collections.Counter[str] = collections.Counter()
    for name, size in _files(root, "", ()):
        extension = os.path.splitext(name)[1].lower().removeprefix(".")
        if extension in EXTENSIONS:
            sizes[name] = size
        else:
            others[extension] += 1
    if not sizes:
        raise ValueError(_no_images(f"{key}={path}", others))
    names = tuple(sorted(sizes, key=os.fsencode))
    labels, class_names = _classes(names)
    source = EncodedSource(
        files=FolderFiles(root=root, names=names, labels=labels),
        channels=channels,
        class_names=class_names,
        fingerprint=fingerprint((name, sizes[name]) for name in names),
    )
    return check_one_decodes(source, f"{key}={path}")


def _checked_root(path: str, key: str) -> str:
    if not path:
        raise ValueError(f"{key} is empty; set it to a folder of images: --set {key}=FOLDER")
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(root):
        raise FileNotFoundError(f"{key}={path} does not exist (looked at {root}).")
    if not os.path.isdir(root):
        raise NotADirectoryError(f"{key}={path} is a file; give the folder that holds the images.")
    return root


def _files(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Relative names and bytes of the files that are not hidden; links are followed, once."""
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/", (*above, here))
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size


def _no_images(where: str, others: collections.Counter) -> str:
    if others:
        common = ", ".join(
            f"{n} .{name}" if name else f"{n} without" for name, n in others.most_common(5)
        )
        found = f"{others.total()} other files ({common})"
    else:
        found = "no files at all"
    return f"{where} holds no image files; found {found}. Extensions read: {', '.join(EXTENSIONS)}."


def _classes(names: tuple[str, ...]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels int32 [N] and the sorted class names, or (None, ()) if any image is at the top."""
    if not all("/" in name for name in names):
        return None, ()
    first = [name.split("/", 1)[0] for name in names]
    class_names = tuple(sorted(set(first), key=os.fsencode))
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers[name] for name in first], dtype=np.int32), class_names
