"""Continue pretraining from any weights on tiles of satellite scenes, which stay as they are.

Run:   dinojax train --config configs/adapt_satellite.py --run runs/satellite \
           --set heads:start.source=WEIGHTS --set data.path=SCENES
Cost:  not measured; docs/own_data.md has that of configs/adapt.py
Score: not measured; the run measures k-NN or the dense metric before it changes anything

SCENES: a folder of rasters of one kind, larger than memory or not. Stages and values are those of
configs/adapt.py; only the data and their normalisation differ. Tiles of 512 pixels and their
normalisation are those of the released satellite models, for three channels of 8 bits. For others:

    dinojax data scenes SCENES --value-range 0,3000        # mean and std of every band
    dinojax import --from WEIGHTS --channels 4 --inflate repeat --mean ... --std ... --out four
    ... --set heads:start.source=four --set image.channels=4 --set 'data.value_range=(0, 3000)'
        --set image.mean=... --set image.std=... --set augment.saturation=0 --set augment.hue=0
        --set augment.grayscale_rate=0

Tiles with more than a quarter of nodata are left out (docs/satellite.md).
"""

from dinojax.configs import adapt as own_images
from dinojax.configs.keys.images import MEANS, STDS

computed = own_images.computed
STAGES = own_images.STAGES


def get_config():
    """What both stages share."""
    c = own_images.get_config()
    c.data.source = "scenes"
    c.data.tile_size = 512  # [P]
    c.image.mean, c.image.std = MEANS["satellite"], STDS["satellite"]  # [R]
    return c


def smoke(c):
    """The same recipe, small enough for a laptop, on small tiles: two steps of a narrow ViT."""
    c = own_images.smoke(c)
    c.data.tile_size = 64
    return c
