"""`import dinojax`: what it offers, and the example of docs/python.md as a user would paste it."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dinojax
from dinojax import config as configs
from dinojax.config import ConfigError
from dinojax.distill import loop as distill_loop
from dinojax.runs.directory import claim
from dinojax.train import loop
from tests.support import several

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


def test_importing_dinojax_imports_nothing_of_jax():
    """Nor does a look at what is called like a function, which is the package itself."""
    told = (
        "import sys, dinojax; asked = dinojax.train, dinojax.distill; import dinojax.train as own"
    )
    told += "; sys.exit('jax' in sys.modules or asked[0] is not own or not callable(own))"
    assert subprocess.run([sys.executable, "-c", told], timeout=60).returncode == 0


def test_train_is_called_and_is_a_package():
    import dinojax.train.stops

    assert callable(dinojax.train) and callable(dinojax.train.stops.unsaved)


@pytest.mark.parametrize("name", dinojax.__all__)
def test_everything_public_says_what_it_takes_gives_and_raises(name):
    public = getattr(dinojax, name)
    text = inspect.getdoc(public.__call__ if name in ("train", "distill") else public)
    assert text.count("\n") > 4 and "Raises" in text
    for parameter in inspect.signature(public).parameters:
        assert parameter in text, parameter


@pytest.fixture
def trained(monkeypatch):
    """What the two loops are called with, in place of training."""
    calls = []
    monkeypatch.setattr(loop, "train", lambda *args, **more: calls.append((*args, more)))
    monkeypatch.setattr(distill_loop, "distill", lambda *args, **more: calls.append((*args, more)))
    return calls


def test_overrides_are_values_of_python_or_texts(trained, tmp_path):
    values = {"data.path": tmp_path, "optim.clip": None, "masks.ratio": (0.2, 0.4), "seed": 3}
    dinojax.train("tiny", run=tmp_path / "run", overrides=values, stage="pretrain")
    (((config,), run, options),) = trained
    assert (config.data.path, config.optim.clip, config.seed) == (str(tmp_path), None, 3)
    assert config.masks.ratio == (0.2, 0.4) and run == tmp_path / "run"
    assert options == {"accept": (), "stage": "pretrain", "max_wall": None}
    dinojax.train("tiny", run="run", overrides=["seed=4"])
    assert trained[1][0][0].seed == 4
    with pytest.raises(ConfigError, match="is one text; give a list"):
        dinojax.train("tiny", run="run", overrides="seed=4")
    with pytest.raises(ValueError, match="a Config that was loaded stays as it is"):
        dinojax.train(configs.load("tiny"), run="run", overrides={"seed": 4})


def test_a_run_alone_continues_with_its_own_config(trained, tmp_path):
    with pytest.raises(ConfigError, match="holds no run to continue .*; give the --config"):
        dinojax.train(run=tmp_path)
    given = configs.load_stages("tiny_stages", ["seed=9"])
    claim(tmp_path / "run", given)
    dinojax.train(run=tmp_path / "run")
    assert trained[0][0] == given


def test_distill_takes_a_family_and_some_of_it(trained, tmp_path):
    overrides = {"distill.teacher": "smoke:tiny", "narrow:distill.share": 1}
    dinojax.distill("distill_tiny", run=tmp_path, overrides=overrides, students=["narrow"])
    ((family, _, _),) = trained
    assert list(family) == ["narrow"] and family["narrow"][0].distill.share == 1


def test_an_unknown_evaluation_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="no evaluation 'linaer'; choose of .*knn"):
        dinojax.evaluate(tmp_path, "linaer")


@pytest.mark.slow
def test_the_notebook_of_the_page_runs(tmp_path):
    """In a folder of its own, cell after cell, in one process."""
    cells = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(cells))
    ended = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env=several.environment(1, PYTHONPATH=str(PAGE.parent.parent)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    for told in ("steps done: 4", "cls: (1, 24) patches: (1, 16, 24)", "k-NN: "):
        assert told in ended.stdout, ended.stdout
    assert "lying/0.png is most like " in ended.stdout and "compared with: " in ended.stdout
    assert (tmp_path / "out/hf/model.safetensors").exists()
