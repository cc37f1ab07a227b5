"""ViT-7B/16 on satellite images in three stages. DINOv3 (arXiv:2508.10104), geospatial section.

Run:   dinojax train --config configs/vit7b16_sat.py --run runs/vit7b_sat --set data.path=/data/sat
Cost:  not published
Score: of the released model, after all three stages: GEO-Bench mean 81.1 (classification), 75.0
       (segmentation) (model card). Not yet reproduced here.

The released model saw 493 million images of 512 pixels at 0.6 m a pixel: 100,000 steps at 256
pixels, 10,000 with Gram anchoring and 8,000 at 512 pixels. Only lengths and normalisation differ
from the model for web images (paper). What of the schedules changed with the lengths is not
published: here every other length of a stage shrinks as its steps do. [ours]
"""

from dinojax.configs import base, vit7b16

smoke = vit7b16.smoke


def get_config():
    c = vit7b16.get_config()
    c.num_steps = 100_000  # [P]
    c.image.mean = (0.430, 0.411, 0.296)  # model card
    c.image.std = (0.213, 0.156, 0.143)  # model card

    c.schedules.lr = base.schedule(0.0, 5e-5, 5e-5, warmup=10_000)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=10_000)
    c.optim.freeze_last_layer = 500
    c.checkpoint.keep_every = 10_000
    return c


def pretrain(c):
    return c


def gram(c):
    """A twentieth of the web model's steps, anchored a tenth of its steps into the first stage."""
    c = vit7b16.gram(c)
    c.num_steps = 10_000  # [P]
    c.schedules.gram_weight.cosine = 50
    c.schedules.local_weight.cosine = 50
    c.gram.anchor = "pretrain/20000"
    c.gram.update(refresh_every=500, refresh_from=500, max_refreshes=3)
    return c


def highres(c):
    """One size, that of the images."""
    c = vit7b16.highres(c)
    c.num_steps = 8_000  # [P]
    c.schedules.lr.cosine = 2667  # a third of the steps, as there
    c.crops.update(global_size=512, local_size=112, gram_size=768)  # [P] 512
    c.crops.update(more_rates=(), more_global=(), more_local=(), more_gram=(), more_box=())
    c.data.box_size = 512
    return c


STAGES = {"pretrain": pretrain, "gram": gram, "highres": highres}
