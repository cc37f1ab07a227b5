"""One recipe on one mesh, stage after stage: from the first state to the last.

The package is called as `dinojax.train(...)`, which `__call__` below describes.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dinojax.config import Config, load_stages, of_run
from dinojax.config.overrides import settings
from dinojax.sharding import host_memory

if TYPE_CHECKING:
    from dinojax.train.state import State


class _Train(ModuleType):
    """A package that is called like a function; see docs/architecture.md."""

    def __call__(
        self,
        config: str | Path | Config | Sequence[Config] | None = None,
        *,
        run: str | Path,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        stage: str | None = None,
        accept: Collection[str] = (),
        max_wall: float | None = None,
    ) -> "State":
        """Train every stage of a recipe to its end, from the last checkpoint in `run` on.

        config: a recipe file or the name of a packaged one, a run directory (its resolved config),
        or what `dinojax.config.load_stages` returned; None = the run continues with its own.
        run: directory, made if absent. overrides: {"data.path": ..., "STAGE:num_steps": ...}, or
        texts `key=value`. stage: this one alone. accept: "new-data", "new-config": continue
        although they changed. max_wall: seconds within which to save and end.

        Returns the last state: `ema` and `student` hold parameters of backbone and heads on the
        devices, `step` the steps done. Raises, before any device work, ConfigError (a ValueError)
        for a config that cannot be, or is not that of the run, ValueError or FileNotFoundError for
        data; Interrupted once a signal (Ctrl-C) has been answered by saving.
        """
        host_memory.one_heap()  # before JAX and loaders start threads
        from dinojax.train import loop, measure

        if config is None:
            config = of_run(run)
        if isinstance(config, (str, Path)):
            config = load_stages(config, settings(overrides), measure=measure.measure)
        elif overrides:
            raise ValueError("overrides change a recipe; a Config that was loaded stays as it is.")
        return loop.train(config, Path(run), accept=accept, stage=stage, max_wall=max_wall)


sys.modules[__name__].__class__ = _Train
