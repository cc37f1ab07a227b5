"""Keys of the reference that have none of ours: which of their values change nothing here.

Facts of the released files and of which keys the training code reads; names are theirs. A value
that is not listed makes another run, there or in whoever's fork gave it a meaning, so that it is
refused and never dropped.
"""

from typing import Any

# Section -> the keys of which one must be true before anything reads the others.
SWITCHES: dict[str, tuple[str, ...]] = {
    "gram": ("gram.use_loss",),
    "distillation": ("distillation.enabled",),
    "multidistillation": ("multidistillation.enabled",),
    "hrft": ("hrft.enabled",),
    "sigreg": ("sigreg.enabled",),
    "guide": ("guide.enabled",),
    "coding_rate_loss": (
        "coding_rate_loss.use_cls_loss",
        "coding_rate_loss.use_masked_patches_loss",
    ),
    "dino.local_loss_weight_schedule": ("dino.reweight_dino_local_loss",),
}
DEAD = "nothing in the reference reads it"
OURS = "as it is always here"
DISTILLATION = "a distillation, which is another program"
STARTS = (
    "starts from weights: leave it out with --ignore, and set start.source='FILE' and "
    "start.heads='new' in the recipe"
)
GUIDED = "metadata-guided training is not offered"
CELLS = (
    "channels augmented and normalised one by one are not offered; image.normalize='per_crop' and "
    "augment.* of the recipe come near"
)
OFF: tuple = (False, None, "", 0)
EMPTY: tuple = ("", None)

# Pattern -> values that change nothing here, why not, and what to say of others (None: as dead).
# The first that fits counts.
FIXED: dict[str, tuple[tuple[Any, ...], str, str | None]] = {
    "distillation.enabled": (OFF, OURS, DISTILLATION),
    "distillation.*": (EMPTY, OURS, DISTILLATION),
    "multidistillation.enabled": (OFF, OURS, DISTILLATION),
    "multidistillation.*": ((), OURS, DISTILLATION),
    "MODEL.META_ARCHITECTURE": (("SSLMetaArch",), OURS, DISTILLATION),
    "MODEL.WEIGHTS": (EMPTY, OURS, STARTS),
    "MODEL.DTYPE": (("float32",), DEAD, None),
    "student.resume_from_teacher_chkpt": (EMPTY, OURS, STARTS),
    "student.pretrained_weights": (EMPTY, OURS, STARTS),
    "ibot.separate_head": ((True,), OURS, "a head shared by DINO and iBOT is not offered"),
    "dino.koleo_distributed_replicas": ((0,), OURS, "the reference refuses it, too"),
    "crops.localcrops_subset_of_globalcrops": (OFF, OURS, "local crops are cut from the image"),
    "crops.share_color_jitter": (OFF, OURS, "every crop has colours of its own"),
    "crops.teacher_to_student_resolution_scale": ((1,), OURS, DISTILLATION),
    "crops.vertical_flips": (OFF, OURS, "vertical flips are not offered"),
    "crops.gaussian_blur": (
        (True,),
        OURS,
        "no blur and no solarisation: set augment.blur_rates=(0.0, 0.0, 0.0) and "
        "augment.solarize_rate=0.0 in the recipe",
    ),
    "sigreg.enabled": (OFF, OURS, "SIGReg is not offered"),
    "guide.enabled": (OFF, OURS, GUIDED),
    "sigreg.*": ((), OURS, "SIGReg is not offered"),
    "guide.*": ((), OURS, GUIDED),
    "optim.grad_norm_normalization": (OFF, OURS, GUIDED),
    "schedules.lr.freeze_student_iterations": (
        OFF,
        OURS,
        "a backbone frozen at first is a stage of its own here (optim.freeze_backbone)",
    ),
    "schedules.lr.unfreeze_last_n_blocks": (OFF, OURS, "blocks train all or none"),
    "gram.loss_weight_schedule": (EMPTY, OURS, "give its start, peak, end and warmup_epochs"),
    "train.cell_augmentation": (OFF, OURS, CELLS),
    "train.cell_augmentation_type": (EMPTY, OURS, CELLS),
    "hrft.enabled": (OFF, DEAD, None),
    "hrft.*": (EMPTY, DEAD, None),
    "coding_rate_loss.use_*": (OFF, DEAD, None),
    "coding_rate_loss.*": ((0.2, 0.1, 8), DEAD, None),
    "ibot.force_masking_even_with_zero_weight": (OFF, DEAD, None),
    "train.chunk_schedule": (((), None), DEAD, None),
    "train.data_config": (EMPTY, DEAD, None),
    "train.use_teacher_head": ((True,), DEAD, None),
    "train.learn_from_teacher_tokens": (OFF, DEAD, None),
    "student.pos_embed_rope_dtype": (
        ("bf16", "fp32"),
        "the reference does not read it and computes in bfloat16; rope.dtype=bfloat16 does the "
        "same here",
        None,
    ),
    "student.ffn_ratio": (
        (4, 3),
        DEAD + ": the architecture sets it",
        "the reference takes the architecture's; leave it out with --ignore, and set "
        "model.ffn_ratio in the recipe if it had a meaning",
    ),
    "student.pos_embed_type": (("rope", "ropenew"), DEAD, None),
    "student.drop_path_shape": (("uniform",), DEAD, None),
    "student.init_std_*": ((0.02,), DEAD, None),
    "student.fourier_encoding_dim": ((64,), DEAD, None),
    "student.pos_embed_grid_size": ((48,), DEAD, None),
    "student.pos_embed_rope_gamma": ((1,), DEAD, None),
    **{
        f"student.{name}": (OFF, DEAD, None)
        for name in ("patch_drop", "sin_cos_embeddings", "fourier_embeddings", "mask_attention")
        + ("multiple_pos_embeddings", "cls_pos_embedding", "reg_pos_embedding", "sparse24_*")
        + ("mask_register_attention", "rescale_weights_by_layer_id")
        + ("pos_embed_rope_init_multi_frequencies",)
    },
    "dino.force_weight_norm": (OFF, DEAD, None),
    "dino.head_norm_last_layer": (OFF, DEAD, None),
    "ibot.head_norm_last_layer": (OFF, DEAD, None),
    "dino.koleo_distributed_loss_group_data": ((True,), "it has no effect in the reference", None),
    "optim.dino_head_wd_multiplier": ((1,), "it has no effect in the reference", None),
    "optim.optimizer": (("adamw",), DEAD, None),
}
# And in files of one implementation alone: flavour -> the same.
FIXED_IN: dict[str, dict[str, tuple[tuple[Any, ...], str, str | None]]] = {
    "dinov2": {
        "student.drop_path_uniform": (
            (True,),
            OURS,
            "drop path that grows with depth is not offered",
        ),
    },
    "dinov3": {
        "student.drop_path_uniform": ((True,), "the only kind of DINOv3", None),
        "student.interpolate_antialias": ((True, False), DEAD, None),
        "student.interpolate_offset": ((0, 0.1), DEAD, None),
        "optim.base_lr": ((0.004,), DEAD, "DINOv3's code does not read it; give optim.lr"),
    },
}
# Pattern -> why no value of it changes a result.
MEMORY = "changes speed or memory there, never results"
PATHS = "a place of theirs; set data.path and --run"
EVALUATION = "evaluations beside training; set knn.*"
IGNORED: dict[str, str] = {
    "MODEL.DEVICE": MEMORY,
    "student.fp8_*": "blocks compute in precision.compute here",
    "student.block_chunks": MEMORY,
    **dict.fromkeys(("train.dataset_path", "train.output_dir"), PATHS),
    "optim.dump_fsdp_weights_path": PATHS,
    **{
        key: MEMORY
        for key in ("train.compile", "train.cudagraphs", "train.fsdp_reshard_after_forward")
        + ("train.sharded_eval_checkpoint", "optim.multi_tensor_optim", "train.cache_dataset")
        + ("compute_precision.*sharding_strategy",)
    },
    "train.saveckp_freq": "the reference does not read it; set checkpoint.every",
    "train.monitor_gradient_norm": "only logs more",
    "compute_precision.*.reduce_dtype": "of each network there; here precision.reduce of all",
    **dict.fromkeys(
        ("compute_precision.grad_scaler", "compute_precision.*.mixed_precision.*_dtype"),
        "float32 weights and losses, blocks in precision.compute",
    ),
    "gram.compute_stats": "only logs more",
    **dict.fromkeys(("evaluation.low_freq_every", "evaluation.config_files*"), EVALUATION),
    **dict.fromkeys(
        ("train_dataset_str", "val_dataset_str", "nb_knn", "temperature", "gather_on_cpu")
        + ("batch_size", "n_per_class_list", "n_tries", "finetune_dataset_str", "finetune_on_val")
        + ("metric_type", "train_features_device", "train_dtype", "max_train_iters"),
        EVALUATION,
    ),
    **dict.fromkeys(("defaults", "hydra.*"), "settings of the launcher"),
}
