"""Measurements of a run's checkpoints: `dinojax eval NAME` and `dinojax gram pick`."""

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from dinojax import config as configs
from dinojax.checkpoint.manager import COMMITTED, Checkpoints, open_checkpoints
from dinojax.config import Config, ConfigError
from dinojax.data.sources import open_source
from dinojax.eval import text_model as text_models
from dinojax.eval.contract import Setting, build
from dinojax.eval.features import EvalTransform
from dinojax.eval.network import Network, of_backbone
from dinojax.eval.suite import SUITE
from dinojax.files.drafts import open_append
from dinojax.models import zoo
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.networks import Networks, with_attention
from dinojax.models.params import abstract_params
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout

MARGIN = 1.0  # points of the dense metric below which two checkpoints count as equal


def evaluate(
    name: str,
    run_dir: str | Path,
    overrides: Sequence[str],
    step: int | None,
    *,
    stage: str | None = None,
) -> dict[str, Any]:
    """`dinojax eval NAME`: of the ema of a checkpoint; prints and appends to eval/NAME.jsonl.

    stage: None = the one the run is at.
    """
    directory, row = Path(run_dir), SUITE[name]
    config = configs.read(directory, overrides, stage=stage)
    layout = mesh.from_section(config.mesh)
    evaluation = build(name, _setting(config, directory))
    if evaluation is None:
        raise ConfigError(f"{row.title} needs {row.needs}; set them, with --set KEY=VALUE.")
    checkpoints = open_checkpoints(config, directory, read_only=True)
    with (
        mesh.use(layout),
        jax.default_matmul_precision(config.precision.matmul),
        contextlib.closing(checkpoints),
    ):
        network, like = _network(config, layout)
        config.check_settings_read(overrides)
        step = checkpoints.restore_meta(step)["step"]
        ema = checkpoints.restore_parts(like, step)["ema"]
        measured_of = network(ema["backbone"])
        if config.text.enabled:
            measured_of.words = text_models.params_of_run(directory, config, step)[0]
        measured = evaluation.measure(measured_of)
    named = {"stage": config.stage} if len(configs.saved_stages(directory)) > 1 else {}
    found = {column.removeprefix(row.prefix): value for column, value in measured.values.items()}
    (directory / "eval").mkdir(exist_ok=True)
    with open_append(directory / "eval" / f"{name}.jsonl") as file:
        file.write(json.dumps({**named, "step": step, **found}) + "\n")
    print(f"step {step}, {measured.told}")
    for column, value in found.items():
        print(f"  {column:8s} {row.shown(value) if column != 'skipped' else value:>7}")
    return {**named, "step": step, **found}


def _setting(config: Config, directory: Path) -> Setting:
    """What evaluations of a run are built from; the images of training if they can be opened."""
    return Setting(
        config,
        EvalTransform.from_sections(image=config.image, knn=config.knn),
        patch_size=config.model.patch_size,
        images=functools.partial(open_source, config.data, channels=config.image.channels),
        directory=directory,
    )


def pick_anchor(run_dir: str | Path, overrides: Sequence[str], *, num: int) -> list[dict]:
    """`dinojax gram pick`: prints and returns {"stage", "step", "dense"} of every checkpoint.

    num: mosaics of the bank and of the queries. All checkpoints see the same images, in the size
    of the stage that the run is at. Raises FileNotFoundError for a run without checkpoints.
    """
    directory = Path(run_dir)
    config = configs.read(directory, overrides)
    layout = mesh.from_section(config.mesh)
    config = config.replaced({"knn.mosaics": num})
    mosaics = build("mosaics", _setting(config, directory))
    assert mosaics is not None
    rows: list[dict] = []
    with mesh.use(layout), jax.default_matmul_precision(config.precision.matmul):
        network, like = _network(config, layout)
        config.check_settings_read(overrides)
        for stage in configs.saved_stages(directory):
            folder = directory / "checkpoints" / stage
            steps = [path.parent for path in folder.glob(f"*/{COMMITTED}")]
            if not steps:
                continue
            with contextlib.closing(Checkpoints.reader(folder)) as checkpoints:
                for step in sorted(int(path.name) for path in steps):
                    params = checkpoints.restore_parts(like, step)["ema"]["backbone"]
                    dense = mosaics.measure(network(params)).values[SUITE["mosaics"].main]
                    rows.append({"stage": stage, "step": step, "dense": dense})
                    print(f"{stage}/{step}: {dense:.1f} % of patches told right")
    if not rows:
        raise FileNotFoundError(f"{directory} has no checkpoint yet; train it first.")
    print(advice(rows))
    return rows


def _network(config: Config, layout: Layout) -> tuple[Callable[[dict], Network], dict]:
    """Of parameters the network of a run, and the shapes of its ema on the devices.

    Nothing of training is built: no heads, no losses, no optimizer, no teacher.
    """
    backbone = zoo.backbone(
        config.model,
        config.rope,
        channels=config.image.channels,
        attention="plain",
        dtype=jax.numpy.dtype(config.precision.compute),
    )
    spec = backbone.spec
    if not isinstance(spec, ConvNextSpec):
        rows, columns = spec.grid(config.knn.crop_size, config.knn.crop_size)
        images = -(-config.knn.batch_size // layout.num_shards)
        tokens = 1 + spec.num_registers + rows * columns
        shape = (images, tokens, spec.num_heads, spec.head_width)
        backbone = zoo.module(with_attention(spec, config.model.attention, [shape]))
    params = abstract_params(Networks(backbone, None, None), layout)
    return of_backbone(backbone, layout), {"ema": {"backbone": params["backbone"]}}


def advice(rows: Sequence[dict]) -> str:
    """Which checkpoint of `pick_anchor` to hold on to, in words."""
    best, last = max(rows, key=lambda row: row["dense"]), rows[-1]
    lost = best["dense"] - last["dense"]
    told = f"best: {best['stage']}/{best['step']}; the newest is {lost:.1f} points below it"
    if lost < MARGIN:
        return (
            f"{told}, which is noise or nothing: patches have not degraded, so a Gram stage has "
            "nothing to repair. It is for long training of large models; measure again later."
        )
    return f"{told}. Anchor: --set STAGE:gram.anchor={best['stage']}/{best['step']}"
