"""ViT-S, S+ and B from a ViT-L of configs/vitl16.py. Extrapolated, not measured.

Run:   dinojax distill --config configs/distill_vitl.py --run runs/family \
           --set distill.teacher=runs/vitl16 --set data.path=/data/images
Cost:  not measured
Score: none: nobody has published such a run.

The stages of distill_7b with a fifth of their steps, as vitl16 has a fifth of those of vit7b16;
heads of vitl16. Any run or export of a ViT-L with patches of 16 pixels and such heads can teach;
one without heads (a released file) with --set distill.targets=features.
"""

from dinojax.configs import base, distill_7b


def get_config():
    c = distill_7b.get_config()
    c.num_steps = 200_000
    c.distill.strategy = None
    c.dino_head.update(hidden=2048, bottleneck=256, prototypes=65_536)
    c.ibot_head.update(hidden=2048, bottleneck=256, prototypes=65_536)
    c.model.remat = "none"
    c.schedules.lr.warmup = 20_000
    c.checkpoint.keep_every = 10_000
    return c


def main(c):
    return c


def cooldown(c):
    c = distill_7b.cooldown(c)
    c.num_steps = 50_000
    return c


def highres(c):
    c = distill_7b.highres(c)
    c.num_steps = 5000
    c.schedules.lr.cosine = 2500
    return c


STAGES = {"main": main, "cooldown": cooldown, "highres": highres}
STUDENTS = {name: distill_7b.STUDENTS[name] for name in ("vits", "vitsplus", "vitb")}


def smoke(c):
    """The same recipe, small enough for a laptop: two steps, random weights teach."""
    c = base.shrink(c)
    c.distill.teacher = "smoke:vitl16"
    return c
