"""A stage that is over says so; runs made before that was written are still understood."""

import json

import pytest

from dinojax import config as configs
from dinojax.checkpoint.manager import COMMITTED
from dinojax.runs import finished
from dinojax.runs.directory import claim, is_finished, last_step
from tests.support import small

STEPS = 6


def config(*overrides):
    given = {override.split("=")[0] for override in overrides}
    kept = [o for o in (f"num_steps={STEPS}", "checkpoint.every=2") if o.split("=")[0] not in given]
    return small.config(*kept, *overrides)


def save(directory, *steps):
    for step in steps:
        folder = directory / "checkpoints/pretrain" / str(step)
        folder.mkdir(parents=True)
        (folder / COMMITTED).touch()


def stage_file(directory):
    return json.loads((directory / "stages/pretrain.json").read_text())


def test_a_stage_is_over_when_it_says_so_and_not_when_its_last_checkpoint_stands(tmp_path):
    """Killed before its last evaluation was written, a run is not done."""
    claim(tmp_path, config())
    save(tmp_path, 2, 4, 6)
    assert stage_file(tmp_path)["finished"] is None and not is_finished(tmp_path, config())
    finished.mark_finished(tmp_path, "pretrain", STEPS)
    assert last_step(tmp_path, config()) == STEPS
    assert configs.read(tmp_path) == config() == configs.read(tmp_path, stage="pretrain")
    claim(tmp_path, config("log.every=3"))  # a key that may change
    assert stage_file(tmp_path)["finished"] == STEPS
    (tmp_path / "checkpoints/pretrain/6" / COMMITTED).unlink()
    assert last_step(tmp_path, config()) is None


def test_more_steps_than_it_ended_with_are_still_to_be_taken(tmp_path):
    claim(tmp_path, config())
    save(tmp_path, STEPS)
    finished.mark_finished(tmp_path, "pretrain", STEPS)
    longer = config("num_steps=12")
    assert not is_finished(tmp_path, longer)
    claim(tmp_path, longer, ["new-config"])
    assert stage_file(tmp_path)["finished"] is None


@pytest.mark.parametrize("has_stages", [True, False], ids=["stages", "one stage"])
@pytest.mark.parametrize("early", [True, False], ids=["left chance", "all steps"])
def test_a_run_made_before_the_field_is_worked_out_from_its_rows(
    tmp_path, monkeypatch, early, has_stages
):
    """It had no file of a stage that is the only one, and no field in those of several."""
    more = ("until.left_chance=0.5", "until.every=1") if early else ()
    old, end = config(*more), 4 if early else STEPS
    monkeypatch.setattr(
        finished.early_stopping, "ways_gone", lambda _, row: {"ibot": float(row["step"] > 1)}
    )
    configs.save(old, tmp_path / "config.json")
    if has_stages:
        (tmp_path / "stages").mkdir()
        configs.save(old, tmp_path / "stages/pretrain.json")
    rows = [{"step": step, "total": 1.0} for step in range(1, end + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert last_step(tmp_path, old) is None  # its checkpoint is not there
    save(tmp_path, end)
    assert last_step(tmp_path, old) == end
    claim(tmp_path, old)
    assert stage_file(tmp_path)["finished"] == end
