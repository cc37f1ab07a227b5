"""The crops that a recipe makes of a data set's first images, for `dinojax data check --out`."""

from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import Config
from dinojax.data.example import Source

NUM_DRAWN = 8  # images of crops.png


def view_spec(config: Config) -> Any:
    """What the crops of a check are made with. Raises ValueError for settings that do not fit."""
    from dinojax.augment.spec import ViewSpec

    return ViewSpec.from_sections(
        image=config.image,
        crops=config.crops,
        augment=config.augment,
        masks=config.masks,
        patch_size=config.model.patch_size,
        group_size=NUM_DRAWN,
    )


def draw(path: Path, source: Source, config: Config, spec: Any, seed: int) -> None:
    """The crops that the recipe makes of eight images, as `train` draws them at its first step."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # a check must not take a running job's accelerator
    from dinojax.augment.views import make_views
    from dinojax.data.loader import ReadBatch
    from dinojax.eval.features import fixed_statistics
    from dinojax.viz.pictures import crop_sheet, true_colors

    read = ReadBatch(
        source=source,
        batch_size=NUM_DRAWN,
        box_size=config.data.box_size,
        seed=seed,
        start=0,
        rows_B=np.arange(NUM_DRAWN),
        replace=True,
    )
    batch = read(0)
    make = jax.jit(make_views, static_argnames="spec")
    views = make(jax.random.key(seed), batch["images"], batch["sizes"], spec=spec)
    sets = (views.global_BGHWC, views.local_BLHWC)
    fixed = fixed_statistics(config.image)
    crop_sheet(path, *(true_colors(np.asarray(crops), *fixed) for crops in sets))
