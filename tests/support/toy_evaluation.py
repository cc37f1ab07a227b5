"""Run in a copy of the tree to which docs/evaluation.md's example was added (test_suite.py)."""

import sys
from pathlib import Path

from dinojax.cli import main
from dinojax.data import tiles
from tests.support import small

WARMUPS = ("schedules.lr.warmup=1", "schedules.teacher_temperature.warmup=1")
SET = [*small.STAGED, *WARMUPS, "num_steps=2", "likeness.every=2", "likeness.batch_size=16"]


def commands(run: str, family: str):
    settings = [word for setting in SET for word in ("--set", setting)]
    yield ["train", "--config", "tiny", "--run", run, *settings]
    yield ["eval", "likeness", "--run", run]
    yield ["eval", "list"]
    yield ["report", run]
    yield ["config", "explain", "likeness.batch_size"]
    yield ["train", "--config", "tiny", "--run", family, "--set", "likeness.every=0"]


if __name__ == "__main__":
    tiles.SPLITS = dict.fromkeys(tiles.SPLITS, 24)
    assert Path(main.__file__).is_relative_to(Path.cwd()), "the copy, not the tree"
    for command in commands(*sys.argv[1:]):
        print(f"> {command[:3]} -> {main.main(command)}", flush=True)
