"""Steps that are not finite: nothing changes, the cause is named, the step can be taken again."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dinojax import config as configs
from dinojax.monitor.autopsy import MAX_IN_A_ROW, Autopsy, NonFiniteError, culprits
from dinojax.sharding import mesh
from dinojax.train import loop as program_1
from dinojax.train import program
from dinojax.train.objective import Objective
from dinojax.train.replay import replay
from dinojax.train.step import Step
from tests.support import small
from tests.support.poisoned import FINE, TERMS, Poisoned, PoisonedStep


@pytest.fixture(scope="module")
def poisoned():
    """(function(state, **poison) -> (state, scalars), a state), compiled once for all poisons."""
    config = small.config("mesh.devices=1", "losses.centering=softmax", "batch_size=8")
    built = program.build(config, mesh.make("dp", 1))
    fields = {f.name: getattr(built.step.objective, f.name) for f in dataclasses.fields(Objective)}
    parts = {f.name: getattr(built.step, f.name) for f in dataclasses.fields(Step)}
    poisoned = PoisonedStep(**{**parts, "objective": Poisoned(**fields)})
    with mesh.use(built.layout):
        state, batch = small.numbers(built), small.images(built)
        now = {**built.now(3), **FINE, "momentum": np.float32(0.9)}
        lowered = jax.jit(poisoned).lower(state, batch, now)
        run = lowered.compile(compiler_options=small.FAST)
    return lambda state, **poison: run(
        state, batch, {**now, **{f"poison/{k}": np.float32(v) for k, v in poison.items()}}
    ), state


def unchanged(before, after):
    names = ("student", "ema", "opt_state", "centers")
    return all(small.same(getattr(before, n), getattr(after, n)) for n in names)


@pytest.mark.slow
def test_a_finite_step_changes_everything_and_counts_nothing(poisoned):
    take, state = poisoned
    after, scalars = take(state)
    assert not small.same(state.student, after.student)
    assert not small.same(state.ema, after.ema) and not small.same(state.centers, after.centers)
    assert int(after.bad_steps) == int(scalars["bad_steps"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TERMS, "grads"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_term_or_gradient_changes_no_weight_and_is_named(poisoned, name, value):
    take, state = poisoned
    after, scalars = take(state, **{name: value})
    assert unchanged(state, after)
    assert int(after.step) == int(state.step) + 1
    assert int(after.bad_steps) == 1
    told = culprits(jax.device_get(scalars))
    assert (told == "the gradient of backbone") if name == "grads" else name in told
    assert sum(term in told for term in TERMS) == (name != "grads")


@pytest.mark.slow
def test_bad_steps_count_up_in_a_row_and_a_good_one_ends_it(poisoned):
    take, state = poisoned
    once, _ = take(state, koleo=np.nan)
    twice, _ = take(once, ibot=np.nan)
    good, _ = take(twice)
    assert [int(s.bad_steps) for s in (once, twice, good)] == [1, 2, 0]
    assert not small.same(good.student, state.student)


def bad_scalars(bad_steps):
    scalars = {name: 1.0 for name in (*TERMS, "total", "grad_norm/backbone")}
    return {**scalars, "koleo": float("nan"), "total": float("nan"), "bad_steps": bad_steps}


def batch():
    return {
        "images": np.zeros((2, 4, 4, 1), np.uint8),
        "sizes": np.full((2, 2), 4, np.int32),
        "ids": np.array([7, 9]),
    }


def test_an_autopsy_holds_the_step_and_the_third_in_a_row_stops(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    autopsy = Autopsy(tmp_path, seed=5)
    for number in range(11, 11 + MAX_IN_A_ROW - 1):
        autopsy.keep(number, batch())
        autopsy.check(number, bad_scalars(number - 10), {"lr": 0.1})
    assert autopsy.suspicious
    with pytest.raises(NonFiniteError, match="(?s)3 steps in a row.*step 11: koleo is nan.*replay"):
        autopsy.check(13, bad_scalars(3), {"lr": 0.1})
    seen = json.loads((tmp_path / "autopsy" / "12" / "step.json").read_text())
    assert (seen["step"], seen["seed"], seen["ids"]) == (12, 5, [7, 9])
    assert seen["scalars"]["koleo"] == "nan" and seen["now"] == {"lr": 0.1}
    with np.load(tmp_path / "autopsy" / "11" / "batch-0.npz") as saved:
        assert sorted(saved) == ["ids", "images", "sizes"]
    assert (tmp_path / "autopsy" / "11" / "config.json").exists()


def test_a_good_step_leaves_no_trace(tmp_path):
    autopsy = Autopsy(tmp_path, seed=5)
    autopsy.keep(1, batch())
    autopsy.check(1, {**bad_scalars(0), "koleo": 1.0, "total": 1.0}, {})
    assert not autopsy.suspicious and not list(tmp_path.iterdir())


def test_every_bad_term_at_once_points_at_the_networks():
    scalars = {**{name: float("nan") for name in TERMS}, "total": float("nan")}
    assert "networks" in culprits(scalars)


def test_replay_refuses_what_is_no_autopsy(tmp_path):
    with pytest.raises(configs.ConfigError, match=r"step\.json"):
        replay(tmp_path)


@pytest.mark.slow
def test_a_poisoned_run_stops_is_replayed_exactly_and_goes_on(tmp_path, capsys, monkeypatch):
    """A learning rate of 1e38 makes weights infinite in step 2; every later step is bad."""
    settings = ["num_steps=12", "knn.every=None", "log.pictures=False", "checkpoint.every=100"]
    settings += ["schedules.lr.peak=1e38", "schedules.lr.end=1e38"]
    settings += ["mesh.devices=1", "batch_size=8"]
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        program_1.train(configs.load("tiny", settings, smoke=True), run)
    folders = sorted(int(path.name) for path in (run / "autopsy").iterdir())
    assert len(folders) == MAX_IN_A_ROW
    saved = [int(path.name) for path in (run / "checkpoints" / "pretrain").iterdir()]
    assert saved == [folders[-1]]
    found = replay(run / "autopsy" / str(folders[0]))
    assert found["updates_apart"] == 0
    seen = json.loads((run / "autopsy" / str(folders[0]) / "step.json").read_text())
    for name, value in found["scalars"].items():
        np.testing.assert_allclose(float(seen["scalars"][name]), value, rtol=1e-4, equal_nan=True)
    assert found["bad"]
    assert "with the weights of then" in capsys.readouterr().out
