"""The smallest and the largest value of every number of a config."""

from typing import Any

from dinojax.eval import suite
from dinojax.eval.row import KINDS

HEADS = ("dino_head", "ibot_head")
SCHEDULES = tuple(
    f"schedules.{name}"
    for name in ("lr", "weight_decay", "momentum", "teacher_temperature", "local_weight")
    + ("gram_weight",)
)
CORNERS = ("start", "peak", "end")  # values of a schedule

# The largest of things. Beyond them a typing error is likelier than a wish, and numbers of steps
# and images would leave the 32 bits that devices count with.
PIXELS, CHANNELS, IMAGES, COUNT = 2**14, 2**17, 2**20, 2**31 - 1
FLOAT = 3.4e38  # float32, which every number on a device is
SMALL = 1e-6  # for what is divided by


def _closed(fields: dict[str, Any]) -> tuple[float, float]:
    """Of a key of an evaluation, where None stands for no limit."""
    low, high = fields["limits"]
    kind = KINDS[fields["optional"]] if "optional" in fields else type(fields["default"])
    most = COUNT if kind is int else FLOAT
    return (-most if low is None else low), (most if high is None else high)


# key -> (smallest, largest) value allowed, for every number; tuples element by element.
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # all that a random key takes of it
    "num_steps": (1, COUNT),
    **{key: (1, IMAGES) for key in ("batch_size", "group_size", "accumulate")},
    "start.steps_before": (0, COUNT),
    "until.left_chance": (SMALL, 1),
    "until.every": (1, COUNT),
    **{f"gram.{name}": (1, COUNT) for name in ("refresh_every", "max_refreshes")},
    **{f"gram.{name}": (0, COUNT) for name in ("anchor_step", "refresh_from")},
    "crops.more_rates": (SMALL, 1),
    **{f"crops.more_{name}": (1, PIXELS) for name in ("global", "local", "gram", "box")},
    "data.box_size": (1, PIXELS),
    **{f"data.{name}": (1, 1024) for name in ("num_threads", "prefetch")},
    "data.num_workers": (0, 1024),
    "data.max_bad_share": (0, 1),
    "data.max_pixels": (1, 178_956_970),  # what Pillow itself refuses beyond
    "data.value_range": (-FLOAT, FLOAT),
    "image.channels": (1, 1024),
    "image.mean": (0, 1),
    "image.std": (SMALL, FLOAT),
    **{f"crops.{name}": (1, PIXELS) for name in ("global_size", "local_size", "gram_size")},
    **{f"crops.{name}": (1, 1024) for name in ("num_local", "patch_size")},
    **{f"crops.{name}": (SMALL, 1) for name in ("global_area", "local_area")},
    "crops.aspect": (1e-3, 1e3),
    **{f"augment.{name}_rate": (0, 1) for name in ("flip", "jitter", "grayscale", "solarize")},
    "augment.blur_rates": (0, 1),
    "augment.blur_sigma": (1e-3, 1e3),
    "augment.blur_kernel": (1, 1023),
    "augment.hue": (0, 0.5),
    **{f"augment.{name}": (0, 1) for name in ("brightness", "contrast", "saturation")},
    "augment.solarize_threshold": (0, 256),
    **{f"masks.{name}": (0, 1) for name in ("rate", "ratio")},
    "masks.min_block": (1, IMAGES),
    "masks.aspect": (1e-3, 1e3),
    "model.patch_size": (1, 1024),
    "model.width": (1, CHANNELS),
    **{f"model.{name}": (1, 4096) for name in ("depth", "num_heads")},
    "model.num_registers": (0, 4096),
    "model.ffn_ratio": (1e-3, 1e3),
    "model.position_size": (1, PIXELS),
    "model.position_offset": (0, 1),
    "model.layer_scale": (0, FLOAT),
    "model.drop_path": (0, 0.999),
    **{f"rope.{name}": (SMALL, 1e9) for name in ("base", "min_period", "max_period")},
    "rope.shift": (0, 1e3),
    **{f"rope.{name}": (1, 1e3) for name in ("jitter", "rescale")},  # factors in 1/x .. x
    **{f"{head}.num_layers": (1, 64) for head in HEADS},
    **{f"{head}.{name}": (1, CHANNELS) for head in HEADS for name in ("hidden", "bottleneck")},
    **{f"{head}.prototypes": (1, 2**24) for head in HEADS},
    **{f"losses.{name}": (0, FLOAT) for name in ("dino", "ibot", "koleo")},
    "losses.student_temperature": (SMALL, FLOAT),
    **{f"losses.{name}": (1, IMAGES) for name in ("koleo_group", "koleo_neighbors")},
    "losses.sinkhorn_iterations": (1, 1000),
    "losses.center_momentum": (0, 1),
    **{f"optim.{name}": (0, 1 - 1e-7) for name in ("beta1", "beta2")},  # at 1 Adam divides by 0
    "optim.eps": (1e-30, 1),
    "optim.clip": (SMALL, FLOAT),
    **{f"optim.{name}": (0, 1) for name in ("layer_decay", "patch_embed_lr")},
    "optim.freeze_last_layer": (0, COUNT),
    "adapter.rank": (0, CHANNELS),
    "adapter.alpha": (SMALL, FLOAT),
    "schedules.truncate_extra": (0, 10),
    **{f"{name}.{part}": (0, FLOAT) for name in SCHEDULES for part in CORNERS},
    **{f"schedules.momentum.{part}": (0, 1) for part in CORNERS},
    **{f"schedules.teacher_temperature.{part}": (SMALL, FLOAT) for part in CORNERS},
    **{f"{name}.{part}": (0, COUNT) for name in SCHEDULES for part in ("warmup", "cosine")},
    **{f"mesh.{name}": (1, IMAGES) for name in ("devices", "replicas", "tensor")},
    "distill.share": (1, IMAGES),
    "hang.factor": (1, 1e6),
    **{f"hang.{name}": (SMALL, 1e9) for name in ("seconds", "minutes")},
    **{f"expect.{name}": (1, IMAGES) for name in ("devices", "hosts")},
    **{f"checkpoint.{name}": (1, COUNT) for name in ("every", "keep_last", "keep_every")},
    "checkpoint.minutes": (SMALL, FLOAT),
    "log.every": (1, COUNT),
    **{key: _closed(fields) for key, fields in suite.keys() if "limits" in fields},
}
