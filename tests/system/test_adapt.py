"""Continued pretraining: from a file without heads, heads first, and what stops it."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from dinojax import config as configs
from dinojax.cli import main
from dinojax.config import ConfigError
from dinojax.data import tiles
from dinojax.distributed.interrupt import ALARMED, Alarm
from dinojax.eval.contract import Measured
from dinojax.eval.knn_evaluator import Knn
from dinojax.models.rope import RopeSpec
from dinojax.runs import early_stopping
from dinojax.runs.scalars import read_metrics
from dinojax.train import finish, initialize, loop, trainer
from dinojax.train.records import Records
from dinojax.weights import run
from dinojax.weights.export import export
from tests.support import small
from tests.support.networks_small import CONVNEXT, random_network
from tests.support.saved_weights import saved
from tests.support.stopping import Stop, at, die, rows, same_state

SETTINGS = [
    *(setting for setting in small.STAGED if not setting.startswith("knn.")),
    *("heads:num_steps=6", "heads:until.left_chance=0.5", "heads:until.every=1", "knn.every=100"),
    *("checkpoint.every=2", "heads:start.heads=new", "knn.mosaics=0"),
]


def stages(source, *overrides):
    given = {override.split("=")[0] for override in overrides}
    kept = [setting for setting in SETTINGS if setting.split("=")[0] not in given]
    return configs.load_stages(
        "adapt_tiny", [*kept, f"heads:start.source={source}", *overrides], smoke=True
    )


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """One quick compile per program and few tiles; losses that leave chance from step 2 on."""
    kept = {}

    def compile_once(built):
        key = built.step.objective
        if key not in kept:
            kept[key] = built.lower().compile(small.FAST)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SPLITS", dict.fromkeys(tiles.SPLITS, 64))
        patch.setattr(finish, "finish", lambda *args, **options: None)
        patch.setattr(trainer, "compile_step", compile_once)
        patch.setattr(Knn, "accuracy", lambda *args: {"cls": 50.0, "both": 50.0})
        patch.setattr(early_stopping, "ways_gone", lambda _, row: {"ibot": float(row["step"] >= 2)})
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The backbone of the recipe in the format of transformers: random, and no heads."""
    folder = tmp_path_factory.mktemp("weights") / "hf"
    export(
        random_network(initialize.own_spec(stages(folder)[0])), folder, format="hf", certify=False
    )
    return folder


OTHERS = {  # what a file holds -> what is said of it
    "depth": (dict(depth=3), "model.depth: 3 there, 1 here"),
    "norm": (dict(norm="layernorm_1e5"), "model.norm: 'layernorm_1e5' there, 'layernorm' here"),
    "rope": (dict(rope=RopeSpec(base=50.0)), "rope.base: 50.0 there, 100.0 here"),
    "convnext": (None, "holds a ConvNeXt, but model.name='vits' is none"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_with_another_network_is_refused_key_by_key(what, tmp_path):
    changes, message = OTHERS[what]
    own = initialize.own_spec(stages(tmp_path)[0])
    spec = CONVNEXT if changes is None else dataclasses.replace(own, **changes)
    export(random_network(spec), tmp_path / "out", format="dinojax", certify=False)
    with pytest.raises(ConfigError) as refused:
        initialize.check(stages(tmp_path / "out")[0], tmp_path, began=False)
    assert message in str(refused.value)


def test_a_file_with_other_arrays_is_refused_tensor_by_tensor(source):
    found = run.load(source).params
    like = {**found, "cls_token": np.zeros(9, np.float32)}
    with pytest.raises(ValueError, match=r"holds another backbone than model\.\*:\n.*cls_token"):
        initialize._backbone(initialize.Place(source, None), like=like)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, loop.train(stages(source), directory)


@pytest.mark.slow
def test_heads_train_alone_until_they_left_chance_and_then_everything(whole, source):
    directory, last = whole
    told = [r for r in read_metrics(directory / "metrics.jsonl") if "total" in r]
    losses = [(r["stage"], r["step"]) for r in told]
    assert losses == [("heads", n) for n in (1, 2, 3, 4)] + [("adapt", 1), ("adapt", 2)]
    assert [r["grad_norm/backbone"] > 0 for r in told] == [False] * 4 + [True] * 2  # not computed
    assert [r["ema_change"] > 0 for r in told] == [False] * 5 + [True]  # the first rate is 0
    assert "4" in [path.name for path in (directory / "checkpoints/heads").iterdir()]
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        {"student": last.student, "ema": last.ema},
    )
    given = run.load(source).params
    begun, ended = (saved(directory, "heads", step, like) for step in (2, 4))
    for tree in (begun, ended):
        same_state(tree["student"]["backbone"], given)
        same_state(tree["ema"]["backbone"], given)
    assert not small.same(begun["student"]["dino_head"], ended["student"]["dino_head"])
    assert not small.same(begun["ema"]["ibot_head"], ended["ema"]["ibot_head"])
    same_state(last.gram, given)  # the anchor is the backbone of the file
    assert not small.same(last.student["backbone"], given)


@pytest.mark.slow
def test_killed_between_two_looks_it_ends_at_the_same_step(whole, source, tmp_path, monkeypatch):
    with at(monkeypatch, (Records, "add"), 3, die), pytest.raises(Stop):
        loop.train(stages(source), tmp_path / "run")
    with at(monkeypatch, (Records, "add"), 4, die), pytest.raises(Stop):
        loop.train(stages(source, "log.every=7"), tmp_path / "run")  # looks are rows all the same
    same_state(loop.train(stages(source), tmp_path / "run"), whole[1])
    assert rows(tmp_path / "run") == rows(whole[0])


@pytest.mark.slow
def test_heads_that_never_left_chance_are_not_gone_on_from(source, tmp_path, monkeypatch):
    monkeypatch.setattr(early_stopping, "ways_gone", lambda *_: {"ibot": 0.1})
    for _ in range(2):  # the same command says it again
        with pytest.raises(ConfigError, match="after 6 steps the losses have not left chance by"):
            loop.train(stages(source), tmp_path / "run")
    assert (
        "WARNING dinojax.runs.early_stopping: stage heads" in (tmp_path / "run/log.txt").read_text()
    )


@pytest.mark.slow
def test_an_alarm_that_stops_saves_and_stops_the_same_command_again(
    source, tmp_path, monkeypatch, capsys
):
    found = iter((50.0, 50.0, 30.0))
    columns = ("knn/cls", "knn/both")
    monkeypatch.setattr(Knn, "measure", lambda *_: Measured(dict.fromkeys(columns, next(found))))
    asked = ("knn.alarm=0.2", "knn.alarm_stops=True", "knn.every=1")
    for _ in range(2):
        with pytest.raises(Alarm, match="knn/both fell to 30.0 % at step 2, from 50.0 %"):
            loop.train(stages(source, *asked), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run/checkpoints/heads").iterdir()} >= {"2"}

    def alarm(*args, **options):
        raise Alarm("stopped by knn.alarm")

    monkeypatch.setattr(main, "_program", lambda name: alarm)
    assert main.main(["train", "--config", "tiny", "--run", "x"]) == ALARMED
    assert "stopped by knn.alarm" in capsys.readouterr().err


def test_an_alarm_with_nothing_to_watch_is_refused(source, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.full((48, 48), number, np.uint8)).save(folder / f"{number}.png")
    plain = (f"data.path={folder}", "data.source=folder", "knn.alarm=0.1")
    with pytest.raises(ConfigError, match="knn.alarm=0.1 has nothing to watch, for want of labels"):
        loop.train(stages(source, *plain), tmp_path / "run")
    (folder / "0.png").unlink()
    with pytest.raises(ConfigError, match="knn.mosaics=8 puts 4 images into one; there are 3"):
        loop.train(stages(source, *plain, "knn.mosaics=8"), tmp_path / "other")
