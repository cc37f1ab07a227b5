"""ViT-7B/16 in three stages: pre-training, Gram anchoring, high resolution. DINOv3.

Run:   dinojax train --config configs/vit7b16.py --run runs/vit7b --set data.path=/data/images
       (`dinojax plan --words configs/vit7b16.py` says what each stage does)
Cost:  the released model: 61,440 H100 GPU-hours, 256 GPUs (model card)
Score: of the released model, after all three stages: ImageNet-1k linear 88.4, ADE20k linear
       55.9 mIoU (paper, arXiv:2508.10104). Not yet reproduced here.

[R] the released configurations of the three stages, [P] the paper. Values of `get_config` hold in
every stage; those of a stage's function only there. Steps count from the start of a stage.
"""

from dinojax.configs import base


def get_config():
    c = base.get_config()
    c.num_steps = 1_000_000
    c.batch_size = 4096  # 256 GPUs with 16 images each
    c.group_size = 16

    c.data.source = "folder"
    c.data.num_workers = 10

    c.crops.global_size = 256
    c.crops.local_size = 112
    c.augment.flip_rate = 0.0

    c.model.name = "vit7b"
    c.model.ffn = "swiglu64"
    c.model.qkv_bias = False
    c.model.num_registers = 4
    c.model.norm = "layernorm_1e5"
    c.model.untie_local_cls_norm = True
    c.model.drop_path = 0.4
    c.model.remat = "dots"
    c.rope.rescale = 2.0

    c.dino_head.update(hidden=8192, bottleneck=512, prototypes=262_144)
    c.ibot_head.update(hidden=4096, bottleneck=384, prototypes=98_304)

    c.optim.beta2 = 0.99
    c.optim.clip = 30.0
    c.optim.layer_decay = 0.98
    c.optim.freeze_last_layer = 5000

    c.schedules.version = 2
    c.schedules.lr = base.schedule(0.0, 5e-5, 5e-5, warmup=100_000)  # peak 4e-4 after scaling
    c.schedules.weight_decay = base.schedule(0.04, 0.04, 0.04)
    c.schedules.momentum = base.schedule(0.994, 0.994, 0.994)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=100_000)

    c.checkpoint.every = 1000
    c.checkpoint.keep_every = 50_000
    return c


def pretrain(c):
    return c


def gram(c):
    """The released stage resumes the run at step 1,000,000 with another configuration."""
    c.start.what = "state"  # [R]
    c.num_steps = 200_000  # [R] 1,200,000 less the steps before
    c.optim.freeze_last_layer = 0  # [R] long past
    c.model.remat = "full"  # [R]
    c.schedules.lr = base.schedule(3e-5, 3e-5, 3e-5)  # 2.4e-4 after scaling; [R]
    c.schedules.momentum = base.schedule(0.999, 0.999, 0.999)  # [R]
    c.schedules.teacher_temperature = base.schedule(0.07, 0.07, 0.07)  # [R], constant by then
    c.schedules.gram_weight = base.schedule(0.0, 0.0, 2.0, cosine=1000)  # [R]
    c.schedules.local_weight = base.schedule(1.0, 1.0, 0.5, cosine=1000)  # [R]
    c.gram.enabled = True
    c.gram.anchor = "pretrain/200000"  # [P] from 100,000 or 200,000 steps; 1,000,000 is harmful
    c.gram.refresh_every = 10_000  # [R]
    c.gram.refresh_from = 10_000  # [R]
    c.gram.max_refreshes = 3  # [R]
    c.crops.gram_size = 512  # twice the global crops, undistorted; [R]
    return c


def highres(c):
    """Started anew from the last ema, which is also the anchor and stays it."""
    c.start.what = "ema"  # [R]
    c.num_steps = 30_000  # [R]; [P] says 10,000
    c.batch_size = 2048  # 256 GPUs with 8 images each; [R]
    c.group_size = 8  # [R]
    c.losses.koleo_group = 16  # [R], over two GPUs
    c.optim.freeze_last_layer = 0  # [R]
    c.model.remat = "full"  # [R]
    c.schedules.lr = base.schedule(0.0, 0.0, 1.25e-5, cosine=10_000)  # end 7.07e-5; [R]
    c.schedules.momentum = base.schedule(0.999, 0.999, 0.999)  # [R]
    c.schedules.teacher_temperature = base.schedule(0.07, 0.07, 0.07)  # [R]
    c.schedules.gram_weight = base.schedule(1.5, 1.5, 1.5)  # [R]
    c.schedules.local_weight = base.schedule(0.5, 0.5, 0.5)  # [R]
    c.gram.enabled = True
    c.gram.anchor = "ema"  # [R] the dump that the stage starts from
    # 30 % of the steps at 512 pixels; [R]. Local crops of 160 instead of 168: the released run
    # cuts 168 and its patches cover 160 of them.
    c.crops.update(global_size=512, local_size=112, gram_size=768)
    c.crops.more_rates = (0.3, 0.3, 0.05, 0.05)
    c.crops.more_global = (768, 768, 768, 768)
    c.crops.more_local = (112, 160, 224, 336)
    c.crops.more_gram = (1152, 1152, 1152, 1152)
    c.data.box_size = 1024  # [ours]
    c.crops.more_box = (1536, 1536, 1536, 1536)  # [ours]
    c.data.num_workers = 2  # [R]
    c.checkpoint.every = 250  # [R]
    return c


STAGES = {"pretrain": pretrain, "gram": gram, "highres": highres}


def smoke(c):
    """The same recipe, small enough for a laptop: two steps of a narrow, shallow ViT."""
    return base.shrink(c)
