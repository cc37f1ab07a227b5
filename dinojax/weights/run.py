"""Weights in and out: `dinojax export`, `dinojax import`, and `dinojax.load` for files and runs."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import config as configs
from dinojax.checkpoint.locate import is_run
from dinojax.checkpoint.manager import Checkpoints
from dinojax.config import Config
from dinojax.data.decode import ReadOptions
from dinojax.data.sources import read_options
from dinojax.models import zoo
from dinojax.weights import inflate as inflation
from dinojax.weights import jsons, meta, specs
from dinojax.weights import load as files
from dinojax.weights.certificate import TOLERANCE
from dinojax.weights.export import export, from_source
from dinojax.weights.load import Backbone
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.report import LoadReport
from dinojax.weights.tensors import Tensor
from dinojax.weights.writers import Network, snippet

NETWORKS = ("ema", "student")


def read_options_of(path: str | Path) -> ReadOptions:
    """How the images of a run become pixels; the defaults for weights of another origin."""
    return read_options(configs.read(path).data) if is_run(path) else ReadOptions()


def load(
    path: str | Path,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    prefix: str = "",
    stage: str | None = None,
    step: int | None = None,
) -> Backbone:
    """See `dinojax.load`."""
    if not is_run(path):
        if (stage, step) != (None, None):
            raise ValueError(f"{path} is no run; stage and step choose of one, leave them out.")
        return files.load(path, format=format, overrides=overrides, allow=allow, prefix=prefix)
    _refuse_prefix(path, prefix)
    network = network_of_run(path, stage=stage, step=step, overrides=overrides)
    params = files.materialize(network.tensors, network.spec, str(path))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    report = LoadReport("dinojax", len(network.tensors), (), (), 0, size, 1.0, ())
    return Backbone(network.spec, params, network.preprocessing, report)


def network_of_run(
    run_dir: str | Path,
    *,
    stage: str | None = None,
    step: int | None = None,
    network: str = "ema",
    overrides: Mapping[str, Any] | None = None,
) -> Network:
    """The ema (or student) of a checkpoint, backbone and heads; arrays are read when needed.

    stage: of the run, None = the one it is at. step: None = the last of the stage.
    """
    if network not in NETWORKS:
        raise ValueError(f"--network {network} is unknown; choose of {', '.join(NETWORKS)}.")
    directory = Path(run_dir)
    config = configs.read(directory, stage=stage)
    backbone = zoo.backbone(
        config.model,
        config.rope,
        channels=config.image.channels,
        attention="plain",
        dtype=jnp.dtype(jnp.float32),
    )
    spec = specs.replaced(backbone.spec, dict(overrides or {}))
    checkpoints = Checkpoints(
        directory / "checkpoints" / config.stage,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        read_only=True,
    )
    step = checkpoints.restore_meta(step)["step"]
    trees = _lazily(checkpoints, network, step)
    heads = {
        f"{head}.{name}": tensor
        for head in ("dino_head", "ibot_head")
        if head in trees  # a text stage has none
        for name, tensor in meta.lazily_from_ours(trees[head]).items()
    }
    origin = {"from": str(directory), "from_format": "run", "step": step, "network": network}
    origin |= {"stage": config.stage, "recipe": Path(config.recipe).stem}
    tensors = meta.lazily_from_ours(trees["backbone"])
    own = preprocessing_of(config)
    return Network(spec, tensors, heads, own, {**origin, "config": config.to_dict()})


def preprocessing_of(config: Config) -> Preprocessing:
    """That of the evaluation of a run."""
    fixed = config.image.normalize == "fixed"
    return Preprocessing(
        crop_size=config.knn.crop_size,
        resize_size=config.knn.resize_size,
        normalize=config.image.normalize,
        mean=tuple(config.image.mean) if fixed else None,
        std=tuple(config.image.std) if fixed else None,
    )


def _lazily(checkpoints: Checkpoints, part: str, step: int) -> dict[str, Any]:
    """The tree of a part of a saved state, with Tensors for leaves; one leaf is held at a time."""

    @functools.lru_cache(maxsize=1)
    def read(path: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        like = jax.ShapeDtypeStruct(shape, dtype)
        return checkpoints.read_leaf((part, *path), like, step)

    def tensor(path, leaf):
        keys = tuple(entry.key for entry in path)
        dtype = np.dtype(leaf.dtype)
        return Tensor(leaf.shape, dtype, functools.partial(read, keys, leaf.shape, dtype))

    return jax.tree_util.tree_map_with_path(tensor, checkpoints.shapes(part, step))


def _network(path: str | Path, *, format: str | None, overrides, allow, prefix: str) -> Network:
    if is_run(path):
        _refuse_prefix(path, prefix)
        return network_of_run(path, overrides=overrides)
    source = files.open_source(path, format=format, prefix=prefix)
    return from_source(source, overrides=overrides, allow=allow)


def _refuse_prefix(path: str | Path, prefix: str) -> None:
    if prefix:
        raise ValueError(f"{path} is a run, whose names have no prefix; leave out {prefix!r}.")


def export_any(
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
    tolerance: float = TOLERANCE,
    license: str | None = None,
) -> dict[str, Any]:
    """See `dinojax.export`; says what the proof found and how to use what was written."""
    if is_run(source):
        _refuse_prefix(source, prefix)
        found = network_of_run(source, stage=stage, step=step, network=network, overrides=overrides)
    elif (stage, step, network) != (None, None, "ema"):
        raise ValueError(
            "--stage, --step, --network choose a checkpoint of a --run; leave them out."
        )
    else:
        found = _network(source, format=None, overrides=overrides or {}, allow=(), prefix=prefix)
    parity = export(
        found,
        out,
        format=format,
        dtype=dtype,
        with_heads=with_heads,
        certify=certify,
        tolerance=tolerance,
        license=license,
    )
    if chosen := found.origin.get("chosen"):
        print(chosen)
    _say(parity)
    for note in jsons.read(Path(out) / "provenance.json")["preprocessing_notes"]:
        print(f"preprocessing: {note}")
    if found.preprocessing.normalize == "per_crop":
        print(
            "each image is normalised by its own mean and deviation: by lines below, not libraries"
        )
    print(f"\nwritten to {out}. To use it:\n\n{snippet(out, format, found.spec)}")
    return parity


def export_command(
    *, run: str | None, weights: str | None, out: str, overrides: Sequence[str], **options: Any
) -> None:
    """The command line's: a run or weights, settings as text."""
    if run is not None and not is_run(run):
        raise FileNotFoundError(f"--run {run} is no run directory; for files give --weights.")
    source = weights if run is None else run
    assert source is not None
    export_any(source, out, overrides=parse_overrides(overrides), **options)


def _say(parity: dict[str, Any]) -> None:
    if parity["library"] is None:
        print(f"not compared with a library: {parity['reason']}")
        return
    worst = max(parity["rows"], key=lambda row: row["relative"])
    names = ", ".join(f"{name} {version}" for name, version in parity["library"].items())
    print(
        f"same features in {names}: largest difference {worst['max_abs']:.1e} "
        f"({worst['quantity']}, {worst['relative']:.1e} relative; {len(parity['rows'])} compared)"
    )


def import_command(
    path: str,
    out: str,
    *,
    format: str | None = None,
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    prefix: str = "",
    channels: int | None = None,
    inflate: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """`dinojax import`: any format to our own, for another number of channels where asked."""
    network = _network(
        path, format=format, overrides=parse_overrides(overrides), allow=allow, prefix=prefix
    )
    if channels is not None and channels != network.spec.channels:
        network = inflation.with_channels(network, channels, inflate)
    if mean is not None or std is not None:
        network = inflation.with_statistics(network, mean, std)
    export(network, out, format="dinojax")
    if "report" in network.origin:
        print(network.origin["report"])
    own = network.preprocessing
    if own.normalize == "fixed" and own.mean is None:
        print(f"mean and std of {network.spec.channels} channels are not known; give --mean, --std")
    print(f"\nwritten to {out}. To use it:\n")
    print(snippet(out, "dinojax", network.spec))


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """`name=value` strings as fields of a spec. Raises ValueError for what is neither."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: give NAME=VALUE, such as norm=layernorm_1e5.")
        found[name] = _value(text)
    return found


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
