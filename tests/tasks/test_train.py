"""Heads are trained, stopped, continued and run; what does not fit is refused by name."""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from dinojax.cli import main
from dinojax.config import ConfigError
from dinojax.models.vit import VitSpec
from dinojax.models.zoo import module
from dinojax.tasks import data as task_data
from dinojax.tasks import mask_targets, settings, train
from dinojax.weights import run
from dinojax.weights.load import Backbone
from dinojax.weights.preprocess import assumed
from dinojax.weights.report import LoadReport

SIDE, PATCH = 32, 8
DEPTH = ["num_steps=100", "judge_every=100", "num_bins=16", "lr=0.01"]
SMALL = ["size=32", "batch_size=4", "warmup=2", "save_every=4", "levels=8,8,8,8", "width=8"]


def random_backbone(patch_size):
    """A ViT of four blocks."""
    spec = VitSpec(width=32, depth=4, num_heads=2, patch_size=patch_size)
    images = np.zeros((1, SIDE, SIDE, 3), np.float32)
    params = jax.jit(module(spec).init)(jax.random.key(0), [images])["params"]
    params = jax.tree.map(np.asarray, nn.meta.unbox(params))
    report = LoadReport("test", 0, (), (), 0, 0, 1.0, ())
    return Backbone(spec, params, assumed(3)[0], report)


@pytest.fixture(scope="module")
def backbone():
    return random_backbone(PATCH)


@pytest.fixture(autouse=True)
def loaded(monkeypatch, backbone):
    monkeypatch.setattr(run, "load", lambda path: backbone)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bright squares on dark ground; labels tell which is which, depths are 2 m and 4 m."""
    root, rng = tmp_path_factory.mktemp("maps"), np.random.default_rng(0)
    for kind in ("labels", "metres"):
        for part, count in (("train", 6), ("val", 2)):
            for name in ("images", "maps"):
                (root / kind / part / name).mkdir(parents=True)
            for number in range(count):
                top, left = rng.integers(0, SIDE // 2, 2)
                inside = np.zeros((SIDE, SIDE), bool)
                inside[top : top + 16, left : left + 16] = True
                pixels = rng.integers(0, 60, (SIDE, SIDE, 3)) + 180 * inside[..., None]
                place = root / kind / part
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"images/{number}.png")
                stored = inside.astype(np.uint8)
                if kind == "metres":
                    stored = np.where(inside, 2000, 4000).astype(np.uint16)
                Image.fromarray(stored).save(place / f"maps/{number}.png")
    return root


def trained(folder, kind, out, *more):
    task = "segment" if kind == "labels" else "depth"
    given = {setting.split("=")[0] for setting in more}
    small = [setting for setting in SMALL if setting.split("=")[0] not in given]
    return train.train(
        task, backbone="b", data=str(folder / kind), run_dir=str(out), overrides=[*small, *more]
    )


@pytest.mark.slow
def test_a_head_that_was_stopped_ends_as_if_it_had_not_been(folder, tmp_path, monkeypatch):
    steps = ["head=linear", "num_steps=8", "judge_every=8"]
    whole = trained(folder, "labels", tmp_path / "whole", *steps)
    batch = task_data.TaskData.batch

    def broken(self, number):
        if number == 6:
            raise KeyboardInterrupt
        return batch(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(task_data.TaskData, "batch", broken)
        with pytest.raises(KeyboardInterrupt):
            trained(folder, "labels", tmp_path / "parts", *steps)
    assert not (tmp_path / "parts" / train.WEIGHTS).exists()
    assert trained(folder, "labels", tmp_path / "parts", *steps) == whole
    first, second = (tmp_path / name / train.WEIGHTS for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "parts" / "pictures" / "00000008.png").exists()
    with pytest.raises(ConfigError, match=r"lr: 0\.001 there, 0\.01 now"):
        trained(folder, "labels", tmp_path / "parts", *steps, "lr=0.01")


@pytest.mark.slow
def test_classes_are_learnt_and_drawn_by_the_command_line(folder, tmp_path, capsys):
    out, image = str(tmp_path / "run"), str(folder / "labels/val/images/0.png")
    sets = [*SMALL, "head=linear", "num_steps=60", "judge_every=60", "lr=0.05"]
    flags = [word for setting in sets for word in ("--set", setting)]
    data = str(folder / "labels")
    words = ["task", "train", "segment", "--backbone", "b", "--data", data, "--run", out, *flags]
    assert main.main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val/accuracy"] > 80  # one class everywhere is right for 75 %
    maps = tmp_path / "maps"
    assert main.main(["task", "run", "segment", "--weights", out, "--image", image,
                      "--out", str(maps)]) == 0  # fmt: skip
    assert "class 0" in capsys.readouterr().out
    with Image.open(maps / "0.png") as found, Image.open(folder / "labels/val/maps/0.png") as true:
        assert np.mean(np.asarray(found) == np.asarray(true)) > 0.8
    assert main.main(["task", "run", "depth", "--weights", out, "--image", image,
                      "--out", str(maps)]) == 2  # fmt: skip
    assert "is a head of segment, not of depth" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_depth_is_learnt_by_a_dpt_head(folder, tmp_path):
    found = trained(folder, "metres", tmp_path, *DEPTH)
    assert found["rmse"] < 0.85  # the best single depth is 0.87 m off


@pytest.mark.exhaustive
def test_masks_are_learnt_by_a_mask2former_head(folder, tmp_path, monkeypatch):
    coarse = random_backbone(16)
    monkeypatch.setattr(run, "load", lambda path: coarse)
    sizes = ["head=mask2former", "width=32", "queries=4", "depth=1", "pixel_depth=1"]
    steps = ["num_points=64", "num_steps=40", "judge_every=40", "lr=0.003"]
    found = trained(folder, "labels", tmp_path, *sizes, *steps)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3]) and 0 <= found["miou"] <= 100


def test_segments_are_the_classes_of_an_image():
    labels = np.full((2, 2, 2), 255)
    labels[0] = [[3, 1], [1, 255]]
    found = mask_targets.segments(labels, num_classes=5, most=3)
    assert found.count_B.tolist() == [2, 0] and found.labels_BT[0, :2].tolist() == [1, 3]
    assert found.masks_BTHW[0, :2].tolist() == [
        [[False, True], [True, False]],
        [[True, False], [False, False]],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("head=mask2former", "looks at patches of 16 pixels; this backbone has 8"),
        ("lrr=1", "no key 'lrr'; lr is meant"),
        ("size=30", "size=30 is no multiple of the patch of 8 pixels; use 24"),
        ("lr=nan", "lr=nan must be a number above 0"),
        ("levels=1,2", r"a dpt head has four"),
        ("head=unet", "choose of linear, dpt, mask2former"),
        ("batch_size=many", "batch_size=many: give int"),
        ("min_depth=20", "is not below max_depth=10"),
    ],
)
def test_settings_that_do_not_work_are_refused_by_name(folder, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        train.train(
            "segment", backbone="b", data=str(folder / "labels"), run_dir=str(tmp_path / "run"),
            overrides=[change],
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_labels_metres_and_folders_that_do_not_fit_are_refused(folder, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"labels run from 0 to 1; with num_classes=1"):
        trained(folder, "labels", out, "num_classes=1")
    with pytest.raises(ConfigError, match=r"the maps run from 2000 to 4000 m, none of it between"):
        trained(folder, "metres", out, "per_metre=1")
    with pytest.raises(ConfigError, match="must hold the folders images and maps"):
        train.train("depth", backbone="b", data=str(tmp_path), run_dir=str(out), overrides=SMALL)
    assert not out.exists()
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds something else, such as other\.txt"):
        trained(folder, "labels", tmp_path)


def test_settings_come_back_from_json():
    own = settings.parse("canopy", ["lr=0.01", "readout=true", "levels=1,2,3,4"])
    assert settings.of_json(own.to_json(), "task.json") == own and own.max_depth == 96
    with pytest.raises(ConfigError, match="lr='fast' is no float"):
        settings.of_json({**own.to_json(), "lr": "fast"}, "task.json")
