"""What a text stage demands of other keys."""

from collections.abc import Iterator, Mapping
from typing import Any

Values = Mapping[str, Any]  # dotted key -> value

SCHEDULES = ("lr", "weight_decay")  # that a text stage has
CAPTIONED = ("manifest", "tar", "arrayrecord", "parquet", "coco", "tiles")  # data.source
WITHOUT = ("distill.enabled", "gram.enabled", "optim.freeze_backbone")


def has_schedule(values: Values, name: str) -> bool:
    """Whether a stage has the schedule `schedules.NAME`."""
    return not values["text.enabled"] or name.removeprefix("schedules.") in SCHEDULES


def in_vain(values: Values) -> tuple[str, ...]:
    """Keys that a recipe may set although a text stage has no use for them."""
    if not values["text.enabled"]:
        return ()
    trained = ("optim.freeze_last_layer", "optim.layer_decay", "optim.patch_embed_lr")
    keys = ["crops.local_size", "crops.num_local", "model.drop_path", *trained]
    if values["image.channels"] != 3:
        keys += [f"augment.{name}" for name in ("saturation", "hue", "grayscale_rate")]
    return ("dino_head.", "ibot_head.", "losses.", "gram.", "masks.", "schedules.", *keys)


def rules(values: Values) -> Iterator[str]:
    """Every rule that is broken, one sentence each, ending with a move."""
    if not values["text.enabled"]:
        return
    for key in WITHOUT:
        if values[key]:
            yield f"{key}=True has no meaning beside text.enabled=True; set one of them to False."
    if values["adapter.rank"]:
        yield (
            f"adapter.rank={values['adapter.rank']} adds to a backbone that trains, and that of a "
            "text stage is frozen; set adapter.rank=0."
        )
    if values["crops.more_rates"]:
        yield "crops.more_rates: a text stage has one size of crops; set crops.more_rates=()."
    if values["until.left_chance"] is not None:
        yield "until.left_chance watches other losses than a text stage's; set it to None."
    kinds = {row[1] for row in values["data.mixture"]} or {values["data.source"]}
    for kind in sorted(kinds - set(CAPTIONED)):
        yield f"data source {kind!r} has no captions; use {', '.join(map(repr, CAPTIONED))}."
    if values["text.width"] % values["text.num_heads"]:
        yield (
            f"text.width={values['text.width']} is not a multiple of text.num_heads="
            f"{values['text.num_heads']}."
        )
    if values["text.outputs"] is not None and values["text.outputs"] % 2:
        yield f"text.outputs={values['text.outputs']} is odd; half is for cls, half for patches."
    if values["text.scale"] > values["text.max_scale"]:
        yield (
            f"text.scale={values['text.scale']:g} exceeds text.max_scale="
            f"{values['text.max_scale']:g}; lower it."
        )
    if values["text.freeze_tower"] and not values["text.tower"]:
        yield (
            "text.freeze_tower=True would keep random weights; set text.tower to a file of "
            "dino.txt or a run, or freeze_tower to False."
        )
