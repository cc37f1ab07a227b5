"""The wheel: one top-level name, recipes and pages inside, and training from any folder."""

import os
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(*command, **options):
    done = subprocess.run(command, text=True, capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as pip builds it, from a copy that holds what git knows and nothing else."""
    out = tmp_path_factory.mktemp("wheel")
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    source = tmp_path_factory.mktemp("source")
    for name in filter(None, files.splitlines()):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            run("cp", "--no-dereference", ROOT / name, source / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, source)
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_holds_one_name_with_every_recipe_and_page(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dinojax"}
    for folder, ending in (("configs", ".py"), ("docs", ".md")):
        here = {path.name for path in (ROOT / folder).rglob(f"*{ending}")}
        there = {name.split("/")[-1] for name in names if name.startswith(f"dinojax/{folder}/")}
        assert here == there and here


@pytest.mark.slow
def test_an_installed_wheel_trains_from_a_folder_with_configs_of_its_own(wheel, tmp_path):
    """In an environment of its own, with this one's libraries, without this checkout."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    (own,) = environment.glob("lib/python*/site-packages")
    libraries = sysconfig.get_paths()["purelib"]
    assert libraries in site.getsitepackages()
    (own / "libraries.pth").write_text(libraries + "\n")  # whose own .pth files are not read
    options = ("--quiet", "--no-deps", "--no-index", "--target", own)
    run(sys.executable, "-m", "pip", "install", *options, wheel)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").write_text("raise RuntimeError('not of dinojax')\n")
    (tmp_path / "configs/base.py").write_text("raise RuntimeError('not of dinojax')\n")
    python, hidden = environment / "bin/python", {"PYTHONPATH": "", "PYTHONSAFEPATH": ""}
    options = dict(cwd=tmp_path, env={k: v for k, v in os.environ.items() if k not in hidden})
    where = run(python, "-c", "import dinojax; print(dinojax.__file__)", **options)
    assert str(own) in where
    settings = (
        "num_steps=2",
        "batch_size=16",
        "mesh.devices=1",
        "log.pictures=False",
        "knn.every=None",
    )
    settings += ("schedules.lr.warmup=0", "schedules.teacher_temperature.warmup=0")
    sets = [word for setting in settings for word in ("--set", setting)]
    run(python, "-m", "dinojax", "train", "--config", "tiny", "--run", "run", *sets, **options)
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") >= 1
