"""Rows of a batch that one process of several gives, from where its devices' images lie."""

from types import SimpleNamespace

import numpy as np
import pytest

from dinojax import mesh
from dinojax.shares import from_own_rows, host_share, own_rows


def layout(slices, *, num_shards: int = 4, devices: int = 8, process: int = 0):
    """As one process of several sees it: `slices` of a batch that its devices hold."""
    held = {number: (slice(*bounds),) for number, bounds in enumerate(slices)}
    return SimpleNamespace(
        num_shards=num_shards,
        sharding=lambda *names: SimpleNamespace(addressable_devices_indices_map=lambda shape: held),
        mesh=SimpleNamespace(
            is_multi_process=True,
            size=devices,
            devices=np.array([SimpleNamespace(process_index=process)]),
        ),
    )


@pytest.mark.parametrize(
    ("slices", "share"),
    [
        ([(0, 4), (4, 8)], (0, 2)),
        ([(8, 12), (12, 16)], (1, 2)),
        ([(12, 16), (8, 12)], (1, 2)),  # in whatever order devices come
        ([(4, 8), (4, 8)], (1, 4)),  # tensor parallelism: two devices hold the same images
        ([(None, None)], (0, 1)),  # all hold the whole batch
    ],
)
def test_a_process_loads_what_its_devices_hold(slices, share):
    assert host_share(layout(slices), 16) == share


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        ([(0, 4), (8, 12)], "hold none of the 16"),  # not side by side
        ([(2, 6)], "hold images 2 to 5 of the 16"),
        ([], "hold none of the 16"),
    ],
)
def test_devices_that_hold_no_equal_part_are_refused(slices, told):
    with pytest.raises(ValueError, match=told) as refused:
        host_share(layout(slices), 16)
    assert "mesh.devices=8" in str(refused.value) and "mesh.devices=None" in str(refused.value)


def test_a_process_without_any_of_the_devices_is_refused():
    one = layout([], devices=1, process=3)
    one.mesh.is_multi_process = False
    with pytest.raises(ValueError, match="hold none"):
        host_share(one, 16)


def test_one_process_gives_everything():
    here = mesh.make("fsdp", 8)
    rows = np.ones((16, 2))
    assert host_share(here, 16) == (0, 1)
    assert from_own_rows(here, rows) is rows
    with mesh.use(here):
        assert own_rows(12) == range(12)
    assert own_rows(5) == range(5)
