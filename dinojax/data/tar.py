"""Tar shards in the layout of WebDataset, read in any order.

Files whose paths agree up to the first dot of their name form a sample: `a/1.jpg`, `a/1.cls` and
`a/1.json`. Every image file is an image; the class of its sample is the text of `.cls` or the field
`label` of `.json`, its captions are the lines of `.txt` or the field `caption` of `.json`. The
shards are indexed when they are opened (by their headers, in memory); an image is then read by its
place in the file. That asks for uncompressed shards on a local path.
"""

import dataclasses
import functools
import os
import tarfile
from typing import Any

import numpy as np

from dinojax.data import captions, fields
from dinojax.data.decode import EXTENSIONS, PLAIN, ReadOptions
from dinojax.data.encoded import (
    EncodedSource,
    check_one_decodes,
    checked_path,
    extension_of,
    fingerprint,
    label_of,
    numbered,
    shards,
    skipped,
)
from dinojax.data.example import Encoded, Source
from dinojax.data.storage import shown

SUFFIXES = (".tar",)
# Refused by name, with the program that unpacks it. Keys: how such a file begins.
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclasses.dataclass(frozen=True, eq=False)
class TarFiles:
    """Where each image lies: shard number, first byte and number of bytes, int64 [N, 3]."""

    shards: tuple[str, ...]
    names: tuple[str, ...]
    places_N3: np.ndarray
    labels: np.ndarray | None
    captions: tuple[tuple[str, ...], ...] | None = None  # of each image; None where none has one

    def __len__(self) -> int:
        return len(self.names)

    @property
    def local_files(self) -> tuple[str, ...]:
        return self.shards

    def encoded(self, index: int) -> Encoded:
        shard, start, size = self.places_N3[index].tolist()
        path = self.shards[shard]
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(size)
        name = shown(f"{os.path.basename(path)}/{self.names[index]}")
        if len(data) < size:
            raise OSError(f"{path} ends within {name}: it was cut since the run began.")
        label = label_of(self.labels, index)
        told = () if self.captions is None else self.captions[index]
        return Encoded(data=data, label=label, name=name, captions=told)


@dataclasses.dataclass
class _Index:
    """Grows shard by shard. samples: of each image, the key into `classes`."""

    names: list[str] = dataclasses.field(default_factory=list)
    places: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    samples: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    classes: dict[tuple[int, str], str] = dataclasses.field(default_factory=dict)
    captions: dict[tuple[int, str], tuple[str, ...]] = dataclasses.field(default_factory=dict)
    texts: list[tuple[int, str]] = dataclasses.field(default_factory=list)  # samples of .txt files
    others: list[str] = dataclasses.field(default_factory=list)  # extensions of other files
    members: set[str] = dataclasses.field(default_factory=set)  # names in the shard at hand


def tar(
    *,
    path: str,
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> Source:
    """The source of one tar file or of a folder of them; `key` is what messages name.

    Raises FileNotFoundError, and ValueError for compressed, damaged or empty shards.
    """
    if split != "train":
        raise ValueError(f"tar shards have no split {split!r}: all of them are 'train'.")
    where = f"{key}={path}"
    found = checked_path(path, key, "a tar file or a folder of them")
    files, notes = shards(found, key, SUFFIXES)
    index = _Index()
    for number, shard in enumerate(files):
        _add(index, number, shard)
    if not index.names:
        raise ValueError(f"{where}: no image in {len(files)} tar files.")
    labels, class_names = _labels(index, where)
    told = tuple(index.captions.get(sample, ()) for sample in index.samples)
    with_image = set(index.samples)
    index.others += ["txt" for sample in index.texts if sample not in with_image]
    source = EncodedSource(
        files=TarFiles(
            shards=tuple(files),
            names=tuple(index.names),
            places_N3=np.array(index.places, np.int64),
            labels=labels,
            captions=told if any(told) else None,
        ),
        channels=channels,
        class_names=class_names,
        fingerprint=fingerprint(
            (os.path.basename(files[place[0]]), name, *place[1:], *texts)
            for name, place, texts in zip(index.names, index.places, told, strict=True)
        ),
        options=options,
        notes=(*notes, *(f"in the tar files: {note}" for note in skipped(index.others))),
        metadata=functools.partial(_further, tuple(files)),
    )
    return check_one_decodes(source, where)


def _further(files: tuple[str, ...]) -> dict[str, list[str]]:
    """Plain values of json files beside `label`, by their names, as texts: one per image."""
    index, contents = _Index(), {}
    for number, path in enumerate(files):
        _add(index, number, path)
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and member.name.lower().endswith(".json"):
                    folder, _, name = member.name.rpartition("/")
                    stem = name.lower().partition(".")[0]
                    text = archive.extractfile(member).read()  # type: ignore[union-attr]
                    content = fields.parse(text, where=f"{path}: {member.name}")
                    if isinstance(content, dict):
                        contents[number, f"{folder}/{stem}"] = content
    kept = (int, float, str)
    names = dict.fromkeys(
        name for found in contents.values() for name, v in found.items() if isinstance(v, kept)
    )
    names.pop("label", None)

    def cell(sample: tuple[int, str], name: str) -> str:
        value = contents.get(sample, {}).get(name)
        return str(value) if isinstance(value, kept) else ""

    return {name: [cell(sample, name) for sample in index.samples] for name in names}


def _add(index: _Index, number: int, path: str) -> None:
    """Every image and class of one shard."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, program in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"{path} is compressed, and an image inside cannot be read by its place. Unpack it "
                f"({program} {path}); images gain nothing from a second compression."
            )
    index.members.clear()
    end = 0  # of the last member
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                # tarfile would keep every header it has seen
                archive.members = []  # type: ignore[attr-defined]
                end = archive.offset
                if member.isreg() and not member.issparse():
                    _add_member(index, number, archive, member)
                elif not member.isdir():
                    index.others.append(f"{extension_of(member.name)} (link or sparse)")
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ValueError(f"{path} is damaged or no tar file: {error}. Copy it again.") from error
    _check_end(path, end)


def _check_end(path: str, end: int) -> None:
    """After its members an archive has two blocks of zeros and nothing else; tarfile reads on
    without a word whatever stands there."""
    with open(path, "rb") as file:
        file.seek(end)
        blocks = file.read(2 * tarfile.BLOCKSIZE)
        if blocks[: tarfile.BLOCKSIZE].strip(b"\0"):
            raise ValueError(f"{path} is damaged at byte {end}. Copy it again.")
        if len(blocks) < 2 * tarfile.BLOCKSIZE or blocks.strip(b"\0"):
            raise ValueError(
                f"{path} has no end of archive (two blocks of zeros) at byte {end}: it was cut off "
                "or never finished. Copy or write it again."
            )
        while chunk := file.read(2**20):
            if chunk.strip(b"\0"):
                raise ValueError(
                    f"{path} goes on after its end of archive at byte {end}, as archives do that "
                    "were joined with `cat`. Join them with `tar --concatenate`, or give the "
                    "folder of the single ones."
                )


def _add_member(index: _Index, number: int, archive: tarfile.TarFile, member: Any) -> None:
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.lower().partition(".")
    if not stem:
        return  # hidden
    if member.name in index.members:
        raise ValueError(f"{archive.name!s} has {member.name} twice; keep one.")
    index.members.add(member.name)
    sample = number, f"{folder}/{name[: len(stem)]}"
    if extension.rpartition(".")[2] in EXTENSIONS:
        index.names.append(member.name)
        index.places.append((number, member.offset_data, member.size))
        index.samples.append(sample)
    elif extension in ("cls", *captions.MEMBERS):
        index.texts += [sample] if extension == "txt" else []
        text, where = archive.extractfile(member).read(), f"{archive.name!s}: {member.name}"  # type: ignore[union-attr]
        if extension in captions.MEMBERS:
            told = captions.of_member(text, extension, where)
            if told is None:
                index.others.append("txt (not UTF-8)")
            if told and (extension == "txt" or sample not in index.captions):
                index.captions[sample] = told
        found = _class(text, extension, where) if extension != "txt" else None
        if found is not None and (extension == "cls" or sample not in index.classes):
            index.classes[sample] = found
    else:
        index.others.append(extension)


def _class(text: bytes, extension: str, where: str) -> str | None:
    try:
        if extension == "cls":
            return text.decode().strip()
        content = fields.parse(text, where="its text")
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {error}.") from error
    if isinstance(content, dict) and isinstance(content.get("label"), (int, str)):
        return str(content["label"])
    return None


def _labels(index: _Index, where: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels when every image has a class, none when no image has one; else ValueError."""
    if not index.classes:
        return None, ()
    for name, sample in zip(index.names, index.samples, strict=True):
        if sample not in index.classes:
            raise ValueError(
                f"{where}: {name} has no class but others have; give every sample a .cls file or "
                "a json field 'label', or none."
            )
    return numbered(index.classes[sample] for sample in index.samples)
