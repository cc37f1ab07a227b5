"""ViT-L/16 on ImageNet-1k, one stage. The public ImageNet recipe of DINOv3 (arXiv:2508.10104).

Run:   dinojax train --config configs/vitl16_in1k.py --run runs/vitl16 \
           --set data.path=/data/imagenet/train --set knn.query=/data/imagenet/val
Cost:  the reference implementation: about 14 h on 32 H100 (its README)
Score: the reference implementation: k-NN 82.2, linear 83.3 on the 50,000 validation images
       (header of its configuration; its README says 82.0 and 83.5). Not yet reproduced here.
"""

from dinojax.configs import base


def get_config():
    c = base.get_config()  # the defaults are this recipe's, apart from what follows
    c.num_steps = 125_000  # 100 epochs of 1250 steps
    c.batch_size = 2048
    c.group_size = 64  # images per GPU in the reference run

    c.data.source = "folder"
    c.data.num_workers = 10

    c.crops.global_size = 224
    c.crops.local_size = 96
    c.crops.num_local = 8

    c.model.name = "vitl"
    c.model.patch_size = 16
    c.model.drop_path = 0.3
    c.model.layer_scale = 1e-5

    c.dino_head.update(hidden=2048, bottleneck=256, prototypes=65_536)
    c.ibot_head.update(hidden=2048, bottleneck=256, prototypes=65_536)

    c.optim.clip = 3.0
    c.optim.layer_decay = 0.9
    c.optim.freeze_last_layer = 1250  # one epoch

    c.schedules.version = 1
    c.schedules.lr = base.schedule(0.0, 1e-3, 1e-6, warmup=12_500)  # peak 5.66e-3 after scaling
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.4)
    c.schedules.momentum = base.schedule(0.992, 0.992, 1.0)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=37_500)
    return c


def smoke(c):
    """The same recipe, small enough for a laptop: two steps of a narrow, shallow ViT."""
    c.num_steps = 2
    c.batch_size = 16
    c.group_size = 2
    c.data.num_workers = 0
    c.data.box_size = 64
    c.crops.update(global_size=32, local_size=16, num_local=2)
    c.model.update(width=32, depth=2, num_heads=2)
    c.dino_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.ibot_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.optim.freeze_last_layer = 1
    c.schedules.lr.warmup = 1
    c.schedules.teacher_temperature.warmup = 1
    c.checkpoint.every = 1
    c.knn.every = None
    return c
