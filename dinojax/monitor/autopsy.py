"""Steps that were not finite: named, written down so that they can be taken again, counted.

The compiled step has already kept the weights as they were; this is the host's side of it.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.configs.keys import ALL_TERMS
from dinojax.distributed import process_group
from dinojax.files.drafts import open_new, write_bytes, write_json

log = logging.getLogger(__name__)

MAX_IN_A_ROW = 3


class NonFiniteError(ValueError):
    """Training stopped because too many steps in a row were not finite."""


class Autopsy:
    """Watches the scalars of every step and writes RUN/autopsy/STEP/ for one that is not finite.

    A folder holds step.json (terms, norms, schedules, seed, image ids), batch-PROCESS.npz (the
    uint8 boxes that process gave, their sizes and ids) and the run's config.json. No weights: a
    bad step leaves them as they were, so a checkpoint has them (see dinojax/train/replay.py). Where
    a part of the processes works on the run, one of them writes the boxes of all, without ids.
    """

    def __init__(self, run_dir: Path, *, seed: int, steps_before: int = 0):
        """steps_before: of earlier stages, counted in the names of folders alone."""
        self._run_dir, self._seed, self._before = run_dir, seed, steps_before
        self._batches: dict[int, Mapping[str, np.ndarray]] = {}
        self._bad: list[str] = []
        self.suspicious = False  # the last step seen was bad: look at the next before going on

    def keep(self, number: int, batch: Mapping[str, Any]) -> None:
        """Hold the batch of a step until its scalars have been seen.

        batch: of this process; or, without ids, of all as the devices have it.
        """
        self._batches[number] = batch

    def check(self, number: int, scalars: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Look at the scalars of a step; raises NonFiniteError at the third bad one in a row."""
        batch = self._batches.pop(number, None)
        bad_steps = int(scalars["bad_steps"])
        self.suspicious = bad_steps > 0
        if not self.suspicious:
            self._bad = []
            return
        culprit = culprits(scalars)
        folder = self._run_dir / "autopsy" / str(number + self._before)
        self._write(folder, number, batch, {"culprit": culprit, **_described(scalars, now)})
        self._bad.append(f"step {number}: {culprit}")
        log.warning(
            "step %d is not finite: %s. Nothing was changed; to look at it: dinojax replay %s",
            number,
            culprit,
            folder,
        )
        if bad_steps >= MAX_IN_A_ROW:
            lines = "\n  ".join(self._bad)
            raise NonFiniteError(
                f"{bad_steps} steps in a row are not finite, so the run stops:\n  {lines}\n"
                f"The weights are as they were before them and are saved. `dinojax replay {folder}`"
                " says which weight or image it comes from. Then lower schedules.lr.peak or"
                " optim.clip, or set precision.compute=float32; the same command as before goes on"
                " after these images."
            )

    def _write(self, folder: Path, number: int, batch, content: dict) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        processes = process_group.current()
        if batch is not None:
            arrays: dict[str, Any] = {name: process_group.fetch(batch[name]) for name in batch}
            if "ids" not in batch and processes.is_main:
                for other in folder.glob("batch-*.npz"):  # of another time, with other processes
                    other.unlink()
            if processes.is_main or "ids" in batch:
                with open_new(folder / f"batch-{processes.index}.npz") as file:
                    np.savez(file, **arrays)
        if not processes.is_main:
            return
        write_bytes(folder / "config.json", (self._run_dir / "config.json").read_bytes())
        ids = [] if batch is None else np.asarray(batch.get("ids", [])).tolist()
        content = {"step": number, "seed": self._seed, **content, "ids": ids}
        write_json(folder / "step.json", content)


def culprits(scalars: Mapping[str, Any]) -> str:
    """In words, what of a bad step was not finite, most telling first."""
    terms = [name for name in ALL_TERMS if name in scalars]
    bad = [name for name in terms if not math.isfinite(scalars[name])]
    if bad and len(bad) == len(terms):
        return "every loss term (the networks' outputs or the images)"
    if bad:
        return " and ".join(f"{name} is {float(scalars[name])}" for name in bad)
    if not math.isfinite(scalars["total"]):
        return "the total of finite terms (a loss weight)"
    parts = [name for name in scalars if name.startswith("grad_norm/")]
    bad = [name.split("/")[1] for name in parts if not math.isfinite(scalars[name])]
    return f"the gradient of {' and '.join(bad)}"


def _described(scalars: Mapping[str, Any], now: Mapping[str, Any]) -> dict:
    """Scalars as JSON takes them: what is not finite becomes a word."""

    def number(value) -> float | str:
        return float(value) if math.isfinite(value) else str(float(value))

    return {
        "scalars": {name: number(value) for name, value in scalars.items()},
        "now": {name: number(value) for name, value in now.items()},
    }
