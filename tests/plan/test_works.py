"""Plans of a curation: compiled programs against closed forms, and what is told and refused."""

import json

import pytest

from dinojax.cli import main
from dinojax.cli import plan as cli_plan
from dinojax.curate import assign_program
from dinojax.plan import curation, targets, works, works_report

SMALL = {"images": 20_000, "width": 384}
LEVELS = ["embed.features=cls", "kmeans.clusters=[600,40]", "kmeans.sizes=[3,1]"]


@pytest.fixture(scope="module")
def small():
    overrides = [*LEVELS, "kmeans.splits=[10,0]", "embed.batch_size=8"]
    return curation.plan(target="cpu:8", overrides=overrides, size=32, **SMALL)


def compiled(found):
    return [row for row in found["rows"] if "flops" in row]


def test_compiled_programs_of_a_curation_are_those_of_the_closed_form(small):
    steps = {row["step"] for row in compiled(small)}
    assert steps == {"embed", "dedup", "k-means 1", "k-means 2"}
    for row in compiled(small):
        form, what = row["form"], row["what"]
        assert row["flops"] == pytest.approx(form["flops"], rel=0.01), what
        assert row["sent"] == pytest.approx(form["sent"], rel=0.01), what
        assert row["memory"]["peak"] == pytest.approx(form["peak"], rel=0.2), what


def test_programs_run_as_often_as_a_curation_runs_them(small):
    runs = {row["what"]: row["runs"] for row in small["rows"]}
    assert runs["split, k-means++ of 10"] == 10
    assert runs["split, Lloyd: 20,000 rows, 10 centres"] == 51  # iterations, and once more
    assert runs["parts, Lloyd: 2,000 rows, 60 centres"] == 10 * 51
    assert runs["resampled, Lloyd: 1,800 rows, 600 centres"] == 10 * 51  # rounds
    assert runs["assign: 20,000 rows, 600 centres"] == 11
    gathered = next(row for row in small["rows"] if "gathered" in row["what"])
    assert gathered["read"] == 10 * 20_000 * 384 * 2, "every part reads the pool"


def test_programs_without_sums_hold_no_rows_of_nothing():
    """XLA writes each of them into a program's text: 5 billion of a billion images' plan."""
    sums, counts = assign_program.state_shapes(256, 20_000_000, None)
    assert sums[0] * sums[1] == 0 and counts == (256, 20_000_000)
    assert assign_program.state_shapes(8, 5, 3) == ((8, 5, 3), (8, 5))


def test_what_does_not_fit_is_said_and_how_it_may(capsys, monkeypatch):
    row = {"step": "k-means 1", "what": "Lloyd", "runs": 2, "devices": 4, "read": 4e9, "sent": 0.0}
    row |= {"copied": 0.0, "host": 0.0, "flops": 8e12, "out_of_memory": "230G exceeds 95G"}
    row |= {"form": {"flops": 8e12, "peak": 2.0**38, "sent": 0.0, "traffic": 0.0}, "fits": False}
    row |= {"seconds": 2.0, "bound": "reading"}
    found = {"rows": [row], "levels": [10_000], "splits": [0], "usable": 2.0**36, "note": "n"}
    found |= {"images": 100_000, "width": 8, "model": "m", "target": "cpu:4", "devices": 4}
    asked = []
    answer = found | {"hosts": 1}

    def process(module, target, given, timeout, doing):
        asked.append(given)
        return answer, ""

    monkeypatch.setattr(cli_plan, "process", process)
    argv = ["plan", "curate", "--images", "1e5", "--width", "8", "--levels", "10000"]
    assert main.main([*argv, "--target", "cpu:4"]) == 0
    told, line = capsys.readouterr()
    assert line == "compiling embed, dedup and k-means of 1 levels over 100,000 images for cpu:4\n"
    assert "does not fit: Lloyd" in told and "230G exceeds 95G / 256" in told
    assert "--set kmeans.splits=[100]" in told and "device hours" not in told
    assert asked[0]["images"] == 100_000
    assert main.main([*argv, "--target", "cpu:4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["levels"] == [10_000]


@pytest.mark.parametrize(
    ("width", "overrides", "message"),
    [
        (100, LEVELS, "no network is known by that width"),
        (384, ["embed.features=both", *LEVELS[1:]], "have 768; give --width 768"),
        (384, ["kmeans.clusters=[30000]"], "30,000 clusters of 20,000 rows"),
        (384, ["kmeans.cluster=[3]"], "did you mean kmeans.clusters"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(width, overrides, message):
    with pytest.raises(ValueError, match=message):
        curation.plan(target="cpu:8", images=20_000, width=width, overrides=overrides)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--levels": "500,10000"}, "level 2 has 10,000 clusters of the 500 of level 1"),
        ({"--levels": "200000"}, "level 1 has 200,000 clusters of the 100,000 images"),
        ({"--levels": "500,,3"}, "'': a whole number from 1 on"),
        ({"--images": "1.5"}, "'1.5': a whole number from 1 on"),
        ({"--images": "inf"}, "'inf': a whole number from 1 on"),
        ({"--width": "0"}, "--width 0: give a number from 1 on"),
        ({"--target": "v9:8"}, "'v9' is not one of v5e"),
        ({"--target": "v5p:8x8"}, "chips along each side of the torus"),
        ({"--set": "kmeans.clusters=[3]"}, "give --levels alone"),
    ],
)
def test_wrong_values_are_refused_without_a_process(changed, message, capsys, monkeypatch):
    monkeypatch.setattr(cli_plan, "process", lambda *args, **options: pytest.fail("compiled"))
    given = {"--images": "1e5", "--width": "384", "--levels": "500", "--target": "cpu:2"}
    argv = [text for pair in (given | changed).items() for text in pair]
    try:
        code = main.main(["plan", "curate", *argv])
    except SystemExit as stop:  # of argparse
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_plan_without_anything_names_what_there_is(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["plan"])
    assert stop.value.code == 2
    assert "--words RECIPE, --config RECIPE or a command" in capsys.readouterr().err


def test_products_of_float32_cost_what_the_device_has_for_them():
    """H100: 67 TFLOP/s of float32 and 495 of TF32 (NVIDIA); six passes on a TPU."""
    h100, v5p = targets.parse("h100:1x8"), targets.parse("v5p:8x8x4")
    assert works.rate(h100, True) == pytest.approx(67e12, rel=0.01)
    assert works.rate(h100, False) == pytest.approx(494.5e12)
    assert works.rate(v5p, False) == 6 * works.rate(v5p, True) == 459e12
    assert works_report.duration(7200) == "2 h" and works_report.size(2.5e12) == "2.5 TB"
