"""Continue pretraining from any weights on images of your own: everything, or low-rank adapters.

Run:   dinojax train --config configs/adapt.py --run runs/adapted \
           --set heads:start.source=WEIGHTS --set data.path=FOLDER
       with adapters: the same with --set adapt:adapter.rank=16
Cost:  docs/own_data.md
Score: docs/own_data.md

WEIGHTS: a run, or a file or folder of any format that `dinojax.load` reads; the keys of model.*
are taken from it. Stage `heads` trains new heads on the frozen backbone until all losses have left
chance; `adapt` trains everything, slowly. k-NN (`--set knn.query=LABELLED`) or the dense metric is
measured before anything changes, and a run that falls 5 % below that ends. Values follow from the
images, devices and memory by the formulas of dinojax/config/formulas.py, each told with its reason.
"""

from dinojax.config.formulas import adapted as computed  # noqa: F401  (fills in what is not set)
from dinojax.configs import base


def get_config():
    """What both stages share."""
    c = base.get_config()
    c.data.source = "auto"
    c.start.source = "WEIGHTS"  # stands for a path, given with --set heads:start.source=
    c.model.name = "vitb"

    c.dino_head.prototype_norm = "unit"  # they say something from the start
    c.ibot_head.prototype_norm = "unit"

    c.optim.lr_scaling = "none"  # the formula scales
    c.schedules.version = 2
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.04)
    c.mesh.strategy = "dp"

    c.model.drop_path = 0.0  # [U], docs/recipes.md
    c.checkpoint.keep_every = None
    c.knn.update(mosaics=128, alarm=0.05, alarm_stops=True)
    return c


def heads(c):
    """New heads on the frozen backbone, until they know something."""
    c.start.heads = "new"
    c.until.left_chance = 0.05
    c.optim.freeze_backbone = True
    c.schedules.momentum = base.schedule(0.99, 0.99, 0.99)  # of the heads
    c.schedules.teacher_temperature = base.schedule(0.04, 0.04, 0.04)
    c.optim.freeze_last_layer = 0
    return c


def adapt(c):
    """Everything, slowly; 5 % below what it began with ends the run."""
    c.start.source = "previous"
    return c


STAGES = {"heads": heads, "adapt": adapt}


def smoke(c):
    """The same recipe, small enough for a laptop: two steps of a narrow, shallow ViT."""
    c = base.shrink(c)
    c.start.update(source="previous", heads="keep")  # from random weights
    return c
