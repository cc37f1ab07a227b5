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
from dinojax.data.scene import is_scene, open_scene
from dinojax.data.sources import open_at
from dinojax.eval.embed import Job, bad_list, embed, embed_part, part_files
from dinojax.eval.embed_scene import SceneJob, embed_scene
from dinojax.eval.feature_files import need_pyarrow
from dinojax.weights import run
from dinojax.weights.load import Backbone


def embed_folder(
    weights: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    outputs: Sequence[str] | None = None,
    format: str = "npz",
    batch_size: int = 64,
    part_size: int = 4096,
    max_bad_share: float = 0.001,
    value_range: Sequence[float] | None = None,
    max_pixels: int | None = None,
    window: int | None = None,
    bands: Sequence[int] = (),
    prefix: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> list[Path] | dict[str, np.ndarray]:
    """See `dinojax.embed`. Prints what was loaded, how far it is, and what was left out."""
    is_one = is_scene(data)
    if not is_one and (window is not None or bands):
        raise ValueError(f"--window and --bands are of scenes; {data} is none.")
    job = Job(tuple(outputs or ("cls",)), format, batch_size, part_size, max_bad_share)
    if format == "parquet":
        need_pyarrow()
    if is_one and (out is None or format != "npz"):
        raise ValueError(f"{data} is a scene, written as a GeoTIFF: give --out, and no --format.")
    backbone = run.load(weights, overrides=overrides, prefix=prefix)
    print(backbone.report)
    options = _options(weights, backbone, value_range, max_pixels)
    origin = " ".join([os.path.abspath(weights), *([prefix] if prefix else [])])
    if is_one:
        assert out is not None
        output, ends = ",".join(outputs or ("patches",)), options.value_range
        of_scene = SceneJob(output, window, batch_size, ends, tuple(bands))
        return [_embed_scene(backbone, str(data), out, of_scene, origin)]
    source = open_at(str(data), channels=backbone.spec.channels, key="--data", options=options)
    for note in [*source.notes, *range_notes(source)]:
        print(note.replace("--set 'data.value_range=(", "--value-range '("))
    if out is None:
        content, reasons = embed_part(backbone, source, range(len(source)), job)
        bad = [Skipped("data", index, reason) for index, reason in reasons.items()]
        note_skipped(bad, what="left out", num_read=len(source), max_share=max_bad_share)
        return content
    computed = embed(backbone, source, out, job, origin)
    num_bad = len(read_list(Path(out) / bad_list(jax.process_index())))
    told = f"{len(source) - num_bad} of {len(source)}, {num_bad} cannot be read and are listed in "
    told = f"{told}{FILE}," if num_bad else str(len(source))
    print(f"{told} images in {out}, {computed} parts computed")
    return part_files(out, len(source), job)


def _embed_scene(
    backbone: Backbone, data: str, out: str | Path, job: SceneJob, origin: str
) -> Path:
    place = embed_scene(backbone, data, out, job, origin)
    made = open_scene(place)
    told = "" if made.crs else ", without a CRS, as the scene"
    print(f"{place}: {made.width} x {made.height} patches, {len(made.bands)} channels{told}")
    return place


def embed_command(
    weights: str,
    data: str,
    out: str,
    *,
    outputs: str | None,
    overrides: Sequence[str],
    **options: Any,
) -> None:
    """The command line's: names with commas between, settings as text."""
    fields = run.parse_overrides(overrides)
    names = None if outputs is None else outputs.split(",")
    embed_folder(weights, data, out, outputs=names, overrides=fields, **options)


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
