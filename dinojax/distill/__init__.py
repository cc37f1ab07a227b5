"""Many students of one frozen teacher: who gets which devices, and how all end together.

The package is called as `dinojax.distill(...)`, which `__call__` below describes.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dinojax.config import Config, load_students, of_run, pick_students
from dinojax.config.overrides import settings
from dinojax.sharding import host_memory

if TYPE_CHECKING:
    from dinojax.train.state import State


class _Distill(ModuleType):
    """A package that is called like a function; see docs/architecture.md."""

    def __call__(
        self,
        config: str | Path | Mapping[str, Sequence[Config]] | None = None,
        *,
        run: str | Path,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        students: Collection[str] = (),
        stage: str | None = None,
        accept: Collection[str] = (),
        max_wall: float | None = None,
    ) -> "dict[str, State]":
        """Train the students of a recipe from one teacher, each in RUN/STUDENT; their last states.

        config: a recipe with STUDENTS, a run of one, or what `dinojax.config.load_students`
        returned; None = the run continues with its own. overrides: {"distill.teacher": RUN,
        "STUDENT:distill.share": 2}, or texts `key=value`. students: these alone, none = all.
        run, stage, accept, max_wall: as for `dinojax.train`. Raises what that does, and
        StudentFailed, which names the student that ended before its time.
        """
        host_memory.one_heap()  # before JAX and loaders start threads
        from dinojax.distill import loop
        from dinojax.train import measure

        if config is None:
            config = of_run(run)
        if isinstance(config, (str, Path)):
            config = load_students(config, settings(overrides), measure=measure.measure)
        elif overrides:
            raise ValueError("overrides change a recipe; a Config that was loaded stays as it is.")
        chosen = pick_students(config, students)
        return loop.distill(chosen, Path(run), accept=accept, stage=stage, max_wall=max_wall)


sys.modules[__name__].__class__ = _Distill
