"""Train DINOv3 and DINOv2 vision foundation models in JAX.

    import dinojax

    dinojax.train("tiny", run="runs/mine", overrides={"data.path": "photographs"})
    backbone = dinojax.load("runs/mine")                     # features of arrays
    features = dinojax.embed("runs/mine", "photographs")     # features of files
    dinojax.evaluate("runs/mine", "knn")
    dinojax.export("runs/mine", "out/hf", format="hf")

`dinojax.train` and `dinojax.distill` are called like functions, and are the packages of that name
(`dinojax.train.step`). The command line is a face of these (docs/python.md). Nothing of JAX is
imported before one of them is used.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from dinojax.weights.load import Backbone

__all__ = ["distill", "embed", "evaluate", "export", "load", "train"]


def __getattr__(name: str) -> Any:
    """The packages that are called like functions, imported by the first who asks."""
    if name in ("train", "distill"):
        return importlib.import_module(f"dinojax.{name}")
    raise AttributeError(f"module 'dinojax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    path: str | Path,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    prefix: str = "",
    stage: str | None = None,
    step: int | None = None,
) -> "Backbone":
    """A frozen backbone from a .pth or .safetensors file, a folder with one, or a run directory.

    path: of weights, or of a run, whose ema is taken. format: meta, hf, timm or dinojax; None =
    told from names and config.json. overrides: fields of the spec, such as num_heads, norm or
    rope.base, that the file does not tell. allow: patterns of names that may be missing or
    unexpected. prefix: what the names of the network that is meant begin with. stage, step: of a
    run's checkpoint, None = the last.

    The backbone is called with images [B, H, W, C], float32 as `backbone.preprocessing(pixels)`
    makes them of uint8 [H, W, C], and gives `cls` [B, D], `registers` [B, R, D] and `patches`
    [B, P, D]; `backbone.intermediate(images, 4)` gives those of its last four blocks.

    Raises ValueError when a file is not, in every tensor, this backbone, with the names of those
    that are missing or left over; FileNotFoundError.
    """
    from dinojax.weights import run

    return run.load(
        path,
        format=format,
        overrides=overrides,
        allow=allow,
        prefix=prefix,
        stage=stage,
        step=step,
    )


def evaluate(
    run: str | Path,
    name: str = "knn",
    *,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    data: str | None = None,
    protocol: str | None = None,
    stage: str | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint of a run, as `dinojax eval NAME`; the line added to RUN/eval/NAME.jsonl.

    run: or weights as for `load`, with `data`, whose record lies beside them.
    name: of `dinojax eval list`; `knn` is weighted k-NN classification in percent (a column per
    feature: cls, patches, both), in `values`. data: a folder with sub-folders train and val, or
    images without labels; None = those of the run. protocol: of those that the list names.
    overrides: of the run's config, {"knn.bank": FOLDER, "knn.query": FOLDER}. stage, step: None =
    the stage that the run is at, its last checkpoint.

    Raises ConfigError (a ValueError) for an unknown name, or data without labels;
    FileNotFoundError for a run without checkpoints.
    """
    from dinojax.checkpoint.locate import is_run
    from dinojax.config.overrides import settings
    from dinojax.config.recipe import ConfigError
    from dinojax.eval import suite
    from dinojax.eval.evaluate import evaluate

    if name not in suite.SUITE:
        raise ConfigError(f"no evaluation {name!r}; choose of {', '.join(suite.SUITE)}.")
    is_of_run = data is None or is_run(run)
    (record,) = evaluate(
        name,
        run if is_of_run else None,
        settings(overrides),
        step,
        weights=None if is_of_run else str(run),
        data=data,
        protocol=protocol,
        stage=stage,
    )
    return record.to_json()


def embed(
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
) -> "dict[str, np.ndarray] | list[Path]":
    """Features of every image of a data set: as arrays, or in files where there is an `out`.

    weights: as for `load`. data: a folder, manifest, tar, ArrayRecord, TFDS or Parquet data set.
    outputs: of cls [N, D] (None = this), registers [N, R, D], patches [N, P, D] and layer=N
    [N, 1 + R + P, D] (all tokens after that block), float32. batch_size: images per forward pass.
    value_range, max_pixels: stored values above 8 bits that become 0 and 255, and the largest
    image; None = those of the run. max_bad_share: of images that cannot be read and
    are left out; ten are allowed. prefix, overrides: as for `load`.

    Without `out`: {"name": [N], "label": [N] where there are any, output: array}, in the order of
    the data. With it: the files `out`/part-00000.npz (or .parquet) of `part_size` images each, of
    which those that exist are kept, so that the same call continues.

    Where data is one scene (docs/satellite.md), `out`/NAME.tif with a pixel per patch: outputs are
    patches (None = these) or one layer=N, window is the side of windows in pixels (None = 32
    patches), bands are those that are read, from 1 on (() = all).

    Raises ValueError for an output or format that is none, for an `out` that was begun otherwise,
    and (TooManyBadImages) for too many images that cannot be read; FileNotFoundError.
    """
    from dinojax.eval.embed_folder import embed_folder

    return embed_folder(
        weights,
        data,
        out,
        outputs=outputs,
        format=format,
        batch_size=batch_size,
        part_size=part_size,
        max_bad_share=max_bad_share,
        value_range=value_range,
        max_pixels=max_pixels,
        window=window,
        bands=bands,
        prefix=prefix,
        overrides=overrides,
    )


def export(
    source: str | Path,
    out: str | Path,
    *,
    format: str,
    dtype: str | None = None,
    with_heads: bool = False,
    network: str = "ema",
    stage: str | None = None,
    step: int | None = None,
    prefix: str = "",
    overrides: Mapping[str, Any] | None = None,
    certify: bool = True,
    tolerance: float = 2e-5,
    license: str | None = None,
) -> dict[str, Any]:
    """Write a backbone for another library to a new folder, with proof that it is the same network.

    source: a run, or weights as for `load`. format: hf (transformers), timm, meta (the reference's
    .pth), stablehlo (a program for jax alone). dtype: float32, bfloat16, float16; None = as it is.
    with_heads: also heads.safetensors. prefix, overrides: as for `load`.
    network, stage, step: of a run. certify: compute features here and in that library; the largest
    relative difference may be `tolerance`. license: what the model card states, None = that none is
    stated.

    Returns the content of `out`/parity.json: the library's version and the differences found.
    Raises ValueError if the format cannot hold the network or the library computes other features;
    then nothing is written.
    """
    from dinojax.weights import run

    return run.export_any(
        source,
        out,
        format=format,
        dtype=dtype,
        with_heads=with_heads,
        network=network,
        stage=stage,
        step=step,
        prefix=prefix,
        overrides=overrides,
        certify=certify,
        tolerance=tolerance,
        license=license,
    )
