"""A peak counts from its own beginning, whatever the process held before."""

import numpy as np

from tests.support import peak_memory

MIB = 2**20


def test_a_peak_counts_though_more_was_held_before():
    np.ones(200 * MIB, np.uint8).sum()  # given back: an earlier, higher peak
    held = peak_memory.begin()
    np.ones(50 * MIB, np.uint8).sum()
    assert 45 * MIB < peak_memory.grown(held) < 60 * MIB


def test_what_was_held_before_does_not_count():
    kept = np.ones(100 * MIB, np.uint8)
    held = peak_memory.begin()
    assert peak_memory.grown(held) < 5 * MIB
    assert kept[0] == 1
