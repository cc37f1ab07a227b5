"""What recipes begin with: all keys of configs/keys/ with their defaults, and helpers.

A recipe calls `get_config()`, changes what differs, and returns the object. The object is locked:
a key that is not declared in the tables cannot be set.
"""

from ml_collections import ConfigDict

from dinojax.configs.keys import KEYS
from dinojax.configs.keys.key import head_rows, schedule_rows
from dinojax.eval import suite


def schedule(start: float, peak: float, end: float, warmup: int = 0, cosine: int | None = None):
    """One value over steps: linear start -> peak, half-cosine peak -> end, then constant end."""
    return _section(schedule_rows("", start, peak, end, warmup, cosine))


def head(hidden: int, bottleneck: int, prototypes: int):
    """A projection head: tokens -> logits over prototypes."""
    return _section(head_rows("", hidden, bottleneck, prototypes))


def _section(rows) -> ConfigDict:
    """The defaults of rows, whose keys begin with a dot."""
    return ConfigDict({name.removeprefix("."): row.default for name, row in rows.items()})


def part(name: str, path: str, *, source: str = "folder", weight: float = 0.0, alone: float = 0.0):
    """One source of `data.mixture`, drawn with seeded shares (dinojax/data/mixture.py)."""
    return (
        name,  # of lower case letters, digits, - and _; in the log; [ours]
        source,  # as data.source; [ours]
        path,  # absolute, or from data.path on; [ours]
        float(weight),  # share of the images of mixed batches, relative to the others; [ours]
        float(alone),  # share of the batches that hold this source alone; [P] 0.1 ImageNet-1k
    )


def guide(column: str, kind: str, *, effect: str = "keep", weight: float):
    """A column of metadata that guides the backbone (docs/own_data.md)."""
    return (
        column,  # of metadata; label: the class; [R] guided
        kind,  # classification, regression or prototypes (means of the teacher's cls); [R] guided
        effect,  # keep it in the backbone, or remove it by gradient reversal; [R] guided
        float(weight),  # of the loss; the release divides those of removal by 10; [R] guided
    )


def get_config() -> ConfigDict:
    """A config of all defaults, to be changed by a recipe."""
    c = ConfigDict(convert_dict=True)
    for key, row in KEYS.items():
        *sections, leaf = key.split(".")
        section = c
        for name in sections:
            if name not in section:
                section[name] = ConfigDict()
            section = section[name]
        section[leaf] = row.default
    c.lock()
    return c


def shrink(c: ConfigDict) -> ConfigDict:
    """Any recipe, in any of its stages, as two steps of a narrow, shallow network: its `smoke`."""
    patch = c.crops.patch_size or c.model.patch_size
    num_sizes = min(len(c.crops.more_rates), 1)
    c.update(num_steps=2, batch_size=4, group_size=2)
    c.data.update(num_workers=0, box_size=4 * patch)
    c.crops.update(global_size=2 * patch, local_size=patch, num_local=2)
    c.crops.more_rates = (0.5,) * num_sizes
    c.crops.update(more_global=(2 * patch,) * num_sizes, more_local=(2 * patch,) * num_sizes)
    if c.crops.gram_size is not None:
        c.crops.update(gram_size=4 * patch, more_gram=(4 * patch,) * num_sizes)
    if c.crops.more_box:
        c.crops.more_box = (5 * patch,) * num_sizes
    c.model.update(width=32, depth=2, remat="none")
    if not c.model.name.startswith("convnext"):
        c.model.num_heads = 2
    c.dino_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.ibot_head.update(hidden=32, bottleneck=16, prototypes=48)
    c.losses.koleo_group = None
    c.optim.freeze_last_layer = min(c.optim.freeze_last_layer, 1)
    c.until.left_chance = None
    for name in c.schedules:
        if isinstance(c.schedules[name], ConfigDict):
            c.schedules[name].warmup = min(c.schedules[name].warmup, 1)
            c.schedules[name].cosine = None
    if "/" in c.gram.anchor:
        c.gram.anchor = f"{c.gram.anchor.split('/')[0]}/1"
    if c.gram.refresh_every is not None:
        c.gram.update(refresh_every=1, refresh_from=1, max_refreshes=1)
    c.checkpoint.update(every=1, keep_every=1)
    for section in suite.defaults():
        c[section].every = None
    c.knn.update(alarm=None, alarm_stops=False)
    return c
