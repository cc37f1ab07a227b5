"""Eight simulated CPU devices, strict JAX. Must run before anything imports jax."""

import os

from tests.several import QUICK  # starts processes, and imports no jax

NUM_DEVICES = 8

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={NUM_DEVICES} {QUICK}"
)
# XLA:CPU sizes its thread pool from NPROC; fewer threads than four per device can deadlock
# a collective on a small machine.
os.environ["NPROC"] = str(4 * NUM_DEVICES)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def quick_compiles():
    """Programs compile in a third of the time and run slower, for modules that compile a lot."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
