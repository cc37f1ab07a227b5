"""Values that a recipe works out itself, and the length of a run in epochs.

A recipe with a function `computed(values, facts)` yields (key, value, reason); what --set or the
recipe's own functions give stays. `epochs` works in every recipe: the steps follow from the number
of images, and parts of schedules keep their shares of the run.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dinojax.config import formulas
from dinojax.config.formulas import Facts
from dinojax.config.overrides import typed
from dinojax.config.recipe import ConfigError
from dinojax.config.rules import SCHEDULES

Measure = Callable[[Mapping[str, Any]], Facts]  # from dotted values; see train/measure.py

ASSUMED = 10_000  # images, where nobody counted any
COMPUTED = "computed: "  # before the reason, in the sources of a config
SHARED = tuple(f"{name}.{part}" for name in SCHEDULES for part in ("warmup", "cosine"))


def assumed(values: Mapping[str, Any]) -> Facts:
    """Facts without looking: `config show` and plans, which may run on another machine."""
    images, memory = values["auto.images"], values["auto.memory"]
    told = "auto.images" if images else "assumed: nobody counted; set auto.images"
    return Facts(
        num_images=images or ASSUMED,
        counted=told,
        devices=values["mesh.devices"] or values["expect.devices"] or 1,
        platform=values["expect.platform"] or "gpu",
        memory=None if memory is None else memory * 2**30,
    )


def fill(
    function: Callable | None,
    values: dict[str, Any],
    sources: dict[str, str],
    *,
    facts: Facts | None,
    default: Mapping[str, Any],
    place: str,
) -> list[str]:
    """Complete the values of a stage; returns warnings.

    function: the recipe's `computed`, or None; facts: needed for it and for epochs.
    Raises ConfigError for what cannot work.
    """
    epochs, notes = values["epochs"], list[str]()
    before = values["num_steps"]
    if facts is None:
        return notes
    if function is not None:
        for key, value, reason in function(values, facts):
            if key == "num_steps" and epochs is not None:
                continue
            if sources[key] == "base":
                values[key] = typed(key, value, default, place=place)
                sources[key] = COMPUTED + reason
            if key == "batch_size" and epochs is not None:
                _set_steps(values, sources, facts, epochs)
        refused = list(formulas.refusals(values))
        if refused:
            raise ConfigError(f"{place}" + "\n  ".join(refused))
        notes += formulas.warnings(values, facts)
    elif epochs is not None:
        _set_steps(values, sources, facts, epochs)
        _keep_shares(values, sources, before)
    return notes


def _set_steps(values: dict, sources: dict, facts: Facts, epochs: float) -> None:
    if sources["num_steps"] == "--set":
        raise ConfigError("epochs and num_steps are both set; keep one.")
    images, batch = facts.num_images, values["batch_size"]
    values["num_steps"] = max(round(epochs * images / batch), 1)
    told = f"{epochs:g} epochs of {images:,} images ({facts.counted}) / {batch}"
    sources["num_steps"] = COMPUTED + told


def _keep_shares(values: dict, sources: dict, before: int) -> None:
    """Parts of schedules as shares of the run, as they were."""
    ratio = values["num_steps"] / before
    for key in (*SHARED, "optim.freeze_last_layer"):
        if values[key] and sources[key] != "--set":
            values[key] = int(values[key] * ratio)
            sources[key] = COMPUTED + "its share of the run is kept"


def reasons(sources: Mapping[str, str]) -> dict[str, str]:
    """Key -> reason of what was computed."""
    return {
        key: text.removeprefix(COMPUTED)
        for key, text in sources.items()
        if text.startswith(COMPUTED)
    }
