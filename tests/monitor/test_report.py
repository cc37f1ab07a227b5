"""The report: one file that needs nothing else, holds what the run holds, and survives anything."""

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from dinojax.cli.main import main
from dinojax.data.quarantine import KNN_FILE
from dinojax.monitor import report
from dinojax.monitor.energy import summed
from dinojax.runs.files import read_run
from dinojax.runs.scalars import MetricsLog
from dinojax.runs.tensorboard import EventLog
from dinojax.viz import charts
from dinojax.viz.pictures import crop_sheet
from tests.monitor.test_doctor import healthy, run_dir


@pytest.fixture
def run(tmp_path):
    """A run with everything that a report can show."""
    directory = run_dir(tmp_path, healthy())
    crops = np.random.default_rng(0).integers(0, 255, (2, 2, 8, 8, 1), dtype=np.uint8)
    for name in ("crops", "patches-00000000", "patches-00000500"):
        crop_sheet(directory / "pictures" / f"{name}.png", crops)
    rows = [{"id": 3, "reason": "<b>a.jpg</b> is truncated", "substitute": 4}]
    (directory / "bad_images.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (directory / "resumes.jsonl").write_text('{"event": "start", "step": 40}\n{"event": "st')
    session = {"device_hours": 2.0, "energy_kwh": 1.5, "method": "a meter", "notes": ["a note"]}
    (directory / "energy.json").write_text(json.dumps(summed([session])))
    (directory / "env.json").write_text('{"versions": {"jax": "1.2.3"}}')
    return directory


class Reader(HTMLParser):
    """Text, tags left open, and whatever a page would fetch."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.text, self.fetched = [], "", []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        links = [value for name, value in attrs if name in ("src", "href")]
        self.fetched += [link for link in links if not link.startswith("data:image/png;base64,")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        self.text += data


def read(run):
    reader = Reader()
    reader.feed(report.write(run).read_text())
    assert not reader.open
    return reader


def test_the_page_is_well_formed_and_fetches_nothing(run):
    assert read(run).fetched == []


def test_the_page_shows_what_the_run_holds(run):
    text = read(run).text
    for said in (
        *("Nothing looks wrong", "chance 6.24", "floor 1.39", "44.0 %", "Step 500", "Step 0"),
        *(
            "is truncated",
            "1.5 kWh, a meter",
            "0.000635 t",
            "a note",
            "jax 1.2.3",
            "dino_head.prototypes",
            "start",
            "1,200 of",
        ),
    ):
        assert said in text, said


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


def test_a_chart_puts_values_where_they_belong():
    svg = charts.line_chart({"a": [(0, 0.0), (10, 1.0)]}, marks={"floor": 0.5}).split("<p class")[0]
    root = ElementTree.fromstring(svg)
    points = root.find("polyline").get("points").split()
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points)
    assert x0 < x1 and y0 > y1  # up is more
    marks = [line for line in root.iter("line") if line.get("class") == "mark"]
    assert abs(float(marks[0].get("y1")) - (y0 + y1) / 2) < 0.2


def test_a_chart_shows_where_stages_start():
    svg = charts.line_chart({"a": [(0, 0.0), (10, 1.0)]}, starts={"b": 0, "c": 5, "d": 11})
    middle = (charts._LEFT + charts._WIDTH - charts._RIGHT) / 2
    assert f'x1="{middle}" x2="{middle}"' in svg and ">c</text>" in svg
    assert ">b</text>" in svg and ">d</text>" not in svg  # not yet reached


def test_a_chart_without_points_is_nothing_and_one_of_one_point_is_a_dot():
    assert charts.line_chart({"a": []}) == "" == charts.line_chart({"a": [(1, -1.0)]}, log=True)
    assert "<circle" in charts.line_chart({"a": [(5, 2.0)]})


def test_numbers_are_short():
    numbers = {0.0: "0", 2e-5: "2e-5", -3.16e-4: "-3.2e-4", 0.0312: "0.0312", 1250: "1250"}
    for value, text in (numbers | {12_500: "12.5k", 3.2e6: "3.2M"}).items():
        assert charts.short(value) == text


def test_energy_that_nobody_can_tell_is_said_to_be_unknown(run):
    notes = ["no rated power is known of cpu"]
    session = {"device_hours": 2.0, "energy_kwh": None, "method": "unknown", "notes": notes}
    (run / "energy.json").write_text(json.dumps(summed([session, session])))
    text = read(run).text
    assert "2 sessions" in text and text.count("not known") == 2 and text.count(notes[0]) == 1


def test_thinning_keeps_spikes_and_the_end():
    line = [(n, 0.0) for n in range(5000)]
    line[1234] = (1234, 9.0)
    thin = charts.thinned(line)
    assert (1234, 9.0) in thin and thin[-1] == line[-1] and len(thin) <= 400
    assert thin == sorted(thin)


def test_ticks_are_round_and_inside():
    assert charts.ticks(0.03, 0.98) == [0.5]
    assert charts.ticks(0, 1200) == [0, 500, 1000]


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
