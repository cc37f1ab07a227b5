"""Satellite images guided by where they were taken, against when: a ViT-L/16. Not measured.

Run:   dinojax train --config configs/guided_fmow.py --run runs/fmow \
           --set start.source=WEIGHTS --set data.path=TABLE.csv
Cost:  not measured; 76.8 million images are drawn
Score: not measured

The published values of metadata-guided training (arXiv:2606.05107) on Functional Map of the World:
[G], branch FINO of facebookresearch/dinov3, commit 81aae9a, vitl16_fmow_guided.yaml. TABLE.csv
lists path, sub_region and year. The first 10,000 steps train heads and patch embedding alone. That
file divides the weight of what it removes by 10 and then makes all gradients equally long, which
guides.equalize=norms does as well, whatever the weights.
"""

from dinojax.configs import base


def get_config():
    c = base.get_config()
    c.num_steps = 25_000  # [G]
    c.batch_size = 3072  # [G] 32 GPUs with 96 images each
    c.group_size = 96
    c.start.update(source="WEIGHTS", heads="new")  # stands for a path: the LVD ViT-L/16; [G]
    c.data.source = "manifest"
    c.data.num_workers = 10

    c.crops.global_area = (0.4, 1.0)  # [G]
    c.crops.local_area = (0.05, 0.4)  # [G]

    c.model.name = "vitl"
    c.model.num_registers = 4
    c.model.norm = "layernorm_1e5"  # of the released weights; [G] has 1e-6
    c.model.mask_k_bias = True  # of the released weights
    c.model.drop_path = 0.1  # [G]
    c.rope.rescale = 2.0  # [G]

    c.losses.koleo = 0.0  # [G]
    c.losses.sigreg = 0.05  # [G]; of the whole batch, where the release divides it by its GPUs

    c.guides.rows = (
        base.guide("sub_region", "prototypes", weight=0.03),  # [G] 18 classes
        base.guide("year", "prototypes", effect="remove", weight=0.003),  # [G] 16 classes
    )
    c.guides.temperature = 0.02333  # [G]
    c.guides.equalize = "norms"  # [G]

    c.optim.freeze_last_layer = 450  # [G]
    c.optim.freeze_trunk = 10_000  # [G]
    c.optim.trunk_warmup = 1000  # [G]
    c.schedules.version = 2  # [G]
    c.schedules.lr = base.schedule(0.0, 5e-5, 5e-5, warmup=3000)  # [G]
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.04)  # [G]
    c.schedules.momentum = base.schedule(0.994, 0.994, 1.0)  # [G]
    c.schedules.teacher_temperature = base.schedule(0.07, 0.07, 0.07)  # [G]

    c.checkpoint.update(every=1250, keep_every=12_500)
    c.knn.every = 1250
    return c


def smoke(c):
    """The same recipe, small enough for a laptop, without metadata: two steps of a small ViT."""
    c = base.shrink(c)
    c.start.update(source="previous", heads="keep")  # from random weights
    c.data.source = "folder"
    c.guides.update(rows=(), temperature=0.07, equalize="none")
    c.optim.update(freeze_trunk=1, trunk_warmup=1)
    return c
