"""The whole released family, five ViTs and four ConvNeXts, from one forward pass of ViT-7B/16.

Run:   dinojax distill --config configs/distill_all_7b.py --run runs/family \
           --set distill.teacher=runs/vit7b --set data.path=/data/images
Cost:  not measured
Score: of the released models (ImageNet-1k linear, paper arXiv:2508.10104): see the model cards. Not
       yet reproduced here.

Crops are cut at 512 and 224 pixels, 32 a patch, as the ConvNeXts see them; ViTs and teacher, whose
patches have 16, see them reduced by two. Steps, batch and ViTs are those of distill_7b, without its
high resolution; the ConvNeXts are those of distill_convnext_7b, their schedules bent to its stages.
"""

from dinojax.configs import base, distill_7b, distill_convnext_7b


def get_config():
    """What all students share, and what the ViTs do."""
    c = distill_7b.get_config()
    sizes = distill_convnext_7b.get_config()
    c.data.box_size = sizes.data.box_size
    c.crops.update(global_size=sizes.crops.global_size, local_size=sizes.crops.local_size)
    c.crops.patch_size = sizes.model.patch_size
    return c


STAGES = {name: distill_7b.STAGES[name] for name in ("main", "cooldown")}


def convnext(row):
    """A student of distill_convnext_7b, in the stages of distill_7b."""

    def student(c):
        own = row(distill_convnext_7b.get_config())
        c.model.update(own.model)
        c.rope.update(own.rope)
        c.losses.koleo_group = own.group_size
        c.optim.update(layer_decay=own.optim.layer_decay, lr_scaling=own.optim.lr_scaling)
        lr, decay = own.schedules.lr, own.schedules.weight_decay
        if c.stage == "main":
            c.schedules.lr = base.schedule(lr.start, lr.peak, lr.peak, warmup=lr.warmup)  # [ours]
            c.schedules.weight_decay = decay  # [R] linear, over 625,000 steps
            c.schedules.teacher_temperature = own.schedules.teacher_temperature  # [R]
        else:
            c.schedules.lr = base.schedule(lr.peak, lr.peak, lr.end)  # [ours] a cosine, as the ViTs
            c.schedules.weight_decay = base.schedule(decay.end, decay.end, decay.end)
        return c

    return student


CONVNEXTS = {name: convnext(row) for name, row in distill_convnext_7b.STUDENTS.items()}
STUDENTS = {**distill_7b.STUDENTS, **CONVNEXTS}


def smoke(c):
    """The same recipe, small enough for a laptop: two steps, random weights teach."""
    c = base.shrink(c)
    c.distill.teacher = "smoke:vit7b16"
    return c
