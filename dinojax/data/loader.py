"""Batches of fixed uint8 boxes. The host only decodes; crops are cut on the device.

What a batch holds is a pure function of (seed, position), where position is the number of images
all hosts have consumed since the start of the stage. That number is the only state: a run restarts
exactly from it with any number of hosts, worker processes and threads.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from dinojax.data.captions import CaptionReader
from dinojax.data.decode import fit_into_box
from dinojax.data.example import Source
from dinojax.data.mixture import batch_ids
from dinojax.data.quarantine import BadImage, Quarantine, read_or_replace

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


class Boxes(Protocol):
    """Boxes that differ from batch to batch; must survive pickling for worker processes."""

    def __call__(self, number: int) -> int:
        """Pixels, from the number of the batch, counted from the start of the stage."""

    @property
    def largest(self) -> int: ...


BAD = "bad"  # key under which a worker's batch carries what it could not read

_ENDLESS = 2**40  # batches; more than any run takes
_SHARED_MEMORY = "/dev/shm"  # where worker processes leave their batches on Linux


class WorkerDied(RuntimeError):
    """A worker process ended before its time; the message has its exit code."""


@dataclasses.dataclass(frozen=True)
class ReadBatch:
    """Batch number -> this host's part of that global batch. Runs in workers."""

    source: Source
    batch_size: int  # images of the global batch
    box_size: int | Boxes  # pixels
    seed: int
    start: int  # images consumed before batch 0
    rows_B: np.ndarray  # of the global batch, those of this host
    replace: bool  # substitute images that cannot be read, else raise
    captions: CaptionReader | None = None

    @property
    def largest_shape(self) -> tuple[int, int, int, int]:
        return self.shape(
            self.box_size if isinstance(self.box_size, int) else self.box_size.largest
        )

    def shape(self, size: int) -> tuple[int, int, int, int]:
        return len(self.rows_B), size, size, self.source.channels

    def __call__(self, number: int) -> dict[str, Any]:
        size = self.box_size
        if not isinstance(size, int):
            size = size(self.start // self.batch_size + number)
        images_BSSC = np.zeros(self.shape(size), np.uint8)
        sizes_B2 = np.zeros((len(images_BSSC), 2), np.int32)
        position = self.start + number * self.batch_size
        # All hosts draw the whole batch: an image's source depends on those before it.
        whole_B = batch_ids(
            self.source, seed=self.seed, position=position, batch_size=self.batch_size
        )
        ids_B = whole_B[self.rows_B]
        bad: list[BadImage] = []
        texts = []
        for row, index in enumerate(ids_B.tolist()):
            if self.replace:
                example, found = read_or_replace(self.source, index, size)
                bad += [found] if found is not None else []
            else:
                example = self.source.read(index, size)
            pixels = fit_into_box(example.pixels, size)
            height, width = pixels.shape[:2]
            images_BSSC[row, :height, :width] = pixels
            sizes_B2[row] = height, width
            if self.captions is not None:
                texts.append(self.captions(example, position + int(self.rows_B[row])))
        captions = {"tokens": np.stack(texts)} if texts else {}
        return {"images": images_BSSC, "sizes": sizes_B2, **captions, "ids": ids_B, BAD: bad}


class Loader(Iterator[Batch]):
    """Endless iterator of {"images": uint8 [B, S, S, C], "sizes": int32 [B, 2], "ids": int64 [B]}.

    B = batch_size / num_hosts images of this host, each at the top left of its box, zeros
    elsewhere; sizes are true heights and widths; ids are indexes into the source. `position` is
    the number of images, over all hosts, in the batches handed out so far, counted from `start`.
    With `captions` also "tokens", int32 [B, N]: one caption of each image.

    An image that cannot be read is replaced and told to `quarantine`, which may end the run; its
    row keeps its own id. Without a quarantine the error reaches the caller of next() and names the
    file. A worker process that dies raises WorkerDied there. Close the loader (or use `with`):
    processes and shared memory are then released at once and without a word on stderr.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        box_size: int | Boxes,
        seed: int,
        start: int = 0,
        host_index: int = 0,
        num_hosts: int = 1,
        rows: np.ndarray | None = None,
        num_workers: int = 0,
        num_threads: int = 2,
        prefetch: int = 2,
        quarantine: Quarantine | None = None,
        captions: CaptionReader | None = None,
    ):
        """`num_threads` per process decode `prefetch` batches ahead; 0 threads decode on demand.

        rows: of the global batch, those of this host; None = neighbours, host after host.
        """
        if batch_size < 1 or batch_size % num_hosts:
            raise ValueError(
                f"batch_size={batch_size} is not a positive multiple of the {num_hosts} hosts."
            )
        if not 0 <= host_index < num_hosts:
            raise ValueError(f"host_index={host_index} is not one of {num_hosts} hosts.")
        share = batch_size // num_hosts
        if rows is None:
            rows = host_index * share + np.arange(share)
        if len(rows) != share:
            raise ValueError(
                f"{len(rows)} rows of a batch of {batch_size} are not those of one of {num_hosts} "
                "hosts: each needs as many."
            )
        if start < 0:
            raise ValueError(f"start={start} counts images consumed and cannot be negative.")
        read = ReadBatch(
            source=source,
            batch_size=batch_size,
            box_size=box_size,
            seed=seed,
            start=start,
            rows_B=rows,
            replace=quarantine is not None,
            captions=captions,
        )
        self.position = start
        self._quarantine = quarantine
        self._batch_size = batch_size
        self._copies = num_workers > 0
        if num_workers:
            _check_shared_memory(read.largest_shape, num_workers, prefetch)
        self._open = [_stream(read, num_workers, num_threads, prefetch)]
        # Also when the program ends or the loader is dropped: grain's shared memory must be gone
        # before Python takes its modules apart.
        self._release = weakref.finalize(self, _close_all, self._open)

    def __next__(self) -> Batch:
        if not self._open:
            raise ValueError("this loader is closed.")
        try:
            batch = next(self._open[0])
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):  # grain's words
                raise
            raise WorkerDied(
                f"a process that decodes images died: {error}. Exit code -9 is often the system's "
                "answer to too little memory: lower data.num_workers, data.prefetch or "
                "data.box_size. The run continues from its last checkpoint."
            ) from error
        bad = batch.pop(BAD)
        if self._copies:
            # Out of shared memory: its arrays must not live on in jax until the program ends.
            batch = {name: np.array(values) for name, values in batch.items()}
        if self._quarantine is not None:
            self._quarantine.add(bad, batch["ids"])
        self.position += self._batch_size
        return batch

    def close(self) -> None:
        """Stops threads and worker processes. Safe to call twice."""
        self._release()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *unused) -> None:
        self.close()


def _close_all(iterators: list[Any]) -> None:
    """Closes and forgets them; not a method, for a finalizer must not hold its own object."""
    while iterators:
        iterators.pop().close()


def _stream(read: ReadBatch, num_workers: int, num_threads: int, prefetch: int):
    """Grain iterator over batch numbers; one element is one batch, so workers change no order."""
    batches = grain.MapDataset.range(_ENDLESS).map(read)
    buffered = prefetch if num_threads else 0
    dataset = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffered)
    )
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags; this program has none
        options = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=max(1, prefetch)
        )
        dataset = dataset.mp_prefetch(options, worker_init_fn=keep_off_accelerators)
    return iter(dataset)


def keep_off_accelerators(worker: int, num_workers: int) -> None:
    """First thing in a worker process: grain imports jax, which must not take device memory."""
    del worker, num_workers
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _check_shared_memory(shape: tuple[int, ...], num_workers: int, prefetch: int) -> None:
    """Workers die by a bus error without a message when the shared memory is full."""
    if not os.path.isdir(_SHARED_MEMORY):
        return
    # Per worker: its queue, as many taken out of it ahead of time, one on each side in transit.
    needed = int(np.prod(shape)) * num_workers * (2 * max(1, prefetch) + 2)
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise ValueError(
            f"{num_workers} worker processes need {needed / 2**20:.0f} MiB of shared memory but "
            f"{_SHARED_MEMORY} has {free / 2**20:.0f} MiB free. Enlarge it (docker: --shm-size), "
            "or lower data.num_workers, data.prefetch or data.box_size."
        )


CLOSE_SECONDS = 10  # for the loader's threads and processes to end


@contextlib.contextmanager
def closed_in_time(loader: Loader) -> Iterator[None]:
    """Close the loader at the end, but wait only so long for a decoder that hangs."""
    try:
        yield
    finally:
        closer = threading.Thread(target=loader.close, daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS)
        if closer.is_alive():
            log.warning("the data loader did not end within %d s", CLOSE_SECONDS)
