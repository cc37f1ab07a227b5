"""The report: one file that needs nothing else, holds what the run holds, and survives anything."""

import dataclasses
import json
import os
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from plotly import graph_objects

from dinojax.checkpoint.manager import COMMITTED
from dinojax.cli.main import main
from dinojax.config.saved import FAMILY
from dinojax.data.quarantine import KNN_FILE
from dinojax.monitor import curves, headline, report
from dinojax.monitor.energy import summed
from dinojax.runs import lock
from dinojax.runs.files import read_run
from dinojax.runs.scalars import MetricsLog
from dinojax.runs.tensorboard import EventLog
from dinojax.viz import charts
from dinojax.viz.pictures import crop_sheet
from tests.support.run_files import healthy, run_dir


@pytest.fixture
def run(tmp_path):
    """A run with everything that a report can show."""
    directory = run_dir(tmp_path, healthy())
    crops = np.random.default_rng(0).integers(0, 255, (2, 2, 8, 8, 1), dtype=np.uint8)
    names = ("crops", "patches-00000000", "patches-00000500", "knn-00000000-a", "knn-00000500-a")
    for name in names:
        crop_sheet(directory / "pictures" / f"{name}.png", crops)
    rows = [{"id": 3, "reason": "<b>a.jpg</b> is truncated", "substitute": 4}]
    (directory / "bad_images.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (directory / "resumes.jsonl").write_text('{"event": "start", "step": 40}\n{"event": "st')
    session = {"device_hours": 2.0, "energy_kwh": 1.5, "method": "a meter", "notes": ["a note"]}
    (directory / "energy.json").write_text(json.dumps(summed([session])))
    (directory / "env.json").write_text('{"versions": {"jax": "1.2.3"}}')
    return directory


class Reader(HTMLParser):
    """Text, charts by title, tags left open, and whatever a page would fetch."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.text, self.fetched, self.charts = [], "", [], {}
        self._kind, self._title = "", ""

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        links = [attrs[name] for name in ("src", "href") if name in attrs]
        self.fetched += [link for link in links if not link.startswith("data:image/png;base64,")]
        self._kind = attrs.get("type", tag) if tag == "script" else ""
        self._title = attrs.get("data-name", self._title)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self._kind = ""

    def handle_data(self, data):
        if self._kind == "application/json":
            self.charts[self._title] = json.loads(data)
        elif self._kind != "script":
            self.text += data


def read(run):
    reader = Reader()
    reader.feed(report.write(run).read_text())
    assert not reader.open
    return reader


def test_the_page_is_well_formed_and_fetches_nothing(run):
    assert read(run).fetched == []


def test_the_page_shows_what_the_run_holds(run):
    page = read(run)
    for said in (
        *("Nothing looks wrong", "44.0 %", "Step 500", "Step 0", "is truncated"),
        *("1.5 kWh, a meter", "0.000635 t", "a note", "jax 1.2.3", "dino_head.prototypes"),
        *("start", "1,200 of 1,200", "76,800", "none set", "finished"),
    ):
        assert said in page.text, said
    assert page.text.count("k-NN, a, step 500") == 1 and "k-NN, a, step 0" not in page.text
    marks = page.charts["DINO loss"]["layout"]["annotations"]
    assert [mark["text"] for mark in marks] == ["chance 6.24", "floor 1.39 ↓"]
    for chart in page.charts.values():  # names and values of plotly's own description
        graph_objects.Figure(chart)
        assert chart["layout"]["yaxis"]["title"]["text"] and chart["data"][0]["name"]


def test_the_headline_has_first_best_and_last(run):
    rows = headline.evaluations(read_run(run))
    told = dict(first="20.0 % at step 0", best="44.0 % at step 1,200", last="44.0 % at step 1,200")
    assert rows == [{"column": "knn/both", **told}]
    row = headline.losses(read_run(run))[1]
    assert row == dict(loss="dino_local", first="6.2", last="5.2", chance="6.24", floor="1.39")


def events(run, *rows):
    (run / "resumes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


START = {"event": "start", "step": 0, "time": "2026-01-01T00:00:00+00:00"}
STOP = {"event": "stop", "reason": "Interrupted: SIGTERM", "time": "2026-01-01T01:00:00+00:00"}


def state_of(run):
    return headline.state(read_run(run))


@pytest.fixture
def half(tmp_path):
    """A run that is half done."""
    return run_dir(tmp_path, healthy(), "num_steps=2400")


def test_the_state_is_true_before_during_and_after_a_run(half):
    run = half
    events(run)
    assert state_of(run).value == "not begun"
    with lock.held(run):
        events(run, START)
        assert state_of(run).value == "under way" and str(os.getpid()) in state_of(run).detail
        events(run, START, STOP)
        assert state_of(run).value == "stopped" and "SIGTERM" in state_of(run).detail
    assert state_of(run).value == "stopped"
    (run / "checkpoints" / "pretrain" / "2400").mkdir()
    (run / "checkpoints" / "pretrain" / "2400" / COMMITTED).touch()
    assert state_of(run).value == "finished"


def test_a_killed_process_is_not_at_work(half):
    """It leaves its name in the file, but not its lock."""
    events(half, START, STOP, START)
    (half / lock.FILE).write_text('{"host": "h", "pid": 1, "since": "then"}\n')
    assert lock.holder(half) is None and state_of(half).value == "ended without a word"


def test_somebody_else_at_work_is_said_before_the_last_stop(half):
    events(half, START, STOP)
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(half / lock.FILE)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        assert state_of(half).value == "under way" and "process 1 on h" in state_of(half).detail
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
file.write('{"host": "h", "pid": 1, "since": "then"}')
file.flush()
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_time_is_that_of_all_sessions(run):
    """One that was killed counts up to its last row."""
    events(run, START, STOP, {**START, "time": "2026-01-01T02:00:00+00:00"})
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[70] = json.dumps({**json.loads(lines[70]), "time": "2026-01-01T02:30:00+00:00"})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert headline.seconds(read_run(run)) == (5400.0, 2)


def test_a_checkpoint_under_way_is_not_one_that_stands(run):
    (run / "checkpoints" / "pretrain" / "1200" / COMMITTED).unlink()
    files = read_run(run)
    assert files.checkpoints == [] and files.unwritten == [1200]
    assert "that of step 1200 is not whole" in read(run).text


def test_curves_of_a_second_stage_end_where_its_rows_do(run):
    whole = dataclasses.replace(read_run(run), starts={"pretrain": 0, "gram": 600})
    values = whole.values | {"start.steps_before": 600}
    chart = next(curves.figures(dataclasses.replace(whole, values=values))).chart
    assert chart["layout"]["xaxis"]["range"][1] == pytest.approx(1.02 * 1200)


def test_an_alarm_that_stands_is_marked(tmp_path):
    run = run_dir(tmp_path, healthy(), "knn.alarm=0.1", knn=(40.0, 30.0))
    tile = headline.alarm(read_run(run))
    assert (tile.value, tile.severity) == ("RAISED", "problem") and "30.0 %" in tile.detail


def test_a_family_has_a_page_with_every_student(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run_dir(tmp_path / name, healthy())
    (tmp_path / FAMILY).write_text("{}")
    report.refresh(tmp_path / "a")
    page = Reader()
    page.feed((tmp_path / "report.html").read_text())
    assert page.fetched == ["a/report.html"]  # b has none yet
    assert page.text.count("1,200 of 1,200") == 2
    assert [line["name"] for line in page.charts["Loss of each student"]["data"]] == ["a 9", "b 9"]


def test_images_left_out_of_knn_stand_apart_from_those_replaced(run):
    row = {"source": "bank", "id": 7, "reason": "b.jpg is empty"}
    (run / KNN_FILE).write_text(json.dumps(row) + "\n")
    files = read_run(run)
    assert files.skipped_images == [row] and [row["id"] for row in files.bad_images] == [3]
    assert "b.jpg is empty" in read(run).text


def test_text_of_others_is_escaped(run):
    page = report.write(run).read_text()
    assert "<b>a.jpg" not in page and "&lt;b&gt;a.jpg" in page


def test_a_run_that_has_only_a_config_has_a_report(run):
    for name in ("metrics.jsonl", "bad_images.jsonl", "resumes.jsonl", "energy.json", "env.json"):
        (run / name).unlink()
    assert "no checkpoint" not in read(run).text
    assert "step" in read(run).text


def test_rows_that_are_not_finite_leave_gaps(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1201, "total": None, "koleo": None, "bad_steps": 1}) + "\n")
    assert "not finite" in read(run).text


def test_a_report_that_fails_does_not_end_training(run, caplog):
    (run / "env.json").write_text("{")
    report.refresh(run)
    assert "dinojax report" in caplog.text
    assert main(["report", str(run)]) == 2


def test_a_chart_shows_its_points_units_and_last_values():
    chart = charts.line_chart({"a": [(0, 0.0), (10, 1.0)]}, unit="nats", last_step=20)
    (line,) = chart["data"]
    assert (line["x"], line["y"], line["name"]) == ([0, 10], [0.0, 1.0], "a 1")
    assert chart["layout"]["yaxis"]["title"]["text"] == "nats"
    assert chart["layout"]["xaxis"]["range"] == [-0.4, 20.4]


def test_a_chart_shows_where_stages_start():
    chart = charts.line_chart({"a": [(0, 0.0), (10, 1.0)]}, starts={"b": 0, "c": 5, "d": 11})
    assert [line["x0"] for line in chart["layout"]["shapes"]] == [0, 5]  # d is not yet reached


def test_a_chart_without_points_is_none_and_one_of_one_point_has_a_marker():
    assert charts.line_chart({"a": []}) is None is charts.line_chart({"a": [(1, -1.0)]}, log=True)
    assert charts.line_chart({"a": [(5, 2.0)]})["data"][0]["mode"] == "lines+markers"


FALL = [(n, 10.0 if n < 5 else 6.0 - 0.01 * n) for n in range(100)]


def test_first_steps_do_not_squeeze_the_axis():
    low, high = charts.value_range([FALL])
    assert 4.9 < low < 5.01 and 5.9 < high < 6.0
    assert charts.value_range([FALL[:15]])[1] > 10  # too few to tell


def test_a_fall_that_goes_on_is_seen_from_its_beginning():
    line = [(n, 10.0 - 0.05 * n) for n in range(100)]
    low, high = charts.value_range([line])
    assert low < 5.05 and high > 10.0


def test_marks_far_away_do_not_squeeze_the_axis():
    low, high = charts.value_range([FALL], marks=[6.2, 1.4])
    assert 4.8 < low < 5.0 and 6.2 < high < 6.4
    texts = charts.line_chart({"a": FALL}, marks={"near": 6.2, "far": 1.4})["layout"]["annotations"]
    assert [text["text"] for text in texts] == ["near 6.2", "far 1.4 ↓"]


def test_a_logarithmic_axis_counts_in_powers_of_ten():
    assert charts.value_range([[(0, 1e-3), (1, 1e-1)]], log=True) == pytest.approx((-3.12, -0.88))


def test_numbers_are_short():
    numbers = {0.0: "0", 2e-5: "2e-5", -3.16e-4: "-3.2e-4", 0.0312: "0.0312", 1250: "1250"}
    for value, text in (numbers | {12_500: "12.5k", 3.2e6: "3.2M"}).items():
        assert charts.short(value) == text


def test_energy_that_nobody_can_tell_is_said_to_be_unknown(run):
    notes = ["no rated power is known of cpu"]
    session = {"device_hours": 2.0, "energy_kwh": None, "method": "unknown", "notes": notes}
    (run / "energy.json").write_text(json.dumps(summed([session, session])))
    text = read(run).text
    assert "2 sessions" in text and text.count("not known") == 3 and text.count(notes[0]) == 1


def test_thinning_keeps_spikes_and_the_end():
    line = [(n, 0.0) for n in range(5000)]
    line[1234] = (1234, 9.0)
    thin = charts.thinned(line)
    assert (1234, 9.0) in thin and thin[-1] == line[-1] and len(thin) <= 400
    assert thin == sorted(thin)


def test_tensorboard_gets_every_row(tmp_path):
    pytest.importorskip("tensorboardX")
    events = EventLog(tmp_path / "tensorboard")
    with MetricsLog(tmp_path / "metrics.jsonl") as metrics:
        metrics.mirror = events
        metrics.write(3, {"loss": 1.5, "bad": float("nan")})
    events.close()
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in content and b"bad" not in content


def test_a_missing_tensorboard_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"dinojax\[tensorboard\]"):
        EventLog(tmp_path)
