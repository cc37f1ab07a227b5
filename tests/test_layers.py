"""A package imports only from packages below it, and three sentences that hold beside that."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dinojax"

# From the ground up. Packages of one row do not know each other.
LEVELS = [
    {"files"},
    {"sharding", "distributed", "data"},
    {"config", "ops", "viz"},
    {"models", "augment", "losses", "migrate", "checkpoint"},
    {"weights", "runs", "text"},
    {"eval", "monitor"},
    {"train", "curate"},
    {"distill", "tasks"},
    {"plan"},
    {"cli"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def package(path):
    """The package of dinojax that a file belongs to; None for `__init__` and `__main__`."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def imported_modules(source):
    """Dotted names under dinojax that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("dinojax."))


# Which evaluations there are, and what their files declare: data, as recipes are, for everyone.
TABLE = ("dinojax.eval.suite.", "dinojax.eval.suite_sets.", "dinojax.eval.row.")


def imported_packages(source):
    names = {name for name in imported_modules(source) if not f"{name}.".startswith(TABLE)}
    packages = {name.split(".")[1] for name in names}
    return packages - {"configs"}  # recipes, which are data


def test_there_are_at_most_ten_levels():
    assert len(LEVELS) <= 10


def violations(own, source):
    """Imports of a package that does not stand below."""
    return [
        f"{own} (level {LEVEL[own]}) imports {other} (level {LEVEL[other]})"
        for other in sorted(imported_packages(source) - {own})
        if LEVEL[other] >= LEVEL[own]
    ]


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_stands_in_a_package_two_deep():
    """So that the folders are the table of contents."""
    loose = [path.name for path in FILES if package(path) is None]
    assert loose == ["__init__.py", "__main__.py"]
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in FILES)
    assert {package(path) for path in FILES} - {None} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if (own := package(path)) is not None:
        assert not violations(own, path.read_text())


def test_the_rule_sees_an_upward_and_a_sideways_import():
    assert violations("losses", "from dinojax.train.step import train_step")
    assert violations("losses", "def f():\n    import dinojax.models.vit")
    assert violations("sharding", "from dinojax import models")
    assert not violations(
        "losses", "from dinojax.sharding import mesh\nimport dinojax.losses.koleo"
    )


def users_of(*modules):
    """package/module.py that import one of the modules."""
    users = defaultdict(set)
    for path in FILES:
        for name in imported_modules(path.read_text()):
            users[name].add(str(path.relative_to(PACKAGE)))
    return set().union(*(found for name, found in users.items() if name.startswith(tuple(modules))))


def test_only_the_objective_knows_the_losses():
    """`train/objective.py` says which output meets which loss; two parts of it lie beside it."""
    outside = {path for path in users_of("dinojax.losses.") if not path.startswith("losses/")}
    # These ask how large their blocks are, not what they compute.
    sizes = {"plan/compile.py", "plan/text_step.py"}
    objectives = {"train/objective.py", "train/text_objective.py"}
    parts = {"train/guidance.py", "train/batch_statistics.py", "train/batch_types.py"}
    assert outside == {*objectives, *parts, *sizes}


def test_the_table_of_evaluations_imports_nothing():
    """So that config, runs and monitor may read it, and no command waits for jax."""
    for name in ("suite", "suite_sets", "row"):
        source = (PACKAGE / "eval" / f"{name}.py").read_text()
        assert not imported_packages(source)


def test_only_sharding_names_device_axes():
    """Everyone else names the axes of arrays, and `sharding/axes.py` says where those go."""
    outside = {
        path for path in users_of("dinojax.sharding.axes.DEVICE_AXES", "dinojax.sharding.axes.AXES")
    }
    assert {path.split("/")[0] for path in outside} <= {"sharding", "plan"}


def test_models_losses_and_crops_see_no_config():
    """They take sections or values, so that each can be used without a recipe."""
    seen = users_of("dinojax.config")
    assert not [
        path
        for path in seen
        if path.startswith(("models/", "losses/", "augment/", "ops/", "data/"))
    ]


TABLES = {"dinojax/configs/base.py"}  # files that are one long table
LINES, FUNCTION = 300, 60


def long_parts(path):
    """What of a file is longer than a reader takes in at once."""
    text = path.read_text()
    name, lines = str(path.relative_to(PACKAGE.parent)), text.count("\n")
    if lines > LINES and name not in TABLES:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            size = node.end_lineno - node.lineno + 1
            if size > FUNCTION and name not in TABLES:
                yield f"{name}, {node.name}: {size} lines"


def test_no_file_has_more_than_300_lines_and_no_function_more_than_60():
    assert not [part for path in FILES for part in long_parts(path)]


def test_the_limits_see_a_long_file_and_a_long_function(monkeypatch, tmp_path):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "package")
    path = tmp_path / "long.py"
    path.write_text("def f():\n" + "    x = 1\n" * 60 + "y = 1\n" * 240)
    assert list(long_parts(path)) == ["long.py: 301 lines", "long.py, f: 61 lines"]


TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_no_test_file_imports_another(path):
    """What several need is in tests/support, so that a file of tests can be moved or removed."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    others = {other.stem for other in TESTS}
    assert not [
        name for name in names if name.startswith("tests.") and others & set(name.split("."))
    ]
