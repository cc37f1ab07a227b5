"""A job beside a run: each checkpoint once, whatever stops it, until the run is finished."""

from types import SimpleNamespace

import numpy as np
import pytest

from dinojax import config
from dinojax.checkpoint.manager import COMMITTED
from dinojax.eval import evaluate, follow
from dinojax.eval.contract import Measured
from dinojax.eval.features import EvalTransform
from dinojax.eval.targets import Target
from dinojax.runs import records
from dinojax.runs.finished import mark_finished
from dinojax.sharding import mesh


class Same:
    """An evaluation that says what the network is."""

    @property
    def sources(self):
        return (Sized(),)

    def measure(self, network):
        return Measured({"knn/cls": float(network.params)}, num=3, samples={"knn/cls": np.ones(3)})


class Sized:
    fingerprint = "data"

    def __len__(self):
        return 3


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory whose checkpoints are empty folders, and what was loaded of them."""
    made = SimpleNamespace(directory=tmp_path / "run", loaded=[], sleeps=0)
    loaded = config.load("tiny")
    folder = made.directory / "checkpoints/pretrain"
    (made.directory / "stages").mkdir(parents=True)
    for path in (made.directory / "config.json", made.directory / "stages/pretrain.json"):
        config.save(loaded, path)

    def save(step):
        (folder / str(step)).mkdir(parents=True)
        (folder / str(step) / COMMITTED).touch()

    def load(step):
        if not (folder / str(step)).exists():
            raise FileNotFoundError(f"no step {step}")
        made.loaded.append(step)
        return step, step

    def of_run(directory, overrides, *, stage, data):
        target = Target(
            loaded,
            SimpleNamespace(transform=EvalTransform(32, 32, "per_crop", (), ())),
            mesh.make("dp", 1),
            made.directory / "eval",
            network=lambda params: SimpleNamespace(params=params),
            load=load,
            told=str(made.directory),
            matmul="highest",
        )
        return target

    monkeypatch.setattr(follow, "of_run", of_run)
    monkeypatch.setattr(evaluate, "build_named", lambda name, target: {name: Same()})
    monkeypatch.setattr("dinojax.checkpoint.checksum.arrays", lambda params: {"all": params})
    made.save, made.folder = save, folder
    return made


def steps(run):
    return [row["step"] for row in records.read(run.directory / "eval")]


def followed(run, sleep):
    return follow.follow("knn", run.directory, (), cache=False, sleep=sleep)


def test_checkpoints_that_are_there_and_those_to_come_are_evaluated_once_each(run):
    run.save(10)

    def sleep(seconds):
        run.sleeps += 1
        if run.sleeps == 1:
            run.save(20)
        elif run.sleeps == 2:
            run.save(4000)
            mark_finished(run.directory, "pretrain", 4000)

    found = followed(run, sleep)
    assert [record.values["knn/cls"] for record in found] == [10.0, 20.0, 4000.0]
    assert run.loaded == steps(run) == [10, 20, 4000] and run.sleeps == 2
    assert followed(run, None) == [] and run.loaded == [10, 20, 4000]  # nothing twice


def test_one_that_was_killed_goes_on_with_what_is_not_there(run, monkeypatch):
    for step in (10, 20, 30):
        run.save(step)
    mark_finished(run.directory, "pretrain", 30)
    whole = evaluate.say

    def killed(row, record, *told):
        whole(row, record, *told)
        if record.step == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "say", killed)
    with pytest.raises(KeyboardInterrupt):
        followed(run, None)
    monkeypatch.setattr(evaluate, "say", whole)
    followed(run, None)
    assert run.loaded == steps(run) == [10, 20, 30]


def test_a_checkpoint_that_the_run_removes_before_its_turn_is_left_out(run, capsys):
    for step in (10, 20):
        run.save(step)
    mark_finished(run.directory, "pretrain", 20)
    load = run.folder / "10" / COMMITTED
    found = []

    def due(*args):
        for step, made in _due(*args):
            if step == 10 and load.exists():
                load.unlink()
                load.parent.rmdir()
            found.append(step)
            yield step, made

    _due = follow._due
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "_due", due)
        followed(run, None)
    assert steps(run) == [20] and "pretrain/10 was removed before it" in capsys.readouterr().out


def test_a_checkpoint_that_is_there_and_cannot_be_read_is_an_error(run, monkeypatch):
    run.save(10)

    def damaged(*args, **options):
        raise ValueError("step 10 is damaged")

    monkeypatch.setattr(evaluate, "measure", damaged)
    with pytest.raises(ValueError, match="step 10 is damaged"):
        followed(run, None)
