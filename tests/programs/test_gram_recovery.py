"""What a Gram anchor gives back: the recorded outcome of tests/programs/gram_recovery.py."""

import json
import re

import pytest

from dinojax import config
from dinojax.config import ConfigError
from tests.programs import gram_recovery
from tests.programs.gram_recovery import RECORDED, WITHOUT

NOISE = 1.7  # points: two standard errors of k-NN accuracies of 960 queries would be 3


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def test_the_anchored_run_recovers_its_dense_metric_while_knn_holds_and_the_control_does_not(
    recorded,
):
    """Dense: the anchor gives back most of what was lost, going on without it at most a third."""
    found = gram_recovery.outcome(recorded["curves"])
    dense, knn = ({name: row[key] for name, row in found.items()} for key in ("dense", "knn"))
    lost = dense["pretrain"] - dense["spoil"]
    assert lost > 4.0  # of 384 quarters of mosaics the standard error is 2.1
    assert dense["anchored"] - dense["spoil"] > 0.67 * lost
    assert dense["control"] - dense["spoil"] < 0.33 * lost
    assert knn["anchored"] > knn["spoil"] - NOISE


def test_both_runs_share_what_comes_before_the_last_stage(recorded):
    anchored, control = (
        [row for row in recorded["curves"][name] if row["stage"] != "repair"]
        for name in ("anchored", "control")
    )
    assert anchored == control and {row["stage"] for row in anchored} == {"pretrain", "spoil"}


def test_the_recording_is_of_the_recipe_as_it_is(recorded):
    """Its commands are those of main, and the last evaluation is at the sum of the steps."""
    assert len(recorded["commands"]) == 4 and {"date", "processor_seconds"} <= set(recorded)
    assert all(key in recorded["commands"][3] for key in WITHOUT)
    stages = config.load_stages(gram_recovery.__file__)
    steps = sum(stage.num_steps for stage in stages)
    assert {rows[-1]["step"] for rows in recorded["curves"].values()} == {steps}
    control = config.load_stages(gram_recovery.__file__, WITHOUT)
    changed = {key for key, *_ in config.diff(stages[2], control[2])}
    assert changed == {"gram.enabled", "gram.anchor"}
    with pytest.raises(ConfigError, match="no stage"):
        config.load_stages(gram_recovery.__file__, ["spoilt:seed=1"])


def test_the_page_draws_both_runs(recorded):
    text = gram_recovery.page(recorded["curves"])
    charts = re.findall(r'<script type="application/json">(.*?)</script>', text)
    names = [[line["name"].split()[0] for line in json.loads(chart)["data"]] for chart in charts]
    assert names == [["anchored", "control"]] * 2
