"""The text tower that a text stage takes from elsewhere, frozen or not."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from dinojax import config as configs
from dinojax.checkpoint import checksum
from dinojax.checkpoint.locate import is_run
from dinojax.config import Config
from dinojax.eval import text_model as model
from dinojax.train.state import State
from dinojax.weights import dinotxt as released

PART = "text_tower"


def with_tower(state: State, config: Config) -> State:
    """The state with the tower that `text.tower` names; the same where it names none.

    Raises ValueError, naming both shapes, for a tower of other sizes.
    """
    path = config.text.tower
    if not path:
        return state
    found = _tower(path, num_heads=config.text.num_heads)
    trained = PART in state.student
    parts = state.student if trained else state.ema
    like = parts[PART]
    if lines := checksum.differences(checksum.shapes(found), checksum.shapes(like)):
        raise ValueError("\n  ".join([f"text.tower={path} holds another tower:", *lines]))
    put = jax.tree.map(_put, found, like)
    whole = {**parts, PART: put}
    if trained:
        return dataclasses.replace(state, student=whole)
    return dataclasses.replace(state, ema=whole)


def _tower(path: str, *, num_heads: int) -> dict:
    if is_run(path):
        config = configs.read(path)
        return model.params_of_run(Path(path), config, None, parts=(PART,))[0][PART]
    _, tensors = model.open_released(path)
    prefix = released.PREFIXES[PART]
    own = {n: t.read().astype(np.float32) for n, t in tensors.items() if n.startswith(prefix)}
    return released.to_ours(own, PART, num_heads=num_heads)


def _put(x, like: jax.Array) -> jax.Array:
    """Every process gives its devices their parts of an array that all of them have."""
    array = np.asarray(x).astype(like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: array[part])
