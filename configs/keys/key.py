"""A row of the tables of keys, and the numbers that many of them name as their limits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# The largest of things. Beyond them a typing error is likelier than a wish, and numbers of steps
# and images would leave the 32 bits that devices count with.
PIXELS, CHANNELS, IMAGES, COUNT = 2**14, 2**17, 2**20, 2**31 - 1
FLOAT = 3.4e38  # float32, which every number on a device is
SMALL = 1e-6  # for what is divided by


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the config: all that is said of it anywhere."""

    default: Any
    says: str  # "unit or meaning; [source]", or each choice with its own source
    limits: tuple[float, float] | None = None  # smallest, largest; tuples element by element
    _: dataclasses.KW_ONLY
    choices: tuple = ()  # the only values, beside None where it is optional
    optional: type | None = None  # it may be None, and is of this type otherwise
    many: type | None = None  # a tuple of any length, of elements of this type
    columns: tuple[type, ...] = ()  # a tuple of any number of rows, of columns of these types
    named: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # word -> value
    terms: tuple[str, ...] = ()  # of the loss, which this key weighs or enables


def schedule_rows(
    key: str,
    start: float,
    peak: float,
    end: float,
    warmup: int = 0,
    cosine: int | None = None,
    *,
    limits: tuple[float, float] = (0, FLOAT),
    says: str = "",
) -> dict[str, Key]:
    """One value over steps: linear start -> peak, half-cosine peak -> end, then constant end."""
    of = f"{says}: " if says else ""
    return {
        f"{key}.start": Key(float(start), f"{of}value at step 0; [R]", limits),
        f"{key}.peak": Key(float(peak), f"{of}value after the warm-up; [R]", limits),
        f"{key}.end": Key(float(end), f"{of}value after the cosine; [R]", limits),
        f"{key}.warmup": Key(warmup, f"{of}steps of linear warm-up; [R]", (0, COUNT)),
        f"{key}.cosine": Key(
            cosine,
            f"{of}steps of half-cosine, None = all that remain; [R]",
            (0, COUNT),
            optional=int,
        ),
    }


def head_rows(key: str, hidden: int, bottleneck: int, prototypes: int) -> dict[str, Key]:
    """A projection head: tokens -> logits over prototypes."""
    return {
        f"{key}.num_layers": Key(3, "linear layers before the prototypes; [R]", (1, 64)),
        f"{key}.hidden": Key(hidden, "channels; [R]", (1, CHANNELS)),
        f"{key}.bottleneck": Key(bottleneck, "channels; [R]", (1, CHANNELS)),
        f"{key}.prototypes": Key(prototypes, "K, outputs; [R]", (1, 2**24)),
        f"{key}.bias": Key(True, "biases in the linear layers; [R]"),
        f"{key}.prototype_norm": Key(
            "none",
            "none [R] | unit [ours] | weight_norm [D2]",
            choices=("none", "unit", "weight_norm"),
        ),
    }
