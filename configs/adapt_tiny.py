"""Continue pretraining from the quickstart's trained weights, in two stages. For a CPU.

Run:   bash launch/quickstart.sh, then
       dinojax train --config configs/adapt_tiny.py --run runs/adapted, or from weights in a file:
       dinojax export --run runs/quickstart --format hf --out runs/quickstart-hf
       dinojax train --config configs/adapt_tiny.py --run runs/adapted \
           --set heads:start.source=runs/quickstart-hf
Cost:  4.6 minutes of processor time, compilation included, on shared CPU cores (2026-11-21)
Score: from the quickstart's export (seed 0): `heads` ends after 30 of 400 steps; k-NN 35.5 % at
       step 0, then 35.1, 35.2, 35.0, 35.8, 36.0, 35.9 % every 50 steps of `adapt`; dense metric
       16.8 and 16.3 %. On test tiles 32.9 % before and 31.8 % after, standard error 1.5: on the
       images that the weights come from nothing is to be gained, and nothing is lost
"""

from dinojax.configs import base, tiny


def get_config():
    """What both stages share."""
    c = tiny.get_config()
    c.start.source = "runs/quickstart"
    c.checkpoint.every = 100
    c.knn.update(every=50, mosaics=64, alarm=0.05)
    return c


def heads(c):
    """New heads on the frozen backbone, until they know something."""
    c.start.heads = "new"
    c.num_steps = 400  # at most
    c.until.left_chance = 0.02  # the quickstart's own losses end at 0.03 to 0.15
    c.optim.freeze_backbone = True
    c.schedules.lr = base.schedule(0.0, 2e-3, 2e-3, warmup=20)
    c.schedules.momentum = base.schedule(0.98, 0.98, 0.98)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.04, 0.04)
    return c


def adapt(c):
    """Everything, slowly."""
    c.start.source = "previous"
    c.num_steps = 300
    c.schedules.lr = base.schedule(0.0, 2e-4, 2e-5, warmup=100)  # a tenth of tiny's
    c.schedules.momentum = base.schedule(0.99, 0.99, 1.0)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=100)
    c.gram.enabled = True
    c.gram.anchor = "ema"  # of step 0: the backbone that `heads` left as it was
    return c


STAGES = {"heads": heads, "adapt": adapt}


def smoke(c):
    """The same recipe, small enough for a test: two steps of each stage, from random weights."""
    c = tiny.smoke(c)
    c.schedules.lr.warmup = min(c.schedules.lr.warmup, 1)
    c.schedules.teacher_temperature.warmup = min(c.schedules.teacher_temperature.warmup, 1)
    c.until.left_chance = None
    c.start.update(source="previous", heads="keep")
    c.knn.mosaics = 8
    return c
