"""Random streams: named, numbered for good, and blind to devices."""

import jax
import pytest

from dinojax.ops import rng
from tests.support.step_keys import of_steps, words


def test_the_numbers_of_the_purposes_never_change():
    known = {"crop": 1, "photometric": 2, "mask": 3, "drop": 4, "rope": 5}
    assert {name: rng.PURPOSES[name] for name in known} == known
    assert len(set(rng.PURPOSES.values())) == len(rng.PURPOSES)


def test_purposes_groups_and_steps_have_their_own_keys():
    found = []
    for step in range(2):
        key = jax.random.fold_in(jax.random.key(0), step)
        for purpose in rng.PURPOSES:
            found += [words(k) for k in rng.group_keys(key, purpose, 3)]
    assert len({tuple(k) for k in found}) == len(found)


def test_no_step_has_the_key_of_initial_values_or_one_made_of_it():
    """Keys made by a split are those of a fold with their numbers, as the keys of purposes are."""
    seed = jax.random.key(0)
    own = rng.init_key(seed)
    made = [own, *jax.random.split(own, 8), *(jax.random.fold_in(own, i) for i in range(8))]
    assert not {tuple(words(k)) for k in made} & of_steps(seed)


def test_the_key_of_a_group_does_not_depend_on_how_many_there_are():
    key = jax.random.key(3)
    few, many = (rng.group_keys(key, "mask", number) for number in (2, 8))
    assert words(few) == words(many)[:2]
    assert words(many[5]) == words(jax.random.fold_in(rng.stream(key, "mask"), 5))


def test_an_unknown_purpose_is_an_error():
    with pytest.raises(KeyError, match="lottery"):
        rng.stream(jax.random.key(0), "lottery")
