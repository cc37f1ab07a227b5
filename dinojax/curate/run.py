"""`dinojax curate STEP RECIPE --out DIR`: one step, or all of them in their order."""

from collections.abc import Sequence
from pathlib import Path

import jax

from dinojax.curate import recipe as recipes
from dinojax.curate.steps import STEPS, Work
from dinojax.sharding import mesh


def curate(
    step: str,
    recipe: str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    anew: bool = False,
) -> None:
    """Do a step of a curation (`run`: every step), on all devices of all processes.

    Steps that are done are not done again; one that was stopped goes on. Raises ValueError or
    OSError, before the work of a step begins, for what is wrong with the recipe or the files.
    """
    asked = recipes.load(recipe, overrides)
    layout = mesh.make("dp") if jax.device_count() > 1 else None
    work = Work(asked, Path(out), layout, anew)
    work.out.mkdir(parents=True, exist_ok=True)
    for name in STEPS if step == "run" else [step]:
        STEPS[name](work)
