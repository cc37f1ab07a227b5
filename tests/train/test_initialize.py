"""Stages one after another: what is handed over, what is refused, and stopping in the middle."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from dinojax import config as configs
from dinojax.cli import main
from dinojax.config import ConfigError
from dinojax.data import tiles
from dinojax.distributed.interrupt import Interrupted
from dinojax.eval import checkpoints as measure
from dinojax.runs.files import read_run, read_whole
from dinojax.runs.scalars import read_metrics
from dinojax.train import finish, loop, trainer
from dinojax.train.program import Program
from dinojax.train.records import Records
from tests.support import small
from tests.support.saved_weights import saved
from tests.support.stopping import Stop, ask, at, die, rows, same_state

LAST = {"pretrain": 2, "gram": 2, "highres": 2}


def stages(*overrides: str):
    return configs.load_stages("tiny_stages", [*small.STAGED, *overrides], smoke=True)


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """Few tiles, no last page, and one quick compile per program: none of it is tested here."""
    kept = {}
    new_state = Program.new_state

    def compile_once(built):
        key = (built.batch_shape, built.step.view_spec, built.step.objective)
        if key not in kept:
            kept[key] = built.lower().compile(small.FAST)
        return kept[key]

    def new_state_once(built):
        key = (built.seed, built.step.objective)
        if key not in kept:
            kept[key] = new_state(built)
        return jax.tree.map(jax.numpy.copy, kept[key])  # the step takes it over

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SPLITS", dict.fromkeys(tiles.SPLITS, 64))
        patch.setattr(finish, "finish", lambda *args, **options: None)
        patch.setattr(trainer, "compile_step", compile_once)
        patch.setattr(Program, "new_state", new_state_once)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All three stages, undisturbed: the directory and the last state."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, loop.train(stages(), directory)


@pytest.mark.slow
def test_three_stages_leave_one_directory_with_all_of_them(whole):
    directory, state = whole
    assert state.step == 2
    for stage, last in LAST.items():
        assert (directory / "checkpoints" / stage / str(last)).is_dir()
        assert configs.read(directory, stage=stage) == configs.pick(stages(), stage)
    assert configs.saved_stages(directory) == list(LAST)
    told = [(row["stage"], row["step"]) for row in read_metrics(directory / "metrics.jsonl")]
    assert told == [(stage, step) for stage in LAST for step in (1, 2)]
    run = read_run(directory)
    assert (run.stage, [row["step"] for row in run.rows]) == ("highres", [1, 2])
    assert read_run(directory, stage="gram").checkpoints == [1, 2]
    assert read_whole(directory).starts == {"pretrain": 0, "gram": 2, "highres": 4}
    assert (directory / "report.html").exists()


@pytest.mark.slow
def test_a_refresh_copies_the_ema_exactly_and_only_as_often_as_it_may(whole):
    """In stage gram after step 1; max_refreshes=1 keeps that anchor at step 2."""
    directory, last = whole
    like = {"gram": _shapes(last)["gram"], "ema": {"backbone": _shapes(last)["gram"]}}
    first, second = (saved(directory, "gram", step, like) for step in (1, 2))
    same_state(first["gram"], first["ema"]["backbone"])
    same_state(second["gram"], first["gram"])
    assert not small.same(second["gram"], second["ema"]["backbone"])


@pytest.mark.slow
def test_weights_and_optimizer_are_handed_over_as_each_stage_says(whole, monkeypatch):
    """gram takes the whole state and an earlier ema as anchor; highres takes the ema alone."""
    directory, last = whole
    seen = {}

    def look(step, stage):
        def looked(state, batch, now):
            seen.setdefault(stage, jax.tree.map(np.asarray, jax.device_get(_plain(state))))
            raise Stop

        return looked

    like = _shapes(last)
    for stage in ("gram", "highres"):
        monkeypatch.setattr(trainer, "compile_step", lambda built, stage=stage: look(built, stage))
        copy = directory.parent / f"copy-{stage}"
        _copy_without(directory, copy, stage)
        with pytest.raises(Stop):
            loop.train(stages(), copy, stage=stage)
    before = saved(directory, "pretrain", 2, {n: like[n] for n in ("student", "ema", "opt_state")})
    for name in ("student", "ema", "opt_state"):
        same_state(seen["gram"][name], before[name])
    early = saved(directory, "pretrain", 1, {"ema": like["ema"]})["ema"]["backbone"]
    same_state(seen["gram"]["gram"], early)
    assert seen["gram"]["step"] == seen["highres"]["step"] == 0
    ema = saved(directory, "gram", 2, {"ema": like["ema"]})["ema"]
    same_state(seen["highres"]["student"], ema)
    same_state(seen["highres"]["ema"], ema)
    same_state(seen["highres"]["gram"], ema["backbone"])
    assert seen["highres"]["opt_state"].count == 0 and seen["gram"]["opt_state"].count == 2


@pytest.mark.slow
def test_gram_pick_scores_every_checkpoint_of_every_stage(whole, capsys):
    assert main.main(["gram", "pick", str(whole[0]), "--mosaics", "4"]) == main.FINISHED
    told = capsys.readouterr().out
    for stage in LAST:
        assert f"{stage}/1: " in told and f"{stage}/2: " in told
    assert "best: " in told


def test_an_anchor_is_recommended_only_where_something_was_lost():
    rows = [{"stage": "a", "step": n, "dense": d} for n, d in ((1, 50.0), (2, 60.0), (3, 59.5))]
    assert "nothing to repair" in measure.advice(rows)
    rows.append({"stage": "b", "step": 1, "dense": 41.0})
    assert "19.0 points below it. Anchor: --set STAGE:gram.anchor=a/2" in measure.advice(rows)


def _plain(state) -> dict:
    names = ("step", "student", "ema", "gram", "opt_state")
    return {name: getattr(state, name) for name in names}


def _shapes(state) -> dict:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _plain(state)
    )


def _copy_without(directory: Path, copy: Path, stage: str) -> None:
    shutil.copytree(directory, copy)
    for later in list(LAST)[list(LAST).index(stage) :]:
        shutil.rmtree(copy / "checkpoints" / later)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_killed_in_any_stage_ends_like_one_that_was_not(whole, tmp_path, monkeypatch, step):
    """Killed in the middle of the first, the second (after a refresh) and the last stage."""
    with at(monkeypatch, (Records, "add"), step, die), pytest.raises(Stop):
        loop.train(stages(), tmp_path / "run")
    state = loop.train(stages(), tmp_path / "run")
    same_state(state, whole[1])
    assert rows(tmp_path / "run") == rows(whole[0])


@pytest.mark.slow
def test_asked_to_stop_in_the_second_stage_it_goes_on_there(whole, tmp_path, monkeypatch):
    with at(monkeypatch, (Records, "add"), 3, ask), pytest.raises(Interrupted) as stopped:
        loop.train(stages(), tmp_path / "run")
    assert stopped.value.step == 1
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["stage"] == "gram"
    with at(monkeypatch, (Program, "new_state"), 2, die):  # of highres alone: the first call
        state = loop.train(stages(), tmp_path / "run")
    same_state(state, whole[1])


@pytest.mark.slow
def test_a_finished_stage_is_not_run_again_and_one_can_be_run_alone(whole, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="stage gram starts from stage pretrain, which has not"):
        loop.train(stages(), tmp_path / "run", stage="gram")
    loop.train(stages(), tmp_path / "run", stage="pretrain")
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["stage"] == "pretrain"
    with at(monkeypatch, (Records, "add"), 1, die), pytest.raises(Stop):
        loop.train(stages(), tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["stage"] == "gram"
    with pytest.raises(ConfigError, match=r"config in stage pretrain, by .*:\n  seed: 0 there, 7"):
        loop.train(stages("pretrain:seed=7"), tmp_path / "run")
    loop.claim(tmp_path / "run", stages("highres:seed=7"))  # nothing was trained there
    with pytest.raises(ConfigError, match="holds a stage pretrain, which the recipe does not have"):
        loop.claim(tmp_path / "run", stages()[1:])


REFUSALS = {
    "absent": ("start.source=/absent/run", "start.source=/absent/run does not exist"),
    "file": ("start.source={file}", "is a file of weights and holds a backbone alone"),
    "anchor": ("gram.anchor=/absent/run", "gram.anchor=/absent/run does not exist"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_sources_that_cannot_be_are_refused_before_the_first_stage(what, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    setting, message = REFUSALS[what]
    found = stages("gram:" + setting.format(file=file))
    with pytest.raises(ConfigError, match=message):
        loop.train(found, tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/*/*"))


def test_a_run_without_a_checkpoint_has_no_anchor_to_pick(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    configs.save(stages()[0], tmp_path / "config.json")
    assert main.main(["gram", "pick", str(tmp_path), "--mosaics", "4"]) == main.REFUSED
    assert "has no checkpoint yet; train it first" in capsys.readouterr().err


def test_config_show_tells_one_stage(capsys):
    args = ["config", "show", "--config", "tiny_stages", "--stage", "gram"]
    assert main.main([*args, "--set", "gram:seed=3"]) == main.FINISHED
    told = capsys.readouterr().out
    assert "stage = 'gram'" in told and "seed = 3  (--set)" in told
    assert "start.steps_before = 600  (recipe)" in told
    assert main.main([*args[:-1], "gramm"]) == main.REFUSED
    assert "no stage gramm; its stages are pretrain, gram, highres" in capsys.readouterr().err
