"""When a stage has left chance, and when its k-NN has fallen: from rows alone."""

import logging

import numpy as np
import pytest

from dinojax import config
from dinojax.distributed.interrupt import Alarm
from dinojax.monitor import doctor
from dinojax.runs import early_stopping
from dinojax.runs.early_stopping import Watch
from dinojax.runs.files import RunFiles, read_run
from dinojax.runs.loss_ranges import loss_ranges
from dinojax.runs.rows import Rows
from dinojax.runs.scalars import MetricsLog, read_metrics
from tests.programs.make_sick_runs import RECORDED

VALUES = config.load("tiny").values() | {
    "until.left_chance": 0.1,
    "until.every": 5,
    "num_steps": 60,
    "knn.alarm": 0.1,
    "knn.features": "cls",
}
TERMS = ("dino_local", "dino_global", "ibot")


def row(step, *gone, values=VALUES):
    """Losses that have gone these shares of the way from chance to their floors."""
    ranges = loss_ranges(values)
    losses = {
        term: ranges[term].chance + way * (ranges[term].floor - ranges[term].chance)
        for term, way in zip(TERMS, gone * 3 if len(gone) == 1 else gone, strict=True)
    }
    return {"step": step, "total": 1.0, **losses}


def knn(step, accuracy):
    return {"step": step, "knn/cls": accuracy, "knn/both": 0.0}


def test_a_stage_ends_at_the_third_look_in_a_row_with_every_loss_off_chance():
    ways = [0.0, 0.2, 0.2, 0.05, 0.2, 0.2, 0.2, 0.2]
    rows = [row(5 * n, way) for n, way in enumerate(ways, start=1)]
    assert early_stopping.left_chance(VALUES, rows) == 35
    assert early_stopping.left_chance(VALUES, rows[:6]) is None
    assert early_stopping.left_chance(VALUES | {"until.left_chance": None}, rows) is None
    one = [row(5 * n, 0.2, 0.2, 0.09) for n in range(1, 12)]
    assert early_stopping.left_chance(VALUES, one) is None
    assert early_stopping.left_chance(VALUES | {"losses.ibot": 0.0}, one) == 15


def test_rows_between_two_looks_and_losses_that_are_not_finite_do_not_count():
    rows = [row(n, 0.2) for n in (5, 7, 9, 10, 12)]
    assert early_stopping.left_chance(VALUES, rows) is None
    assert early_stopping.left_chance(VALUES, [*rows, row(15, 0.2)]) == 15
    assert early_stopping.left_chance(VALUES, [*rows, row(15, 0.2) | {"ibot": None}]) is None


def test_a_watch_decides_as_the_file_does_also_after_a_stop(tmp_path):
    """Values as the device gives them, float32, and read back from metrics.jsonl."""
    rng = np.random.default_rng(0)
    ways = np.where(np.arange(60) < 12, 0.05, rng.uniform(0.08, 0.2, 60))
    rows = [row(n, float(way)) for n, way in enumerate(ways, start=1)]
    rows = [{k: np.float32(v) if k in TERMS else v for k, v in r.items()} for r in rows]
    whole, ends = watching(), []
    whole.begin([])
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for number, seen in enumerate(rows, start=1):
            if whole.is_due(number) and not whole.ended:
                whole.add_losses(number, seen)
            ends.append(whole.ended)
            log.write(number, {name: seen[name] for name in ("total", *TERMS)})
    saved = read_metrics(tmp_path / "metrics.jsonl")
    assert any(ends) and not ends[20]
    assert early_stopping.left_chance(VALUES, saved) == 1 + ends.index(True)
    for stop in range(0, 60, 7):
        resumed = watching()
        resumed.begin(saved[:stop])
        assert resumed.ended == (stop > 0 and any(ends[:stop]))


def watching(**values):
    changed = [f"{key}={value}" for key, value in (VALUES | values).items() if key in KEYS]
    loaded = config.load("tiny", changed)
    return Watch(loaded.until, loaded.knn, values=loaded.values())


KEYS = (
    "until.left_chance",
    "until.every",
    "num_steps",
    "knn.alarm",
    "knn.features",
    "knn.alarm_stops",
)
SHORT = {"schedules.lr.warmup": 10, "schedules.teacher_temperature.warmup": 10}
KEYS += tuple(SHORT)
VALUES |= SHORT


def test_a_stage_that_never_left_chance_says_so_and_what_to_do(caplog):
    rows = [row(5 * n, 0.02, 0.2, 0.04) for n in range(1, 13)]
    told = early_stopping.never_left(VALUES, rows)
    assert "after 60 steps" in told and "dino_local 2.0%, dino_global 20.0%, ibot 4.0%" in told
    assert "num_steps" in told and "until.left_chance" in told
    assert early_stopping.never_left(VALUES, [row(5 * n, 0.2) for n in range(1, 13)]) is None
    assert early_stopping.objection(VALUES | {"knn.alarm_stops": False}, rows) == told
    seen = watching()
    seen.begin(rows[:-1])
    with caplog.at_level(logging.WARNING):
        seen.add_losses(60, rows[-1])
    assert told in caplog.text and not seen.ended


def test_knn_is_compared_with_step_0_and_without_labels_the_dense_metric_is():
    good, bad = [knn(0, 50.0), knn(20, 45.0)], [knn(0, 50.0), knn(20, 44.9)]
    assert early_stopping.fallen(VALUES, good) is None
    told = early_stopping.fallen(VALUES, bad)
    assert "knn/cls fell to 44.9 % at step 20, from 50.0 % at step 0" in told
    assert "knn.alarm=0.1 allows 45.0 %" in told
    assert early_stopping.fallen(VALUES, [*bad, knn(40, 46.0)]) is None  # the last one counts
    assert early_stopping.fallen(VALUES | {"knn.alarm": None}, bad) is None
    assert early_stopping.fallen(VALUES, bad[1:]) is None  # nothing to compare with
    dense = [{"step": 0, "dense/mosaic": 30.0}, {"step": 20, "dense/mosaic": 20.0}]
    assert "dense/mosaic fell to 20.0 %" in early_stopping.fallen(VALUES, dense)


def test_an_alarm_warns_or_stops_the_run_and_what_comes_after_it(caplog):
    seen = watching()
    seen.begin([knn(0, 50.0)])
    with caplog.at_level(logging.WARNING):
        seen.add_evaluation(20, knn(20, 30.0))
    assert "ALARM: knn/cls fell to 30.0 %" in caplog.text
    stops = watching(**{"knn.alarm_stops": True})
    stops.begin([knn(0, 50.0)])
    with pytest.raises(Alarm, match=r"fell to 30.0 %.*knn.alarm_stops=False goes on"):
        stops.add_evaluation(20, knn(20, 30.0))
    with pytest.raises(Alarm, match="fell to 30.0 %"):  # the same command stops at once
        stops.begin([knn(0, 50.0), knn(20, 30.0)])
    rows = [knn(0, 50.0), *[row(5 * n, 0.2) for n in range(1, 5)], knn(20, 30.0)]
    assert early_stopping.objection(VALUES | {"knn.alarm_stops": False}, rows) is None
    assert "fell to 30.0 %" in early_stopping.objection(VALUES | {"knn.alarm_stops": True}, rows)


def judged(*, finished=None, **changes) -> dict[str, str]:
    run = read_run(RECORDED / "healthy")
    run = RunFiles(**{name: getattr(run, name) for name in run.__dataclass_fields__})
    values = {**run.values, **changes}
    changed = vars(run) | {"values": values, "finished": finished}
    found = doctor.diagnose(RunFiles(**changed))
    return {finding.name: finding.evidence for finding in found}


def test_the_doctor_tells_of_alarms_frozen_backbones_and_early_ends():
    """On a healthy recorded run, whose k-NN rises: as if other keys had been set."""
    assert not any("started from" in name for name in judged(**{"knn.alarm": 0.1}))
    last = read_run(RECORDED / "healthy").evaluations
    spoilt = [{**line, "knn/both": line["knn/both"] / 2} for line in last[1:]]
    run = read_run(RECORDED / "healthy")
    values = {**run.values, "knn.alarm": 0.1}
    found = doctor.diagnose(
        RunFiles(**(vars(run) | {"values": values, "evaluations": Rows([last[0], *spoilt])}))
    )
    assert "below the network it started from" in {finding.name for finding in found}
    assert "the losses never left chance" in judged(**{"until.left_chance": 0.99})
    early = judged(**{"until.left_chance": 0.005, "num_steps": 500}, finished=18)
    assert "of at most 500 the losses had left chance" in early["ended before num_steps"]
    still = read_run(RECORDED / "not_learning")
    frozen = {**still.values, "optim.freeze_backbone": True}
    names = {f.name for f in doctor.diagnose(RunFiles(**(vars(still) | {"values": frozen})))}
    assert "the weights stand still" not in names and "k-NN does not rise" not in names
