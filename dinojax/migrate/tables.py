"""Keys of the reference implementations (DINOv3, DINOv2): what becomes of each in `migrate`.

Facts of the released defaults and of which keys the training code reads; names are theirs.
"""

from typing import Any

# Key of theirs -> key of ours, where the value is the same.
SAME = {
    "dino.loss_weight": "losses.dino",
    "dino.global_ignore_diagonal": "losses.skip_same_crop",
    "dino.koleo_loss_weight": "losses.koleo",
    "dino.koleo_topk": "losses.koleo_neighbors",
    "ibot.loss_weight": "losses.ibot",
    "ibot.mask_sample_probability": "masks.rate",
    "ibot.mask_ratio_min_max": "masks.ratio",
    "ibot.mask_random_circular_shift": "masks.roll",
    **{
        f"{part}.head_{theirs}": f"{part}_head.{ours}"
        for part in ("dino", "ibot")
        for theirs, ours in {
            "n_prototypes": "prototypes",
            "bottleneck_dim": "bottleneck",
            "nlayers": "num_layers",
            "hidden_dim": "hidden",
        }.items()
    },
    "gram.use_loss": "gram.enabled",
    "gram.normalized": "gram.normalize",
    "gram.img_level": "gram.per_image",
    "gram.tokens_used": "gram.tokens",
    "gram.global_teacher_resize_method": "gram.resize",
    "gram.global_teacher_resize_antialias": "gram.antialias",
    "train.seed": "seed",
    "train.num_workers": "data.num_workers",
    "train.batch_size_per_gpu": "group_size",
    "student.patch_size": "model.patch_size",
    "student.drop_path_rate": "model.drop_path",
    "student.qkv_bias": "model.qkv_bias",
    "student.proj_bias": "model.proj_bias",
    "student.ffn_bias": "model.ffn_bias",
    "student.n_storage_tokens": "model.num_registers",
    "student.num_register_tokens": "model.num_registers",
    "student.mask_k_bias": "model.mask_k_bias",
    "student.untie_cls_and_patch_norms": "model.untie_cls_norm",
    "student.untie_global_and_local_cls_norm": "model.untie_local_cls_norm",
    "student.interpolate_offset": "model.position_offset",
    **{f"student.pos_embed_rope_{k}": f"rope.{k}" for k in ("base", "min_period", "max_period")},
    "student.pos_embed_rope_normalize_coords": "rope.coords",
    **{f"student.pos_embed_rope_{k}_coords": f"rope.{k}" for k in ("shift", "jitter", "rescale")},
    "optim.layerwise_decay": "optim.layer_decay",
    "optim.patch_embed_lr_mult": "optim.patch_embed_lr",
    "optim.adamw_beta1": "optim.beta1",
    "optim.adamw_beta2": "optim.beta2",
    "crops.global_crops_scale": "crops.global_area",
    "crops.local_crops_scale": "crops.local_area",
    "crops.local_crops_number": "crops.num_local",
    "crops.global_crops_size": "crops.global_size",
    "crops.local_crops_size": "crops.local_size",
    "crops.rgb_mean": "image.mean",
    "crops.rgb_std": "image.std",
    "evaluation.eval_period_iterations": "knn.every",
    "checkpointing.period": "checkpoint.every",
    "checkpointing.max_to_keep": "checkpoint.keep_last",
}

# Key of theirs -> key of ours, and the value of ours for each of theirs.
RENAMED: dict[str, tuple[str, dict[Any, Any]]] = {
    "student.norm_layer": (
        "model.norm",
        {"layernorm": "layernorm", "layernormbf16": "layernorm_1e5", "rmsnorm": "rmsnorm"},
    ),
    "optim.scaling_rule": (
        "optim.lr_scaling",
        {"sqrt_wrt_1024": "sqrt_1024", "linear_wrt_256": "linear_256"},
    ),
    "train.centering": (
        "losses.centering",
        {"sinkhorn_knopp": "sinkhorn", "centering": "softmax"},
    ),
    "crops.horizontal_flips": ("augment.flip_rate", {True: 0.5, False: 0.0}),
    "compute_precision.param_dtype": (
        "precision.compute",
        {"bf16": "bfloat16", "fp32": "float32"},
    ),
    "compute_precision.reduce_dtype": (
        "precision.reduce",
        {"fp32": "float32", "bf16": "bfloat16"},
    ),
}
ARCHITECTURES = {
    "dinov3": {
        "vit_small": "vits",
        "vit_base": "vitb",
        "vit_large": "vitl",
        "vit_so400m": "vitso400m",
        "vit_huge2": "vith2",
        "vit_giant2": "vitg2",
        "vit_7b": "vit7b",
    },
    "dinov2": {
        "vit_small": "dinov2_vits",
        "vit_base": "dinov2_vitb",
        "vit_large": "dinov2_vitl",
        "vit_giant2": "dinov2_vitg",
    },
}
FFN = {
    "dinov3": {name: name for name in ("mlp", "swiglu", "swiglu32", "swiglu64", "swiglu128")},
    "dinov2": {"mlp": "mlp", "swiglu": "swiglu_fused", "swiglufused": "swiglu_fused"},
}

# When the frozen Gram network becomes a copy of the ema: theirs -> ours.
REFRESHES = {
    "gram.update_frequency": "gram.refresh_every",
    "gram.it_first_update": "gram.refresh_from",
    "gram.max_updates": "gram.max_refreshes",
}
# Sizes of which one run may have several: ours -> theirs.
SIZES = {
    "global": "crops.global_crops_size",
    "local": "crops.local_crops_size",
    "gram": "crops.gram_teacher_crops_size",
}
RATIOS = "crops.global_local_crop_pairs_ratios"
# Read by schedules of version 1 alone; a `schedules` section replaces them.
VERSION_1 = tuple(
    f"optim.{name}"
    for name in ("weight_decay", "weight_decay_end", "lr", "base_lr", "warmup_epochs", "min_lr")
) + ("optim.freeze_last_layer_epochs", "optim.schedule_trunc_extra")
VERSION_1 += tuple(
    f"teacher.{name}"
    for name in ("momentum_teacher", "final_momentum_teacher", "warmup_teacher_temp")
) + ("teacher.teacher_temp", "teacher.warmup_teacher_temp_epochs")
SCHEDULES = {
    "lr": "lr",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "teacher_temp": "teacher_temperature",
}
# Of schedules of version 2, what is read of each; of iterations and epochs the former count.
CURVES = tuple(
    f"{curve}.{name}"
    for curve in (*(f"schedules.{name}" for name in SCHEDULES), "dino.local_loss_weight_schedule")
    + ("gram.loss_weight_schedule",)
    for name in ("start", "peak", "end", "warmup_epochs", "cosine_epochs")
    + ("warmup_iterations", "cosine_iterations")
) + ("schedules.lr.freeze_last_layer_epochs", "schedules.lr.freeze_last_layer_iterations")
# Keys that may be null, and their kind otherwise; beside those of SAME that may in ours.
NULLABLE: dict[str, type] = {
    "student.layerscale": float,
    "optim.clip_grad": float,
    "dino.koleo_distributed_loss_group_size": int,
    "gram.max_updates": int,
    "gram.ckpt": str,
    "crops.gram_teacher_crops_size": int,
    "checkpointing.keep_every": int,
    "student.in_chans": int,
    "teacher.in_chans": int,
}
# Whole numbers that are no epochs, and the least of some.
WHOLE: tuple[str, ...] = (
    "train.batch_size_per_gpu",
    "train.OFFICIAL_EPOCH_LENGTH",
    "gram.update_frequency",
)
WHOLE += ("gram.it_first_update", "gram.it_load_ema_teacher", "checkpointing.keep_every")
WHOLE += ("crops.global_crops_size", "crops.local_crops_size")
LEAST = {"train.batch_size_per_gpu": 1, "train.OFFICIAL_EPOCH_LENGTH": 1, "optim.epochs": 0}
LEAST |= {"student.in_chans": 1, "teacher.in_chans": 1}

# What a key means that a file leaves out: released defaults, of the keys that are read below.
DEFAULTS: dict[str, Any] = {
    "train.batch_size_per_gpu": 64,
    "train.OFFICIAL_EPOCH_LENGTH": 1250,
    "train.centering": "sinkhorn_knopp",
    "train.checkpointing": False,
    "train.checkpointing_full": False,
    "student.arch": "vit_large",
    "student.ffn_layer": "mlp",
    "student.layerscale": 1e-5,
    "student.mask_k_bias": False,
    "ibot.separate_head": True,
    "teacher.momentum_teacher": 0.992,
    "teacher.final_momentum_teacher": 1.0,
    "teacher.warmup_teacher_temp": 0.04,
    "teacher.teacher_temp": 0.07,
    "teacher.warmup_teacher_temp_epochs": 30,
    "optim.epochs": 100,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 10,
    "optim.min_lr": 1e-6,
    "optim.clip_grad": 3.0,
    "optim.freeze_last_layer_epochs": 1,
    "optim.schedule_trunc_extra": 0.0,
    "dino.koleo_loss_distributed": False,
    "dino.koleo_distributed_loss_group_size": None,
    "dino.reweight_dino_local_loss": False,
    "gram.use_loss": False,
    "gram.img_level": False,
    "gram.loss_weight": 1.0,
    "gram.ema_teacher": False,
    "gram.rep_update": True,
    "gram.update_frequency": 50_000,
    "gram.it_first_update": 0,
    "gram.max_updates": None,
    "gram.it_load_ema_teacher": -1,
    "gram.ckpt": None,
    "gram.remove_neg": False,
    "gram.remove_only_teacher_neg": False,
    "crops.global_crops_size": 224,
    "crops.local_crops_size": 96,
    "crops.global_local_crop_pairs_ratios": 1.0,
    "crops.gram_teacher_crops_size": None,
    "crops.gram_teacher_no_distortions": False,
    "crops.rgb_mean": (0.485, 0.456, 0.406),
    "crops.rgb_std": (0.229, 0.224, 0.225),
    "student.in_chans": 3,
    "checkpointing.keep_every": 99999999999999999,
    **{f"dino.local_loss_weight_schedule.{name}": 0.5 for name in ("start", "peak", "end")},
    "dino.local_loss_weight_schedule.warmup_epochs": 0,
}
DEFAULTS_2 = {
    "optim.base_lr": 0.004,
    "train.centering": "centering",
    "ibot.separate_head": False,
    "student.interpolate_offset": 0.1,
    "student.interpolate_antialias": False,
}
