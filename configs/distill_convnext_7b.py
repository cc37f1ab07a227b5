"""The released ConvNeXt family, T, S, B and L, from ViT-7B/16.

Run:   dinojax distill --config configs/distill_convnext_7b.py --run runs/convnext \
           --set distill.teacher=runs/vit7b --set data.path=/data/images
Cost:  not measured
Score: of the released models (ImageNet-1k linear, paper arXiv:2508.10104): see the model cards. Not
       yet reproduced here.

[R] the released configurations, 500 epochs of 1250 steps. A ConvNeXt has patches of 32 pixels and
sees crops of 512; the teacher sees the same crops at 256, so that both have 16 x 16 patches. In the
public code the teacher's crops are not reduced, and patches of other places are compared.
"""

from dinojax.configs import base


def get_config():
    """What all students share."""
    c = base.get_config()
    c.num_steps = 625_000  # [R]
    c.batch_size = 4096  # [R] for 16 machines
    c.group_size = 16  # [ours] as vit7b16

    c.distill.enabled = True
    c.distill.compute = "bfloat16"  # [R]
    c.distill.strategy = "hsdp"  # [ours] works on any number of devices; fsdp in [R]
    c.mesh.strategy = "hsdp"  # [ours] as the teacher: a student may have 6 devices

    c.data.num_workers = 10  # as vit7b16
    c.data.box_size = 1024  # [ours] for crops of 512
    c.crops.global_size = 512  # [R]
    c.crops.local_size = 224  # [R]
    c.augment.flip_rate = 0.0  # as the teacher

    c.model.patch_size = 32
    c.model.drop_path = 0.0  # [R]
    c.dino_head.update(hidden=8192, bottleneck=512, prototypes=262_144)  # of the teacher
    c.ibot_head.update(hidden=4096, bottleneck=384, prototypes=98_304)

    c.optim.freeze_last_layer = 1250  # [R]
    c.schedules.version = 2  # [R]
    c.schedules.lr = base.schedule(1e-6, 2e-4, 1e-6, warmup=100_000)  # [R], before scaling
    c.schedules.weight_decay = base.schedule(0.04, 0.2, 0.2, warmup=625_000)  # [R], linear
    c.schedules.momentum = base.schedule(0.994, 1.0, 1.0, warmup=625_000)  # [R], linear
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=150_000)  # [R]

    c.checkpoint.every = 1250
    c.checkpoint.keep_every = 62_500
    return c


def convnext_tiny(c):
    c.model.name = "convnext_tiny"
    return c


def convnext_small(c):
    c.model.name = "convnext_small"
    return c


def convnext_base(c):
    c.model.name = "convnext_base"
    c.schedules.lr.peak = 1e-4  # [R]
    c.schedules.weight_decay.start = 0.02  # [R]
    return c


def convnext_large(c):
    c.model.name = "convnext_large"
    c.schedules.lr.peak = 1e-4  # [R]
    return c


STUDENTS = {
    "convnext_tiny": convnext_tiny,
    "convnext_small": convnext_small,
    "convnext_base": convnext_base,
    "convnext_large": convnext_large,
}


def smoke(c):
    """The same recipe, small enough for a laptop: two steps, random weights teach."""
    c = base.shrink(c)
    c.distill.teacher = "smoke:vit7b16"
    return c
