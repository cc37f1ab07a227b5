"""Scalars to TensorBoard event files, for `log.tensorboard=True`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventLog:
    """Writes rows beside metrics.jsonl, to RUN/tensorboard/.

    resume_step: as for MetricsLog; TensorBoard hides what an earlier life wrote after it.
    steps_before: of the run's earlier stages; here steps count on.
    Raises ValueError if tensorboardX is not installed.
    """

    def __init__(self, directory: Path, *, resume_step: int | None = None, steps_before: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "log.tensorboard=True needs the package tensorboardX: pip install"
                " 'dinojax[tensorboard]', or set log.tensorboard=False; metrics.jsonl and"
                " report.html hold the same numbers."
            ) from error
        done = steps_before + (resume_step or 0)
        purge = done + 1 if directory.exists() else None
        self._before = steps_before
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        """One row; what is not finite is left out."""
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, float(value), step + self._before)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
