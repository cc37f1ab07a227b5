"""README and docs: every command parses, every module and file that they name is there."""

import dataclasses
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest

from dinojax.cli import main
from dinojax.config.recipe import flat
from dinojax.configs import base
from dinojax.tasks.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = flat(base.get_config())


def commands(page):
    """Lines of the fenced shell blocks, continued lines joined."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


COMMANDS = [(page.name, words) for page in PAGES for words in commands(page)]
OURS = [(name, words) for name, words in COMMANDS if "dinojax" in words]
MODULES = [(name, words) for name, words in COMMANDS if words[:2] == ["python", "-m"]]


def test_there_are_commands():
    assert len(OURS) > 30 and len(MODULES) > 10


@pytest.mark.parametrize("page, words", OURS, ids=lambda x: x if isinstance(x, str) else x[1])
def test_commands_parse(page, words):
    args = words[words.index("dinojax") + 1 :]
    if args[0] == "COMMAND":
        return
    main._parser().parse_args(args)  # ends the process for what it does not know
    known = KEYS if args[0] != "task" else {f.name: f for f in dataclasses.fields(Settings)}
    settings = [value for flag, value in zip(args, args[1:], strict=False) if flag == "--set"]
    for setting in settings:
        key = setting.split("=")[0].rpartition(":")[2]
        assert key in known or any(name.startswith(f"{key}.") for name in known), setting


@pytest.mark.parametrize("page, words", MODULES, ids=lambda x: x if isinstance(x, str) else x[1])
def test_modules_exist(page, words):
    assert importlib.util.find_spec(words[2]) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    named = set(
        re.findall(r"`((?:docs|dinojax|configs|tests|launch|benchmarks)/[\w./]+\.\w+)`", text)
    )
    if page.parent.name == "docs":
        named |= {f"docs/{name}" for name in re.findall(r"`(\w+\.md)`", text)}
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_readme_is_a_page_and_names_every_other():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert all(f"docs/{page.name}" in text for page in PAGES[2:])


# What takes seconds and needs nothing but recipes and a run directory.
QUICK = ("config show", "config explain", "config diff", "doctor", "report", "eval list")
RUNS = ("tiny", "vitl16")  # that pages name; here each is a recorded one


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder as that of a user, with runs."""
    for name in RUNS:
        recorded = ROOT / "tests/recorded/runs/healthy"
        shutil.copytree(recorded, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quick():
    found = {" ".join(words[words.index("dinojax") + 1 :]) for _, words in OURS}
    return sorted(text for text in found if text.startswith(QUICK))


@pytest.mark.parametrize("command", quick())
def test_commands_that_take_seconds_run(place, command, capsys):
    assert main.main(shlex.split(command)) == 0
    assert capsys.readouterr().out


def test_some_of_each_kind_of_quick_command_is_run():
    assert all(any(text.startswith(kind) for text in quick()) for kind in QUICK)


def test_the_python_of_the_page_on_tracking_runs(place, capsys):
    """Rows are read as told, and follow sends each once, also those that come later."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tracking.md").read_text(), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    rows = names["rows"]("runs/tiny")
    best = max(row["knn/both"] for row in rows if "knn/both" in row)
    assert capsys.readouterr().out.split()[1] == str(best)
    sent = []
    names["follow"](
        "runs/tiny",
        lambda step, values: sent.append((step, values)),
        seconds=0,
        until=lambda row: len(sent) == len(rows),
    )
    assert [step for step, _ in sent] == [row["step"] for row in rows]
    assert any("knn/both" in values for _, values in sent)
