"""A URL where only a path of this host works is refused before anything is written."""

import os

import pytest

from dinojax.cli.main import main
from dinojax.distributed.interrupt import REFUSED

URL = "gs://bucket/x"
GIVEN = {
    "train --run": ["train", "--config", "tiny", "--run", URL],
    "train --config": ["train", "--config", URL, "--run", "r"],
    "train --set distill.teacher": ["train", "--config", "tiny", "--run", "r", "--set"]
    + [f"distill.teacher={URL}"],
    "distill --run": ["distill", "--config", "distill_tiny", "--run", "s3://b/r"],
    "eval --run": ["eval", "knn", "--run", URL],
    "export --run": ["export", "--run", URL, "--format", "hf", "--out", "o"],
    "export --weights": ["export", "--weights", URL, "--format", "hf", "--out", "o"],
    "export --out": ["export", "--weights", "w", "--format", "hf", "--out", URL],
    "import --from": ["import", "--from", "hf://x/y", "--out", "o"],
    "import --out": ["import", "--from", "w", "--out", "file:///o"],
    "embed --out": ["embed", "--weights", "w", "--data", "gs://images", "--out", URL],
    "embed --weights": ["embed", "--weights", URL, "--data", "d", "--out", "o"],
    "data convert --out": ["data", "convert", "d", "--out", URL],
    "data check --out": ["data", "check", "d", "--out", URL],
    "config show --config": ["config", "show", "--config", URL],
    "config migrate --out": ["config", "migrate", "a.yaml", "--gpus", "8", "--out", URL],
    "ckpt inspect PATH": ["ckpt", "inspect", URL],
    "report folder": ["report", URL],
    "doctor folder": ["doctor", URL],
    "replay folder": ["replay", URL],
    "gram --run": ["gram", "pick", URL],
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_url_is_refused_by_its_option_and_nothing_is_written(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(GIVEN[name]) == REFUSED
    told = capsys.readouterr().err
    option = name.split(" ")[-1]
    assert option in told and "a URL does not work here" in told
    assert os.listdir(tmp_path) == []
