"""ViT-S/16 in three stages: those of vitl16 with a smaller network. Extrapolated, not measured.

Run:   dinojax train --config configs/vits16.py --run runs/vits16 --set data.path=/data/images
Cost:  not measured
Score: none: nobody has published such a run. Small models are usually distilled from large ones.
"""

from dinojax.configs import vitl16


def get_config():
    c = vitl16.get_config()
    c.model.name = "vits"
    c.model.drop_path = 0.1  # smaller networks fit less; extrapolated
    return c


STAGES = vitl16.STAGES
smoke = vitl16.smoke
