"""Rules of the guides that a config names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

KINDS = ("classification", "regression", "prototypes")
EFFECTS = ("keep", "remove")


def rules(values: Mapping[str, Any]) -> Iterator[str]:
    """Every rule of guides.* and of a frozen trunk that is broken, each with a move."""
    rows, steps = values["guides.rows"], values["num_steps"]
    names = [row[0] for row in rows]
    for name, kind, effect, weight in rows:
        where = f"guides.rows: {name!r}"
        if not re.fullmatch(r"[\w-]+", name) or names.count(name) > 1:
            yield f"{where} is no name or there twice; use letters, digits, - and _, once."
        if kind not in KINDS:
            yield f"{where} has kind {kind!r}; use {', '.join(map(repr, KINDS))}."
        if effect not in EFFECTS:
            yield f"{where} has effect {effect!r}; use {', '.join(map(repr, EFFECTS))}."
        if not weight > 0:
            yield f"{where} has weight={weight}; use one above 0, or leave the row out."
    if rows and values["distill.enabled"]:
        yield "guides.rows need the ema as teacher, but distill.enabled=True; keep one of them."
    if rows and values["text.enabled"]:
        yield "guides.rows need crops and an ema, but text.enabled=True; keep one of them."
    if rows and values["guides.ramp_start"] > steps:
        yield (
            f"guides.ramp_start={values['guides.ramp_start']} exceeds num_steps={steps}; use less, "
            "or the backbone never hears of its guides."
        )
    frozen = values["optim.freeze_trunk"]
    if frozen > steps:
        yield f"optim.freeze_trunk={frozen} exceeds num_steps={steps}; use {steps} or fewer."
    if (frozen or values["optim.trunk_warmup"]) and values["optim.freeze_backbone"]:
        yield (
            "optim.freeze_backbone=True leaves no trunk to warm up; set optim.freeze_trunk and "
            "optim.trunk_warmup to 0."
        )
