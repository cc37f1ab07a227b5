"""A file or folder of weights, opened: its names are known and no tensor is read."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dinojax.weights import described, folders, formats, jsons, prefixes
from dinojax.weights.formats import check, detect
from dinojax.weights.pickles import INNER
from dinojax.weights.renames import Renamed
from dinojax.weights.tensors import Tensors, open_tensors

HEADS = ("dino_head.", "ibot_head.")
HEADS_FILE = "heads.safetensors"  # beside the backbone of an own export


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened file: names are known, no tensor is read. Backbone tensors in the file's names."""

    path: Path
    format: str
    tensors: Tensors
    heads: Tensors
    after: tuple[str, ...]  # names of what a model for a task has after the backbone
    config: dict[str, Any] | None
    processor: dict[str, Any] | None  # of images, as transformers keeps it
    provenance: dict[str, Any] | None
    chosen: str = (
        ""  # which of several networks of the file it is, in words, and how to take others
    )


def open_source(path: str | Path, *, format: str | None = None, prefix: str = "") -> Source:
    """Open a file, or a folder with one. See `load` for the arguments and errors."""
    path = Path(path)
    file = folders.weights_file(path) if path.is_dir() else path
    tensors = _network(file, prefix)
    heads = {name: tensor for name, tensor in tensors.items() if name.startswith(HEADS)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in heads}
    if not heads and (beside := file.parent / HEADS_FILE).is_file():
        heads = open_tensors(beside)
    prefixes.check_plain(tensors, str(path))
    config = jsons.read_if_there(file.parent / "config.json")
    names = list(tensors)
    try:
        told = check(format, names, str(path)) if format else detect(names, config, str(path))
        tensors, after = formats.base(told, config or {}, tensors)
        if not prefixes.is_backbone(tensors):
            raise ValueError(f"{path} has no patch embedding, so it holds no backbone.")
    except ValueError as error:
        if prefix or not (found := _prefixes(file)):
            raise
        raise ValueError(f"{error} {prefixes.proposal(found)}") from None
    return Source(
        path=path,
        format=told,
        tensors=tensors,
        heads=heads,
        after=tuple(after),
        config=config,
        processor=described.processor(file.parent),
        provenance=jsons.read_if_there(file.parent / "provenance.json"),
        chosen="" if prefix else _chosen(file, tensors),
    )


def _network(file: Path, prefix: str) -> Tensors:
    """Tensors of the network that is meant, without wrappers and prefix."""
    tensors = _unwrapped(file)
    if prefix:
        found = prefixes.under(tensors, prefix) or prefixes.under(_unwrapped(file, True), prefix)
        if not found:
            others = _prefixes(file)
            told = f" {prefixes.proposal(others)}" if others else ""
            raise ValueError(f"{file} has no name that begins with {prefix!r}.{told}")
        tensors = found
    if any(name.startswith("backbone.") for name in tensors):
        return _renamed(tensors, lambda name: name.removeprefix("backbone."), str(file))
    return tensors


def _unwrapped(file: Path, whole: bool = False) -> Tensors:
    return _renamed(open_tensors(file, whole=whole), prefixes.bare, str(file))


def _renamed(tensors: Tensors, new: Callable[[str], str], source: str) -> Tensors:
    found = Renamed()
    with named(source):
        for name, tensor in tensors.items():
            found.put(name, new(name), tensor)
    return found.tensors


def _prefixes(file: Path) -> list[str]:
    """The prefixes under which the whole file holds a backbone of a known format."""
    tensors = _unwrapped(file, whole=True)
    found = prefixes.candidates(tensors)
    return [prefix for prefix in found if formats.fitting(list(prefixes.under(tensors, prefix)))]


def _chosen(file: Path, taken: Tensors) -> str:
    """Of a file of PyTorch with several networks (a teacher and its student), which was taken."""
    if file.suffix == ".safetensors":
        return ""  # has no entries to choose of
    whole, found = _unwrapped(file, whole=True), _prefixes(file)
    own = [prefix for prefix in found if taken.keys() <= prefixes.under(whole, prefix).keys()]
    inner = [prefix for name in INNER for prefix in own if prefix.startswith(f"{name}.")]
    others = [prefix for prefix in found if prefix not in inner[:1]]
    if not inner or not others:
        return ""
    return (
        f"{file.name} holds several backbones; {inner[0]} was taken. For another: "
        + " or ".join(f"--prefix {prefix}" for prefix in others)
    )


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """ValueErrors say which file they are about."""
    try:
        yield
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(source) else f"{source}: {told}") from None
