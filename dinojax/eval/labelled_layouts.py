"""ImageNet and the sets derived from it, in the layout of their authors, as labelled sources."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data import fields
from dinojax.data.encoded import EncodedSource, fingerprint
from dinojax.data.example import Example, Source
from dinojax.data.sources import open_at, open_knn_sources
from dinojax.data.storage import read_file
from dinojax.eval import imagenet_c, layout_files
from dinojax.eval.answers import Answers
from dinojax.eval.layout_files import Files


@dataclasses.dataclass(frozen=True, eq=False)
class LayoutSource(EncodedSource):
    """answers: what is right, in classes of the set that is learnt from. border: pixels cut off."""

    answers: Answers | None = None
    border: int = 0

    def read(self, index: int, box_size: int | None = None) -> Example:
        found = super().read(index, box_size)
        if not self.border:
            return found
        inside = slice(self.border, -self.border)
        return dataclasses.replace(found, pixels=found.pixels[inside, inside])


def open_labelled_pair(data: Any, knn: Any, *, channels: int) -> tuple[Source, Source] | None:
    """(images to learn from, images to be judged by) of knn.bank and knn.query, layouts included.

    None without labels. Raises ConfigError or ValueError for what does not go together.
    """
    given = {"knn.bank": knn.bank, "knn.query": knn.query}
    layouts = [key for key, path in given.items() if layout_files.is_layout(path)]
    if not layouts:
        return open_knn_sources(data, knn, channels=channels)
    if any(layout_files.kind_of(given[key]) != "labels" for key in layouts):
        return None  # of maps, boxes or videos, which other evaluations read
    if not (knn.bank and knn.query):
        raise ConfigError(f"{layouts[0]} names a layout: set both knn.bank and knn.query.")
    bank = (
        _opened(knn.bank, "knn.bank", channels)
        if "knn.bank" in layouts
        else open_at(knn.bank, channels=channels, key="knn.bank")
    )
    if "knn.query" not in layouts:
        return bank, open_at(knn.query, channels=channels, key="knn.query")
    files = _find(knn.query, "knn.query")
    return bank, judged(files, bank.class_names, channels=channels, key="knn.query")


def _find(path: str, key: str) -> Files:
    return layout_files.find(path, key=key, kind="labels", learn=key == "knn.bank")


def _opened(path: str, key: str, channels: int) -> EncodedSource:
    files = _find(path, key)
    if files.layout.facts.get("answers"):
        raise ConfigError(f"{key}={path} is there to be judged by; it teaches no classes.")
    found = layout_files.source_of(files, channels=channels, key=key)
    _check_classes(files, len(found.class_names))
    return found


def _check_classes(files: Files, num: int) -> None:
    if num > files.layout.facts["num_classes"]:
        raise ConfigError(
            f"{files.root}: {files.layout.title} has {files.layout.facts['num_classes']} classes, "
            f"and there are folders of {num}; is it the root?"
        )


def judged(files: Files, classes: tuple[str, ...], *, channels: int, key: str) -> LayoutSource:
    """Images of a set to be judged by. classes: of what is learnt from, in order.

    Raises ConfigError for a class or a number that is not among them.
    """
    kind = files.layout.facts.get("answers", "named")
    targets = TARGETS[kind](files, classes)
    kept = [number for number, target in enumerate(targets) if target]
    if not kept:
        raise ConfigError(f"{key}: no image of {files.root} has a class that is learnt from.")
    notes = files.notes
    if len(kept) < len(targets):
        notes = (*notes, f"{len(targets) - len(kept):,} images without a class are left out")
    images = tuple(files.images[number] for number in kept)
    files = dataclasses.replace(files, images=images, notes=notes)
    targets = [targets[number] for number in kept]
    targets_NT = np.full((len(kept), max(map(len, targets))), -1, np.int32)
    for row, target in enumerate(targets):
        targets_NT[row, : len(target)] = target
    columns = None
    if kind in ("subset", "objectnet"):
        columns = tuple(sorted({number for target in targets for number in target}))
        _check_classes(files, len({tuple(target) for target in targets}))
    groups: tuple[str, ...] = ()
    if pattern := files.layout.facts.get("groups"):
        groups = tuple(re.search(pattern, name)[1] for name in images)  # type: ignore[index]
        known = [g for g in groups if g.partition("/")[0] in imagenet_c.ALEXNET]
        if len(set(known)) < len(imagenet_c.ALEXNET) * len(imagenet_c.LEVELS):
            raise ConfigError(
                f"{key}: {files.root} has {len(set(known))} of the"
                f" {len(imagenet_c.ALEXNET) * len(imagenet_c.LEVELS)} corruptions and levels."
            )
    answers = Answers(targets_NT, columns, groups)
    plain = layout_files.source_of(files, channels=channels, key=key)
    own = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    own["files"] = dataclasses.replace(plain.files, labels=answers.labels)  # type: ignore[type-var]
    own["class_names"] = classes
    rows = ((plain.fingerprint, files.name), *map(tuple, targets_NT.tolist()))
    own["fingerprint"] = fingerprint(rows)  # other answers are another measurement
    return LayoutSource(**own, answers=answers, border=files.layout.facts.get("border", 0))


def _folders(files: Files) -> list[str]:
    return [re.search(files.part.classes, name)[1] for name in files.images]  # type: ignore[index]


def _named(files: Files, classes: tuple[str, ...]) -> list[list[int]]:
    """By the name of a folder."""
    numbers = {name: number for number, name in enumerate(classes)}
    folders = _folders(files)
    if strange := sorted(set(folders) - numbers.keys()):
        raise ConfigError(
            f"{files.root}: {len(strange)} classes are not among those learnt from, the first:"
            f" {strange[0]}; these are {', '.join(classes[:3])} and so on."
        )
    return [[numbers[name]] for name in folders]


def _numbered(files: Files, classes: tuple[str, ...]) -> list[list[int]]:
    """Folders are numbers of the classes in order (V2)."""
    folders = _folders(files)
    strange = [n for n in folders if not n.isdecimal() or int(n) >= len(classes)]
    if strange:
        raise ConfigError(
            f"{files.root}: the folder {strange[0]} is no class; those learnt from are numbered"
            f" 0..{len(classes) - 1}."
        )
    return [[int(name)] for name in folders]


def _real(files: Files, classes: tuple[str, ...]) -> list[list[int]]:
    """Lists by the number in an image's name (ReaL); an empty one says that no label is right."""
    path = files.root / "real.json"
    rows = fields.checked(_json(path), [[int]], name="the whole", where=path)
    if any(number >= len(classes) or number < 0 for row in rows for number in row):
        raise ConfigError(f"{path}: a label is not among the {len(classes)} classes learnt from.")
    numbers = [int(re.search(r"(\d+)\.\w+$", name)[1]) for name in files.images]  # type: ignore[index]
    if max(numbers) > len(rows):
        raise ConfigError(f"{path} has {len(rows)} lists and there is an image {max(numbers)}.")
    return [rows[number - 1] for number in numbers]


def _objectnet(files: Files, classes: tuple[str, ...]) -> list[list[int]]:
    """Every class of ImageNet that a folder's objects are an instance of; none = left out.

    Of mappings/: folder -> label, label -> names of ImageNet, names in the order of ILSVRC 2012's
    ids, and the id of each class in order.
    """
    root = files.root / "mappings"
    labels = _texts(root / "folder_to_objectnet_label.json")
    overlap = _texts(root / "objectnet_to_imagenet_1k.json")
    order = _texts(root / "pytorch_to_imagenet_2012_id.json", int)
    lines = read_file(str(root / "imagenet_to_label_2012_v2")).decode("utf-8").splitlines()
    place = {number: int(place) for place, number in order.items()}
    known = {text.strip(): place[number] for number, text in enumerate(lines) if number in place}
    found = []
    for folder in _folders(files):
        names = [name.strip() for name in overlap.get(labels.get(folder, ""), "").split(";")]
        numbers = [known[name] for name in names if name in known]
        if any(number >= len(classes) for number in numbers):
            raise ConfigError(f"{root}: {folder} is beyond the {len(classes)} classes learnt from.")
        found.append(sorted(numbers))
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(read_file(str(path), max_bytes=None))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _texts(path: Path, kind: type = str) -> dict[str, Any]:
    return fields.checked(_json(path), {str: kind}, name="the whole", where=path)


TARGETS = {
    "named": _named,
    "subset": _named,
    "corruptions": _named,
    "numbered": _numbered,
    "real": _real,
    "objectnet": _objectnet,
}
