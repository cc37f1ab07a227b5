"""The doctor on runs made for the purpose: each illness is found, and health is not an illness."""

import json
import math

import numpy as np
import pytest

from dinojax import config as configs
from dinojax.cli.main import main
from dinojax.monitor import doctor
from dinojax.runs.files import read_run
from dinojax.runs.loss_ranges import loss_ranges
from tests.support.run_files import NUM_ROWS, healthy, run_dir


def names(tmp_path, columns, *overrides, **more):
    """Names of problems and warnings."""
    found = doctor.diagnose(read_run(run_dir(tmp_path, columns, *overrides, **more)))
    return [finding.name for finding in found if finding.severity != "note"]


def test_a_healthy_run_has_no_findings(tmp_path, capsys):
    assert names(tmp_path, healthy()) == []
    doctor.main(tmp_path)
    assert "Nothing looks wrong" in capsys.readouterr().out


LATE = np.linspace(0, 1, NUM_ROWS) > 0.5
CHANCE = math.log(512)
ILLNESSES = {
    "the features have collapsed": {"effective_rank": 1.1, "cls_spread": 0.001},
    "the features lose directions": {"effective_rank": 4.0},
    "the dino loss is at chance": {"dino_local": CHANCE, "dino_global": CHANCE},
    "the teacher is frozen": {"ema_change": 0.0, "momentum": 1.0},
    "the weights stand still": {"ema_change": 0.0},
    "the teacher is almost uniform": {"teacher_entropy/dino": 0.995},
    "waiting for data": {"data_wait": 0.4},
    "near-duplicate images": {"duplicates": 0.1},
    "patches with very long tokens": {"patch_norm_max": 300.0},
    "patch features degrade": {"cls_patch_cosine": 0.8, "locality": 0.05},
    "dino_global below its floor": {"dino_global": 0.2},
}


@pytest.mark.parametrize("name", ILLNESSES)
def test_an_illness_is_found_and_nothing_else(tmp_path, name):
    columns = healthy()
    late = LATE if "ema_change" not in ILLNESSES[name] else LATE | True
    for column, value in ILLNESSES[name].items():
        columns[column] = np.where(late, value, columns[column])
    assert names(tmp_path, columns) == [name]


def test_exploding_gradients_are_found_in_their_part(tmp_path):
    columns = healthy()
    columns["grad_norm/backbone"] = np.where(np.arange(NUM_ROWS) > 65, 1732.0, 0.5)
    assert names(tmp_path, columns) == ["exploding gradients in backbone"]


@pytest.mark.parametrize("entropy,words", [(0.996, "no signal"), (0.4, "not learning")])
def test_at_chance_the_teachers_entropy_tells_the_cause(tmp_path, entropy, words):
    columns = healthy()
    columns["dino_local"] = np.full(NUM_ROWS, CHANCE)
    columns["teacher_entropy/dino"] = np.full(NUM_ROWS, entropy)
    found = {f.name: f for f in doctor.diagnose(read_run(run_dir(tmp_path, columns)))}
    finding = found["the dino loss is at chance"]
    assert words in finding.meaning and "6.238" in finding.evidence
    assert f"{entropy:.1%}" in finding.evidence


@pytest.mark.parametrize(
    "knn,name",
    [
        ((20, 50, 30), "k-NN falls"),
        ((40, 30, 20), "worse than at the start"),
        ((40, 38, 39), "k-NN does not rise"),
    ],
)
def test_falling_knn_is_found(tmp_path, knn, name):
    assert names(tmp_path, healthy(), knn=knn) == [name]


def test_knn_need_not_rise_where_the_weights_are_trained_already(tmp_path):
    started = ("start.source=runs/earlier",)
    assert names(tmp_path, healthy(), *started, knn=(40, 38, 39)) == []


@pytest.mark.parametrize("knn", [(99, 97.5, 99), (20, 22)])
def test_knn_that_rises_or_cannot_is_no_finding(tmp_path, knn):
    assert names(tmp_path, healthy(), knn=knn) == []


def test_steps_that_were_not_finite_are_reported_with_the_way_to_replay(tmp_path):
    directory = run_dir(tmp_path, healthy())
    (tmp_path / "autopsy" / "31").mkdir(parents=True)
    content = {"step": 31, "culprit": "koleo is nan", "scalars": {"bad_steps": 3.0}}
    (tmp_path / "autopsy" / "31" / "step.json").write_text(json.dumps(content))
    first = doctor.diagnose(read_run(directory))[0]
    assert first.severity == "problem" and "koleo is nan" in first.evidence
    assert f"dinojax replay {tmp_path / 'autopsy' / '31'}" in first.advice


def test_a_run_without_rows_or_checkpoints_gets_a_note(tmp_path, capsys):
    configs.save(configs.load("tiny"), tmp_path / "config.json")
    assert [finding.name for finding in doctor.main(tmp_path)] == ["no checkpoint yet"]
    assert "Nothing to judge yet" in capsys.readouterr().out


def test_many_prototypes_for_the_batch_are_noted(tmp_path):
    columns = healthy()
    for name in ("dino_local", "dino_global"):
        columns[name] = columns[name] + 5.0
    found = doctor.diagnose(read_run(run_dir(tmp_path, columns, "dino_head.prototypes=65536")))
    assert "many prototypes for this batch" in [finding.name for finding in found]


def test_ranges_of_the_losses():
    """65,536 prototypes and 256 rows: between 5.55 and 11.09."""
    values = configs.load("tiny", ["dino_head.prototypes=65536", "batch_size=128"]).values()
    reach = loss_ranges(values)
    assert math.isclose(reach["dino_local"].floor, 5.545, abs_tol=1e-3)
    assert math.isclose(reach["dino_local"].chance, 11.090, abs_tol=1e-3)
    assert math.isclose(reach["ibot"].chance, 0.5 * math.log(512))
    values = configs.load("tiny", ["losses.centering=softmax"]).values()
    assert loss_ranges(values)["dino_global"].floor == 0.0


def test_the_command_reads_a_run_and_refuses_other_folders(tmp_path, capsys):
    assert main(["doctor", str(run_dir(tmp_path, healthy()))]) == 0
    assert main(["doctor", str(tmp_path / "checkpoints")]) == 2
    assert "config.json" in capsys.readouterr().err
