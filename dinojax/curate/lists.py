"""What `train` reads of a curation: lists of images or their files, and a recipe of them."""

import csv
import io
import os
from pathlib import Path

import numpy as np

from dinojax.config import recipe
from dinojax.data.convert import convert
from dinojax.data.encoded import EncodedSource
from dinojax.data.example import Source
from dinojax.data.folder import FolderFiles
from dinojax.data.manifest import ManifestFiles
from dinojax.data.storage import is_url
from dinojax.data.subset import Subset
from dinojax.files.drafts import write_text

SETTING = "mixture.txt"


def write_list(source: Source, indexes: np.ndarray, place: Path) -> tuple[str, Path]:
    """(kind of source, path) of chosen images: a manifest where images have paths, else the files.

    place: without an extension; PLACE.csv holds absolute paths and labels, PLACE.records is a
    folder of ArrayRecord shards.
    """
    files = source.files if isinstance(source, EncodedSource) else None
    if not isinstance(files, (FolderFiles, ManifestFiles)):
        records = place.with_name(f"{place.name}.records")
        convert(Subset(source, indexes), records)
        return "arrayrecord", records
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    labels = source.labels
    rows.writerow(["path"] if labels is None else ["path", "label"])
    for index in indexes.tolist():
        row = [_path(files, index)]
        rows.writerow(row if labels is None else [*row, source.class_names[int(labels[index])]])
    path = place.with_name(f"{place.name}.csv")
    write_text(path, text.getvalue())
    return "manifest", path


def _path(files: FolderFiles | ManifestFiles, index: int) -> str:
    if isinstance(files, FolderFiles):
        return os.path.join(files.root, files.names[index])
    path = files.paths[index]
    return path if is_url(path) or os.path.isabs(path) else f"{files.folder}/{path}"


RECIPE = '''\
"""The recipe {name} on curated images. Written by dinojax curate, which writes it anew."""

from runpy import run_path

from dinojax.configs import base

BEFORE = {path!r}


def get_config():
    c = run_path(BEFORE)["get_config"]()
    c.data.source = "folder"  # each row of the mixture names its own
    c.data.mixture = (
{rows}
    )
    return c
'''

Row = tuple[str, str, str, float, float]  # of data.mixture


def write_recipe(path: Path, name: str, rows: list[Row]) -> None:
    """A recipe of `train`: the one of this name or file, on the images of a mixture.

    Raises ConfigError for a recipe that is not there, ValueError for one that has stages.
    """
    before = recipe.find(name)
    if recipe.stages(before):
        raise ValueError(
            f"mixture.recipe={name} has stages, which a written recipe cannot repeat; leave it out "
            f"and give `train` the line of {SETTING} beside."
        )
    lines = [
        f"        base.part({name!r}, {place!r}, source={kind!r}, weight={weight}, alone={alone}),"
        for name, kind, place, weight, alone in rows
    ]
    text = RECIPE.format(name=before.stem, path=os.path.abspath(before), rows="\n".join(lines))
    write_text(path, text)


def setting(rows: list[Row]) -> str:
    """What `dinojax train --set` takes for the same."""
    return f"data.mixture={tuple(rows)!r}"
