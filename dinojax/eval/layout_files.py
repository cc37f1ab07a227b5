"""Public data sets in the layout of their authors: LAYOUT:ROOT or LAYOUT/SPLIT:ROOT.

Nothing is downloaded and no file is run. What is found is compared with what is published: another
count is a note of the source, which stands in records; so are the terms of use.
"""

import dataclasses
import glob
import os
import re
from pathlib import Path

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.encoded import EncodedSource, check_one_decodes, fingerprint
from dinojax.data.folder import FolderFiles
from dinojax.eval.layouts import LAYOUTS, Layout, Part

NAMED = re.compile(r"([a-z0-9_]+)(?:/([a-z0-9_]+))?:(.+)")


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a split: images in order, and of each its map, as paths below the root."""

    name: str
    layout: Layout
    split: str
    root: Path
    images: tuple[str, ...]
    maps: tuple[str, ...]  # none, or one for each image
    notes: tuple[str, ...]

    @property
    def part(self) -> Part:
        return self.layout.parts[self.split]


def is_layout(path: str) -> bool:
    match = NAMED.fullmatch(path)
    return match is not None and match[1] in LAYOUTS


def kind_of(path: str) -> str:
    """Of a path that is a layout: labels, maps, depth, boxes or videos."""
    match = NAMED.fullmatch(path)
    assert match is not None
    return LAYOUTS[match[1]].kind


def root_of(path: str) -> str:
    match = NAMED.fullmatch(path)
    assert match is not None
    return os.path.expanduser(match[3])


def find(path: str, *, key: str, kind: str, learn: bool) -> Files:
    """The files that `LAYOUT[/SPLIT]:ROOT` names; learn: without SPLIT, that to learn from.

    kind: what it must be. key: what messages name. Raises ConfigError naming the root, the list or
    the first file that is not there.
    """
    match = NAMED.fullmatch(path)
    assert match is not None and match[1] in LAYOUTS, path
    name, split, root = match[1], match[2], Path(os.path.expanduser(match[3]))
    layout, where = LAYOUTS[name], f"{key}={path}"
    if layout.kind != kind:
        fitting = [n for n, other in LAYOUTS.items() if other.kind == kind]
        raise ConfigError(f"{where} has {layout.kind}; this key takes {', '.join(fitting)}.")
    splits = list(layout.parts)
    split = split or splits[0 if learn else -1]
    if split not in layout.parts:
        raise ConfigError(f"{where}: {name} has no split {split!r}; it has {', '.join(splits)}.")
    if not root.is_dir():
        raise ConfigError(f"{where}: there is no folder {root}.")
    part = layout.parts[split]
    images, maps = _listed(part, root, where) if part.listed else _found(part, root, where)
    notes = [f"{layout.title}, {split}; terms of use: {layout.terms}"]
    if part.num is not None and len(images) != part.num:
        notes.append(f"{layout.title}, {split}: {len(images):,} found, {part.num:,} published")
    return Files(name, layout, split, root, tuple(images), tuple(maps), tuple(notes))


def _found(part: Part, root: Path, where: str) -> tuple[list[str], list[str]]:
    images = sorted(glob.glob(part.find, root_dir=root), key=os.fsencode)
    if not images:
        raise ConfigError(f"{where}: {root} holds nothing like {part.find}; is it the root?")
    return images, _maps(part, images, [], root, where)


def _listed(part: Part, root: Path, where: str) -> tuple[list[str], list[str]]:
    path = root / part.listed
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {path} cannot be read ({error}); is it the root?") from None
    rows = [[word.lstrip("/") for word in line.split()] for line in sorted(lines) if line.strip()]
    rows = [row for row in rows if "None" not in row]  # KITTI: no ground truth
    if not rows:
        raise ConfigError(f"{where}: {path} has no lines.")
    try:
        options = [[template.format(*row) for row in rows] for template in part.images]
        fitting = [names for names in options if (root / names[0]).exists()] or options
        images = fitting[0]
        maps = _maps(part, images, rows, root, where)
    except IndexError:
        raise ConfigError(f"{where}: a line of {path} has too few words for a map.") from None
    _check(images, root, where, "images")
    return images, maps


def _maps(part: Part, images: list[str], rows: list, root: Path, where: str) -> list[str]:
    if len(part.maps) == 2:
        maps = [re.sub(part.maps[0], part.maps[1], image) for image in images]
    else:
        maps = [part.maps[0].format(*row) for row in rows] if part.maps else []
    _check(maps, root, where, "maps")
    return maps


def _check(names: list[str], root: Path, where: str, what: str) -> None:
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        raise ConfigError(
            f"{where}: {len(missing)} of {len(names)} {what} are not there, the first: "
            f"{root / missing[0]}."
        )


def source_of(files: Files, *, channels: int, key: str) -> EncodedSource:
    """The images as a source; of labelled ones with their classes, in bytewise order of names.

    Raises ValueError, naming the file, where none of the first images can be decoded.
    """
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    if files.part.classes:
        matches = [re.search(files.part.classes, name) for name in files.images]
        classes = [match[1] for match in matches if match is not None]
        class_names = tuple(sorted(set(classes), key=os.fsencode))
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = np.array([numbers[name] for name in classes], np.int32)
    own = FolderFiles(str(files.root), files.images, labels)
    mark = fingerprint((name, (files.root / name).stat().st_size) for name in files.images)
    found = EncodedSource(own, channels, class_names, mark, notes=files.notes)
    return check_one_decodes(found, f"{key}={files.name}/{files.split}:{files.root}")
