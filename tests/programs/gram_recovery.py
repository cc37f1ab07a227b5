"""Shows that a Gram anchor gives back the patch features that a run has lost, and a control not.

    python -m tests.programs.gram_recovery OUT   # trains both; 2 processor minutes, and compilation

This file is also the recipe of the two runs, the tiny one made smaller. Stage `pretrain` trains as
usual. `spoil` makes all patches of an image alike: it is anchored at a copy of the network that
sees nothing (its patch embedding is next to 0), while the DINO loss goes on. `repair` is anchored
at the end of `pretrain`; the control has the same stage without an anchor. In none of the two is
there an iBOT loss, so that nothing else looks at single patches. Both share the first two stages.
What came out is recorded in tests/recorded/gram_recovery.json; OUT/anchored/report.html and
OUT/control/report.html show the curves, OUT/both.html those of both.
"""

import argparse
import dataclasses
import datetime
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from dinojax.configs import base, tiny
from dinojax.weights.export import export
from dinojax.weights.run import network_of_run
from dinojax.weights.tensors import held

ROOT = Path(__file__).parent.parent.parent
RECORDED = Path(__file__).parent.parent / "recorded" / "gram_recovery.json"
WITHOUT = ("repair:gram.enabled=False", "repair:gram.anchor=")
BLIND = np.float32(1e-9)  # of the patch embedding; far below what a LayerNorm makes visible
COLUMNS = {"knn": "knn/cls", "dense": "dense/mosaic"}


def get_config():
    c = tiny.get_config()
    c.batch_size = 32
    c.crops.num_local = 2
    c.model.update(width=48, depth=2)
    c.dino_head.prototypes = 128
    c.ibot_head.prototypes = 128
    c.checkpoint.every = 100
    # Twice the size of training, so that a quarter of a mosaic shows as much as a crop did.
    c.knn.update(every=100, crop_size=64, resize_size=64, features="cls", mosaics=96)
    c.log.pictures = False
    return c


def pretrain(c):
    c.num_steps = 200
    c.schedules.lr = base.schedule(0.0, 2e-3, 1e-3, warmup=20)
    c.schedules.momentum = base.schedule(0.97, 0.97, 0.98)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=100)
    return c


def spoil(c):
    c = repair(c)
    c.gram.anchor = "BLIND"  # stands for a path, given with --set
    return c


def repair(c):
    c.start.what = "state"
    c.num_steps = 100
    c.losses.ibot = 0.0
    c.gram.enabled = True
    c.gram.anchor = "pretrain/200"
    c.schedules.gram_weight = base.schedule(2.0, 2.0, 2.0)
    c.schedules.lr = base.schedule(1e-3, 1e-3, 1e-3)
    c.schedules.momentum = base.schedule(0.97, 0.97, 0.97)
    c.schedules.teacher_temperature = base.schedule(0.07, 0.07, 0.07)
    return c


STAGES = {"pretrain": pretrain, "spoil": spoil, "repair": repair}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for the two runs")
    out = parser.parse_args(argv).out
    anchored, control = out / "anchored", out / "control"
    spoilt = ("--set", f"spoil:gram.anchor={out / 'blind'}")
    commands = [_train(anchored, "--stage", "pretrain", *spoilt)]
    blind(anchored, out / "blind")
    commands.append(_train(anchored, "--stage", "spoil", *spoilt))
    shutil.copytree(anchored, control)
    commands.append(_train(anchored, *spoilt))
    without = (part for key in WITHOUT for part in ("--set", key))
    commands.append(_train(control, *spoilt, *without))
    curves = {run.name: curve(run) for run in (anchored, control)}
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    content = {
        "date": datetime.date.today().isoformat(),
        "commands": commands,
        "processor_seconds": round(spent.ru_utime + spent.ru_stime),
        "curves": curves,
    }
    RECORDED.write_text(json.dumps(content, indent=1) + "\n")
    (out / "both.html").write_text(page(curves))
    for name, found in outcome(curves).items():
        print(f"{name:10s} " + ", ".join(f"{key} {value:.1f} %" for key, value in found.items()))
    print(f"{content['processor_seconds']} s of processor time; {out / 'both.html'}, {RECORDED}")


def blind(run: Path, out: Path) -> None:
    """Write the network at the end of `pretrain`, with next to nothing of the image coming in.

    Not nothing at all: a file with weights of zeros is refused as one that was never filled.
    """
    network = network_of_run(run, stage="pretrain")
    names = ("patch_embed.proj.weight", "patch_embed.proj.bias")
    small = {name: held(BLIND * network.tensors[name].read()) for name in names}
    network = dataclasses.replace(network, tensors={**network.tensors, **small})
    export(network, out, format="dinojax", certify=False)


def _train(run: Path, *options: str) -> str:
    arguments = [
        "train",
        "--config",
        "tests/programs/gram_recovery.py",
        "--run",
        str(run),
        *options,
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "dinojax", *arguments], cwd=ROOT, env=env, check=True)
    return " ".join(["dinojax", *arguments]).replace(str(run.parent), "OUT")


def curve(run: Path) -> list[dict]:
    """Every evaluation of a run: stage, step over all stages, k-NN and the dense metric."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if COLUMNS["dense"] in row]
    before, steps = {}, 0
    for name, stage in STAGES.items():
        before[name] = steps
        steps += stage(get_config()).num_steps
    return [
        {
            "stage": row["stage"],
            "step": before[row["stage"]] + row["step"],
            **{name: round(row[column], 2) for name, column in COLUMNS.items()},
        }
        for row in rows
    ]


def outcome(curves: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """k-NN and dense metric after each stage; after the last one of both runs."""
    ends = {row["stage"]: row for row in curves["anchored"]}  # the last row of each stage
    last = {"anchored": ends["repair"], "control": curves["control"][-1]}
    rows = {"pretrain": ends["pretrain"], "spoil": ends["spoil"], **last}
    return {name: {key: row[key] for key in COLUMNS} for name, row in rows.items()}


def page(curves: dict[str, list[dict]]) -> str:
    """The two metrics of both runs as charts, in the style of report.html."""
    from dinojax.monitor import pages
    from dinojax.viz.charts import line_chart

    figures = []
    for key, title in (("dense", "Dense metric (mosaics)"), ("knn", "k-NN (cls)")):
        lines = {name: [(row["step"], row[key]) for row in rows] for name, rows in curves.items()}
        figures.append(pages.Figure(title, "Of the ema.", line_chart(lines, unit="% right")))
    note = "Patches are spoilt between steps 200 and 300; from then on one run has a Gram anchor."
    return pages.render("page", figures, title="Gram recovery", when=note)


if __name__ == "__main__":
    main()
