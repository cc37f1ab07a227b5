"""What one of the two programs does for a key, the other does as well, or refuses the key."""

import ast
import dataclasses
from pathlib import Path

import pytest

import dinojax
from configs import base
from dinojax import config as configs
from dinojax.config import ConfigError
from dinojax.config.recipe import flat
from dinojax.data import tiles
from dinojax.distill import loop as distill_loop
from dinojax.distill import stage as distill_stage
from dinojax.train import loop
from dinojax.train.checks import check_start
from dinojax.train.stage import Run
from tests.support.family import RECIPE

KEYS = flat(base.get_config())
SETTINGS = ("mesh.devices=1", "log.pictures=True")
# One that learns alone has nobody to share devices with.
OF_SEVERAL = {"distill.place"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Program -> the configs of its runs, opened and checked; nothing is computed."""
    folder, runs = tmp_path_factory.mktemp("keys"), {"train": [], "distill": []}
    recipe = folder / "family.py"
    recipe.write_text(RECIPE)

    def check(program):
        def keep(run):
            runs[program].append(run)
            check_start(run)

        return keep

    class Opened(Exception):
        """In place of the teacher, which comes next."""

    def stop(*_):
        raise Opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SPLITS", dict.fromkeys(tiles.SPLITS, 64))
        patch.setattr(distill_stage, "check_start", check("distill"))
        patch.setattr(distill_stage, "SharedTeacher", stop)
        patch.setattr(loop, "check_start", check("train"))
        patch.setattr(loop, "SharedTeacher", stop)
        family = configs.load_students(recipe, SETTINGS)
        with pytest.raises(Opened):
            distill_loop.distill(family, folder / "family")
        (one,) = configs.load_students(recipe, SETTINGS)["one"]
        with pytest.raises(Opened):
            loop.train(one, folder / "one")
    return {program: [run.config for run in found] for program, found in runs.items()}


def read(config) -> set[str]:
    return {key for key in KEYS if key in config._reads}


def test_both_programs_read_the_same_keys(opened):
    (one,), (first, second) = opened["train"], opened["distill"]
    assert read(first) ^ read(one) == OF_SEVERAL
    # What is read of the first student holds for all, and is the same for all.
    assert read(first) <= read(second) | {"distill.place"}


@pytest.mark.parametrize("program", ["train", "distill"])
def test_a_key_that_a_program_does_not_read_is_refused_by_it(program, opened):
    for config in opened[program]:
        for key in KEYS.keys() - read(config):
            other = config.replaced({key: "something else"})
            with pytest.raises(ConfigError, match=f"{key} is set .* but nothing read it"):
                other.check_all_read()


def attributes(*paths: str) -> set[str]:
    folder = Path(dinojax.__file__).parent
    trees = [ast.parse((folder / path).read_text()) for path in paths]
    return {n.attr for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


COMMON = ("trainer", "records", "periodic", "finish", "stops")


def test_what_a_run_was_opened_with_is_used_by_what_both_programs_drive():
    """Reading a key into a Run is not yet doing anything for it."""
    common = attributes(*(f"train/{name}.py" for name in COMMON))
    assert {field.name for field in dataclasses.fields(Run)} <= common
    for program in (("train/loop.py",), ("distill/loop.py", "distill/stage.py")):
        assert {"loader_options", "hang"} <= attributes(*program)
