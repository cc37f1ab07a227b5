"""Runs of several processes: the same results as one, stopped together, continued on fewer."""

import json

import numpy as np
import pytest

from dinojax.interrupt import SAVED
from dinojax.metrics import read_metrics
from tests import several, small
from tests.stored_run import TIMES

NUM_STEPS, EVERY = 6, 3
KEPT = [s for s in small.STAGED if not s.startswith(("mesh.", "batch_size", "knn", "group"))]
SETTINGS = [
    *KEPT,
    *(f"num_steps={NUM_STEPS}", "checkpoint.every=2", "batch_size=16", "group_size=2"),
    *(f"knn.every={EVERY}", "schedules.lr.warmup=1", "schedules.teacher_temperature.warmup=1"),
    *("expect.platform=cpu", "optim.eps=1e-3"),
]


def rows(run):
    found = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def assert_same_rows(got, want):
    assert [set(row) for row in got] == [set(row) for row in want]
    for ours, theirs in zip(got, want, strict=True):
        for name, value in theirs.items():
            # The step's own tolerance (tests/test_step.py), a few steps on.
            np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_stop_together_and_one_continues_as_if_there_had_been_one_all_along(tmp_path):
    """Two hosts of four devices; SIGTERM to the second; then one host of four devices."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    (done,) = several.train(whole, SETTINGS, count=1, devices=1)
    assert done.code == 0, done.told
    both = several.train(
        run, [*SETTINGS, "mesh.strategy=fsdp"], count=2, devices=4, ACT="1 3 SIGTERM"
    )
    assert [ended.code for ended in both] == [SAVED, SAVED], "\n".join(e.told for e in both)
    assert "process 1 (" in both[0].told and "devices 4 to 7, 4 x cpu" in both[0].told
    notes = [json.loads(line) for line in (run / "resumes.jsonl").read_text().splitlines()]
    assert [note["event"] for note in notes] == ["start", "stop"]
    assert "stopped by SIGTERM after step" in notes[-1]["reason"]
    stopped = max(int(path.name) for path in (run / "checkpoints/pretrain").iterdir())
    assert 3 <= stopped < NUM_STEPS
    assert f"stopped by SIGTERM after step {stopped}; saved" in both[1].told
    seen = several.order(run, count=2)

    (ended,) = several.train(run, [*SETTINGS, "mesh.strategy=hsdp"], count=1, devices=4)
    assert ended.code == 0 and f"continuing from step {stopped}" in ended.told, ended.told
    later = several.order(run, count=1)
    wanted = several.order(whole, count=1)
    assert {step: ids for step, ids in seen.items() if step <= stopped} == {
        step: ids for step, ids in wanted.items() if step <= stopped
    }
    assert all(later[step] == wanted[step] for step in range(stopped + 1, NUM_STEPS + 1))
    assert_same_rows(rows(run), rows(whole))
