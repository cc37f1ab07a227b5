"""The comparison with the PyTorch reference over seeds: its statistics, its recipe, its outcome."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dinojax.augment.photometric import normalize_per_crop
from dinojax.migrate.files import read_yaml
from dinojax.migrate.translate import migrate
from tests import same_learning
from tests.support.seed_statistics import (
    LEVEL,
    QUANTITIES,
    SIDES,
    compare,
    steps_of,
    summary,
    table,
)

DOCS = Path(__file__).parent.parent.parent / "docs" / "learning.md"


def row(side: str, seed: int, level: float, *, steps: int = 200) -> dict:
    """A finished run whose terms rise from step to step, all of them higher by `level`."""
    curve = [level + step / 1000 for step in range(steps)]
    curves = {name: curve for name in same_learning.TERMS}
    knn = {"cls": 30 + level, "patches": 20 + level}
    return {"side": side, "seed": seed, "steps": steps, "knn": knn, "curves": curves}


# -- statistics ------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_is_welchs():
    """Against the formulas of Welch and Satterthwaite, written out."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.0, 0.5, 7), rng.normal(2.0, 2.0, 12)
    shares = [x.var(ddof=1) / len(x) for x in (first, second)]
    freedom = sum(shares) ** 2 / (shares[0] ** 2 / 6 + shares[1] ** 2 / 11)
    reach = stats.t.ppf((1 + LEVEL) / 2, freedom) * math.sqrt(sum(shares))
    found, mean = compare(first, second), second.mean() - first.mean()
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach))


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(0.0, 1.0, 6), rng.normal(0.5, 3.0, 9)) for _ in range(150)]
    found = [compare(*pair) for pair in pairs]
    means = np.mean([x.low <= 0.5 <= x.high for x in found])
    ratios = np.mean([x.ratio_low <= 3.0 <= x.ratio_high for x in found])
    assert means == pytest.approx(LEVEL, abs=0.045)
    assert ratios == pytest.approx(LEVEL, abs=0.045)


def test_the_other_side_first_turns_every_interval_around():
    rng = np.random.default_rng(4)
    first, second = rng.normal(0, 1, 5), rng.normal(0, 2, 8)
    one, other = compare(first, second), compare(second, first)
    assert (other.low, other.mean, other.high) == pytest.approx((-one.high, -one.mean, -one.low))
    inverted = 1 / one.ratio_high, 1 / one.ratio, 1 / one.ratio_low
    assert (other.ratio_low, other.ratio, other.ratio_high) == pytest.approx(inverted)
    assert other.spread_p == pytest.approx(one.spread_p)


def test_equal_spreads_are_called_unlike_no_more_often_than_p_says_and_unlike_ones_often():
    rng = np.random.default_rng(2)
    found = {
        factor: np.mean(
            [
                compare(rng.normal(0, 1, 16), rng.normal(0, factor, 16)).spread_p < 0.05
                for _ in range(60)
            ]
        )
        for factor in (1.0, 3.0)
    }
    assert found[1.0] < 0.12
    assert found[3.0] > 0.8


# -- the table -------------------------------------------------------------------------------------


def test_windows_are_shares_of_a_run_counted_from_its_first_step():
    assert [steps_of(name, 200) for name in ("early", "late")] == [(60, 100), (150, 200)]
    values = summary(row("dinojax", 0, 1.0))["values"]
    assert values["KoLeo, {early}"] == pytest.approx(1 + np.arange(60, 100).mean() / 1000)
    assert values["k-NN of patches, %"] == 21.0


def test_a_line_of_the_table_has_means_spreads_difference_and_intervals():
    rows = [row("reference", seed, level) for seed, level in enumerate((-1.0, 0.0, 1.0))]
    rows += [row("dinojax", seed, level) for seed, level in enumerate((-2.0, 0.5, 3.0, 0.5))]
    lines = table([summary(found) for found in rows])
    assert len(lines) == 2 + len(QUANTITIES)
    assert lines[0].startswith("| 200 steps | reference, 3 seeds | dinojax, 4 seeds | difference |")
    first, second = [29.0, 30.0, 31.0], [28.0, 30.5, 33.0, 30.5]
    x = compare(first, second)
    spread = np.std(second, ddof=1)
    assert lines[2] == (
        f"| k-NN of cls, % | 30.0 (1.0) | 30.5 ({spread:.1f}) "
        f"| +0.5 [{x.low:+.1f}, {x.high:+.1f}] "
        f"| {spread:.2f} [{x.ratio_low:.2f}, {x.ratio_high:.2f}] | {x.spread_p:.2f} |"
    )
    early = statistics.mean(summary(found)["values"]["KoLeo, {early}"] for found in rows[:3])
    assert lines[4].startswith(f"| KoLeo, steps 60 to 100 | {early:.3f} (1.000) |")


def test_two_runs_of_a_side_make_no_table():
    rows = [row("reference", seed, seed) for seed in range(3)]
    rows += [row("dinojax", seed, seed) for seed in range(2)]
    with pytest.raises(ValueError, match="2 runs of dinojax"):
        table([summary(found) for found in rows])


# -- what is compared ------------------------------------------------------------------------------


def test_the_reference_recipe_translates_without_a_rest():
    found = migrate(read_yaml(same_learning.RECIPE), gpus=1)
    assert found.flavour == "dinov3"
    assert not found.refused and not found.unknown
    assert set(found.ignored) == {"train.compile", "train.cache_dataset"}


def test_our_side_is_the_translated_recipe_in_the_steps_asked_for(tmp_path):
    config = same_learning.own_config(3, 100, tmp_path)
    given = read_yaml(same_learning.RECIPE)
    assert (config.seed, config.num_steps, config.batch_size) == (3, 100, 64)
    assert config.group_size == given["train.batch_size_per_gpu"] == 64
    assert config.schedules.lr.peak == given["optim.lr"]
    assert config.schedules.lr.warmup == 10 * given["optim.warmup_epochs"]
    assert config.optim.freeze_last_layer == 10
    assert config.model.width == 96 and config.model.num_registers == 2


def test_finished_runs_of_the_same_length_are_kept(tmp_path):
    rows = [row("dinojax", 0, 0.0), row("dinojax", 0, 0.0, steps=100), row("reference", 4, 0.0)]
    lines = "".join(json.dumps(found) + "\n" for found in rows)
    (tmp_path / "runs.jsonl").write_text(lines)
    found = same_learning.finished(tmp_path, 200)
    assert [(x["side"], x["seed"]) for x in found] == [("dinojax", 0), ("reference", 4)]
    assert same_learning.finished(tmp_path / "absent", 200) == []


def test_both_sides_normalise_a_crop_alike():
    torch = pytest.importorskip("torch")
    from tests.support.reference_loop import PerCrop

    rng = np.random.default_rng(3)
    for contrast in (255.0, 1.0):  # of levels; the second is next to a crop of one colour
        crop_CHW = rng.uniform(0, contrast, (3, 16, 16))
        ours = np.asarray(normalize_per_crop(crop_CHW.astype(np.float32)))
        theirs = PerCrop()(torch.from_numpy(crop_CHW.astype(np.float32)) / 255)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    pytest.importorskip("torch")
    from tests.support import reference_loop

    with pytest.raises(FileNotFoundError, match="holds no dinov3/train/train.py"):
        reference_loop.open_reference(tmp_path)


# -- what came out ---------------------------------------------------------------------------------


def test_docs_show_the_table_of_what_was_recorded():
    recorded = json.loads(same_learning.RECORDED.read_text())
    told = DOCS.read_text()
    for steps in {found["steps"] for found in recorded}:
        rows = [found for found in recorded if found["steps"] == steps]
        assert {found["side"] for found in rows} == set(SIDES)
        assert "\n".join(table(rows)) in told
