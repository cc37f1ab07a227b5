"""A detector learns, is continued, judged and run; what its losses ask for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dinojax.cli import main
from dinojax.tasks import detection_losses, train
from dinojax.tasks import run as run_task
from dinojax.tasks.assignment import assign
from dinojax.tasks.box_data import BoxData
from dinojax.tasks.box_judge import judge_boxes
from dinojax.tasks.boxes import moved
from dinojax.tasks.coco_boxes import BoxFile
from dinojax.tasks.detection_losses import Found, Targets
from dinojax.tasks.detr import detected
from dinojax.viz.box_lines import Boxes
from dinojax.weights import run
from dinojax.weights.load import Backbone
from tests.support import pasted
from tests.support.detector import SIDE, opened, random_backbone, sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pasted.write(tmp_path_factory.mktemp("boxes"), {"train": 6, "val": 3}, SIDE)


@pytest.fixture(scope="module")
def backbone():
    return random_backbone()


@pytest.fixture
def loaded(monkeypatch, backbone):
    """Weights of any path; on one device, where eight simulated ones would share two cores."""
    over = Backbone.over
    monkeypatch.setattr(run, "load", lambda path: backbone)
    monkeypatch.setattr(Backbone, "over", lambda self: over(self, jax.devices()[:1]))


def test_logits_and_changes_that_follow_the_losses_find_every_object():
    """Without a network: what queries and proposals say is moved by its own gradient."""
    before = np.random.default_rng(0).uniform(10, 50, (2, 2, 6, 4)).astype(np.float32)
    boxes = jnp.array([[[16.0, 16, 12, 20], [44, 40, 24, 16]], [[30, 30, 16, 16], [9, 9, 9, 9]]])
    targets, sizes = Targets(jnp.array([[0, 2], [1, 0]]), boxes, jnp.array([2, 1])), (64, 64)

    def found(logits, deltas, start):
        after = moved(start, deltas, jnp.full((1, 1, 2), 64.0))
        return Found(logits, after, jnp.asarray(start), deltas)

    def loss(values):
        layer, proposals = (found(*own, b) for own, b in zip(values, before, strict=True))
        return detection_losses.of_all((layer,), (), proposals, targets, copies=1)

    @jax.jit
    def descend(values):
        def body(number, values):
            rate = 0.5 * (1 - number / 150)
            return jax.tree.map(lambda x, g: x - rate * g, values, jax.grad(loss)(values))

        return jax.lax.fori_loop(0, 150, body, values)

    values = descend([(jnp.full((2, 6, 3), -2.0), jnp.zeros((2, 6, 4)))] * 2)
    whole = jnp.asarray([sizes, sizes])
    scores, classes, corners = detected(found(*values[0], before[0]), whole, 2 * whole, count=2)
    assert sorted(classes[0].tolist()) == [0, 2] and classes[1, 0] == 1
    assert scores[0].min() > 0.5 and scores[1, 1] < 0.2
    for label, place in ((0, (20, 12, 44, 52)), (2, (64, 64, 112, 96))):  # twice as large
        assert np.abs(corners[0, classes[0].tolist().index(label)] - np.array(place)).max() < 2


def test_a_pair_whose_cost_is_no_number_is_taken_last_and_its_loss_is_none():
    costs = np.array([[[np.nan, 1.0], [3.0, np.nan], [2.0, 5.0]]], np.float32)
    assert assign(jnp.asarray(costs), jnp.array([2])).tolist() == [[2, 0]]
    found = Found(jnp.full((1, 2, 3), jnp.nan), jnp.ones((1, 2, 4)))
    targets = Targets(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 4)), jnp.array([1]))

    @jax.jit
    def classes(found):
        return detection_losses.losses(found, targets, detection_losses.match(found, targets))

    assert np.isnan(classes(found)["classes"])


@pytest.mark.slow
def test_a_detector_that_was_stopped_ends_as_if_it_had_not_been(
    loaded, folder, tmp_path, monkeypatch
):
    def trained(name):
        own = sets(num_steps=6, judge_every=3, save_every=2)
        return train.train(
            "detect", backbone="b", data=str(folder), run_dir=str(tmp_path / name), overrides=own
        )

    whole, batch = trained("whole"), BoxData.batch

    def broken(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return batch(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(BoxData, "batch", broken)
        with pytest.raises(KeyboardInterrupt):
            trained("parts")
    assert not (tmp_path / "parts" / train.WEIGHTS).exists()
    assert trained("parts") == whole and set(whole) >= {"ap", "ap50", "ar100"}
    first, second = (tmp_path / name / train.WEIGHTS for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "whole/pictures/00000003.png").exists()

    def spoiled(self, number):
        images, sizes, targets = batch(self, number)
        return np.full_like(images, np.nan), sizes, targets

    monkeypatch.setattr(BoxData, "batch", spoiled)
    with pytest.raises(train.Diverged, match="step 2: the loss is nan"):
        trained("spoiled")
    assert not (tmp_path / "spoiled" / train.WEIGHTS).exists()


@pytest.mark.slow
def test_boxes_are_learnt_judged_and_drawn_by_the_command_line(loaded, tmp_path, capsys):
    """On random features: what is judged is the task and not a backbone."""
    place = pasted.write(tmp_path / "data", {"train": 48, "val": 16}, SIDE)
    steps = {"num_steps": 160, "judge_every": 160, "save_every": 160, "batch_size": 8}
    sizes = {"width": 64, "ffn": 128, "smallest": 24, "scale": 0.9}
    own = sets(**steps, **sizes, lr=0.004, clip=10, weight_decay=0.0001)
    flags = [word for pair in own for word in ("--set", pair)]
    out, data = str(tmp_path / "run"), str(place)
    words = ["task", "train", "detect", "--backbone", "b", "--data", data, "--run", out]
    assert main.main([*words, *flags]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    network, variables = run_task.load("detect", out)
    judged = opened(place, batch_size=8)
    before, _ = judge_boxes(network, network.new(jax.random.key(0)), judged)
    images = [judged.val.pixels(index) for index in range(16)]
    other = {id(pixels): images[(n + 1) % 16] for n, pixels in enumerate(images)}
    with pytest.MonkeyPatch.context() as patch:  # the same boxes for other images
        patch.setattr(BoxFile, "pixels", lambda self, index: images[index])
        assert judge_boxes(network, variables, judged)[0]["ap50"] == rows[-1]["val/ap50"]
        patch.setattr(BoxFile, "pixels", lambda self, index: other[id(images[index])])
        elsewhere, _ = judge_boxes(network, variables, judged)
    assert rows[-1]["val/ap50"] > 45 and before["ap50"] < 10 and elsewhere["ap50"] < 20

    image, found = str(place / "val/images/0003.png"), tmp_path / "found"
    words = ["task", "run", "detect", "--weights", out, "--image", image, "--out", str(found)]
    assert main.main(words) == 0
    assert "0003.json: " in capsys.readouterr().out and (found / "0003-picture.png").exists()
    boxes = json.loads((found / "0003.json").read_text())
    assert len(boxes) == 20 and {box["image_id"] for box in boxes} == {3}
    assert {box["category_id"] for box in boxes} <= set(pasted.NAMES)
    left, top, width, height = np.transpose([box["bbox"] for box in boxes])
    assert min(left.min(), top.min()) >= 0 and max((left + width).max(), (top + height).max()) <= 64


@pytest.mark.slow
def test_one_and_two_devices_learn_the_same(backbone, folder, tmp_path, monkeypatch):
    over, weights = Backbone.over, {}
    monkeypatch.setattr(run, "load", lambda path: backbone)
    for num in (1, 2):
        monkeypatch.setattr(Backbone, "over", lambda self, n=num: over(self, jax.devices()[:n]))
        own = sets(num_steps=3, judge_every=3, windows=2, batch_size=3)  # does not divide
        out = str(tmp_path / str(num))
        told = train.train("detect", backbone="b", data=str(folder), run_dir=out, overrides=own)
        weights[num] = load_file(tmp_path / str(num) / train.WEIGHTS), told
    for name, first in weights[1][0].items():
        assert np.allclose(first, weights[2][0][name], rtol=1e-4, atol=1e-5), name
    assert weights[1][1] == pytest.approx(weights[2][1], abs=1e-3)


def test_sides_of_a_box_end_where_its_corner_does():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 60, (1000, 2)).astype(np.float32)
    found = Boxes(
        np.concatenate([low, np.full((1000, 2), 64, np.float32)], 1), low[:, 0], low[:, 0]
    )
    sides_N4 = found.sides_N4.astype(np.float64)  # as a file holds them
    assert np.all(sides_N4[:, :2] + sides_N4[:, 2:] == 64)
