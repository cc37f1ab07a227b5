"""Every configuration key, once: default, meaning with unit and source, range, choices.

Sources: [R] released DINOv3 configuration (the ImageNet-1k ViT-L recipe where stages differ), [P]
DINOv3 paper (arXiv:2508.10104), [D2] DINOv2 (arXiv:2304.07193), [ours] a choice of this project.
Limits, choices and types of config/rules.py, `dinojax config explain` and the terms of the loss
that others watch are read from these rows.
"""

from typing import Any

from dinojax.configs.keys.images import IMAGES_KEYS
from dinojax.configs.keys.key import COUNT, FLOAT, IMAGES, SMALL, Key
from dinojax.configs.keys.learning import LEARNING_KEYS
from dinojax.configs.keys.model import MODEL_KEYS
from dinojax.configs.keys.run import RUN_KEYS
from dinojax.configs.keys.text import TEXT_KEYS
from dinojax.eval import suite
from dinojax.eval.row import KINDS
from dinojax.sharding.axes import TABLE

STAGE_KEYS: dict[str, Key] = {
    "seed": Key(0, "integer; every random draw derives from it; [R]", (0, 2**32 - 1)),
    "stage": Key("pretrain", "of a recipe with STAGES: set to the stage's name; a folder; [ours]"),
    "num_steps": Key(125_000, "updates of this stage; [R]", (1, COUNT)),
    "epochs": Key(
        None,
        "passes over the images instead of num_steps, schedules in proportion, or None; [ours]",
        (SMALL, COUNT),
        optional=float,
    ),
    "batch_size": Key(2048, "images per step over all devices and micro-batches; [R]", (1, IMAGES)),
    "group_size": Key(
        64,
        "images that share masks, drop-path subsets, RoPE draws, KoLeo; [R] per GPU",
        (1, IMAGES),
    ),
    "accumulate": Key(
        1, "micro-batches per step; changes memory, not results; [ours]", (1, IMAGES)
    ),
    # auto: what recipes that compute their values are told (docs/own_data.md)
    "auto.images": Key(
        None, "number of images, None = counted at data.path; [ours]", (1, COUNT), optional=int
    ),
    "auto.memory": Key(
        None, "GiB of a device, None = asked of it; [ours]", (SMALL, 1e6), optional=float
    ),
    # start
    # What a stage starts from (docs/stages.md).
    "start.source": Key(
        "previous", "stage, or: nothing, RUN[/checkpoints/STAGE[/STEP]], FILE; [ours]"
    ),
    "start.what": Key(
        "ema",
        "ema (into student and ema; optimizer anew) [R] | state (all of it) [R]",
        choices=("ema", "state"),
    ),
    "start.heads": Key(
        "keep",
        "keep [R] | new (random: files of weights hold no heads) [ours]",
        choices=("keep", "new"),
    ),
    "start.channels": Key(
        "same",
        "same | expand (a file's 3 to image.channels: new ones are means); [R] guided",
        choices=("same", "expand"),
    ),
    "start.schedules": Key(
        "restart",
        "restart | continue (count on from the stage before); [R]",
        choices=("restart", "continue"),
    ),
    "start.steps_before": Key(
        0, "steps of the recipe's earlier stages, which fill this in; [ours]", (0, COUNT)
    ),
    # distill: a frozen teacher instead of the ema (docs/distillation.md)
    "distill.enabled": Key(False, "its targets; student unmasked, masks select patches; [R]"),
    # RUN[/checkpoints/STAGE[/STEP]], a file or folder of weights, random:RECIPE (plans and tests)
    "distill.teacher": Key("", "or smoke:RECIPE, the same of a recipe's smoke; [R]"),
    "distill.targets": Key(
        "heads",
        "heads (the teacher's, trained) [R] | features (no heads) [ours]",
        choices=("heads", "features"),
    ),
    "distill.compute": Key(
        None,
        "of the teacher: float32 | bfloat16, None = precision.compute; [R]",
        choices=("bfloat16", "float32"),
        optional=str,
    ),
    # Of `dinojax distill`: all students in turn on every device, or each apart on its own.
    "distill.place": Key(
        "auto", "auto (measured) | apart | turn; [ours]", choices=("auto", "apart", "turn")
    ),
    "distill.share": Key(
        None,
        "devices of this student when apart, None = by its cost; [R] given",
        (1, IMAGES),
        optional=int,
    ),
    "distill.strategy": Key(
        None, "of its weights, None = mesh's; [R]", choices=tuple(TABLE), optional=str
    ),
    # until: a stage may end before num_steps, as soon as its losses left chance
    "until.left_chance": Key(
        None,
        "share of the way to the floor, every term; None = never; [ours]",
        (SMALL, 1),
        optional=float,
    ),
    "until.every": Key(
        10, "steps between looks at the losses, of which three in a row count; [ours]", (1, COUNT)
    ),
}


def _of_evaluation(fields: dict[str, Any]) -> Key:
    """The row of a key that an evaluation declares in its file (dinojax/eval/row.py)."""
    optional, many = (KINDS.get(fields.get(name, "")) for name in ("optional", "many"))
    limits = None
    if "limits" in fields:  # None in them: as far as its type goes
        low, high = fields["limits"]
        most = COUNT if int in (type(fields["default"]), optional) else FLOAT
        limits = (-most if low is None else low), (most if high is None else high)
    return Key(
        fields["default"],
        fields["says"],
        limits,
        choices=tuple(fields.get("choices", ())),
        optional=optional,
        many=many,
    )


EVALUATION_KEYS = {key: _of_evaluation(fields) for key, fields in suite.keys()}

KEYS: dict[str, Key] = {**STAGE_KEYS, **IMAGES_KEYS, **MODEL_KEYS, **LEARNING_KEYS, **RUN_KEYS}
KEYS |= TEXT_KEYS | EVALUATION_KEYS

# Key that weighs or enables terms of the loss -> their columns in metrics.jsonl.
TERMS: dict[str, tuple[str, ...]] = {key: row.terms for key, row in KEYS.items() if row.terms}
ALL_TERMS: tuple[str, ...] = tuple(term for terms in TERMS.values() for term in terms)
