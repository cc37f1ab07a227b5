"""Between which values losses move."""

import math

import numpy as np
import pytest

from dinojax import config
from dinojax.monitor.diagnostics import LOSSES
from dinojax.runs.loss_ranges import loss_ranges


def test_a_guess_among_the_pairs_of_a_step_is_the_chance_of_a_text_stage():
    found = loss_ranges(config.load("dinotxt_vitl16").values())
    assert set(found) == {"contrastive"} <= set(LOSSES)
    assert found["contrastive"].floor == 0.0
    assert found["contrastive"].chance == pytest.approx(math.log(8192))


def test_chance_of_the_sigmoid_loss_is_the_best_that_a_bias_alone_reaches():
    found = loss_ranges(config.load("dinotxt_vitl16", ["text.loss=sigmoid"]).values())
    assert set(found) == {"sigmoid"} <= set(LOSSES)
    bias = np.linspace(-20, 0, 20_001)
    alone = np.logaddexp(0, -bias) + 8191 * np.logaddexp(0, bias)
    assert found["sigmoid"].chance == pytest.approx(alone.min(), rel=1e-6)
