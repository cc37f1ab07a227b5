"""Images of five 16-bit bands: import, check, train, k-NN and embed, all by their commands."""

import json

import numpy as np
import pytest

from dinojax.cli import main
from dinojax.models.vit import VitSpec
from dinojax.runs.scalars import read_metrics
from dinojax.weights.export import export
from tests.support.networks_small import random_network
from tests.support.stored_data import bands, tiff

pytest.importorskip("tifffile")

SPEC = VitSpec(width=24, depth=2, num_heads=3, patch_size=8, norm="layernorm")
RECIPE = """
from dinojax.configs import tiny


def get_config():
    c = tiny.smoke(tiny.get_config())
    c.image.update(channels=5, normalize="fixed", mean=(0.5,) * 5, std=(0.25,) * 5)
    c.data.update(source="folder", path={path!r}, value_range=(0.0, 3500.0))
    c.start.update(source={weights!r}, heads="new")
    c.batch_size, c.group_size, c.mesh.devices = 32, 8, 1
    c.knn.query = {path!r}
    return c
"""


@pytest.fixture
def images(tmp_path):
    """24 TIFFs of two classes: bands side by side, one after the other, and a page each."""
    for number in range(24):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        how = ("contig", "separate", "pages")[number % 3]
        path.write_bytes(tiff(bands(number, largest=3500), how))
    (tmp_path / "images" / "notes.txt").touch()
    return tmp_path / "images"


@pytest.mark.slow
def test_weights_for_five_channels_are_imported_trained_and_embedded(images, tmp_path, capsys):
    export(random_network(SPEC, size=32), tmp_path / "rgb", format="dinojax", certify=False)
    five, run = tmp_path / "five", tmp_path / "run"
    how = ["--channels", "5", "--inflate", "repeat"]
    statistics = ["--mean", "0.5,0.5,0.5,0.5,0.5", "--std", "0.25,0.25,0.25,0.25,0.25"]
    source = ["import", "--from", str(tmp_path / "rgb"), "--out", str(five)]
    assert main.main([*source, *how, *statistics]) == 0

    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(path=str(images), weights=str(five)))
    assert main.main(["train", "--config", str(recipe), "--run", str(run)]) == 0
    log = (run / "log.txt").read_text()
    assert "1 other file skipped (.txt 1)" in log
    assert "24 images are fewer than one batch of 32" in log
    assert "0 to 3500 become 0 to 255" in log
    rows = read_metrics(run / "metrics.jsonl")
    assert any("knn/cls" in row for row in rows) and (run / "pictures" / "crops.png").exists()
    assert main.main(["eval", "knn", "--run", str(run)]) == 0

    told = {}
    for name, weights, more in (
        ("run", run, []),
        ("import", five, ["--value-range", "0,3500"]),
        ("whole", five, []),
    ):
        out = tmp_path / "features" / name
        where = ["--weights", str(weights), "--data", str(images), "--out", str(out)]
        capsys.readouterr()
        assert main.main(["embed", *where, *more]) == 0
        told[name] = capsys.readouterr().out
        with np.load(out / "part-00000.npz") as part:
            assert part["cls"].shape == (24, 24) and np.isfinite(part["cls"]).all()
    assert "0 to 3500 become 0 to 255" in told["run"] and "0 to 3500" in told["import"]
    assert "levels left. --value-range '(0, 3500)' keeps more" in told["whole"]
    assert json.loads((tmp_path / "features/run/index.json").read_text())["value_range"] == [
        0,
        3500,
    ]
