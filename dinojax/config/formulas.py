"""Values that follow from the number of images, the devices and their memory: docs/own_data.md.

A recipe names one of these generators as its `computed`. Each yields (key, value, reason) in an
order in which later rows use earlier ones, so that a value set by hand goes into all that follows.
Constants are marked by their source as in configs/base.py, [E] standing for published evidence of
small data that docs/own_data.md lists.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Values = Mapping[str, Any]  # dotted key -> value, as they stand when a row is asked for
Row = tuple[str, Any, str]

STATE_BYTES = 20  # of a parameter: student, ema, gradient and two moments in float32
TOKEN_BYTES = 34  # of a channel, block and token in bfloat16: arXiv:2205.05198, equation 2
FITS = 0.8  # of the memory: the rest is for logits, crops and what compilers keep
IN1K = 180_000  # images of the ema's half-life in DINOv3's ImageNet-1k recipe: 0.992 at 2048; [R]
DETAIL = 48  # pixels of the original that a local crop should show at least


class Facts(NamedTuple):
    """What was found out about images and machine; see train/measure.py."""

    num_images: int
    counted: str  # how, for the reasons
    side: float | None = None  # median short side of a sample of images, pixels
    devices: int = 1
    platform: str = "cpu"
    memory: float | None = None  # bytes of a device, None = not known
    start: Mapping[str, Any] | None = None  # keys of model.* of the weights to start from


def scratch(values: Values, facts: Facts) -> Iterator[Row]:
    """Of a run from random weights."""
    images = facts.num_images
    if images < 20_000:
        sizes, told = (192, 12, 3), "ViT-T below 20,000 images; [E]"
    else:
        sizes, told = (384, 12, 6), "ViT-S from 20,000 images on; [E]"
    for key, size in zip(("width", "depth", "num_heads"), sizes, strict=True):
        yield f"model.{key}", size, told
    yield from _machine(values, facts)
    yield from _batch(values, facts, share=80, most=256)
    yield from _steps(values, facts, least=2_000_000, passes=200, most=None)
    yield from _prototypes(values, facts)
    rate = 5e-4 * math.sqrt(values["batch_size"] / 256)
    yield "schedules.lr.peak", rate, "5e-4 sqrt(batch / 256): DINO at 256, LeJEPA; [E]"
    yield "schedules.lr.end", values["schedules.lr.peak"] / 500, "a 500th of the peak; [ours]"
    yield from _warmups(values, share=0.1)
    drawn = values["num_steps"] * values["batch_size"]
    half = min(IN1K, 2 * images, 0.02 * drawn)
    yield from _momentum(values, half, f"min(180,000, 2 x {images:,}, 2 % of {drawn:,} drawn)")
    yield from _patches(values, facts)
    small = 12 * values["model.depth"] * _width(values) ** 2 < 10e6
    told = "1 below 10 million parameters (configs/tiny.py), else 1e-5; [ours], [R]"
    yield "model.layer_scale", 1.0 if small else 1e-5, told
    told = "0 below 30,000 images, else 0.1; [ours]"
    yield "model.drop_path", 0.0 if images < 30_000 else 0.1, told
    yield from _crops(values, facts)
    yield from _looks(values)


def adapted(values: Values, facts: Facts) -> Iterator[Row]:
    """Of a run from trained weights; values["stage"] is heads or adapt."""
    for key, size in (facts.start or {}).items():
        yield key, size, "that of start.source"
    yield from _machine(values, facts)
    yield from _sides(values)
    yield from _batch(values, facts, share=40, most=64 if (_width(values) >= 1024) else 128)
    if values["stage"] == "heads":
        yield "num_steps", 2000, "at most: the stage ends when losses left chance; [ours]"
    else:
        yield from _steps(values, facts, least=500_000, passes=100, most=5_000_000)
    yield from _prototypes(values, facts)
    if values["stage"] == "adapt":
        yield from _adapt_rates(values)
    else:
        yield "schedules.lr.peak", 5e-4, "of new heads on frozen features; [ours]"
        yield "schedules.lr.end", values["schedules.lr.peak"], "constant; [ours]"
    yield from _warmups(values, share=0.2 if values["stage"] == "adapt" else 0.1)
    yield from _crops(values, facts)
    yield from _looks(values)


def _adapt_rates(values: Values) -> Iterator[Row]:
    batch, lora = values["batch_size"], values["adapter.rank"] > 0
    rate = 5e-5 * 4 * math.sqrt(batch / 1024) * (3 if lora else 1)
    told = "5e-5 x 4 sqrt(batch / 1024), the guided DINOv3's; [E]"
    told = f"3 times {told}, for adapters" if lora else told
    yield "schedules.lr.peak", rate, told
    yield "schedules.lr.end", values["schedules.lr.peak"] / 100, "a 100th of the peak; [ours]"
    drawn = values["num_steps"] * batch
    half = min(355_000, 0.1 * drawn)
    yield from _momentum(values, half, f"min(355,000, 10 % of {drawn:,} drawn)")


def _batch(values: Values, facts: Facts, *, share: int, most: int) -> Iterator[Row]:
    images = facts.num_images
    batch = _power(min(max(images / share, 32), most))
    told = f"power of two near {images:,} / {share}, 32 to {most}; more devices buy time; [E]"
    yield "batch_size", batch, f"{told} ({facts.counted})"
    batch = values["batch_size"]
    yield (
        "group_size",
        math.gcd(batch, min(16, max(batch // 4, 1))),
        "16, a quarter at most; [ours]",
    )
    parts = _parts(values, facts)
    yield "accumulate", parts[0], parts[1]


def _steps(
    values: Values, facts: Facts, *, least: int, passes: int, most: int | None
) -> Iterator[Row]:
    images, batch = facts.num_images, values["batch_size"]
    drawn = max(passes * images, least)
    told = f"max({passes} x {images:,}, {least:,}) images / batch; [E]"
    if most is not None:
        drawn, told = min(drawn, most), told.replace("max(", f"up to {most:,}, max(")
    yield "num_steps", max(round(drawn / batch), 1), told


def _prototypes(values: Values, facts: Facts) -> Iterator[Row]:
    batch, images = values["batch_size"], facts.num_images
    size = _power(min(max(min(32 * batch, images / 8), 1024), 65_536))
    told = f"power of two near min(32 x {batch}, {images:,} / 8), 1024 to 65,536; [E]"
    rows = 2 * batch
    floor = max(0.0, math.log(size / rows))
    for head in ("dino_head", "ibot_head"):
        yield f"{head}.prototypes", size, f"{told}; a floor of {floor:.2f} nats with {rows} rows"
    sinkhorn = 2 * batch >= 256
    told = "Sinkhorn from 256 rows (2 x batch) on, softmax below: nobody reports success there; [E]"
    yield "losses.centering", "sinkhorn" if sinkhorn else "softmax", told


def _warmups(values: Values, *, share: float) -> Iterator[Row]:
    steps = values["num_steps"]
    yield "schedules.lr.warmup", round(share * steps), f"{share:.0%} of the steps; [R]"
    told = "30 % of the steps; [R]"
    yield "schedules.teacher_temperature.warmup", round(0.3 * steps), told
    yield "optim.freeze_last_layer", round(0.01 * steps), "1 % of the steps; [R]"


def _momentum(values: Values, half: float, told: str) -> Iterator[Row]:
    half = max(half, values["batch_size"])
    start = 1 - math.log(2) * values["batch_size"] / half
    told = f"half-life of {half:,.0f} images, {told}: 1 - ln 2 x batch / half-life; [E]"
    for corner in ("start", "peak"):
        yield f"schedules.momentum.{corner}", round(max(start, 0.5), 6), told


def _patches(values: Values, facts: Facts) -> Iterator[Row]:
    """Masked patches learn slowly on few images: Imagenette 43 % k-NN with iBOT, 84 % with DINO."""
    images = facts.num_images
    weight = 0.0 if images < 30_000 else 0.5 if images < 100_000 else 1.0
    yield "losses.ibot", weight, "0 below 30,000 images, 0.5 below 100,000, else 1; [E]"
    if not values["losses.ibot"]:
        yield "masks.rate", 0.0, "nothing is hidden where losses.ibot=0"


def _sides(values: Values) -> Iterator[Row]:
    patch = values["model.patch_size"]
    yield "crops.global_size", 16 * patch, "16 patches a side: 256 of 16 pixels, 224 of 14; [R]"
    yield "crops.local_size", 7 * patch, "7 patches a side: 112 of 16 pixels, 98 of 14; [R]"


def _crops(values: Values, facts: Facts) -> Iterator[Row]:
    side = values["crops.global_size"]
    told = "as k-NN sees whole images at the size of global crops"
    yield "knn.crop_size", side, told
    yield "knn.resize_size", side * 8 // 7, "8 / 7 of the crop: 256 of 224; [R]"
    yield "data.box_size", max(side * 8 // 7, 64), "as much as global crops can show; [ours]"
    if facts.side is None:
        return
    least = min(max((DETAIL / facts.side) ** 2, 0.05), 0.25)
    told = (
        f"a local crop shows {DETAIL} pixels of an image of {facts.side:.0f} (median short side of "
        "a sample) at least; 0.05 to 0.25; [E]"
    )
    yield "crops.local_area", (round(least, 3), max(0.32, round(least, 3))), told


def _machine(values: Values, facts: Facts) -> Iterator[Row]:
    told = f"runs on {facts.platform}: CPUs gain nothing from bfloat16"
    compute = "float32" if facts.platform == "cpu" else "bfloat16"
    yield "precision.compute", compute, told
    if facts.platform != "cpu":
        yield "data.num_workers", 4, "a GPU outruns threads of one process; [ours]"


def _looks(values: Values) -> Iterator[Row]:
    """Twenty evaluations and checkpoints a run."""
    every = max(values["num_steps"] // 20, 1)
    yield "knn.every", every, "20 times a run"
    yield "checkpoint.every", every, "20 times a run"
    yield (
        "log.every",
        max(min(values["num_steps"] // 200, 10), 1),
        "every 10 steps, 200 rows at least",
    )


def _parts(values: Values, facts: Facts) -> tuple[int, str]:
    """(micro-batches, reason): as few as the memory allows by a formula that is told."""
    per_device = max(values["batch_size"] // facts.devices, 1)
    if facts.memory is None:
        return 1, "the memory of a device is not known: set it by hand if it does not fit"
    fixed, each = STATE_BYTES * _parameters(values), image_bytes(values)
    room = FITS * facts.memory - fixed
    fits = max(int(room // each), 1) if room > 0 else 1
    most = max(per_device // values["group_size"], 1)
    parts = 1
    while per_device // parts > fits and 2 * parts <= most:
        parts *= 2
    gib = 2**30
    return parts, (
        f"{fits} images fit: {FITS:.0%} of {facts.memory / gib:.1f} GiB less {fixed / gib:.2f} "
        f"GiB of state, {each / 2**20:.0f} MiB an image by formula (not measured)"
    )


def image_bytes(values: Values) -> float:
    """Of activations that an image with all its crops leaves for the backward pass."""
    patch, width, depth = values["model.patch_size"], _width(values), values["model.depth"] or 12
    crops = (
        (2, values["crops.global_size"]),
        (values["crops.num_local"], values["crops.local_size"]),
    )
    tokens = sum(count * ((size // patch) ** 2 + 1) for count, size in crops)
    wide = 2 if values["precision.compute"] == "float32" else 1
    kept = {"none": 1.0, "products": 0.6, "dots": 0.5, "full": 0.1}[values["model.remat"]]
    return TOKEN_BYTES * wide * kept * tokens * width * depth


def _parameters(values: Values) -> float:
    width, depth = _width(values), values["model.depth"] or 12
    total = 12.0 * depth * width**2
    for name in ("dino_head", "ibot_head"):
        hidden, bottleneck = values[f"{name}.hidden"], values[f"{name}.bottleneck"]
        total += hidden * (width + hidden + bottleneck) + bottleneck * values[f"{name}.prototypes"]
    return total


WIDTHS = {"vits": 384, "vitb": 768, "vitl": 1024}


def _width(values: Values) -> int:
    return values["model.width"] or WIDTHS.get(values["model.name"].removeprefix("dinov2_"), 768)


def _power(x: float) -> int:
    """The power of two that is nearest on a scale of ratios."""
    return 2 ** round(math.log2(x))


def warnings(values: Values, facts: Facts) -> Iterator[str]:
    """What may be meant, and seldom turns out well."""
    batch, images = values["batch_size"], facts.num_images
    drawn = values["num_steps"] * batch
    half = half_life(values["schedules.momentum.start"], batch)
    size = values["dino_head.prototypes"]
    if half > 0.2 * drawn and values["stage"] != "heads":
        yield (
            f"the ema's half-life of {half:,.0f} images (schedules.momentum.start) is more than a "
            f"fifth of the {drawn:,} images that are drawn: the teacher stays what it was."
        )
    if size > images / 4 and size > 1024:
        yield f"dino_head.prototypes={size} for {images:,} images: fewer than four for each."
    if batch > images / 20:
        yield (
            f"batch_size={batch} for {images:,} images: an epoch has {images / batch:.1f} steps, "
            "and schedules get coarse."
        )
    if images < 1000:
        yield f"{images:,} images are fewer than any published success of this objective has had."


def refusals(values: Values) -> Iterator[str]:
    """What cannot work."""
    rows, size = 2 * values["batch_size"], values["dino_head.prototypes"]
    if values["losses.centering"] == "sinkhorn" and rows < 64 and size > 16 * rows:
        yield (
            f"losses.centering='sinkhorn' spreads {rows} rows (2 x batch_size) over {size} "
            f"prototypes; use losses.centering=softmax, dino_head.prototypes={16 * rows} or fewer, "
            "or a batch_size of 32 or more."
        )


def half_life(momentum: float, batch_size: int) -> float:
    """Images in which the weights of a moving average fade to a half."""
    return math.inf if momentum >= 1 else math.log(2) * batch_size / (1 - momentum)
