"""The end of a run: pictures before and after, and what was learned beside what needed none."""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np

from dinojax.data.mixture import told
from dinojax.data.quarantine import KNN_FILE, read_all
from dinojax.data.sources import EMBEDDED, open_source, source_name
from dinojax.distributed import process_group
from dinojax.eval.features import fixed_statistics
from dinojax.eval.knn_evaluator import Knn, learned
from dinojax.files.drafts import write_json
from dinojax.monitor import report as reports
from dinojax.runs.scalars import duration
from dinojax.train.stage import Run
from dinojax.train.state import State
from dinojax.viz.pictures import before_after, crop_sheet, true_colors

log = logging.getLogger(__name__)

NUM_PICTURES = 6  # images on the PCA and similarity sheet
NUM_CROPPED = 8  # images on the sheet of crops


def finish(run: Run, state: State, *, train_seconds: float) -> None:
    """Pictures, the comparison on the tiles' test split, and where to look."""
    config, embed = run.config, run.program.embed()
    random = run.program.new_state().ema["backbone"]  # as before the first step
    if run.pictures:
        _draw_patches(run, embed, random, state.ema["backbone"])
    is_main = process_group.current().is_main
    knn = run.evaluations.get("knn")
    if source_name(config.data) in EMBEDDED and isinstance(knn, Knn) and not config.text.enabled:
        test = open_source(config.data, channels=config.image.channels, split="test")
        knn = dataclasses.replace(knn, query=test)
        found = learned(knn, embed, random=random, ema=state.ema["backbone"])
        if is_main:
            _write_quickstart(run, found, train_seconds)
    if not is_main:
        return
    for line in told(run.source, run.num_drawn(int(state.step))):
        log.info("%s", line)
    reports.refresh(run.directory)
    print(f"run directory: {run.directory}")
    print("  report.html: all of the below on one page")
    print(f"  metrics.jsonl, log.txt, {run.checkpoints.directory.relative_to(run.directory)}/")
    if run.pictures:
        print(
            "  pictures/crops.png: what the networks see; pictures/patches.png: what they learned"
        )


def _write_quickstart(run: Run, found: dict[str, float], train_seconds: float) -> None:
    """quickstart.json, and the same as a table."""
    content = {**found, "train_seconds": train_seconds, "seed": run.config.seed}
    write_json(run.directory / "quickstart.json", content)
    print(f"\nk-NN accuracy on test tiles, after {duration(train_seconds)} of training")
    print(f"  raw pixels              {found['raw']:5.1f} %")
    print(f"  random weights (best)   {found['random']:5.1f} %")
    print(f"  ema, trained            {found['ema']:5.1f} %\n")


def draw_crops(run: Run, state: State, batch: dict) -> None:
    """pictures/crops.png: the crops of the step that the state is about to take.

    Those of a frozen teacher last, where they are smaller than the student's.
    """
    views = process_group.together(jax.jit(run.programs[run.draw(0)].step.views))(state, batch)
    sets = (views.global_BGHWC, views.local_BLHWC, views.teacher_BGHWC)
    found = [process_group.fetch(crops[:NUM_CROPPED]) for crops in sets if crops is not None]
    crops = [true_colors(crops, *fixed_statistics(run.config.image)) for crops in found]
    name = f"crops-{run.stage}.png" if run.steps_before else "crops.png"
    if process_group.current().is_main:
        crop_sheet(_picture(run, name), *crops)


def _draw_patches(run: Run, embed, before: dict, after: dict) -> None:
    config, source = run.config, run.source
    picked = np.linspace(0, len(source) - 1, min(NUM_PICTURES, len(source))).astype(int)
    path = run.directory / KNN_FILE if process_group.current().is_main else None
    share = config.data.max_bad_share
    examples = read_all(source, picked, what="pictures", max_share=share, path=path)
    images = np.stack([run.program.eval_transform(example.pixels) for example in examples])
    side = images.shape[1] // config.model.patch_size
    patches = [process_group.fetch(embed(params, images)[2]) for params in (before, after)]
    if process_group.current().is_main:
        shown = true_colors(images, *fixed_statistics(config.image))
        before_after(_picture(run, "patches.png"), shown, *patches, grid=(side, side))


def _picture(run: Run, name: str) -> Path:
    path = run.directory / "pictures" / name
    path.parent.mkdir(exist_ok=True)
    return path
