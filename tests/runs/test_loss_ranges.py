"""Between which values losses move."""

import math

import pytest

from dinojax import config
from dinojax.monitor.diagnostics import LOSSES
from dinojax.runs.loss_ranges import loss_ranges


def test_a_guess_among_the_pairs_of_a_step_is_the_chance_of_a_text_stage():
    found = loss_ranges(config.load("dinotxt_vitl16").values())
    assert set(found) == {"contrastive"} <= set(LOSSES)
    assert found["contrastive"].floor == 0.0
    assert found["contrastive"].chance == pytest.approx(math.log(8192))
