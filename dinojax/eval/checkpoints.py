"""The dense metric of all checkpoints of a run: `dinojax gram pick`."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import jax

from dinojax import config as configs
from dinojax.checkpoint.manager import COMMITTED, Checkpoints
from dinojax.eval.contract import build
from dinojax.eval.suite import SUITE
from dinojax.eval.targets import backbone_of, setting_of_run
from dinojax.sharding import mesh

MARGIN = 1.0  # points of the dense metric below which two checkpoints count as equal


def pick_anchor(run_dir: str | Path, overrides: Sequence[str], *, num: int) -> list[dict]:
    """`dinojax gram pick`: prints and returns {"stage", "step", "dense"} of every checkpoint.

    num: mosaics of the bank and of the queries. All checkpoints see the same images, in the size
    of the stage that the run is at. Raises FileNotFoundError for a run without checkpoints.
    """
    directory = Path(run_dir)
    config = configs.read(directory, overrides)
    layout = mesh.from_section(config.mesh)
    config = config.replaced({"knn.mosaics": num})
    mosaics = build("mosaics", setting_of_run(config, directory))
    assert mosaics is not None
    rows: list[dict] = []
    with mesh.use(layout), jax.default_matmul_precision(config.precision.matmul):
        network, like = backbone_of(config, layout)
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
