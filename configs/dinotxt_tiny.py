"""Captions aligned with a tiny frozen ViT, in two stages: text alignment (dino.txt) for a CPU.

The first stage learns from tiles of 16 photographs, in colour and without captions; the second
aligns them with captions of subject, colour and texture (dinojax/data/tile_captions.py). Nothing is
downloaded: the vocabulary was made of such captions.

Run:   dinojax train --config configs/dinotxt_tiny.py --run runs/dinotxt_tiny
Cost:  28 minutes on two CPU cores that were busy with other work (2026-11-30)
Score: zero-shot on 16 subjects of held-out tiles 69.5 %, where a bag of colours that has seen the
       same pairs has 56.0 % (of tiles normalised as the network sees them 66.1 %) and chance is
       6.2 %; the first caption of an image 55.1 % (49.1 and 60.0 %), the image of a caption 51.8 %
       (56.0 and 56.0 %), among the first five 79.4 % (71.6 and 70.2 %); seed 0
"""

from dinojax.configs import base, tiny


def get_config():
    """What both stages share: the images and the network."""
    c = base.get_config()
    c.batch_size = 64
    c.group_size = 8
    c.data.box_size = 48
    c.image.normalize = "per_crop"
    c.crops.global_size = 32
    c.model.update(name="vits", patch_size=8, width=96, depth=4, num_heads=3)
    c.model.layer_scale = 1.0
    c.precision.compute = "float32"
    c.mesh.strategy = "dp"
    c.checkpoint.update(every=200, keep_every=None)
    c.knn.update(crop_size=32, resize_size=32, features="both")
    return c


def pretrain(c):
    """The recipe `tiny` in colour, half as long."""
    own = tiny.get_config()
    own.stage = c.stage
    own.num_steps = 600
    own.image.channels = 3
    # Captions name colours, so the backbone is not taught to take them for another: 7 degrees of
    # hue at most, and never grey.
    own.augment.update(saturation=0.2, hue=0.02, grayscale_rate=0.0)
    own.schedules.teacher_temperature.warmup = 150
    own.model.update(ffn=None, ffn_ratio=None)  # of the zoo's row, which has the same
    own.checkpoint.update(every=200)
    own.knn.every = 200
    return own


def text(c):
    """Two blocks on the frozen backbone and a text tower of three, from scratch."""
    c.num_steps = 1000
    c.start.heads = "new"
    c.data.source = "tiles"
    c.crops.global_area = (0.5, 1.0)
    c.text.enabled = True
    c.text.vocabulary = "tiles"
    c.text.update(context=24, width=96, depth=3, num_heads=3, vision_drop_path=0.0)
    c.optim.update(beta2=0.99, clip=None, lr_scaling="none")
    c.schedules.lr = base.schedule(0.0, 1e-3, 0.0, warmup=50)
    c.schedules.weight_decay = base.schedule(1e-4, 1e-4, 1e-4)
    c.knn.every = None
    c.pairs.update(every=250, merge=True)
    c.zeroshot.every = 250
    return c


STAGES = {"pretrain": pretrain, "text": text}


def smoke(c):
    """The same recipe, small enough for a test: two steps of each stage."""
    c.num_steps = 2
    c.batch_size = 16
    c.model.update(width=24, depth=2)
    c.checkpoint.every = 1
    c.schedules.lr.warmup = 1
    c.dino_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.ibot_head.update(hidden=32, bottleneck=16, prototypes=64)
    if c.stage == "pretrain":
        c.schedules.teacher_temperature.warmup = 1
        c.knn.every = 2
    else:
        c.text.update(width=24, depth=2, vision_depth=1)
    return c
