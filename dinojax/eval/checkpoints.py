"""Measurements of a run's checkpoints: `dinojax eval knn` and `dinojax gram pick`."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax

from dinojax import config as configs
from dinojax.checkpoint.manager import COMMITTED, Checkpoints, open_checkpoints
from dinojax.config import Config, ConfigError
from dinojax.data.sources import open_knn_sources
from dinojax.eval.knn_evaluator import build_knn
from dinojax.eval.mosaic import open_mosaics
from dinojax.sharding import mesh
from dinojax.train import program
from dinojax.train.stage import open_train_source

MARGIN = 1.0  # points of the dense metric below which two checkpoints count as equal


def evaluate_knn(
    run_dir: str | Path, overrides: Sequence[str], step: int | None, *, stage: str | None = None
) -> None:
    """`dinojax eval knn`: k-NN of the ema of a checkpoint; prints and appends to eval/knn.jsonl.

    stage: None = the one the run is at.
    """
    directory = Path(run_dir)
    config = configs.read(directory, overrides, stage=stage)
    sources = open_knn_sources(config.data, config.knn, channels=config.image.channels)
    if sources is None:
        raise ConfigError("k-NN needs labels: --set knn.bank=FOLDER --set knn.query=FOLDER.")
    knn = build_knn(sources, image=config.image, knn=config.knn, directory=directory)
    layout = mesh.from_section(config.mesh)
    built = program.build(_without_teacher(config), layout)
    checkpoints = open_checkpoints(config, directory, read_only=True)
    with mesh.use(layout), contextlib.closing(checkpoints):
        step = checkpoints.restore_meta(step)["step"]
        like = {"ema": {"backbone": built.abstract_state().ema["backbone"]}}
        ema = checkpoints.restore_parts(like, step)["ema"]
        found = knn.accuracy(built.embed(), ema["backbone"])
    named = {"stage": config.stage} if len(configs.saved_stages(directory)) > 1 else {}
    row = {
        **named,
        "step": step,
        "neighbors": knn.neighbors,
        "temperature": knn.temperature,
        **found,
    }
    (directory / "eval").mkdir(exist_ok=True)
    with (directory / "eval" / "knn.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"step {step}, {len(knn.bank)} images in the bank, {len(knn.query)} queries")
    for name, value in found.items():
        print(f"  {name:8s} {value:5.1f}{'' if name == 'skipped' else ' %'}")


def pick_anchor(run_dir: str | Path, overrides: Sequence[str], *, num: int) -> list[dict]:
    """`dinojax gram pick`: prints and returns {"stage", "step", "dense"} of every checkpoint.

    num: mosaics of the bank and of the queries. All checkpoints see the same images, in the size
    of the stage that the run is at. Raises FileNotFoundError for a run without checkpoints.
    """
    directory = Path(run_dir)
    config = configs.read(directory, overrides)
    layout = mesh.from_section(config.mesh)
    built = program.build(_without_teacher(config), layout)
    mosaics = open_mosaics(config, built, open_train_source(config), num)
    assert mosaics is not None
    rows: list[dict] = []
    with mesh.use(layout), jax.default_matmul_precision(config.precision.matmul):
        embed, like = built.embed(), {"ema": {"backbone": built.abstract_state().ema["backbone"]}}
        for stage in configs.saved_stages(directory):
            folder = directory / "checkpoints" / stage
            steps = [path.parent for path in folder.glob(f"*/{COMMITTED}")]
            if not steps:
                continue
            with contextlib.closing(Checkpoints.reader(folder)) as checkpoints:
                for step in sorted(int(path.name) for path in steps):
                    params = checkpoints.restore_parts(like, step)["ema"]["backbone"]
                    dense = mosaics.accuracy(embed, params)
                    rows.append({"stage": stage, "step": step, "dense": dense})
                    print(f"{stage}/{step}: {dense:.1f} % of patches told right")
    if not rows:
        raise FileNotFoundError(f"{directory} has no checkpoint yet; train it first.")
    print(advice(rows))
    return rows


def _without_teacher(config: Config) -> Config:
    """Of a distilled student, who is looked at where its teacher need not be."""
    return config.replaced({"distill.enabled": False})


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
