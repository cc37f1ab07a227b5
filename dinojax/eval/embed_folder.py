"""`dinojax embed` and `dinojax.embed`: weights of any format, images of any kind, features."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinojax.data.decode import ReadOptions
from dinojax.data.quarantine import FILE, Skipped, note_skipped, read_list
from dinojax.data.ranges import range_notes
from dinojax.data.sources import open_at
from dinojax.eval.embed import Job, bad_list, embed, embed_part, part_files
from dinojax.eval.feature_files import need_pyarrow
from dinojax.weights import run
from dinojax.weights.load import Backbone


def embed_folder(
    weights: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    outputs: Sequence[str] = ("cls",),
    format: str = "npz",
    batch_size: int = 64,
    part_size: int = 4096,
    max_bad_share: float = 0.001,
    value_range: Sequence[float] | None = None,
    max_pixels: int | None = None,
    prefix: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> list[Path] | dict[str, np.ndarray]:
    """See `dinojax.embed`. Prints what was loaded, how far it is, and what was left out."""
    job = Job(tuple(outputs), format, batch_size, part_size, max_bad_share)
    if format == "parquet":
        need_pyarrow()
    backbone = run.load(weights, overrides=overrides, prefix=prefix)
    print(backbone.report)
    options = _options(weights, backbone, value_range, max_pixels)
    source = open_at(str(data), channels=backbone.spec.channels, key="--data", options=options)
    for note in [*source.notes, *range_notes(source)]:
        print(note.replace("--set 'data.value_range=(", "--value-range '("))
    if out is None:
        content, reasons = embed_part(backbone, source, range(len(source)), job)
        bad = [Skipped("data", index, reason) for index, reason in reasons.items()]
        note_skipped(bad, what="left out", num_read=len(source), max_share=max_bad_share)
        return content
    origin = " ".join([os.path.abspath(weights), *([prefix] if prefix else [])])
    computed = embed(backbone, source, out, job, origin)
    num_bad = len(read_list(Path(out) / bad_list(jax.process_index())))
    told = f"{len(source) - num_bad} of {len(source)}, {num_bad} cannot be read and are listed in "
    told = f"{told}{FILE}," if num_bad else str(len(source))
    print(f"{told} images in {out}, {computed} parts computed")
    return part_files(out, len(source), job)


def embed_command(
    weights: str, data: str, out: str, *, outputs: str, overrides: Sequence[str], **options: Any
) -> None:
    """The command line's: names with commas between, settings as text."""
    fields = run.parse_overrides(overrides)
    embed_folder(weights, data, out, outputs=outputs.split(","), overrides=fields, **options)


def _options(
    weights: str | Path,
    backbone: Backbone,
    value_range: Sequence[float] | None,
    max_pixels: int | None,
) -> ReadOptions:
    """How images become pixels: as the run did that the weights are of, unless told."""
    own = run.read_options_of(weights)
    return ReadOptions(
        value_range=own.value_range if value_range is None else tuple(value_range),
        max_pixels=own.max_pixels if max_pixels is None else max_pixels,
        transparency=backbone.preprocessing.transparency,
    )
