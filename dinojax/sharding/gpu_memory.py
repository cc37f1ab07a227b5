"""The share of a GPU's memory that JAX takes for arrays: set before its first use, told, planned.

By itself JAX takes 75 %. What it leaves is for the CUDA context, programs, cuDNN, cuBLAS and NCCL.
Needs no jax: the command line sets the share before anything imports it.
"""

import os
from collections.abc import Mapping, MutableMapping

# As NVIDIA's JAX-Toolbox runs training (docs/GPU_performance.md: "0.9 or 0.8"), and what JAX took
# until 2023. A tenth is 7.9 GiB of an H100.
SHARE = 0.9
# Variables of the environment that JAX reads; the second is the old name, and both are an error.
VARIABLE = "XLA_CLIENT_MEM_FRACTION"
NAMES = (VARIABLE, "XLA_PYTHON_CLIENT_MEM_FRACTION")


def set_share(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have JAX take SHARE of each GPU, unless the environment says another one.

    Raises ValueError for what JAX would fail at, and then go on without the GPU.
    """
    given = [name for name in NAMES if environment.get(name)]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are both set; unset the second, an old name.")
    if not given:
        environment[VARIABLE] = str(SHARE)
    share(environment)


def share(environment: Mapping[str, str] = os.environ) -> float:
    """What JAX takes of each GPU in a command that is started in this environment; 1 is all of it.

    Raises ValueError for a share that is none.
    """
    given = _given(environment)
    return SHARE if given is None else given


def told(environment: Mapping[str, str] = os.environ) -> str:
    """In words, for the log of a run; in a program that no command started JAX goes its own way."""
    given = _given(environment)
    if given is None:
        return f"JAX takes its own share of each GPU's memory: {VARIABLE} is not set"
    return f"JAX takes {given:.0%} of each GPU's memory for arrays ({VARIABLE})"


def _given(environment: Mapping[str, str]) -> float | None:
    for name in NAMES:
        if text := environment.get(name):
            try:
                found = float(text)
            except ValueError:
                found = 0.0
            if not found > 0.0:
                raise ValueError(
                    f"{name}={text!r} is no share of a GPU's memory; set it to a number such as "
                    f"0.8, or unset it for {SHARE}."
                )
            return found
    return None
