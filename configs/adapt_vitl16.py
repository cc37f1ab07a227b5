"""Continue pretraining from a released ViT-L/16 on images of your own, in two stages. Not measured.

Run:   dinojax train --config configs/adapt_vitl16.py --run runs/adapted \
           --set heads:start.source=WEIGHTS --set data.path=IMAGES --set knn.query=LABELLED
Cost:  not measured
Score: not measured. The run measures k-NN before it changes anything, the number to beat

WEIGHTS: a backbone in any format that `dinojax.load` reads, without heads. Stage `heads` trains new
ones on the frozen backbone until all losses have left chance; `adapt` then trains everything at a
tenth of the usual rate, held to the released patch features by a Gram anchor. Without labels the
alarm watches the dense metric (knn.mosaics). Without the anchor:
`--set adapt:gram.enabled=False --set adapt:gram.anchor=`.

[R] the released models, [U] what users of them report (docs/recipes.md), [ours] extrapolated
from configs/adapt_tiny.py, which is measured. DINOv2 weights: see docs/recipes.md.
"""

from dinojax.configs import base


def get_config():
    """What both stages share."""
    c = base.get_config()
    c.batch_size = 512  # 8 devices with 64 images each; [ours]
    c.group_size = 64
    c.start.source = "WEIGHTS"  # stands for a path, given with --set
    c.data.num_workers = 10

    c.crops.global_size = 256  # [R]
    c.crops.local_size = 112  # [R]
    c.augment.flip_rate = 0.0  # [R]

    c.model.name = "vitl"
    c.model.num_registers = 4  # [R]
    c.model.norm = "layernorm_1e5"  # [R]
    c.model.mask_k_bias = True  # [R]
    c.model.drop_path = 0.0  # [U]

    # Fewer prototypes than [R], for the smaller batch; unit ones say something from the start.
    c.dino_head.update(hidden=2048, bottleneck=256, prototypes=16_384, prototype_norm="unit")
    c.ibot_head.update(hidden=2048, bottleneck=256, prototypes=16_384, prototype_norm="unit")

    c.optim.freeze_last_layer = 0
    c.schedules.version = 2
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.04)  # [R]

    c.checkpoint.update(every=500, keep_every=5000)
    c.knn.update(every=1000, crop_size=256, resize_size=256, mosaics=128, alarm=0.05)
    return c


def heads(c):
    """New heads on the frozen backbone, until they know something."""
    c.start.heads = "new"
    c.num_steps = 4000  # at most
    c.until.left_chance = 0.05
    c.optim.freeze_backbone = True
    c.schedules.lr = base.schedule(0.0, 5e-4, 5e-4, warmup=200)
    c.schedules.momentum = base.schedule(0.99, 0.99, 0.99)  # of the heads
    c.schedules.teacher_temperature = base.schedule(0.04, 0.04, 0.04)
    return c


def adapt(c):
    """Everything, slowly."""
    c.start.source = "previous"
    c.num_steps = 20_000
    c.schedules.lr = base.schedule(0.0, 1e-4, 1e-6, warmup=4000)  # a tenth of [R] ImageNet-1k; [U]
    c.schedules.momentum = base.schedule(0.999, 0.999, 1.0)  # [R], later stages
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=4000)
    c.schedules.gram_weight = base.schedule(1.0, 1.0, 1.0)
    c.gram.enabled = True
    c.gram.anchor = "ema"  # of step 0: the released backbone, which `heads` left as it was
    return c


STAGES = {"heads": heads, "adapt": adapt}


def smoke(c):
    """The same recipe, small enough for a laptop: two steps of a narrow, shallow ViT."""
    c = base.shrink(c)
    c.start.update(source="previous", heads="keep")  # from random weights
    return c
