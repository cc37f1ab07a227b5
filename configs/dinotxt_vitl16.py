"""dino.txt as released: a frozen ViT-L/16, two blocks on it and a text tower from scratch.

Run:   dinojax train --config configs/dinotxt_vitl16.py --run runs/dinotxt \\
           --set start.source=WEIGHTS --set data.path=SHARDS
Cost:  not measured; the released run has 50,000 steps of 8,192 pairs on 32 GPUs
Score: not measured. Released weights, trained on 2.3 billion private pairs: 82.3 % zero-shot on
       ImageNet-1k (DINOv3, arXiv:2508.10104). Differences: docs/text.md
"""

from dinojax.configs import base


def get_config():
    c = base.get_config()
    c.seed = 11
    c.num_steps = 50_000
    c.batch_size = 8192
    c.group_size = 256
    c.data.source = "tar"
    c.data.box_size = 512

    c.crops.global_size = 224
    c.crops.global_area = (0.08, 1.0)

    c.model.name = "vitl"
    c.model.num_registers = 4
    c.model.mask_k_bias = True
    c.model.norm = "layernorm_1e5"
    c.model.remat = "dots"

    c.text.enabled = True

    c.optim.beta2 = 0.99
    c.optim.clip = None
    c.optim.lr_scaling = "none"
    c.schedules.version = 2
    c.schedules.lr = base.schedule(0.0, 7e-4, 0.0, warmup=2000)
    c.schedules.weight_decay = base.schedule(1e-4, 1e-4, 1e-4)

    c.checkpoint.update(every=500, keep_last=5, keep_every=None)
    c.knn.every = None
    return c


def smoke(c):
    """The same recipe with small networks, two steps."""
    c = base.shrink(c)
    c.data.source = "tiles"
    c.text.vocabulary = "tiles"
    c.text.update(context=24, width=32, depth=2, num_heads=2)
    return c
