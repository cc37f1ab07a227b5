"""What a distillation may demand, of its own section and of others. See DISTILL.md."""

from collections.abc import Iterator, Mapping
from typing import Any

Values = Mapping[str, Any]  # dotted key -> value


def rules(values: Values) -> Iterator[str]:
    if not values["distill.enabled"]:
        return
    if values["gram.enabled"]:
        yield (
            "distill.enabled=True and gram.enabled=True: a student has no earlier ema to hold on "
            "to, and its teacher's patches are targets already; set one of them to False."
        )
    if values["distill.targets"] == "features" and values["losses.centering"] != "sinkhorn":
        yield (
            f"losses.centering={values['losses.centering']!r} assigns prototypes, but "
            "distill.targets='features' has none; leave it at 'sinkhorn', or use 'heads'."
        )


def in_vain(values: Values) -> tuple[str, ...]:
    """Keys that a recipe may set although the targets it was given have no use for them."""
    if not values["distill.enabled"] or values["distill.targets"] == "heads":
        return ()
    names = ("bottleneck", "prototypes", "prototype_norm")
    return tuple(f"{head}.{name}" for head in ("dino_head", "ibot_head") for name in names)
