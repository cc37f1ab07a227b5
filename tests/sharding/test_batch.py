"""Rows of a batch that one process of several gives, from where its devices' images lie."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dinojax.sharding import mesh
from dinojax.sharding.batch import from_own_rows, loaded_rows, own_rows


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int
    id: int


def layout(*parts):
    """Of several processes. parts: for each, the slices of a batch that its devices hold."""
    places = {
        Device(process, number): (slice(*bounds),)
        for process, slices in enumerate(parts)
        for number, bounds in enumerate(slices)
    }
    return SimpleNamespace(
        sharding=lambda *names: SimpleNamespace(devices_indices_map=lambda shape: places),
        mesh=SimpleNamespace(size=len(places), devices=np.array(list(places), object)),
    )


@pytest.fixture
def process(monkeypatch):
    """Makes this process one of several."""

    def become(index, count):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)

    return become


@pytest.mark.parametrize(
    ("parts", "index", "rows"),
    [
        (([(0, 4), (4, 8)], [(8, 12), (12, 16)]), 0, [*range(8)]),
        (([(0, 4), (4, 8)], [(12, 16), (8, 12)]), 1, [*range(8, 16)]),  # in whatever order
        (([(0, 4), (8, 12)], [(4, 8), (12, 16)]), 1, [4, 5, 6, 7, 12, 13, 14, 15]),  # on a torus
        (([(0, 8)], [(0, 8)], [(8, 16)], [(8, 16)]), 3, [*range(8, 16)]),  # tensor parallelism
        (([(None, None)], [(None, None)]), 1, [*range(16)]),  # all hold the whole batch
    ],
)
def test_a_process_loads_what_its_devices_hold(parts, index, rows, process):
    process(index, len(parts))
    assert loaded_rows(layout(*parts), 16).tolist() == rows


@pytest.mark.parametrize(
    ("parts", "index", "told"),
    [
        (([(0, 4), (4, 8), (8, 12)], [(12, 16)]), 0, r"hold 12 of the 16.*\[12, 4\]"),
        (([(0, 16)], []), 1, r"process 1 hold 0 of the 16.*\[16, 0\]"),
    ],
)
def test_devices_that_hold_no_equal_part_are_refused(parts, index, told, process):
    process(index, len(parts))
    found = layout(*parts)
    with pytest.raises(ValueError, match=told) as refused:
        loaded_rows(found, 16)
    assert f"mesh.devices={found.mesh.size}" in str(refused.value)
    assert "mesh.devices=None" in str(refused.value)


def test_one_process_gives_everything():
    here = mesh.make("fsdp", 8)
    rows = np.ones((16, 2))
    assert loaded_rows(here, 16).tolist() == [*range(16)]
    assert from_own_rows(here, rows) is rows
    with mesh.use(here):
        assert own_rows(12) == [*range(12)]
    assert own_rows(5) == [*range(5)]
