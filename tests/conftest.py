"""Eight simulated CPU devices, strict JAX. Must run before anything imports jax."""

import gc
import os

from tests.support.several import QUICK  # starts processes, and imports no jax

NUM_DEVICES = 8

gc.set_threshold(100_000)  # tracing makes many objects and leaves few

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={NUM_DEVICES} {QUICK}"
)
# XLA:CPU sizes its thread pool from NPROC; fewer threads than four per device can deadlock
# a collective on a small machine.
os.environ["NPROC"] = str(4 * NUM_DEVICES)
# Programs compile in a sixth of the time and run slower, in processes that tests start as well.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
