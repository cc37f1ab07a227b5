"""metrics.jsonl, the progress line, the waiting share and the log file."""

import datetime
import io
import json
import logging

import numpy as np
import pytest

from dinojax.runs.scalars import DataWait, MetricsLog, Progress, RunLog, duration, read_metrics

UTC = datetime.timedelta(0)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_rows_are_json_with_step_first_and_are_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(3, {"loss": np.float32(0.5), "rate": 1})
        text, when = path.read_text().split(', "time": ')
        assert text == '{"step": 3, "loss": 0.5, "rate": 1.0'
        assert datetime.datetime.fromisoformat(json.loads(when[:-2])).utcoffset() == UTC


def test_resume_drops_the_rows_the_run_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in (10, 20, 30):
            log.write(step, {"loss": float(step)})
    with MetricsLog(path, resume_step=20) as log:
        log.write(30, {"loss": -1.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, -1.0),
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_fresh_log_starts_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    MetricsLog(path).close()
    assert path.read_text() == ""


def test_a_line_cut_by_a_kill_is_left_out_but_a_broken_line_inside_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2 is not JSON"):
        MetricsLog(path, resume_step=5)


def test_what_is_not_finite_is_null_and_survives_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(1, {"loss": float("nan"), "norm": float("inf")})
    MetricsLog(path, resume_step=1).close()
    row = json.loads(path.read_text())
    assert datetime.datetime.fromisoformat(row.pop("time")).utcoffset() == UTC
    assert row == {"step": 1, "loss": None, "norm": None}


def test_step_is_not_a_metric(tmp_path):
    with MetricsLog(tmp_path / "m") as log, pytest.raises(ValueError, match="first argument"):
        log.write(1, {"step": 2})


def test_waiting_share_counts_only_the_time_inside_next():
    clock = Clock()

    def batches():
        for batch in range(3):
            clock.now += 1.0  # the loader takes a second
            yield batch

    wait = DataWait(batches(), clock=clock)
    assert next(wait) == 0 and wait.seconds == pytest.approx(1.0)
    clock.now += 3.0  # the step takes three
    assert list(wait) == [1, 2] and wait.seconds == 0.0  # found at once that there are no more


def test_progress_reports_speed_and_time_left_of_recent_steps():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1000, batch_size=64, stream=stream, seconds=10.0, clock=clock)
    progress.update(1, loss={"": 6.0}, waiting=0.0)
    clock.now += 1000.0  # compilation: out of the window of 50 steps below
    for step in range(2, 101):
        progress.update(step, loss={"": 5.5}, waiting=0.125)
        clock.now += 0.5
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/1000  loss 6.0000  waiting for data 0%"
    assert lines[-1].startswith("step 82/1000  loss 5.5000  128 images/s  7:39 left")
    assert len(lines) == 6  # the first step, then one every ten seconds


def test_progress_rewrites_one_line_on_a_terminal_and_ends_it():
    clock, stream = Clock(), Terminal()
    progress = Progress(3, batch_size=1, stream=stream, clock=clock)
    for step in (1, 2, 3):
        progress.update(step, loss={"": 1.0}, waiting=0.0)
        clock.now += 1.0
    text = stream.getvalue()
    assert text.count("\r") == 3 and text.count("\n") == 1 and text.endswith("\n")


def test_durations_read_like_a_clock():
    assert [duration(s) for s in (5, 65.4, 3723)] == ["0:05", "1:05", "1:02:03"]


def test_run_log_writes_to_file_and_terminal_until_it_closes(tmp_path):
    stream = io.StringIO()
    with RunLog(tmp_path / "log.txt", stream=stream):
        logging.getLogger("dinojax.train.loop").info("resuming from step %d", 20)
    logging.getLogger("dinojax.train.loop").info("after the run")
    assert stream.getvalue() == "resuming from step 20\n"
    assert "INFO dinojax.train.loop: resuming from step 20" in (tmp_path / "log.txt").read_text()
    assert "after" not in (tmp_path / "log.txt").read_text()


def test_every_progress_line_is_in_the_log_file_without_control_characters(tmp_path):
    """Also those that came too soon after another to be shown."""
    stream, clock = Terminal(), Clock()
    with RunLog(tmp_path / "log.txt", stream=stream):
        progress = Progress(100, batch_size=4, stream=stream, clock=clock)
        for step in (1, 2, 3):
            progress.update(step, loss={"": 6.5}, waiting=0.25)
            clock.now += 0.1
    told = (tmp_path / "log.txt").read_text()
    lines = [line.split(": ", 1)[1] for line in told.splitlines()]
    assert [line.split("  ")[0] for line in lines] == ["step 1/100", "step 2/100", "step 3/100"]
    assert "loss 6.5000  40 images/s" in lines[1] and lines[1].endswith("waiting for data 25%")
    assert told.replace("\n", "").isprintable()
    assert stream.getvalue().count("step ") == 1  # half a second has not passed
