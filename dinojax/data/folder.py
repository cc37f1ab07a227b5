"""Any nested folder of images, as it is: no labels, no index file, no preparation."""

import collections
import dataclasses
import os
from collections.abc import Container

import numpy as np

from dinojax.data.decode import EXTENSIONS, PLAIN, ReadOptions
from dinojax.data.encoded import (
    EncodedSource,
    check_one_decodes,
    extension_of,
    fingerprint,
    label_of,
    listed,
    refuse_split,
    skipped,
)
from dinojax.data.example import Encoded, Source
from dinojax.data.storage import read_file, shown


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

    @property
    def local_files(self) -> tuple[str, ...]:
        return tuple(os.path.join(self.root, name) for name in self.names)

    def encoded(self, index: int) -> Encoded:
        data = read_file(os.path.join(self.root, self.names[index]))
        label = label_of(self.labels, index)
        return Encoded(data=data, label=label, name=shown(self.names[index]))


def folder(
    *,
    path: str,
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> Source:
    """The source of a folder; `key` is the config key that messages name.

    Raises FileNotFoundError or NotADirectoryError for a path that is no folder, and ValueError
    without image files, when no file can be decoded, or when the first that can be has another
    number of channels than `channels`.
    """
    refuse_split(split, "a folder has")
    found = Walk(_checked_root(path, key), EXTENSIONS)
    if not found.sizes:
        raise ValueError(_no_images(f"{key}={path}", found))
    names = tuple(sorted(found.sizes, key=os.fsencode))
    labels, class_names = classes_of(names)
    source = EncodedSource(
        files=FolderFiles(root=found.root, names=names, labels=labels),
        channels=channels,
        class_names=class_names,
        fingerprint=fingerprint((name, found.sizes[name]) for name in names),
        options=options,
        notes=found.notes(),
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


class Walk:
    """The regular files of a folder that are not hidden, at any depth; those with an extension.

    Links to folders are followed, and every real folder is read once: by its own name if it lies
    inside, else by the first link to it in bytewise order.
    """

    def __init__(self, root: str, extensions: Container[str]):
        self.root, self._extensions = root, extensions
        self.sizes: dict[str, int] = {}  # relative name of such a file -> bytes
        self.others: list[str] = []  # extensions of other files
        self.known = self.strange = self.broken = 0  # see `notes`
        self._seen: set[tuple[int, int]] = set()  # device and number of each folder read
        self._links: list[str] = []  # relative names of links to folders
        self._read("")
        while self._links:
            self._links.sort(key=os.fsencode, reverse=True)
            self._read(self._links.pop() + "/")

    def _read(self, prefix: str) -> None:
        todo = [prefix]
        while todo:
            prefix = todo.pop()
            status = os.stat(os.path.join(self.root, prefix))
            if (status.st_dev, status.st_ino) in self._seen:
                self.known += 1
                continue
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(self.root, prefix)) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
            visible.sort(key=lambda entry: os.fsencode(entry.name))
            todo += [prefix + e.name + "/" for e in reversed(visible) if self._is_folder(e, prefix)]

    def _is_folder(self, entry: os.DirEntry, prefix: str) -> bool:
        """Whether it is a real folder; everything else is noted."""
        name = prefix + entry.name
        try:
            if entry.is_dir():
                if entry.is_symlink():
                    self._links.append(name)
                return not entry.is_symlink()
            if not entry.is_file():
                self.broken += entry.is_symlink() and not os.path.exists(entry.path)
                self.strange += os.path.exists(entry.path)
            elif (extension := extension_of(entry.name)) in self._extensions:
                self.sizes[name] = entry.stat().st_size
            else:
                self.others.append(extension)
        except OSError:  # a link to itself
            self.broken += 1
        return False

    def notes(self) -> tuple[str, ...]:
        counts = {
            "links to folders skipped that are read already": self.known,
            "links skipped that lead nowhere": self.broken,
            "pipes, sockets or devices skipped": self.strange,
        }
        told = [f"{count:,} {what}" for what, count in counts.items() if count]
        return (*skipped(self.others), *told)


def _no_images(where: str, walk: Walk) -> str:
    total = len(walk.others)
    common = f"{total} other files ({listed(collections.Counter(walk.others))})"
    found = common if total else "no files at all"
    return f"{where} holds no image files; found {found}. Extensions read: {', '.join(EXTENSIONS)}."


def classes_of(names: tuple[str, ...]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels int32 [N] and the sorted class names, or (None, ()) if any image is at the top."""
    if not all("/" in name for name in names):
        return None, ()
    first = [name.split("/", 1)[0] for name in names]
    class_names = tuple(sorted(set(first), key=os.fsencode))
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers[name] for name in first], dtype=np.int32), class_names
