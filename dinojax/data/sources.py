"""The table of sources. A new kind of data set is one row: a function that builds a Source."""

import dataclasses
import os
from collections.abc import Callable

from dinojax.data import arrayrecord, coco, manifest, parquet, tar, tfds
from dinojax.data.decode import EXTENSIONS, PLAIN, ReadOptions
from dinojax.data.encoded import EncodedSource, extension_of, is_shard
from dinojax.data.example import Source
from dinojax.data.folder import folder
from dinojax.data.mixture import Mixture, Part
from dinojax.data.scene import is_scene
from dinojax.data.scene_tiles import scenes
from dinojax.data.tiles import TileSource, tiles

# data.source: builder(path=, channels=, split=, key=, options=)
SOURCES: dict[str, Callable[..., Source]] = {
    "folder": folder,
    "manifest": manifest.manifest,
    "tar": tar.tar,
    "arrayrecord": arrayrecord.arrayrecord,
    "tfds": tfds.tfds,
    "parquet": parquet.parquet,
    "coco": coco.coco,
    "scenes": scenes,
    "tiles": tiles,
}

# Sources that come with the program. Given a data.path, they step aside for the data there.
EMBEDDED = ("tiles",)
AUTO = "auto"  # data.source that takes the kind its path looks like


def open_captioned(data, *, channels: int) -> Source:
    """The same as `open_source`, with images that have no caption as ones that cannot be read."""
    source = open_source(data, channels=channels)
    if isinstance(source, Mixture):
        parts = [dataclasses.replace(p, source=_captioned(p.source)) for p in source.parts]
        return dataclasses.replace(source, parts=tuple(parts))
    return _captioned(source)


def _captioned(source: Source) -> Source:
    if isinstance(source, (EncodedSource, TileSource)):
        return dataclasses.replace(source, captioned=True)
    return source


def open_source(data, *, channels: int, split: str = "train") -> Source:
    """The source that a `data` section names.

    With an embedded source and a non-empty data.path the data at that path are read, so that
    `--set data.path=PATH` is all it takes to train a demo recipe on one's own images. With
    data.mixture it is all of its sources, drawn by their weights (dinojax/data/mixture.py).
    """
    if data.mixture:
        return _open_mixture(data, channels=channels, split=split)
    if data.source not in (*SOURCES, AUTO):
        raise ValueError(f"data.source={data.source!r} is unknown; choose of {', '.join(SOURCES)}.")
    return SOURCES[source_name(data)](
        path=data.path, channels=channels, split=split, options=read_options(data)
    )


def read_options(data, part: str = "") -> ReadOptions:
    """How image files become pixels, of a `data` section or of one part of its mixture."""
    own = [(low, high) for name, low, high in data.mixture_ranges if name == part]
    ends = tuple(end for pair in own for end in pair) if own else data.value_range
    return ReadOptions(
        value_range=tuple(ends),
        max_pixels=data.max_pixels,
        tile_size=data.tile_size,
        max_nodata=data.max_nodata,
        bands=tuple(data.bands),
    )


def _open_mixture(data, *, channels: int, split: str) -> Mixture:
    """The sources of data.mixture; their paths start from data.path, or are absolute."""
    if data.source not in ("folder", *EMBEDDED):  # the default, and what steps aside
        raise ValueError(
            f"data.source={data.source!r} has no meaning beside data.mixture, whose rows name "
            "their own; set data.source=folder."
        )
    parts = []
    for name, kind, path, weight, alone in data.mixture:
        where = path if kind in EMBEDDED else os.path.join(data.path, path)
        key = f"path of {name} in data.mixture"
        options = read_options(data, name)
        source = SOURCES[kind](path=where, channels=channels, split=split, key=key, options=options)
        parts.append(Part(name, source, weight, alone))
    found = Mixture(tuple(parts))
    found.check()
    return found


def source_name(data) -> str:
    """The row of SOURCES that a `data` section ends up with, or `mixture`."""
    if data.mixture:
        return "mixture"
    if data.source == AUTO and not data.path:
        raise ValueError("data.path is empty; set it to your images: --set data.path=FOLDER")
    return kind_of(data.path) if data.source in (*EMBEDDED, AUTO) and data.path else data.source


def kind_of(path: str) -> str:
    """The row of SOURCES that a path looks like; `folder` when nothing tells otherwise.

    Raises ValueError for a folder that holds both shards and images, of which half would be read.
    """
    if coco.NAME.fullmatch(os.path.basename(path)):
        return "coco"
    here = os.path.expanduser(path)
    if os.path.isfile(here) and is_scene(here):
        return "scenes"
    names = os.listdir(here) if os.path.isdir(here) else [os.path.basename(here)]
    if path.lower().endswith(manifest.EXTENSIONS):
        return "parquet" if os.path.isfile(here) and parquet.is_images(here) else "manifest"
    if tfds.INFO in names and os.path.isdir(here):
        return "tfds"
    kinds = {"arrayrecord": arrayrecord.SUFFIXES, "tar": tar.SUFFIXES, "parquet": parquet.SUFFIXES}
    images = [name for name in names if extension_of(name) in EXTENSIONS]
    for kind, suffixes in kinds.items():
        files = sorted(name for name in names if is_shard(name, suffixes))
        if kind == "parquet":
            files = [name for name in files if parquet.is_images(os.path.join(here, name))][:1]
        if not files:
            continue
        if images:
            raise ValueError(
                f"{path} holds {kind} files such as {files[0]} and images such as {images[0]}, of "
                "which one kind alone can be read; move one of them to a folder of its own."
            )
        return kind
    return "folder"


def open_at(path: str, *, channels: int, key: str, options: ReadOptions = PLAIN) -> Source:
    """The source at a path, of the kind that it looks like; `key` is what messages name."""
    return SOURCES[kind_of(path)](path=path, channels=channels, key=key, options=options)


def open_knn_sources(data, knn, *, channels: int) -> tuple[Source, Source] | None:
    """(bank, query) of the k-NN, both labelled, or None when nothing can be classified.

    Data named by knn.bank and knn.query go first, of the kind their path looks like. Without
    knn.query the embedded tiles use their own splits `bank` and `val`, and others have no k-NN.
    """
    if not knn.query:
        if knn.bank:
            raise ValueError(f"knn.bank={knn.bank} needs images to classify; set knn.query=FOLDER.")
        if source_name(data) not in EMBEDDED:
            return None
        return (
            open_source(data, channels=channels, split="bank"),
            open_source(data, channels=channels, split="val"),
        )
    if data.mixture and not knn.bank:
        raise ValueError(
            "a mixture has no labels to vote with: set knn.bank to a labelled data set, or "
            "knn.query to nothing."
        )
    if not knn.bank and not data.path:
        raise ValueError(
            f"knn.query={knn.query} needs labelled images that vote; set knn.bank=FOLDER."
        )
    bank_key, bank_path = ("knn.bank", knn.bank) if knn.bank else ("data.path", data.path)
    kind = kind_of(bank_path) if knn.bank else source_name(data)
    options = read_options(data)
    bank = SOURCES[kind](path=bank_path, channels=channels, key=bank_key, options=options)
    query = open_at(knn.query, channels=channels, key="knn.query", options=options)
    for key, path, source in ((bank_key, bank_path, bank), ("knn.query", knn.query, query)):
        if not source.class_names:
            raise ValueError(
                f"{key}={path} has no labels: put every image into a sub-folder named by its class."
            )
    return bank, query
