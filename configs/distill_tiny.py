"""Two students of tiny_stages' last ema, for a CPU: a narrower and a shallower network.

Run:   dinojax train --config configs/tiny_stages.py --run runs/tiny_stages
       dinojax distill --config configs/distill_tiny.py --run runs/family \
           --set distill.teacher=runs/tiny_stages
Cost:  145 s of processor time for both students, compilation included, on shared CPU cores
       (2026-11-21), and 11 minutes before for the teacher
Score: k-NN of held-out tiles, seeds 0 and 1, 2026-11-21, standard error 1.5, the teacher 40.5 %:
       narrow 36.6 and 37.2 %; the same network alone, as many steps, 31.5 and 32.3;
       random weights 17.5 and 20.0
       shallow 40.3 and 38.9 %; alone 34.5 and 34.2; random weights 20.9 and 18.9.
       The margins: 4.2 points over learning alone, 15 over random weights
       (tests/programs/family_gain.py)
"""

from dinojax.configs import base, tiny


def get_config():
    """What all students share: the images of tiny, and how the teacher's features are followed."""
    c = tiny.get_config()
    c.num_steps = 300
    c.batch_size = 16
    c.distill.enabled = True
    # Its features, of the same crop as well, by one linear layer, and of nearly every patch.
    c.distill.targets = "features"
    for name in ("dino_head", "ibot_head"):  # projectors: nothing else of tiny's heads is of use
        c[name] = base.get_config()[name]
        c[name].num_layers = 1
    c.losses.koleo = 0.0
    c.masks.update(rate=1.0, ratio=(0.9, 1.0))
    c.crops.update(global_size=48, num_local=1)  # the size at which tiny_stages is best
    # Blur takes from small crops what tells photographs apart, with a teacher or without.
    c.augment.update(blur_rates=(0.0, 0.0, 0.0), solarize_rate=0.0)
    c.schedules.lr = base.schedule(0.0, 3e-3, 2e-5, warmup=30)
    c.schedules.momentum = base.schedule(0.97, 0.97, 1.0)  # a short memory for a short run
    c.schedules.teacher_temperature = base.schedule(0.07, 0.07, 0.07)  # of no use to features
    c.checkpoint.every = 100
    c.knn.update(every=100, crop_size=48, resize_size=48)
    return c


def narrow(c):
    c.model.update(width=48, num_heads=3)
    return c


def shallow(c):
    c.model.depth = 2
    return c


STUDENTS = {"narrow": narrow, "shallow": shallow}


def smoke(c):
    """The same recipe, small enough for a test: two steps, random weights teach."""
    width, depth = c.model.width, c.model.depth
    c = tiny.smoke(c)
    c.distill.teacher = "smoke:tiny"
    c.model.update(width=width // 4, depth=depth // 2)
    return c
