"""Keys of a run: devices, machines, checkpoints, logs."""

from dinojax.configs.keys.key import COUNT, FLOAT, IMAGES, SMALL, Key
from dinojax.sharding.axes import TABLE

RUN_KEYS: dict[str, Key] = {
    # mesh
    "mesh.strategy": Key(
        "fsdp", "how arrays lie on devices (dinojax/sharding/axes.py); [ours]", choices=tuple(TABLE)
    ),
    "mesh.devices": Key(
        None, "number of devices, None = all that jax sees; [ours]", (1, IMAGES), optional=int
    ),
    "mesh.replicas": Key(
        None,
        "copies of the weights; hsdp: None = leaves each 2^n devices; [ours]",
        (1, IMAGES),
        optional=int,
    ),
    "mesh.tensor": Key(
        None,
        "devices that share prototypes, fsdp_tp; None = up to 8; [ours]",
        (1, IMAGES),
        optional=int,
    ),
    # expect
    # What the machines must be; anything else ends the run before it begins (docs/hosts.md).
    "expect.platform": Key(
        None,
        "cpu | gpu | tpu, None = any: not to train on the CPU unseen; [ours]",
        choices=("cpu", "gpu", "tpu"),
        optional=str,
    ),
    "expect.devices": Key(
        None, "number of devices over all hosts, None = any; [ours]", (1, IMAGES), optional=int
    ),
    "expect.hosts": Key(None, "number of processes, None = any; [ours]", (1, IMAGES), optional=int),
    # hang
    # A run in which nothing happens any more is ended with exit code 77
    # (dinojax/monitor/watchdog.py).
    "hang.factor": Key(
        20.0,
        "times the median step without a step, None = never ended; [ours]",
        (1, 1e6),
        optional=float,
    ),
    "hang.seconds": Key(
        300.0, "without a step at least, however short steps are; [ours]", (SMALL, 1e9)
    ),
    "hang.minutes": Key(
        120.0, "of compiling, of an evaluation, of a save, at most each; [ours]", (SMALL, 1e9)
    ),
    # checkpoint
    "checkpoint.every": Key(3750, "steps; [R]", (1, COUNT)),
    "checkpoint.minutes": Key(
        None,
        "and at least this often, None = by steps alone; [ours]",
        (SMALL, FLOAT),
        optional=float,
    ),
    "checkpoint.keep_last": Key(3, "newest checkpoints kept; [R]", (1, COUNT)),
    "checkpoint.keep_every": Key(
        12_500, "steps; these are kept for good; None = none; [R]", (1, COUNT), optional=int
    ),
    # log
    "log.every": Key(10, "steps between lines of metrics.jsonl; [R]", (1, COUNT)),
    "log.pictures": Key(True, "crops, and PCA and similarity PNGs every knn.every steps; [ours]"),
    "log.tensorboard": Key(False, "event files in RUN/tensorboard/ as well; [ours]"),
}
