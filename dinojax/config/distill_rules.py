"""What a distillation may demand, of its own section and of others. See docs/distillation.md."""

from collections.abc import Iterator, Mapping
from typing import Any

Values = Mapping[str, Any]  # dotted key -> value


def rules(values: Values) -> Iterator[str]:
    if not values["distill.enabled"]:
        if values["model.name"].startswith("convnext"):
            yield (
                f"model.name={values['model.name']!r} cannot be pretrained: the iBOT loss hides "
                "patches of the student's input, and a ConvNeXt has no tokens to hide; distil it "
                "(distill.enabled=True), or choose a ViT."
            )
        if values["crops.patch_size"] is not None:
            yield (
                f"crops.patch_size={values['crops.patch_size']} lets students of one teacher see "
                "the same crops in sizes of their own, but distill.enabled is False; set the first "
                "to None."
            )
        return
    yield from _grid(values)
    if values["gram.enabled"]:
        yield (
            "distill.enabled=True and gram.enabled=True: a student has no earlier ema to hold on "
            "to, and its teacher's patches are targets already; set one of them to False."
        )
    if values["optim.freeze_backbone"]:
        yield (
            "optim.freeze_backbone=True leaves nothing of a student to learn "
            "(distill.enabled=True); set it to False."
        )
    if values["distill.targets"] == "features" and values["until.left_chance"] is not None:
        yield (
            f"until.left_chance={values['until.left_chance']} compares losses with chance, but "
            "distill.targets='features' has no prototypes to guess; set it to None, or use "
            "'heads'."
        )
    if values["distill.targets"] == "features" and values["losses.centering"] != "sinkhorn":
        yield (
            f"losses.centering={values['losses.centering']!r} assigns prototypes, but "
            "distill.targets='features' has none; leave it at 'sinkhorn', or use 'heads'."
        )


def _grid(values: Values) -> Iterator[str]:
    """Every network has the crops' grid of patches: it sees them as cut, or whole times smaller."""
    cut, own = values["crops.patch_size"], values["model.patch_size"]
    if cut is None or cut % own == 0:
        return
    divisors = ", ".join(str(n) for n in range(1, cut + 1) if cut % n == 0)
    yield (
        f"crops.patch_size={cut} is not a multiple of model.patch_size={own}, and the student's "
        f"crops are those reduced by a whole number; use crops.patch_size="
        f"{' or '.join(str(n * own) for n in (cut // own, cut // own + 1) if n)}, or a "
        f"model.patch_size of {divisors}."
    )


def in_vain(values: Values) -> tuple[str, ...]:
    """Keys that a recipe may set although the targets it was given have no use for them."""
    if not values["distill.enabled"] or values["distill.targets"] == "heads":
        return ()
    names = ("bottleneck", "prototypes", "prototype_norm")
    return tuple(f"{head}.{name}" for head in ("dino_head", "ibot_head") for name in names)
