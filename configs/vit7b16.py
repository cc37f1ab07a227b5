"""ViT-7B/16, stage 1 of 3: pre-training without the Gram loss. DINOv3 (arXiv:2508.10104).

Run:   dinojax train --config configs/vit7b16.py --run runs/vit7b --set data.path=/data/images
Cost:  the released model: 61,440 H100 GPU-hours, 256 GPUs (model card)
Score: of the released model, after all three stages: ImageNet-1k linear 88.4, ADE20k linear
       55.9 mIoU (paper). Not yet reproduced here.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.num_steps = 1_000_000
    c.batch_size = 4096  # 256 GPUs with 16 images each
    c.group_size = 16

    c.data.source = "folder"
    c.data.num_workers = 10

    c.crops.global_size = 256
    c.crops.local_size = 112
    c.augment.flip_rate = 0.0

    c.model.name = "vit7b"
    c.model.ffn = "swiglu64"
    c.model.qkv_bias = False
    c.model.num_registers = 4
    c.model.norm = "layernorm_1e5"
    c.model.untie_local_cls_norm = True
    c.model.drop_path = 0.4
    c.model.remat = "dots"
    c.rope.rescale = 2.0

    c.dino_head.update(hidden=8192, bottleneck=512, prototypes=262_144)
    c.ibot_head.update(hidden=4096, bottleneck=384, prototypes=98_304)

    c.optim.beta2 = 0.99
    c.optim.clip = 30.0
    c.optim.layer_decay = 0.98
    c.optim.freeze_last_layer = 5000

    c.schedules.version = 2
    c.schedules.lr = base.schedule(0.0, 5e-5, 5e-5, warmup=100_000)  # peak 4e-4 after scaling
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.04)
    c.schedules.momentum = base.schedule(0.994, 0.994, 0.994)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=100_000)

    c.checkpoint.every = 1000
    c.checkpoint.keep_every = 50_000
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
    c.ibot_head.update(hidden=32, bottleneck=16, prototypes=48)
    c.optim.freeze_last_layer = 1
    c.schedules.lr.warmup = 1
    c.schedules.teacher_temperature.warmup = 1
    c.checkpoint.every = 1
    c.knn.every = None
    return c
