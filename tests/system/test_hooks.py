"""What is measured during training disturbs it by no bit, in `train` and in `distill`."""

import numpy as np
import pytest

from dinojax import config as configs
from dinojax.data import tiles
from dinojax.distill import loop as distill_loop
from dinojax.runs.scalars import read_metrics
from dinojax.train import loop
from tests.support import several, small
from tests.support.dense import save
from tests.support.family import RECIPE, quick  # noqa: F401
from tests.support.stopping import same_state

pytestmark = pytest.mark.slow
WARM = ("schedules.lr.warmup=1", "schedules.teacher_temperature.warmup=1")
STEPS = ("num_steps=3", "checkpoint.every=3", "schedules.lr.warmup=1", "log.pictures=False")
COLUMNS = {"knn/cls", "dense/mosaic", "tokens/cls_patch", "fewshot/mean", "ridge/miou"}
PREFIXES = tuple(
    f"{name}/"
    for name in ("knn", "dense", "tokens", "fewshot", "ridge", "warps", "pan", "linear", "logreg")
    + ("retrieval", "segmentation", "depth")
)


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


def everything(folder):
    """All rows that tiles and a folder of maps can serve, at steps 0 and 2."""
    few = [pair for pair in hooks(folder) if "batch_size" not in pair]
    more = ("warps", "pan", "linear", "logreg", "retrieval", "segmentation", "depth")
    return [
        *few,
        *(f"{name}.every=2" for name in more),
        *("warps.size=32", "warps.num=3", "pan.size=32", "pan.num=2", "pan.frames=3"),
        *("linear.num_steps=20", "linear.batch_size=16"),
        *("segmentation.num_steps=2", "segmentation.warmup=1", "segmentation.size=32"),
        *("depth.num_steps=2", "depth.warmup=1", "depth.size=32", "depth.per_metre=1.0"),
        *(f"{name}.batch_size=2" for name in ("segmentation", "depth")),
        *(f"{name}.rates=(0.01,)" for name in ("segmentation", "depth")),
        *(f"{name}.decays=(0.01,)" for name in ("segmentation", "depth")),
        *(
            f"{name}.{part}={folder}"
            for name in ("segmentation", "depth")
            for part in ("train", "val")
        ),
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


def test_two_processes_measure_what_one_does(tmp_path):
    given = [s for s in small.STAGED if not s.startswith(("mesh.", "knn", "batch_size", "optim"))]
    given += ["num_steps=2", "checkpoint.every=2", "batch_size=16", *WARM]
    given += [*everything(tmp_path / "maps"), "optim.eps=1e-3", "expect.platform=cpu"]
    found = []
    for count in (1, 2):
        ended = several.train(tmp_path / str(count), given, count=count, devices=count)
        assert [one.code for one in ended] == [0] * count, "\n".join(one.told for one in ended)
        found.append({})
        for row in read_metrics(tmp_path / str(count) / "metrics.jsonl"):
            found[-1] |= {(row["step"], k): v for k, v in row.items() if k.startswith(PREFIXES)}
    one, two = found
    assert one.keys() == two.keys()
    assert {name.split("/")[0] + "/" for _, name in one} == set(PREFIXES)
    for key, value in one.items():
        np.testing.assert_allclose(two[key], value, rtol=1e-4, atol=1e-5, err_msg=str(key))
