"""ViT-L/16 in three stages: the stages of ViT-7B at the size of ViT-L. Extrapolated, not measured.

Run:   dinojax train --config configs/vitl16.py --run runs/vitl16 --set data.path=/data/images
Cost:  not measured
Score: none: nobody has published such a run. The authors have not anchored a ViT-L and saw no loss
       of patch quality in the smaller models that they distilled, so measure before anchoring:
       train with --stage pretrain, then `dinojax gram pick runs/vitl16`.

Networks, heads and batch are those of the ImageNet-1k recipe (vitl16_in1k); what the stages do is
that of vit7b16, with a fifth of its steps: every length is divided by 5, and so is the anchor's
step. The learning rate is constant, as for 7B, at a fifth of the ImageNet-1k recipe's peak.
"""

from dinojax.configs import base, vit7b16


def get_config():
    c = vit7b16.get_config()
    c.num_steps = 200_000
    c.batch_size = 2048
    c.group_size = 64

    c.model.update(name="vitl", ffn=None, qkv_bias=None, norm="layernorm")
    c.model.drop_path = 0.3
    c.model.remat = "none"
    c.dino_head.update(hidden=2048, bottleneck=256, prototypes=65_536)
    c.ibot_head.update(hidden=2048, bottleneck=256, prototypes=65_536)

    c.optim.beta2 = 0.999
    c.optim.clip = 3.0
    c.optim.layer_decay = 0.9
    c.optim.freeze_last_layer = 1250

    c.schedules.lr = base.schedule(0.0, 2e-4, 2e-4, warmup=20_000)  # peak 1.13e-3 after scaling
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=20_000)
    c.checkpoint.keep_every = 10_000
    return c


def pretrain(c):
    return c


def gram(c):
    c = vit7b16.gram(c)
    c.num_steps = 40_000
    c.model.remat = "none"
    c.schedules.lr = base.schedule(1.2e-4, 1.2e-4, 1.2e-4)  # 0.6 of the peak, as for 7B
    c.schedules.gram_weight.cosine = 1000
    c.schedules.local_weight.cosine = 1000
    c.gram.anchor = "pretrain/40000"
    c.gram.update(refresh_every=2000, refresh_from=2000, max_refreshes=3)
    return c


def highres(c):
    c = vit7b16.highres(c)
    c.num_steps = 6000
    c.batch_size = 1024
    c.group_size = 32
    c.losses.koleo_group = None
    c.model.remat = "dots"
    c.schedules.lr = base.schedule(0.0, 0.0, 5e-5, cosine=2000)  # a quarter of the peak, as for 7B
    c.data.num_workers = 10
    return c


STAGES = {"pretrain": pretrain, "gram": gram, "highres": highres}


def smoke(c):
    """The same recipe, small enough for a laptop: two steps of a narrow, shallow ViT."""
    return base.shrink(c)
