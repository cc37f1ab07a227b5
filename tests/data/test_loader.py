"""Batches depend on seed and position only: not on threads, processes, hosts or restarts."""

import dataclasses
import os
import subprocess
import sys
import time
from collections import namedtuple

import jax
import numpy as np
import pytest

from dinojax.data.loader import Loader
from dinojax.data.order import image_index
from tests.support.number_source import NumberSource


@dataclasses.dataclass(frozen=True, eq=False)
class TellingSource(NumberSource):
    """Fails on every image, and tells what the process around it looks like."""

    def read(self, index, box_size=None):
        environment = os.environ["JAX_PLATFORMS"], os.environ["CUDA_VISIBLE_DEVICES"]
        raise ValueError(f"cannot decode {index}.jpg: {environment} {jax.config.jax_platforms}")


def take(num_batches, source=None, **options):
    settings = {"batch_size": 6, "box_size": 4, "seed": 1} | options
    with Loader(source or NumberSource(), **settings) as loader:
        return [next(loader) for _ in range(num_batches)]


def assert_same(batches, wanted):
    assert len(batches) == len(wanted)
    for batch, want in zip(batches, wanted, strict=True):
        assert batch.keys() == want.keys()
        for name in want:
            np.testing.assert_array_equal(batch[name], want[name])


def test_boxes_hold_the_image_at_the_top_left_and_zeros_elsewhere():
    for batch in take(5):
        assert batch["images"].shape == (6, 4, 4, 1) and batch["images"].dtype == np.uint8
        for image, size, index in zip(*batch.values(), strict=True):
            assert size.tolist() == ([1 + index % 5, 2] if index % 5 < 4 else [4, 2])
            want = np.zeros((4, 4, 1), np.uint8)
            want[: size[0], : size[1]] = index
            np.testing.assert_array_equal(image, want)


def test_ids_follow_the_stateless_order_through_epochs():
    ids = np.concatenate([batch["ids"] for batch in take(10)])
    np.testing.assert_array_equal(ids, image_index(1, np.arange(60), 23))


@pytest.mark.parametrize("num_threads, prefetch", [(0, 0), (1, 1), (4, 3)])
def test_threads_change_nothing(num_threads, prefetch):
    batches = take(8, num_threads=num_threads, prefetch=prefetch)
    assert_same(batches, take(8))


def test_restart_at_a_position_continues_exactly_also_with_another_batch_size():
    whole = take(10)
    assert_same(take(6, start=24), whole[4:])
    rest = take(3, start=24, batch_size=12)
    np.testing.assert_array_equal(
        np.concatenate([batch["images"] for batch in rest]),
        np.concatenate([batch["images"] for batch in whole[4:]]),
    )


def test_hosts_take_contiguous_slices_of_the_global_batch():
    whole = take(5)
    parts = [take(5, host_index=host, num_hosts=3) for host in range(3)]
    joined = [{n: np.concatenate([p[i][n] for p in parts]) for n in whole[i]} for i in range(5)]
    assert_same(joined, whole)
    assert parts[0][0]["images"].shape == (2, 4, 4, 1)


def test_a_host_takes_the_rows_that_its_devices_have():
    rows = np.array([0, 4])
    for own, whole in zip(take(2, num_hosts=3, rows=rows), take(2), strict=True):
        for name in whole:
            np.testing.assert_array_equal(own[name], whole[name][rows])


def test_position_counts_images_over_all_hosts():
    with Loader(NumberSource(), batch_size=6, box_size=4, seed=1, start=12, num_hosts=2) as loader:
        assert loader.position == 12
        next(loader)
        next(loader)
        assert loader.position == 24


def test_worker_processes_change_nothing():
    batches = take(7, num_workers=2, start=6)
    assert_same(batches, take(8)[1:])
    assert all(type(values) is np.ndarray for values in batches[0].values())


def test_a_decoding_error_reaches_the_loop_with_the_file_name(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for num_threads in (0, 2):
        with pytest.raises(ValueError, match=r"cannot decode \d+\.jpg"):
            take(1, TellingSource(), num_threads=num_threads, prefetch=num_threads)


def test_worker_errors_arrive_and_workers_stay_off_accelerators(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ValueError, match=r"cannot decode \d+\.jpg: \('cpu', ''\) cpu"):
        take(1, TellingSource(), num_workers=1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_closed_loader_says_so_and_closes_twice():
    loader = Loader(NumberSource(), batch_size=6, box_size=4, seed=1)
    loader.close()
    loader.close()
    with pytest.raises(ValueError, match="this loader is closed"):
        next(loader)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_hosts": 4}, "batch_size=6 is not a positive multiple of the 4 hosts"),
        ({"num_hosts": 2, "host_index": 2}, "host_index=2 is not one of 2 hosts"),
        (
            {"num_hosts": 3, "rows": np.arange(3)},
            "3 rows of a batch of 6 are not those of one of 3",
        ),
        ({"start": -6}, "start=-6 counts images consumed"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        take(1, **options)


def test_too_little_shared_memory_is_an_error_before_workers_start(monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free=1000))
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    with pytest.raises(ValueError, match="2 worker processes need .* MiB of shared memory"):
        take(1, num_workers=2, box_size=256)


def test_small_sources_in_memory_are_fast():
    """The demo trains on 500 tiles/s while the CPU is busy; this asks for ten times that."""
    source = NumberSource(size=200)
    with Loader(source, batch_size=64, box_size=48, seed=0, num_threads=1) as loader:
        next(loader)
        start = time.perf_counter()
        for _ in range(30):
            next(loader)
        assert 30 * 64 / (time.perf_counter() - start) > 5_000


SCRIPT = """
from dinojax.data.loader import Loader
from tests.support.number_source import NumberSource
if __name__ == "__main__":
    loader = Loader(NumberSource(), batch_size=6, box_size=64, seed=0, num_workers=2)
    kept = next(loader)
    next(loader)
    {end}
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["loader.close()", "raise SystemExit(0)"])
def test_a_program_with_workers_ends_without_noise(tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(end=end))
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
