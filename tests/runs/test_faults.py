"""Run folders that hold something else: each command that reads them says which file and key."""

import json

import pytest

from dinojax import config
from dinojax.checkpoint.meta import checked
from dinojax.cli import main
from dinojax.config import saved
from dinojax.config.recipe import ConfigError
from dinojax.data.quarantine import read_list
from dinojax.distill.placement import read_notes
from dinojax.runs import files
from dinojax.runs.scalars import read_metrics
from tests.support.run_files import healthy, run_dir


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return run_dir(tmp_path / "run", healthy())


def changed(run, **changes):
    """config.json with names (parts joined by __) set, or removed where the value is `...`."""
    path = run / "config.json"
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *places, leaf = name.split("__")
        place = content
        for part in places:
            place = place[part]
        if value is ...:
            del place[leaf]
        else:
            place[leaf] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("command", ["doctor", "report"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": []}, "config.json: config is []; expected an object"),
        ({"config": ...}, "config.json: no 'config'; expected an object"),
        ({"config__model__num_heads": "3"}, "model.num_heads='3' has the wrong type: expected an"),
        ({"config__seed": True}, "seed=True has the wrong type: expected an integer"),
        ({"config__num_steps": 0}, "num_steps=0 is out of range"),
        ({"config__group_size": -1}, "group_size=-1 is out of range"),
        ({"config__losses__centering": "x"}, "losses.centering='x' is not a choice"),
        ({"config__crops": 3}, "config.json: crops is 3; expected a section of keys"),
        ({"config__seed": {"x": 1}}, "config.json: seed is a section; expected a value"),
        ({"config__stage": "../x"}, "config.json: '../x' is no name of a stage"),
        ({"sources": [1]}, "config.json: sources is [1]; expected an object, each text"),
        ({"sources__seed": 3}, "config.json: sources.seed is 3; expected text"),
        ({"recipe": None}, "config.json: recipe is None; expected text"),
        ({"stages": "pretrain"}, "config.json: stages is 'pretrain'; expected a list"),
        ({"stages": ["a", "b"]}, "config.json: the stage pretrain is none of stages=['a', 'b']"),
    ],
)
def test_a_config_of_another_shape_is_refused_by_its_key(command, changes, message, run, capsys):
    changed(run, **changes)
    assert main.main([command, str(run)]) == main.REFUSED
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": "3"}\n', "metrics.jsonl:1: step is '3'; expected an integer"),
        ("metrics.jsonl", '{"step": -1}\n', "metrics.jsonl:1: step is -1; expected 0 to"),
        ("metrics.jsonl", '{"total": 1}\n', "metrics.jsonl:1: no 'step'"),
        ("metrics.jsonl", '{"step": 1, "total": []}\n', "metrics.jsonl:1: total is []; expected a"),
        (
            "metrics.jsonl",
            '{"step": 1}\n[]\n',
            "metrics.jsonl:2: the row is []; expected an object",
        ),
        ("env.json", "[]", "env.json: the whole is []; expected an object"),
        ("energy.json", "{}x", "energy.json is not JSON"),
        ("energy.json", '{"energy_kwh": "1"}', "energy.json: energy_kwh is '1'; expected a number"),
        ("resumes.jsonl", '{"event": 3}\n', "resumes.jsonl:1: event is 3; expected text"),
        ("bad_images.jsonl", '{"id": 3}\n', "bad_images.jsonl:1: no 'reason'"),
        ("bad_images.knn.jsonl", "{}\n", "bad_images.knn.jsonl:1: no 'reason'"),
        ("autopsy/9/step.json", '{"step": "9"}', "step.json: step is '9'; expected an integer"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_name_and_key(name, text, message, run, capsys):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(text)
    for command in ("doctor", "report"):
        assert main.main([command, str(run)]) == main.REFUSED
        told = capsys.readouterr().err
        assert message in told and "Traceback" not in told


def test_folders_whose_names_are_no_numbers_are_passed_over(run):
    for name in ("autopsy/x", "autopsy/\u00b2", "checkpoints/pretrain/\u00b2"):
        (run / name).mkdir(parents=True)
        (run / name / "step.json").write_text("[]")
    assert files.read_run(run).checkpoints == [1200]


def test_overrides_of_a_saved_config_have_limits(run):
    with pytest.raises(ConfigError, match="knn.neighbors=0 is out of range"):
        config.read(run, ["knn.neighbors=0"])


def test_what_is_saved_is_what_is_read(run):
    found = saved.read(run / "config.json")
    assert found.values == config.load("tiny").values() and found.stages == ["pretrain"]
    assert found.lacking == [] and found.strange == {}
    assert config.read(run).values() == found.values


def test_the_metadata_of_a_checkpoint_has_kinds():
    good = {"format_version": 2, "step": 3, "position": 9, "seconds": 1.5, "fingerprint": "f"}
    assert checked(good) == good
    for name, value in {"step": "3", "position": 9.5, "seconds": None, "fingerprint": 1}.items():
        with pytest.raises(ValueError, match=f"its metadata: {name} is "):
            checked(good | {name: value})
    with pytest.raises(ValueError, match=r"its metadata: found \[\]"):
        checked([])


def test_lists_and_notes_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "a.json"
    for text in ("[]", '{"students": 3}', '{"students": ["a"], "measured": [{"kind": 1}]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="a.json"):
            read_notes(path)
    path.write_text('{"id": "3", "reason": "x"}\n')
    with pytest.raises(ValueError, match="a.json:1: id is '3'; expected an integer"):
        read_list(path)
    path.write_text('{"step": 1, "stage": 3}\n')
    with pytest.raises(ValueError, match="a.json:1: stage is 3; expected text"):
        read_metrics(path)
