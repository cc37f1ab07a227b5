"""Two students of the tiny recipe's ema, for a CPU: a narrower and a shallower network.

Run:   dinojax train --config configs/tiny.py --run runs/tiny
       dinojax distill --config configs/distill_tiny.py --run runs/family \
           --set distill.teacher=runs/tiny
Cost:  6.4 minutes of processor time on two cores, for both students (2026-11-21)
Score: k-NN of held-out tiles 30.5 % (narrow) and 30.5 % (shallow), random weights 17.8 and 17.1 %,
       the teacher 32.9 %: the margin is 10 points over random weights. It is no gain over learning
       alone: `tiny` of the same width or depth and 600 steps has 29.6 and 31.5 % (one seed,
       standard error 1.5 points); a teacher of this size knows hardly more than its students
"""

from configs import base, tiny


def get_config():
    """What all students share: the images and crops of tiny, and a teacher that has learned."""
    c = tiny.get_config()
    c.num_steps = 600
    c.distill.enabled = True
    c.schedules.lr = base.schedule(0.0, 2e-3, 2e-5, warmup=30)
    c.schedules.momentum = base.schedule(0.98, 0.98, 1.0)
    c.schedules.teacher_temperature = base.schedule(0.07, 0.07, 0.07)  # the teacher's last
    c.checkpoint.every = 200
    c.knn.every = 200
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
