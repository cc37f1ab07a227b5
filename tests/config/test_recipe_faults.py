"""Recipes that are no programs, that raise or exit, or that return something else."""

import pytest

from dinojax import config
from dinojax.cli import main
from dinojax.config.recipe import ConfigError

HEAD = "from dinojax.configs import base\n\n\ndef get_config():\n    c = base.get_config()\n"


def refusal(tmp_path, text):
    """What `config.load` says of a recipe."""
    path = tmp_path / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as found:
        config.load(path)
    return str(found.value).replace(str(path), "mine.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n    pass\n", "mine.py:1: SyntaxError: invalid syntax"),
        ("x = 1\n  y = 2\n", "mine.py:2: IndentationError: unexpected indent"),
        ("x = (\n", "mine.py:1: SyntaxError: '(' was never closed"),
        ("x = 1\0\n", "mine.py: "),
        (b"x = '\xff'\n", "mine.py:1: SyntaxError: (unicode error)"),
        ("(" * 500, "mine.py:1: SyntaxError"),
        ("import sys\nsys.exit(0)\n", "mine.py:2: the recipe ends the process (exit code 0)"),
        ("x = undefined\n", "mine.py:1: NameError: name 'undefined'"),
        ("import no_such_module\n", "mine.py:1: ModuleNotFoundError: No module named 'no_such"),
        (HEAD + "    exit(0)\n", "mine.py:6: the recipe ends the process (exit code 0)"),
        (HEAD + "    return 1 / 0\n", "mine.py:6: ZeroDivisionError"),
        (HEAD + "    raise RuntimeError('no')\n", "mine.py:6: RuntimeError: no"),
        (HEAD + "    assert c.seed == 1\n", "mine.py:6: AssertionError"),
        (HEAD + "    open('/no/such')\n", "mine.py:6: FileNotFoundError"),
        (HEAD + "    return get_config()\n", "RecursionError"),
        (HEAD + "    pass\n", "mine.py: get_config returns NoneType, not the config"),
        (HEAD + "    return c.to_dict()\n", "mine.py: get_config returns dict, not the config"),
        (HEAD + "    return c.crops\n", "mine.py: get_config returns a config without accumulate"),
        ("get_config = 3\n", "mine.py has no function get_config"),
        (HEAD + "    return c\nSTAGES = [1]\n", "mine.py: STAGES must map names to functions"),
        (
            HEAD + "    return c\nSTAGES = {'a': lambda c: None}\n",
            "mine.py: stage a returns NoneType, not the config",
        ),
        (HEAD + "    c.seed = 10**5000\n    return c\n", "mine.py: seed=a number of more than"),
        (HEAD + "    c.seed = True\n    return c\n", "seed=True has the wrong type"),
        (HEAD + "    c.optim.clip = float('nan')\n    return c\n", "optim.clip=nan has the wrong"),
    ],
)
def test_a_recipe_that_is_at_fault_is_refused_by_file_and_line(text, message, tmp_path):
    assert message in refusal(tmp_path, text)


def test_a_recipe_that_exits_with_0_does_not_end_the_command_with_0(tmp_path, capsys):
    path = tmp_path / "mine.py"
    for text in ("import sys\nsys.exit(0)\n", HEAD + "    raise SystemExit\n"):
        path.write_text(text)
        assert main.main(["config", "show", "--config", str(path)]) == main.REFUSED
        assert "the recipe ends the process" in capsys.readouterr().err


def test_an_error_in_a_module_that_a_recipe_imports_names_that_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_of_a_recipe.py").write_text("x = = 1\n")
    told = refusal(tmp_path, "import helper_of_a_recipe\n")
    assert "helper_of_a_recipe.py:1: SyntaxError" in told


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("learning_rate", "schedules.lr.peak"),
        ("lr", "schedules.lr.peak"),
        ("optim.lr", "schedules.lr.peak"),
        ("batch", "batch_size"),
        ("bs", "batch_size"),
        ("train.batch_size", "batch_size"),
        ("wd", "schedules.weight_decay.peak"),
        ("img_size", "crops.global_size"),
        ("model.channels", "image.channels"),
        ("model.heads", "model.num_heads"),
        ("crops.global_siz", "crops.global_size"),
        ("num_step", "num_steps"),
    ],
)
def test_the_nearest_key_is_the_one_that_the_field_means(name, key):
    with pytest.raises(ConfigError, match=f"{name} is not a key; nearest: {key}$"):
        config.load("tiny", [f"{name}=1"])


def test_a_name_that_is_like_no_key_gets_no_hint():
    with pytest.raises(ConfigError, match="xyzzy is not a key$"):
        config.load("tiny", ["xyzzy=1"])
