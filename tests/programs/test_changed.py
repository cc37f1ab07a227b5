"""The tests that a change asks for."""

import subprocess

import pytest

from tests.programs import changed


def test_a_package_is_tested_with_all_that_import_it():
    chosen = changed.tests_of(["dinojax/losses/koleo.py"])
    assert {"tests/losses", "tests/train", "tests/distill", "tests/cli", "tests/system"} <= {
        *chosen
    }
    assert not {"tests/data", "tests/models", "tests/weights"} & {*chosen}
    assert "tests/sharding" not in changed.tests_of(["dinojax/cli/main.py"])
    assert "tests/curate" in changed.tests_of(["dinojax/files/drafts.py"])  # over others


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("docs/commands.md", set()),
        ("benchmarks/step_time.py", {"tests/benchmarks"}),
        ("tests/eval/test_knn.py", {"tests/eval/test_knn.py"}),
        ("tests/golden/dense.py", {"tests/golden"}),
    ],
)
def test_what_nothing_imports_is_tested_alone(path, expected):
    assert {*changed.tests_of([path])} == {*changed.ALWAYS, *expected}


@pytest.mark.parametrize(
    "path", ["setup.cfg", "launch/env.sh", "tests/support/small.py", "dinojax/__init__.py"]
)
def test_what_everything_rests_on_asks_for_all(path):
    assert changed.tests_of([path]) == ["tests"]


def test_files_that_differ_and_files_that_are_new_are_seen(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path)

    monkeypatch.setattr(changed, "ROOT", tmp_path)
    git("init", "--quiet")
    for name in ("kept", "edited", "removed"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    (tmp_path / "edited").write_text("2")
    (tmp_path / "removed").unlink()
    (tmp_path / "new").write_text("1")
    assert sorted(changed.changed_since("HEAD")) == ["edited", "new", "removed"]
