"""ViT-L/14 on ImageNet-22k, one stage: DINOv2 (arXiv:2304.07193), the long public setup.

Run:   dinojax train --config configs/dinov2_vitl14.py --run runs/dinov2_vitl14 \
           --set data.path=/data/imagenet22k --set knn.bank=/data/imagenet/train \
           --set knn.query=/data/imagenet/val
Cost:  the reference implementation: about 3.3 days on 96 A100 (its README)
Score: the reference implementation: k-NN 82.0, linear 84.5 on ImageNet-1k (its README). Not yet
       reproduced here. The released ViT-L/14 is another model: distilled, with a plain MLP.

[D2] is the released training configuration; docs/recipes.md lists what differs from it.
"""

from dinojax.configs import base


def get_config():
    c = base.get_config()  # the augmentation of the defaults is DINOv2's as well; [D2]
    c.num_steps = 625_000  # 500 epochs of 1250 steps; [D2]
    c.batch_size = 3072  # 96 GPUs with 32 images each; [D2] README
    c.group_size = 32  # images per GPU; [D2]

    c.data.source = "folder"
    c.data.num_workers = 10  # [D2]

    c.crops.global_size = 224  # [D2]
    c.crops.local_size = 98  # 7 patches; [D2]

    c.model.name = "dinov2_vitl"
    c.model.patch_size = 14  # [D2]
    c.model.position_size = 224  # as the global crops; 518 in the released files; [D2]
    c.model.ffn = "swiglu_fused"  # of width 2736; [D2], the distilled ViT-L has an MLP
    c.model.drop_path = 0.4  # the same in every block; [D2]

    c.dino_head.update(hidden=2048, bottleneck=384, prototypes=131_072)  # [D2]
    c.ibot_head.update(hidden=2048, bottleneck=256, prototypes=131_072)  # a head of its own; [D2]
    c.dino_head.prototype_norm = "weight_norm"  # with a learned length; [D2]
    c.ibot_head.prototype_norm = "weight_norm"  # [D2]
    c.losses.centering = "sinkhorn"  # [D2]; its short ImageNet-1k setup has "softmax"

    c.optim.layer_decay = 1.0  # [D2]
    c.optim.freeze_last_layer = 1250  # one epoch; [D2]

    c.schedules.version = 1
    c.schedules.lr = base.schedule(0.0, 5e-5, 1e-6, warmup=100_000)  # peak 3.46e-4 scaled; [D2]
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.2)  # [D2]
    c.schedules.momentum = base.schedule(0.994, 0.994, 1.0)  # [D2]
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=37_500)  # [D2]

    c.knn.resize_size = 256
    c.knn.crop_size = 224
    return c


def smoke(c):
    """The same recipe, small enough for a laptop: two steps of a narrow, shallow ViT."""
    c.num_steps = 2
    c.batch_size = 16
    c.group_size = 2
    c.data.num_workers = 0
    c.data.box_size = 64
    c.crops.update(global_size=28, local_size=14, num_local=2)
    c.model.update(width=32, depth=2, num_heads=2, position_size=28)
    c.dino_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.ibot_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.optim.freeze_last_layer = 1
    c.schedules.lr.warmup = 1
    c.schedules.teacher_temperature.warmup = 1
    c.checkpoint.every = 1
    c.knn.every = None
    return c
