"""The released ViT family, S, S+, B, L and H+, from ViT-7B/16: main schedule, cool-down, high-res.

Run:   dinojax distill --config configs/distill_7b.py --run runs/family \
           --set distill.teacher=runs/vit7b --set data.path=/data/images
Cost:  not measured
Score: of the released models (ImageNet-1k linear, paper arXiv:2508.10104): see the model cards. Not
       yet reproduced here.

[P] the paper: 1,000,000 steps, 250,000 steps of cool-down with a cosine, then high resolution
without a Gram loss. [R] the released configuration of the family, which is that of a last phase:
25,000 steps. What the paper does not state about the first two stages is [ours].
"""

from dinojax.configs import base, vit7b16

LR = 2.634e-4  # [R] 5e-5 x 4 sqrt(1776 / 1024): its factor takes floor(1920 / 296) x 296 images


def get_config():
    """What all students share."""
    c = base.get_config()
    c.num_steps = 1_000_000  # [P]
    c.batch_size = 1920  # [R]
    c.group_size = 8  # [ours] divides the 40, 24 and 16 images that a GPU has of it in [R]

    c.distill.enabled = True
    c.distill.compute = "bfloat16"  # [R]
    c.distill.strategy = "hsdp"  # [ours] works on any number of devices; fsdp in [R]
    c.mesh.strategy = "hsdp"  # [ours] as the teacher: a student may have 6 devices

    c.data.num_workers = 10  # as vit7b16
    c.crops.global_size = 256  # [R]
    c.crops.local_size = 112  # [R]
    c.augment.flip_rate = 0.0  # [R]

    c.model.num_registers = 4  # [R]
    c.model.norm = "layernorm_1e5"  # [R]
    c.model.mask_k_bias = True  # [R]
    c.model.drop_path = 0.0  # [R]
    c.model.remat = "full"  # [R]
    c.rope.rescale = 2.0  # [R]
    c.dino_head.update(hidden=8192, bottleneck=512, prototypes=262_144)  # [R]
    c.ibot_head.update(hidden=4096, bottleneck=384, prototypes=98_304)  # [R]

    c.optim.layer_decay = 0.99  # [R]
    c.optim.lr_scaling = "none"  # LR is scaled
    c.schedules.version = 2  # [R]
    c.schedules.lr = base.schedule(0.0, LR, LR, warmup=100_000)  # peak [R]; shape of vit7b16
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.04)  # [R]
    c.schedules.momentum = base.schedule(0.994, 0.994, 0.994)  # [R] start
    c.schedules.teacher_temperature = base.schedule(0.07, 0.07, 0.07)  # [R]

    c.checkpoint.every = 1000  # as vit7b16
    c.checkpoint.keep_every = 50_000  # as vit7b16
    return c


def main(c):
    return c


def cooldown(c):
    """Everything goes on while the learning rate falls."""
    c.start.what = "state"
    c.num_steps = 250_000  # [P]
    c.optim.freeze_last_layer = 0
    c.schedules.lr = base.schedule(LR, LR, 1e-6)  # [P] a cosine; [ours] its end
    c.schedules.momentum = base.schedule(0.994, 0.994, 1.0)  # [R] of the last phase
    return c


def highres(c):
    """From the last ema with a new optimizer; schedules of the released file, sizes of vit7b16."""
    c.num_steps = 25_000  # [R]
    c.optim.freeze_last_layer = 0  # [ours] trained already
    c.schedules.lr = base.schedule(0.0, 0.0, LR, cosine=12_500)  # [R]
    c.schedules.momentum = base.schedule(0.994, 0.994, 1.0)  # [R]
    sizes = vit7b16.highres(vit7b16.get_config())
    names = ("global_size", "local_size", "more_rates", "more_global", "more_local", "more_box")
    c.crops.update({name: sizes.crops[name] for name in names})  # [P] the same mixture of sizes
    c.data.box_size = sizes.data.box_size
    c.checkpoint.every = 250  # as vit7b16
    return c


STAGES = {"main": main, "cooldown": cooldown, "highres": highres}


def vits(c):
    c.model.name = "vits"
    c.losses.koleo_group = 40  # images of one GPU; [R]
    return c


def vitsplus(c):
    c.model.name = "vitsplus"
    c.losses.koleo_group = 40  # [R]
    return c


def vitb(c):
    c.model.name = "vitb"
    c.losses.koleo_group = 24  # [R]
    return c


def vitl(c):
    c.model.name = "vitl"
    c.losses.koleo_group = 16  # [R]
    return c


def vithplus(c):
    c.model.name = "vithplus"
    c.losses.koleo_group = 16  # [ours] as vitl: its configuration was not released
    return c


STUDENTS = {"vits": vits, "vitsplus": vitsplus, "vitb": vitb, "vitl": vitl, "vithplus": vithplus}


def smoke(c):
    """The same recipe, small enough for a laptop: two steps, random weights teach."""
    c = base.shrink(c)
    c.distill.teacher = "smoke:vit7b16"
    return c
