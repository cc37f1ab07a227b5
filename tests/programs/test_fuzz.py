"""Damaged images, configs, data sets and weights: right or refused by name; a part of fuzz.py."""

import pytest

from dinojax.data.decode import decode
from tests.programs import (
    fuzz_configs,
    fuzz_files,
    fuzz_images,
    fuzz_runs,
    fuzz_texts,
    fuzz_weights,
)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata; a run goes on
def test_a_hundred_and_twenty_damaged_files():
    found = fuzz_images.fuzz(0, 120)
    assert found["faults"] == []
    assert 20 < found["decoded"] < 100  # neither all harmless nor all beyond repair


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_three_thousand_damaged_files():
    found = fuzz_images.fuzz(1, 3000)
    assert found["faults"] == [] and 500 < found["decoded"] < 2500


@pytest.mark.filterwarnings("ignore")
def test_originals_decode():
    for data in fuzz_images.originals():
        assert decode(data, name="a", channels=3).shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("seed", "count"), [(7, 30), pytest.param(1, 100, marks=pytest.mark.exhaustive)]
)
def test_mutated_configs_are_legal_or_refused_by_the_name_of_the_key(seed, count):
    found = fuzz_configs.fuzz(seed, count)
    assert found["faults"] == []
    assert found["accepted"] > count // 10 and found["refused"] > count // 2


def test_a_recipe_made_a_text_stage_does_not_fail_for_what_the_recipe_sets(tmp_path):
    """The tiny recipe sets schedules, crops and colours that no text stage reads."""
    mutant = fuzz_configs.Mutant(("text.enabled=True",), (), ("text.enabled",))
    assert fuzz_configs.faults_of(mutant, tmp_path, trace=False) == ("accepted", [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("seed", "count"), [(0, 60), pytest.param(1, 600, marks=pytest.mark.exhaustive)]
)
def test_mutated_data_sets_are_whole_or_told_of_or_refused_by_name(seed, count):
    found = fuzz_files.fuzz(seed, count)
    assert found["faults"] == []
    assert found["opened"] > count // 10 and found["refused"] > count // 10


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 40), pytest.param(1, 300, marks=pytest.mark.exhaustive)]
)
def test_mutated_weights_are_what_was_saved_or_refused(seed, count):
    found = fuzz_weights.fuzz(seed, count)
    assert found["faults"] == []
    assert found["refused"] > count // 3 and found["equal"] > 0


@pytest.mark.parametrize(
    ("seed", "count"), [(2, 60), pytest.param(3, 400, marks=pytest.mark.exhaustive)]
)
def test_mutated_yaml_and_recipes_are_read_or_refused_by_the_name_of_the_file(seed, count):
    found = fuzz_texts.fuzz(seed, count)
    assert found["faults"] == []
    assert found["read"] > count // 20 and found["refused"] > count // 10


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        pytest.param(2, 12, marks=pytest.mark.slow),
        pytest.param(3, 100, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_mutated_run_folders_are_read_or_refused_by_the_name_of_the_file(seed, count):
    found = fuzz_runs.fuzz(seed, count)
    assert found["faults"] == []
    assert found["read"] > count and found["refused"] > 0
