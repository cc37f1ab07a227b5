"""Continued pretraining on tiles of scenes, killed and continued."""

import numpy as np
import pytest

from dinojax import config as configs
from dinojax.runs.scalars import read_metrics
from dinojax.train import finish, loop, trainer
from dinojax.train.records import Records
from tests.support import small
from tests.support.scenes import NODATA, scene, waves
from tests.support.stopping import Stop, at, die

pytest.importorskip("rasterio")

COLOURS = ("saturation", "hue", "grayscale_rate")


@pytest.fixture
def folder(tmp_path):
    """16-bit scenes of four bands: 3 x 4 tiles of 64 pixels, of which one is nodata."""
    values = waves(190, 250)
    values[:64, :64] = NODATA
    scene(tmp_path / "scenes" / "a.tif", values)
    return tmp_path / "scenes"


@pytest.mark.slow
def test_a_run_on_tiles_of_scenes_that_was_killed_ends_as_one_that_was_not(
    folder, tmp_path, monkeypatch
):
    compiled = {}

    def compile_once(built):
        key = (built.batch_shape, built.step.view_spec, built.step.objective)
        if key not in compiled:
            compiled[key] = built.lower().compile(small.FAST)
        return compiled[key]

    monkeypatch.setattr(trainer, "compile_step", compile_once)
    monkeypatch.setattr(finish, "finish", lambda *args, **options: None)
    settings = [f"data.path={folder}", "mesh.devices=1", "log.pictures=False", "log.every=1"]
    settings += ["augment.blur_rates=0.0,0.0,0.0", "image.channels=4", "data.value_range=(0, 3000)"]
    settings += ["image.mean=(0.5,0.5,0.5,0.5)", "image.std=(0.2,0.2,0.2,0.2)"]
    settings += [f"augment.{name}=0.0" for name in COLOURS]
    stages = configs.load_stages("adapt_satellite", settings, smoke=True)
    loop.train(stages, tmp_path / "whole")
    with at(monkeypatch, (Records, "add"), 3, die), pytest.raises(Stop):
        loop.train(stages, tmp_path / "killed")
    assert loop.train(stages, tmp_path / "killed").step == 2
    whole, killed = (
        {
            (row["stage"], row["step"]): row["total"]
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        }
        for name in ("whole", "killed")
    )
    assert whole == killed and len(whole) == 4 and np.isfinite(list(whole.values())).all()
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "1 of 12 tiles left out for their nodata" in log
    assert "0 to 3000 become 0 to 255" in log
