"""Runs that are stopped at a step, and what is compared of them."""

import contextlib
import os
import signal

import jax
import numpy as np

from dinojax.runs.scalars import read_metrics

TIMES = (
    "data_wait",
    "images_per_second",
    "compile_seconds",
    "time",
)  # the columns that are no result


def rows(directory):
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in read_metrics(directory / "metrics.jsonl")
    ]


def same_state(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


class Stop(Exception):
    """Stands for a kill: nothing in the program handles it."""


@contextlib.contextmanager
def at(monkeypatch, where, number, action):
    """Call `action` when a function of train is entered for the number-th time."""
    owner, name = where
    original, calls = getattr(owner, name), []

    def wrapped(*args, **options):
        calls.append(1)
        if len(calls) == number:
            action()
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        yield


def die():
    raise Stop


def ask():
    os.kill(os.getpid(), signal.SIGTERM)
