"""Fluorescence microscopy of cells, 4 channels, guided by the antibody: a ViT-L/16. Not measured.

Run:   dinojax train --config configs/guided_hpa.py --run runs/hpa \
           --set start.source=WEIGHTS --set data.path=TABLE.csv
Cost:  not measured; 207 million images are drawn
Score: not measured

The published values of metadata-guided training (arXiv:2606.05107) on the Human Protein Atlas: [G],
branch FINO of facebookresearch/dinov3, commit 81aae9a, vitl16_hpa_guided.yaml. TABLE.csv lists path
and antibody, empty where it is not known: such images keep out of the guide, where the release
stops at them. Its colour operations, which leave images of one to six values, are left out, and
crops are normalised over all channels together, where the release does it for each.
"""

from dinojax.configs import base, guided_fmow


def get_config():
    c = guided_fmow.get_config()
    c.num_steps = 67_500  # [G]
    c.start.channels = "expand"  # [G]

    c.image.channels = 4  # [G] microtubules, protein, nucleus, endoplasmic reticulum
    c.image.normalize = "per_crop"  # [G] per channel
    c.data.box_size = 768

    c.crops.global_size = 576  # [G]
    c.crops.local_size = 288  # [G]
    c.crops.local_area = (0.005, 0.4)  # [G]
    c.augment.jitter_rate = 0.0  # colour operations need three channels
    c.augment.saturation = 0.0
    c.augment.hue = 0.0
    c.augment.grayscale_rate = 0.0
    c.augment.blur_rates = (0.0, 0.0, 0.0)  # [G]
    c.augment.solarize_rate = 0.0  # [G]

    c.guides.rows = (base.guide("antibody", "prototypes", weight=0.1),)  # [G] 12,493 classes
    c.guides.temperature = 0.07  # [G]
    c.guides.equalize = "none"  # one guide has none to be equal to

    c.checkpoint.update(every=1500, keep_every=15_000)
    c.knn.update(every=1500, crop_size=576, resize_size=768)
    return c


def smoke(c):
    """The same recipe, small enough for a laptop, without metadata: two steps of a small ViT."""
    c = guided_fmow.smoke(c)
    c.start.channels = "same"
    return c
