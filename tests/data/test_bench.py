"""Rates per stage by a clock that the test moves, and the verdict."""

import types

import numpy as np
import pytest

from dinojax.data import bench
from dinojax.data.bench import loader_rate, stage_rates, verdict
from dinojax.data.encoded import EncodedSource
from dinojax.data.folder import folder as open_folder
from tests.support.stored_data import folder, png


@pytest.fixture
def source(tmp_path):
    images = {f"{i}.png": png(i) for i in range(8)}
    images["9.png"] = b"broken"
    return open_folder(path=str(folder(tmp_path, images)), channels=3)


class Clock:
    """Stands still but for what the stages cost."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def cost(self, seconds, function):
        def run(*args, **options):
            self.now += seconds
            return function(*args, **options)

        return run


def test_each_stage_is_charged_its_own_time(source, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(EncodedSource, "encoded", clock.cost(1, EncodedSource.encoded))
    monkeypatch.setattr(bench, "load_pixels", clock.cost(2, bench.load_pixels))
    monkeypatch.setattr(bench, "fit_into_box", clock.cost(4, bench.fit_into_box))
    monkeypatch.setattr(np, "zeros", clock.cost(3, np.zeros))
    # Nine images, one broken, in batches of three.
    found = stage_rates(source, box_size=4, batch_size=3, seconds=68, clock=clock)
    assert found["read"] == pytest.approx(1 / 1)
    assert found["decode"] == pytest.approx(1 / 2)
    assert found["fit"] == pytest.approx(9 / (8 * 4))
    assert found["batch"] == pytest.approx(1 / 1)
    assert found["all"] == pytest.approx(9 / 68)


def test_rates_of_a_real_folder_are_positive(source):
    found = stage_rates(source, box_size=4, batch_size=4, seconds=0.05, clock=bench.time.monotonic)
    assert set(found) == {*bench.STAGES, "all"} and min(found.values()) > 0
    assert found["all"] < min(found[stage] for stage in bench.STAGES)


@pytest.mark.parametrize("num_threads, prefetch", [(1, 2), (2, 1)])
def test_the_loader_runs_as_the_section_says_also_with_bad_images(source, num_threads, prefetch):
    data = types.SimpleNamespace(
        box_size=4, num_workers=0, num_threads=num_threads, prefetch=prefetch
    )
    assert loader_rate(source, data=data, batch_size=4, seconds=0.05) > 0


def test_the_verdict_compares_with_the_step():
    assert "steps of 2.00 s or longer" in verdict(50, batch_size=100, step_seconds=None)
    told = verdict(50, batch_size=100, step_seconds=0.5)
    assert told.startswith("Input-bound by 4.0 times: a step takes 200 images/s")
    assert verdict(300, batch_size=100, step_seconds=0.5).startswith("Keeps up: 1.5 times")
