"""How many images per second the host can prepare, stage by stage: `dinojax data bench`."""

import tempfile
import time
from collections.abc import Callable

import numpy as np

from dinojax.data.decode import DecodeError, fit_into_box, load_pixels
from dinojax.data.example import Source
from dinojax.data.loader import Loader
from dinojax.data.mixture import parts_of
from dinojax.data.order import image_index
from dinojax.data.quarantine import Quarantine

STAGES = ("read", "decode", "fit", "batch")

Clock = Callable[[], float]  # seconds


def stage_rates(
    source: Source, *, box_size: int, batch_size: int, seconds: float, clock: Clock
) -> dict[str, float]:
    """Images/s of each stage on one core, and `all` in a row; images in the order of training.

    read: bytes from storage. decode: to pixels, a JPEG at reduced scale. fit: into the box.
    batch: into one array. Of an image that cannot be read the time until that is known counts.
    """
    spent, count = dict.fromkeys(STAGES, 0.0), 0
    began = now = clock()
    while now - began < seconds or not count:
        batch_BSSC = np.zeros((batch_size, box_size, box_size, source.channels), np.uint8)
        spent["batch"] += clock() - now
        ids_B = image_index(0, np.arange(count, count + batch_size), len(source))
        for row, index in enumerate(ids_B.tolist()):
            times = _timed_row(source, index, batch_BSSC[row], clock)
            for stage, start, end in zip(STAGES, times[:-1], times[1:], strict=False):
                spent[stage] += end - start
            count, now = count + 1, times[-1]
            if now - began >= seconds:
                break
    rates = {stage: count / max(used, 1e-9) for stage, used in spent.items()}
    return {**rates, "all": count / max(sum(spent.values()), 1e-9)}


def _timed_row(source: Source, index: int, box_SSC: np.ndarray, clock: Clock) -> list[float]:
    """Fills one box; the times before the first stage and after each, up to one that failed."""
    times = [clock()]
    try:
        image = source.encoded(index)
        times.append(clock())
        pixels_HWC = load_pixels(
            image.data,
            name=image.name,
            channels=source.channels,
            box_size=len(box_SSC),
            options=source.read_options(index),
        )
    except (DecodeError, OSError):
        return [*times, clock()]
    times.append(clock())
    fitted_HWC = fit_into_box(pixels_HWC, len(box_SSC))
    times.append(clock())
    box_SSC[: fitted_HWC.shape[0], : fitted_HWC.shape[1]] = fitted_HWC
    return [*times, clock()]


def loader_rate(
    source: Source, *, data, batch_size: int, seconds: float, clock: Clock = time.perf_counter
) -> float:
    """Images/s of the loader as the `data` section sets it up, after its first batch."""
    with tempfile.TemporaryDirectory() as folder:
        quarantine = Quarantine(folder, max_share=1.0, parts=parts_of(source))
        with Loader(
            source,
            batch_size=batch_size,
            box_size=data.box_size,
            seed=0,
            num_workers=data.num_workers,
            num_threads=data.num_threads,
            prefetch=data.prefetch,
            quarantine=quarantine,
        ) as loader:
            # What was prepared ahead is not speed: the queues are emptied first.
            for _ in range(1 + data.prefetch * max(1, 2 * data.num_workers)):
                next(loader)
            began, start = clock(), loader.position
            while clock() - began < seconds or loader.position == start:
                next(loader)
            return (loader.position - start) / (clock() - began)


def verdict(rate: float, *, batch_size: int, step_seconds: float | None) -> str:
    """One sentence: whether `rate` (images/s) feeds steps of that batch size and duration."""
    if step_seconds is None:
        return (
            f"At batch_size={batch_size} this host keeps up with steps of "
            f"{batch_size / rate:.2f} s or longer."
        )
    demand = batch_size / step_seconds
    if rate >= demand:
        return f"Keeps up: {rate / demand:.1f} times the step's demand of {demand:,.0f} images/s."
    return (
        f"Input-bound by {demand / rate:.1f} times: a step takes {demand:,.0f} images/s. Raise "
        "data.num_workers up to the number of cores, lower data.box_size, or store smaller files."
    )
