"""What a teacher gives the tiny family: the recorded outcome of tests/programs/family_gain.py."""

import json

import pytest

from dinojax import config
from dinojax.configs import distill_tiny
from tests.programs import family_gain
from tests.programs.family_gain import ALONE, FAMILY, RECORDED, TAUGHT, WAYS

# Points, two standard errors, of one seed alone. Accuracies of the same 960 tiles are taken as if
# they were of different ones, which makes the error of their difference 2.1 rather than less.
MARGIN = 4.2
OVER_RANDOM = 15.0  # points that configs/distill_tiny.py states


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


@pytest.mark.parametrize("student", TAUGHT)
def test_a_student_gains_over_learning_alone_and_over_random_weights(recorded, student):
    """For every seed, not on average; its margins stand in the header of the recipe."""
    rows = recorded["students"][student]
    assert len({row["seed"] for row in rows}) == len(rows) >= 2
    for row in rows:
        taught, alone = row["taught"]["test"], family_gain.best_alone(row)["test"]
        assert taught - alone > MARGIN
        assert taught - row["taught"]["random"] > OVER_RANDOM


def test_the_header_of_the_recipe_says_what_was_recorded(recorded):
    header = " ".join(distill_tiny.__doc__.split())
    for student in TAUGHT:
        found = [
            (row["taught"]["test"], family_gain.best_alone(row)["test"], row["taught"]["random"])
            for row in recorded["students"][student]
        ]
        for numbers in zip(*found, strict=True):
            assert " and ".join(f"{number:.1f}" for number in numbers) in header


def test_the_recording_is_of_the_recipes_as_they_are(recorded):
    assert recorded["recipes"] == family_gain.recipes()


def test_learning_alone_is_given_the_same_images_and_counts_by_the_better_of_two_ways(recorded):
    """Same network, seed, steps, batch and global crops; no teacher and nothing else of tiny's."""
    for student in TAUGHT:
        own = config.load_students(FAMILY)[student][0]
        alone = config.load(ALONE, family_gain.shape(student))
        allowed = ("distill.", "losses.", "schedules.", "masks.", "dino_head.", "ibot_head.")
        changed = {key for key, *_ in config.diff(own, alone)}
        assert all(key.startswith(allowed) or key == "crops.num_local" for key in changed)
        for row in recorded["students"][student]:
            assert set(row["alone"]) == set(WAYS)
            chosen = family_gain.best_alone(row)
            assert all(chosen["val"] >= found["val"] for found in row["alone"].values())
            assert {found["random"] for found in row["alone"].values()} == {row["taught"]["random"]}


def test_every_student_is_exported_with_a_certificate_that_passes(recorded):
    for student in TAUGHT:
        certificate = recorded["certificates"][student]
        assert certificate["passed"] and certificate["rows"] > 0
        assert certificate["worst"] <= certificate["tolerance"] == 2e-5
