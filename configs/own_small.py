"""From scratch on a folder of 1,000 to 100,000 images of your own, on one GPU or a CPU.

Run:   dinojax train --config configs/own_small.py --run runs/own --set data.path=FOLDER
       a trial: the same with --epochs 5
Cost:  docs/own_data.md
Score: docs/own_data.md

The number of images, the devices and their memory give batch, prototypes, learning rate, ema,
warm-ups, steps, crops and loss weights, by the formulas of dinojax/config/formulas.py. The run
says each value with its reason, and `--set KEY=VALUE` sets it. Labels are optional:
`--set knn.query=LABELLED` measures k-NN, else the dense metric is watched.
"""

from dinojax.config.formulas import scratch as computed  # noqa: F401  (fills in what is not set)
from dinojax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "auto"
    c.model.name = "vits"  # of its row the width is computed

    # Unit prototypes: plain ones leave the teacher almost uniform for hundreds of steps.
    c.dino_head.prototype_norm = "unit"
    c.ibot_head.prototype_norm = "unit"

    c.optim.layer_decay = 1.0  # as DINO
    c.optim.patch_embed_lr = 1.0
    c.optim.lr_scaling = "none"  # the formula scales
    c.schedules.version = 2
    c.mesh.strategy = "dp"

    c.checkpoint.keep_every = None
    c.knn.mosaics = 64
    return c


def smoke(c):
    """The same recipe, small enough for a laptop: two steps of a narrow, shallow ViT."""
    return base.shrink(c)
