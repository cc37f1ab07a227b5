"""Measurements of a run's checkpoints: `dinojax eval knn` and `dinojax gram pick`."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from dinojax import config as configs
from dinojax import mesh, program
from dinojax.config import ConfigError
from dinojax.data.sources import open_knn_sources
from dinojax.eval.online import build_knn
from dinojax.run import open_checkpoints


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
    knn = build_knn(sources, image=config.image, knn=config.knn)
    layout = mesh.make(config.mesh.strategy, config.mesh.devices)
    built = program.build(config, layout)
    checkpoints = open_checkpoints(config, directory, read_only=True)
    with mesh.use(layout), contextlib.closing(checkpoints):
        step = checkpoints.restore_meta(step)["step"]
        state = checkpoints.restore(built.abstract_state(), step)
        found = knn.accuracy(built.embed(), state.ema["backbone"])
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
        print(f"  {name:8s} {value:5.1f} %")
