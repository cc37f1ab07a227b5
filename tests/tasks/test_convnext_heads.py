"""Heads look at the four maps of a ConvNeXt, resized to one grid."""

import json

import jax
import numpy as np
import pytest

from dinojax.cli import main
from dinojax.models.convnext import ConvNextSpec
from dinojax.tasks import settings
from dinojax.tasks.network import GRID, TaskNetwork
from dinojax.weights import run
from dinojax.weights.load import Backbone
from tests.support import scene_backbone
from tests.support.scene_backbone import BANDS
from tests.support.stored_data import tiff

WIDTHS = (4, 8, 8, 16)


@pytest.fixture(scope="module")
def body():
    return scene_backbone.backbone(ConvNextSpec((1, 1, 1, 1), WIDTHS, channels=BANDS))


def network(body, *pairs, task="canopy", outputs=8):
    return TaskNetwork(task, settings.parse(task, ["size=64", *pairs]), body, outputs)


def test_a_head_is_given_the_four_stages_on_one_grid(body):
    images = np.random.default_rng(0).normal(size=(2, 64, 96, BANDS)).astype(np.float32)
    found = network(body).features(images)
    assert [x.shape for x, _ in found] == [(2, 4, 6, width) for width in WIDTHS]
    stages = body.intermediate(images, 4)
    for (patches, cls), stage, side in zip(found, stages, (4, 8, 16, 32), strict=True):
        np.testing.assert_allclose(cls, stage.cls, atol=1e-6)
        if side == GRID:  # nothing to resize
            want = np.asarray(stage.patches).reshape(2, 4, 6, -1)
            np.testing.assert_allclose(patches, want, atol=1e-6)
    (last,) = network(body, "head=linear").features(images)
    np.testing.assert_array_equal(last[0], found[-1][0])


@pytest.mark.parametrize("head", ["head=linear", "head=dpt"])
def test_such_a_head_makes_maps(body, head):
    pairs = [head, "levels=4,4,4,4", "width=8", "readout=true", "num_bins=8"]
    own = network(body, *pairs)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, BANDS)).astype(np.float32)
    metres = own.predict(own.new(jax.random.key(0)), images)
    assert metres.shape == (1, 64, 64) and np.isfinite(metres).all()


@pytest.fixture(scope="module")
def heights(tmp_path_factory):
    """Squares of 20 m on ground of 2 m, stored as 0..3000 in four bands of 16 bits."""
    root, rng = tmp_path_factory.mktemp("heights"), np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("images", "maps"):
            (root / part / name).mkdir(parents=True)
        for number in range(count):
            top, left = rng.integers(0, 32, 2)
            inside = np.zeros((64, 64), bool)
            inside[top : top + 32, left : left + 32] = True
            values = rng.integers(0, 600, (64, 64, BANDS)) + 2000 * inside[..., None]
            (root / part / f"images/{number}.tif").write_bytes(tiff(values.astype(np.uint16)))
            np.save(root / part / f"maps/{number}.npy", np.where(inside, 20.0, 2.0))
    return root


@pytest.mark.parametrize(
    ("head", "falls"),
    [
        pytest.param("linear", 0.8, marks=pytest.mark.slow),
        pytest.param("dpt", 0.7, marks=pytest.mark.exhaustive),
    ],
)
def test_heights_are_learnt_and_mapped_on_a_convnext(
    body, heights, tmp_path, monkeypatch, head, falls
):
    over = Backbone.over
    monkeypatch.setattr(run, "load", lambda path: body)
    monkeypatch.setattr(Backbone, "over", lambda self: over(self, jax.devices()[:1]))
    out = str(tmp_path / "run")
    sets = [f"head={head}", "size=64", "levels=8,8,8,8", "width=8", "num_bins=16", "batch_size=4"]
    sets += ["value_range=0,3000", "lr=0.02", "warmup=2", "num_steps=60", "judge_every=60"]
    words = ["task", "train", "canopy", "--backbone", "b", "--data", str(heights), "--run", out]
    assert main.main([*words, *(word for pair in sets for word in ("--set", pair))]) == 0
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < falls * losses[0] and "val/mae" in rows[-1]
    words = ["task", "run", "canopy", "--weights", out, "--out", str(tmp_path)]
    assert main.main([*words, "--image", str(heights / "val/images/0.tif")]) == 0


def test_a_head_that_looks_at_a_vision_transformer_alone_is_refused_before_training(
    body, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "load", lambda path: body)
    for task, pair, way in (
        ("segment", "head=mask2former", "use head=dpt or head=linear, or give one as"),
        ("detect", "head=detr", "as detect does; give one of these as --backbone"),
        ("detect", "head=linear", "head=linear is not for detect"),
        ("canopy", "value_range=0,1,0,1", "2 pairs for the 4 channels of the backbone"),
    ):
        words = ["task", "train", task, "--backbone", "b", "--data", str(tmp_path)]
        words += ["--run", str(tmp_path / "run"), "--set", "size=64", "--set", pair]
        assert main.main(words) == 2
        told = capsys.readouterr().err
        assert way in told
        if pair in ("head=mask2former", "head=detr"):
            assert f"is a ConvNeXt, and {pair} looks at vision transformers alone" in told
    assert not (tmp_path / "run").exists()
