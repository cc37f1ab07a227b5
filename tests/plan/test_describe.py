"""`dinojax plan --words`: facts of the released recipes, in the right stage."""

import pytest

from dinojax.cli import main
from dinojax.config import load_stages, save
from dinojax.plan.describe import stage_lines
from tests.support.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_said(name, capsys):
    assert main.main(["plan", "--words", name, "--images", "1000"]) == main.FINISHED
    told = capsys.readouterr().out
    assert told.count("learning rate:") == told.count("starts from:") == len(load_stages(name))
    assert " epochs" in told


def test_the_stages_of_the_7b_model():
    found = load_stages("vit7b16")
    first, second, third = ("\n".join(stage_lines(found, number)) for number in range(3))
    assert "4,096,000,000 in all" in first and "904 patches an image" in first
    assert "stage pretrain, checkpoint 1000000: student, ema and optimizer" in second
    assert "gram refreshes: 3, after steps 10,000, 20,000, 30,000" in second
    assert "checkpoint pretrain/200000; sees undistorted crops, 2 times as large" in second
    assert "on from step 1" in second and "0.00024" in second
    assert "the ema of stage gram, checkpoint 200000, into student and ema" in third
    # Tokens of an image in the released list of sizes.
    for patches in ("2,440", "5,000", "5,408", "6,176", "8,136"):
        assert f"{patches} patches an image" in third
    assert "programs: 5" in third and "7.07e-05" in third
    assert "this stage's ema at step 0; sees undistorted crops, 1.5 times" in third


def test_a_batch_too_small_for_the_prototypes_gets_advice():
    """128 teacher rows for 65,536 prototypes: 6.24 of 11.09 nats cannot be left."""
    large = "\n".join(stage_lines(load_stages("vitl16_in1k"), 0))
    assert "advice" not in large
    small = "\n".join(stage_lines(load_stages("vitl16_in1k", ["batch_size=64"]), 0))
    assert "chance 11.09, floor 6.24 nats" in small
    assert "128 teacher rows are few for K = 65,536; set dino_head.prototypes to 16,384" in small


def test_schedules_that_continue_say_from_where(tmp_path):
    found = load_stages("tiny_stages", ["gram:start.schedules=continue"])
    told = "\n".join(stage_lines(found, 1))
    assert "count on from step 600; loss weights from 0" in told


def test_a_run_is_said_as_the_recipe_that_it_resolved(tmp_path, capsys):
    save(load_stages("tiny", ["batch_size=32"])[0], tmp_path / "config.json")
    told = []
    for recipe in ([str(tmp_path)], ["tiny", "--set", "batch_size=32"]):
        assert main.main(["plan", "--words", *recipe, "--images", "4000"]) == main.FINISHED
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and "images" in told[0]
