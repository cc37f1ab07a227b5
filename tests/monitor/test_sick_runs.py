"""The doctor on real runs, sick and healthy, recorded by tests/programs/make_sick_runs.py."""

import json
import shutil

import pytest

from dinojax.monitor import doctor
from dinojax.runs.files import read_run
from tests.programs.make_sick_runs import RECORDED, RUNS

# Run -> a finding, and words that must be in what is told: numbers seen, and the way out.
FOUND = {
    "collapsed": {
        "the features have collapsed": ("effective_rank 1.",),
        "one dino prototype takes all": ("losses.center_momentum (here 1)", "sinkhorn"),
    },
    "at_chance": {
        "the weights stand still": ("lr 1e-09", "schedules.lr.peak"),
        "the dino loss is at chance": ("chance 4.852", "dino_local 4.86", "weights stand still"),
        "the ibot loss is at chance": ("chance 2.426",),
    },
    "not_learning": {
        "the weights stand still": ("lr 0", "schedules.lr.peak"),
        "k-NN does not rise": ("23.0 % at step 0, 23.0 % at step 240",),
    },
    "teacher_frozen": {"the teacher is frozen": ("momentum is 1 ", "schedules.momentum.peak")},
    "data_starved": {"waiting for data": ("data.num_threads", "here 0, 1 and 1", "convert")},
    "exploding": {
        "the weights run away": ("patch_norm 5.42 -> 9.64e+05", "here 2, try a tenth"),
        "exploding gradients in backbone": ("at step 66", "optim.clip is None"),
        "worse than at the start": ("23.0 % at step 0, 15.6 %",),
    },
}
HEALTHY = ("healthy", "healthy_softmax", "stopped")


def grave(findings):
    return [finding for finding in findings if finding.severity != "note"]


def test_every_recorded_run_is_judged():
    assert set(FOUND) | set(HEALTHY) == set(RUNS) == {path.name for path in RECORDED.iterdir()}


@pytest.mark.parametrize("name", FOUND)
def test_the_illness_is_found_in_words_that_help(name, capsys):
    found = {finding.name: finding for finding in doctor.main(RECORDED / name)}
    said = capsys.readouterr().out
    for illness, words in FOUND[name].items():
        finding = found[illness]
        assert finding.name in said and "Nothing looks wrong" not in said
        for word in words:
            assert word in f"{finding.evidence} {finding.meaning} {finding.advice}", word
    if name == "data_starved":
        assert [finding.name for finding in grave(found.values())] == ["waiting for data"]
    else:
        assert found[next(iter(FOUND[name]))].severity == "problem"


@pytest.mark.parametrize("name", HEALTHY)
def test_health_is_no_illness(name, capsys):
    assert grave(doctor.main(RECORDED / name)) == []
    assert "Nothing looks wrong" in capsys.readouterr().out


def test_a_stopped_run_tells_where_and_why():
    notes = {finding.name: finding for finding in doctor.diagnose(read_run(RECORDED / "stopped"))}
    assert "SIGTERM" in notes["not finished"].evidence
    assert notes["not finished"].meaning == "The run: stopped."


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("num_rows", [0, 1, 3, 7, 10, 15])
def test_a_run_that_has_just_begun_is_not_called_sick_too_early(name, num_rows, tmp_path):
    """Every run cut after so many lines; from a few rows nobody can tell."""
    run = tmp_path / name
    shutil.copytree(RECORDED / name, run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:num_rows]
    (run / "metrics.jsonl").write_text("".join(lines))
    found = grave(doctor.diagnose(read_run(run)))
    if num_rows < doctor.FEWEST_ROWS or name in HEALTHY:
        assert found == []


@pytest.mark.parametrize("name", RUNS)
def test_a_run_without_metrics_has_nothing_to_combine(name, tmp_path, capsys):
    run = tmp_path / name
    shutil.copytree(RECORDED / name, run)
    (run / "metrics.jsonl").unlink()
    assert grave(doctor.main(run)) == []
    assert "Nothing to judge yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", RUNS)
def test_a_recording_tells_where_it_comes_from_and_is_small(name):
    provenance = json.loads((RECORDED / name / "provenance.json").read_text())
    assert {"what", "command", "date", "made_by", "exit_code"} <= set(provenance)
    assert all(override in provenance["command"] for override in RUNS[name].overrides)
    versions = json.loads((RECORDED / name / "env.json").read_text())["versions"]
    assert "jax" in versions
    files = [path for path in (RECORDED / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60_000
