"""One heap for all threads, counted by glibc itself."""

import os
import platform
import re
import subprocess
import sys

import pytest

import dinojax
from dinojax.sharding import host_memory

# Eight threads allocate at once; malloc_info tells the heaps.
COUNT = """
import ctypes, sys, threading
from dinojax.sharding import host_memory
if sys.argv[1] == "one":
    assert host_memory.one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
together = threading.Barrier(8)
def allocate():
    together.wait()
    for _ in range(100):
        libc.malloc(2000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


def heaps(word: str) -> int:
    environment = {k: v for k, v in os.environ.items() if k != host_memory.VARIABLE}
    command = [sys.executable, "-c", COUNT, word]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return len(re.findall(r'<heap nr="\d+">', told.stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have one heap")
def test_threads_share_one_heap_and_have_several_by_themselves():
    assert heaps("one") == 1
    assert heaps("several") > 1


def test_the_environment_goes_first():
    assert host_memory.one_heap({host_memory.VARIABLE: "1"})
    assert not host_memory.one_heap({host_memory.VARIABLE: "4"})


class Asked(Exception):
    """In place of the call."""


@pytest.mark.parametrize("program", ["train", "distill"])
def test_both_programs_ask_for_it_before_anything_else(program, tmp_path, monkeypatch):
    def ask():
        raise Asked

    monkeypatch.setattr(host_memory, "one_heap", ask)
    with pytest.raises(Asked):
        getattr(dinojax, program)("absent", run=tmp_path / "run")
