"""A ViT of 0.7 million parameters on grey tiles of 16 photographs: the recipe for a CPU.

Run:   bash launch/quickstart.sh, or
       dinojax train --config configs/tiny.py --run runs/tiny
Cost:  minutes on two CPU cores
Score: k-NN of held-out tiles 32.9, 33.6, 37.7 % (seeds 0, 1, 2; 2026-11-21), where random weights
       have 18.5, 17.2, 17.8 % and raw pixels 20.5 %; a run prints its own at the end
"""

from dinojax.configs import base


def get_config():
    c = base.get_config()
    c.num_steps = 1200
    c.batch_size = 64
    c.group_size = 8  # one group per device on up to eight devices

    c.data.source = "tiles"
    c.data.box_size = 48

    c.image.channels = 1  # grey beat colour at this size
    c.image.normalize = "per_crop"

    c.crops.global_size = 32
    c.crops.local_size = 16
    c.crops.num_local = 4

    c.augment.saturation = 0.0  # colour operations need three channels
    c.augment.hue = 0.0
    c.augment.grayscale_rate = 0.0

    c.model.name = "vits"
    c.model.patch_size = 8
    c.model.width = 96
    c.model.depth = 4
    c.model.num_heads = 3
    c.model.ffn = "mlp"
    c.model.ffn_ratio = 4.0
    c.model.layer_scale = 1.0  # 1e-5 leaves random weights at chance and learns slowly here
    c.model.drop_path = 0.0

    # Unit prototypes: plain ones leave the teacher almost uniform for hundreds of steps.
    c.dino_head.update(hidden=256, bottleneck=64, prototypes=512, prototype_norm="unit")
    c.ibot_head.update(hidden=256, bottleneck=64, prototypes=512, prototype_norm="unit")

    c.optim.layer_decay = 1.0
    c.optim.patch_embed_lr = 1.0
    c.optim.lr_scaling = "none"
    c.optim.freeze_last_layer = 0

    c.schedules.lr = base.schedule(0.0, 2e-3, 2e-5, warmup=60)
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.04)
    c.schedules.momentum = base.schedule(0.98, 0.98, 1.0)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=300)

    c.precision.compute = "float32"  # CPUs gain nothing from bfloat16
    c.mesh.strategy = "dp"

    c.checkpoint.every = 400
    c.checkpoint.keep_every = None

    c.knn.every = 400
    c.knn.crop_size = 32
    c.knn.resize_size = 32
    c.knn.features = "both"
    return c


def smoke(c):
    """The same recipe, small enough for a test: two steps."""
    c.num_steps = 2
    c.batch_size = 16
    c.model.width = 24
    c.model.depth = 2
    c.dino_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.ibot_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.schedules.lr.warmup = 1
    c.schedules.teacher_temperature.warmup = 1
    c.checkpoint.every = 1
    c.knn.every = 2
    return c
