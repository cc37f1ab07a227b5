"""The memory of this process outside devices: one heap, so that a long run does not grow."""

import ctypes
import os
from collections.abc import Mapping

VARIABLE = "MALLOC_ARENA_MAX"  # of glibc, for who wants another number
_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def one_heap(environment: Mapping[str, str] = os.environ) -> bool:
    """Have all threads allocate from one heap; whether that is so now.

    glibc gives threads heaps (arenas) of their own, up to eight a core. Loaders, checkpoints and
    pictures start threads that come and go, and what each leaves in its heap, no other can use: a
    run grew by 2.4 MB in every 1,000 steps, and by nothing with one heap (docs/health.md). Images
    are larger than what heaps hold, so decoding is as fast. Threads that have a heap keep it, so
    this comes first. Left as it is where the environment says a number, and by other C libraries.
    """
    if environment.get(VARIABLE):
        return environment[VARIABLE] == "1"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_ARENA_MAX, 1) == 1
