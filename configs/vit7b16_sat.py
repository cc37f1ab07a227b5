"""ViT-7B/16 on satellite images, stage 1 of 3. DINOv3 (arXiv:2508.10104), geospatial section.

Run:   dinojax train --config configs/vit7b16_sat.py --run runs/vit7b_sat --set data.path=/data/sat
Cost:  not published; a tenth of the steps of configs/vit7b16.py
Score: of the released model, after all three stages: GEO-Bench mean 81.1 (classification), 75.0
       (segmentation) (model card). Not yet reproduced here.

The released model saw 493 million images of 512 pixels at 0.6 m a pixel: 100,000 steps at 256
pixels, 10,000 with Gram anchoring and 8,000 at 512 pixels. Only lengths and normalisation differ
from the model for web images (paper).
"""

from configs import base, vit7b16

smoke = vit7b16.smoke


def get_config():
    c = vit7b16.get_config()
    c.num_steps = 100_000  # [P]
    c.image.mean = (0.430, 0.411, 0.296)  # model card
    c.image.std = (0.213, 0.156, 0.143)  # model card

    # How the schedules were shortened is not published: a tenth, as the steps are. [ours]
    c.schedules.lr = base.schedule(0.0, 5e-5, 5e-5, warmup=10_000)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=10_000)
    c.optim.freeze_last_layer = 500
    return c
