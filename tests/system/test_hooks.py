"""What is measured during training disturbs it by no bit, in `train` and in `distill`."""

import numpy as np
import pytest

from dinojax import config as configs
from dinojax.data import tiles
from dinojax.distill import loop as distill_loop
from dinojax.runs.scalars import read_metrics
from dinojax.train import loop
from tests.support import small
from tests.support.dense import save
from tests.support.family import RECIPE, quick  # noqa: F401
from tests.support.stopping import same_state

pytestmark = pytest.mark.slow
STEPS = ("num_steps=3", "checkpoint.every=3", "schedules.lr.warmup=1", "log.pictures=False")
COLUMNS = {"knn/cls", "dense/mosaic", "tokens/cls_patch", "fewshot/mean", "ridge/miou"}


def hooks(folder):
    """The hook set, at steps 0, 2 and 3."""
    rng = np.random.default_rng(0)
    for number in range(3):
        save(folder / f"images/{number}.png", rng.integers(0, 256, (32, 40), dtype=np.uint8))
        save(folder / f"maps/{number}.png", rng.integers(0, 2, (32, 40), dtype=np.uint8))
    names = ("knn", "tokens", "fewshot", "ridge")
    return [
        *(f"{name}.every=2" for name in names),
        *("knn.mosaics=2", "knn.batch_size=32", "tokens.num=4", "tokens.batch_size=4"),
        *("fewshot.shots=(1,)", "fewshot.draws=1", "ridge.size=32", "ridge.batch_size=4"),
        *(f"ridge.train={folder}", f"ridge.val={folder}"),
    ]


def measured(directory):
    rows = read_metrics(directory / "metrics.jsonl")
    return {row["step"] for row in rows if row.keys() & COLUMNS}, {n for row in rows for n in row}


def test_a_run_with_all_hooks_ends_with_the_weights_of_one_without(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "SPLITS", dict.fromkeys(tiles.SPLITS, 64))
    states = []
    for name, more in (("without", ["knn.every=None"]), ("with", hooks(tmp_path / "maps"))):
        staged = [s for s in small.STAGED if not s.startswith(("knn.every", "log.pictures"))]
        given = [*staged, *STEPS]
        states.append(loop.train(small.config(*given, *more), tmp_path / name))
    same_state(*states)
    steps, columns = measured(tmp_path / "with")
    assert steps == {0, 2, 3} and columns >= COLUMNS
    assert measured(tmp_path / "without")[0] == set()


def test_students_with_all_hooks_end_with_the_weights_of_students_without(tmp_path):
    path, states = tmp_path / "family.py", []
    path.write_text(RECIPE)
    base = (
        *("batch_size=16", "group_size=2", "crops.num_local=1", "data.box_size=40", "log.every=1"),
        *("augment.blur_rates=0.0,0.0,0.0", "distill.place=turn", *STEPS),
    )
    for name, more in (("without", ["knn.every=None"]), ("with", hooks(tmp_path / "maps"))):
        family = configs.load_students(path, [*base, *more])
        family = {"one": family["one"]}
        states.append(distill_loop.distill(family, tmp_path / name))
    same_state(*states)
    steps, columns = measured(tmp_path / "with/one")
    assert steps == {0, 2, 3} and columns >= COLUMNS
