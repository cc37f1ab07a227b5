"""Kinds of runs that kill_and_compare stops: one network, stages on a mixture, a family."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from tests.support import small, stored_data

SAVE_EVERY = 4  # steps
# For several processes: a network that compiles quickly.
SMALLER = ("batch_size=16", "group_size=4", "model.width=24", "model.depth=1")
SMALLER += ("dino_head.prototypes=64", "ibot_head.prototypes=64")
STORED = 48  # images of each source of the mixture


@dataclasses.dataclass(frozen=True)
class Kind:
    """command: verb and config. settings(num_steps, root): num_steps of all stages."""

    command: Sequence[str]
    settings: Callable[[int, Path], list[str]]
    evaluate_every: int


def run(num_steps: int, root: Path) -> list[str]:
    """The tiny recipe's shapes, fewer steps; saves and evaluations as often as that asks for."""
    del root
    return [
        f"num_steps={num_steps}",
        f"checkpoint.every={SAVE_EVERY}",
        "knn.every=20",
        "log.every=1",
        "schedules.lr.warmup=4",
        "schedules.teacher_temperature.warmup=8",
    ]


def stages(num_steps: int, root: Path) -> list[str]:
    """Pre-training, Gram anchoring with a refresh, high resolution; tar, ArrayRecord and folder."""
    fifth = num_steps // 5
    return [
        *(setting for setting in small.STAGED if not setting.startswith(("log.", "knn."))),
        *(f"pretrain:num_steps={2 * fifth}", f"gram:num_steps={2 * fifth}"),
        *(f"highres:num_steps={fifth}", "highres:batch_size=4"),
        f"checkpoint.every={SAVE_EVERY}",
        f"checkpoint.keep_every={SAVE_EVERY}",
        *(f"knn.every={fifth}", "knn.mosaics=8", "log.every=1"),
        *("pretrain:schedules.lr.warmup=4", "highres:schedules.lr.warmup=2"),
        "pretrain:schedules.teacher_temperature.warmup=8",
        *(f"gram:schedules.{name}.cosine={fifth}" for name in ("gram_weight", "local_weight")),
        f"gram:gram.anchor=pretrain/{fifth // SAVE_EVERY * SAVE_EVERY}",
        *("gram:gram.refresh_every=3", "gram:gram.refresh_from=3", "gram:gram.max_refreshes=3"),
        f"data.mixture={mixture(root / 'images')!r}",
    ]


def family(num_steps: int, root: Path) -> list[str]:
    """Two students of random weights."""
    return [
        *run(num_steps, root),
        "batch_size=8",
        "distill.teacher=smoke:tiny",
        *("narrow:model.width=24", "shallow:model.width=24", "shallow:model.num_heads=2"),
    ]


def mixture(root: Path) -> tuple:
    """Rows of `data.mixture`; the images are written if they are not there yet."""
    from dinojax.data.tiles import tiles

    places = {"tar": root / "web.tar", "arrayrecord": root / "records", "folder": root / "folder"}
    if not root.exists():
        pixels_NHWC = tiles(channels=1, split="train").pixels_NHWC
        parts = []
        for start in range(0, 3 * STORED, STORED):
            chosen = pixels_NHWC[start : start + STORED, ..., 0]
            images = enumerate(map(Image.fromarray, chosen))
            parts.append({f"a/{i:03}.png": stored_data.saved(image, "PNG") for i, image in images})
        stored_data.tar_shard(places["tar"], stored_data.samples(parts[0]))
        stored_data.records(places["arrayrecord"], parts[1])
        stored_data.folder(places["folder"], parts[2])
    shares = {"tar": (2, 0), "arrayrecord": (1, 0), "folder": (0, 0.25)}  # one alone in its batches
    return tuple((kind, kind, str(places[kind]), *shares[kind]) for kind in places)


KINDS = {
    "run": Kind(("train", "--config", "tiny"), run, evaluate_every=20),
    "stages": Kind(("train", "--config", "tiny_stages"), stages, evaluate_every=8),
    "family": Kind(("distill", "--config", "distill_tiny"), family, evaluate_every=20),
}
