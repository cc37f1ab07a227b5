"""What a task is trained with: one checked object, saved beside the head."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

from dinojax.config import ConfigError

TASKS = {
    "depth": "metres of every pixel, from maps of depth",
    "canopy": "heights of trees in metres, from maps of heights",
    "segment": "a class of every pixel, from maps of labels",
    "detect": "boxes of objects with their classes, from boxes in COCO's form",
}
HEADS = ("linear", "dpt", "mask2former", "detr")
# What a task has in place of the defaults.
OWN: dict[str, dict[str, Any]] = {
    "canopy": {"max_depth": 96.0, "per_metre": 1.0},
    # DINOv3, D.9, the first stage; the clip is that of Plain-DETR's code.
    "detect": {
        "head": "detr",
        "size": 1536,
        "batch_size": 32,
        "warmup": 1_000,
        "lr": 5e-5,
        "weight_decay": 0.05,
        "clip": 0.1,
        "width": 768,
        "queries": 1500,
        "depth": 6,
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Keys of --set. Sizes in pixels of the image."""

    head: str = "dpt"  # linear | dpt | mask2former (segment) | detr (detect)
    size: int = 512  # of crops and of windows; a multiple of the patch
    num_steps: int = 20_000
    warmup: int = 1_500  # steps
    batch_size: int = 16  # crops
    lr: float = 1e-3
    weight_decay: float = 1e-4
    clip: float = 35.0  # largest norm of a gradient
    width: int = 256  # channels of a head that is not linear
    levels: tuple[int, ...] = (256, 256, 256, 256)  # channels of its four maps
    readout: bool = False  # of a dpt head: cls is mixed into each patch
    queries: int = 100  # of a mask2former or detr head
    depth: int = 9  # layers of queries
    pixel_depth: int = 6  # layers of the pixel decoder of a mask2former head
    num_points: int = 12_544  # at which masks are compared
    encoder_depth: int = 6  # layers of the encoder of a detr head, and so on
    ffn: int = 2048  # hidden channels of its layers
    windows: int = 3  # along each side of the image; 0 = the image goes whole alone
    many_queries: int = 1500  # more queries in training, many for each object; 0 = none
    copies: int = 6  # of each object for these
    smallest: float = 50.0  # pixels of a side of the smallest proposals
    scale: float = 0.6  # of size: least long side of an image in training
    num_boxes: int = 100  # of an image, the surest ones
    leave_out: bool = False  # boxes without area or outside their image, instead of an error
    num_bins: int = 256  # of depth and heights
    min_depth: float = 0.001  # metres
    max_depth: float = 10.0  # metres; truth at or above it is not learnt from
    per_metre: float = 1000.0  # of maps of whole numbers
    # LOW, HIGH stored values of above 8 bits that become 0 and 255, of all bands or each; () = all
    value_range: tuple[float, ...] = ()
    num_classes: int = 0  # 0 = one more than the largest label
    zero_is_unlabelled: bool = False
    seed: int = 0
    save_every: int = 500  # steps
    judge_every: int = 1_000  # steps; also at the end

    def check(self, task: str, patch_size: int) -> None:
        """Raise ConfigError, naming the key, for what does not work."""
        if task not in TASKS:
            raise ConfigError(f"no task {task!r}; choose of {', '.join(TASKS)}.")
        if self.head not in HEADS:
            raise ConfigError(f"head={self.head!r} is unknown; choose of {', '.join(HEADS)}.")
        whole = ["size", "num_steps", "batch_size", "width", "num_bins", "save_every"]
        whole += ["judge_every", "queries", "depth", "pixel_depth", "num_points"]
        whole += ["encoder_depth", "ffn", "copies", "num_boxes"]
        none = ["warmup", "num_classes", "windows", "many_queries"]
        least = dict.fromkeys(whole, 1) | dict.fromkeys(none, 0)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {value}.")
        for name in ("lr", "clip", "min_depth", "max_depth", "per_metre", "smallest", "scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name}={getattr(self, name)} must be a number above 0.")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay={self.weight_decay} must not be below 0.")
        if self.size % patch_size:
            raise ConfigError(
                f"size={self.size} is no multiple of the patch of {patch_size} pixels; use "
                f"{max(self.size // patch_size, 1) * patch_size}."
            )
        if self.min_depth >= self.max_depth:
            raise ConfigError(
                f"min_depth={self.min_depth} is not below max_depth={self.max_depth}."
            )
        if len(self.levels) != 4 or min(self.levels) < 1:
            raise ConfigError(f"levels={self.levels}: a dpt head has four, of some channels.")
        ends = self.value_range
        pairs = list(zip(ends[::2], ends[1::2], strict=False))
        if len(ends) % 2 or not all(low < high for low, high in pairs):
            raise ConfigError(
                f"value_range={ends}: give LOW,HIGH, ascending, of all bands or each."
            )
        if ends and task == "detect":
            raise ConfigError("value_range is not read by detect; leave it out.")
        if self.head == "mask2former":
            self._check_masks(task, patch_size)
        if self.head == "detr" or task == "detect":
            self._check_boxes(task, patch_size)

    def _check_masks(self, task: str, patch_size: int) -> None:
        if task != "segment":
            raise ConfigError(f"head=mask2former is for segment; use dpt for {task}.")
        if patch_size != 16:
            raise ConfigError(
                f"head=mask2former looks at patches of 16 pixels; this backbone has {patch_size}."
            )
        for name in ("size", "width"):  # maps at 1/32 of the image; groups of 32 channels
            if getattr(self, name) % 32:
                told = f"{name}={getattr(self, name)} is no multiple of 32"
                raise ConfigError(f"{told}, which a mask2former head asks for.")

    def _check_boxes(self, task: str, patch_size: int) -> None:
        if (self.head == "detr") != (task == "detect"):
            use = "detr" if task == "detect" else "dpt"
            raise ConfigError(f"head={self.head} is not for {task}; use {use}.")
        if self.width % 32:  # groups of channels
            raise ConfigError(f"width={self.width} is no multiple of 32, which a detr head needs.")
        if self.scale > 1:
            raise ConfigError(f"scale={self.scale} is a share of size, 1 at most.")
        grid = self.size // patch_size
        if grid < 4 or self.windows and (self.windows - 1) * -(-grid // self.windows) >= grid:
            raise ConfigError(
                f"size={self.size} has {grid} patches along a side: too few for a detr head with "
                f"windows={self.windows}."
            )
        places = sum(side * side for side in (2 * grid, grid, grid // 2, grid // 4))
        if self.queries + self.many_queries > places:
            raise ConfigError(
                f"queries={self.queries} and many_queries={self.many_queries} are more than the "
                f"{places} places of an image at size={self.size}."
            )

    def to_json(self) -> dict[str, Any]:
        lists = {"levels": list(self.levels), "value_range": list(self.value_range)}
        return dataclasses.asdict(self) | lists


def parse(task: str, pairs: Sequence[str]) -> Settings:
    """Settings of a task with the values of KEY=VALUE. Raises ConfigError that names the key."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1)
            told = f"; {near[0]} is meant?" if near else f"; choose of {', '.join(kinds)}."
            raise ConfigError(f"--set {pair}: no key {key!r}{told}")
        if key in values:
            raise ConfigError(f"--set {key} is given twice.")
        values[key] = _value(key, text, kinds[key])
    return Settings(**{**OWN.get(task, {}), **values})


def of_json(content: Any, where: str) -> Settings:
    """What `to_json` wrote. Raises ConfigError for anything else."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    if not isinstance(content, dict) or set(content) != set(kinds):
        raise ConfigError(f"{where}: settings are not those of this version of dinojax.")
    for key, value in content.items():
        kind = list if kinds[key] is tuple else kinds[key]
        if not isinstance(value, kind) and not (kind is float and type(value) is int):
            raise ConfigError(f"{where}: {key}={value!r} is no {kinds[key].__name__}.")
    many = {key: tuple(content[key]) for key, kind in kinds.items() if kind is tuple}
    return Settings(**(content | many))


def _value(key: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is tuple:
            element = float if key == "value_range" else int
            return tuple(element(part) for part in text.strip("()").split(",") if part.strip())
        return kind(text)
    except (KeyError, ValueError):
        wanted = "a list such as 128,256,512,1024" if kind is tuple else f"{kind.__name__}"
        raise ConfigError(f"--set {key}={text}: give {wanted}.") from None
