"""Keys of learning: losses, Gram anchor, optimizer, schedules, precision."""

from dinojax.configs.keys.key import CHANNELS, COUNT, FLOAT, IMAGES, SMALL, Key, schedule_rows

LEARNING_KEYS: dict[str, Key] = {
    # losses
    "losses.dino": Key(1.0, "weight; [R]", (0, FLOAT), terms=("dino_local", "dino_global")),
    "losses.ibot": Key(1.0, "weight; [R]", (0, FLOAT), terms=("ibot",)),
    "losses.koleo": Key(
        0.1, "weight, times the number of global crops; [R]", (0, FLOAT), terms=("koleo",)
    ),
    # SIGReg (arXiv:2511.08544) draws the bottleneck of cls tokens towards a normal distribution.
    "losses.sigreg": Key(
        0.0,
        "weight, times the number of global crops; [R] 0.05 where guided",
        (0, FLOAT),
        terms=("sigreg",),
    ),
    "losses.sigreg_directions": Key(
        1024, "random ones, anew in each step; [R] guided", (1, CHANNELS)
    ),
    "losses.sigreg_points": Key(
        17, "of the characteristic function, on [-range, range]; [R] guided", (2, 1024)
    ),
    "losses.sigreg_range": Key(5.0, "in standard deviations; [R] guided", (SMALL, 1e3)),
    "losses.student_temperature": Key(0.1, "divides the student's logits; [R]", (SMALL, FLOAT)),
    "losses.skip_same_crop": Key(True, "leave out the pairs of a global crop with itself; [R]"),
    "losses.koleo_group": Key(
        None,
        "images among which neighbours are sought, None = group_size; [R]",
        (1, IMAGES),
        optional=int,
    ),
    "losses.koleo_neighbors": Key(1, "nearest neighbours; [R]", (1, IMAGES)),
    "losses.centering": Key(
        "sinkhorn", "sinkhorn [R] | softmax [D2]", choices=("sinkhorn", "softmax")
    ),
    "losses.sinkhorn_iterations": Key(3, "of rows and columns; [R]", (1, 1000)),
    "losses.center_momentum": Key(0.9, "softmax centering only; [D2]", (0, 1)),
    # gram
    "gram.enabled": Key(False, "add the Gram loss; [R], on from stage 2 of 7B", terms=("gram",)),
    "gram.teacher": Key(
        "frozen",
        "frozen (the state's gram network) | ema (this step's teacher); [R]",
        choices=("frozen", "ema"),
    ),
    # What the frozen network is: STAGE/STEP of this run, or ema (of this stage, at anchor_step),
    "gram.anchor": Key(
        "", "or RUN[/checkpoints/STAGE[/STEP]], or a file or folder of weights; [R]"
    ),
    "gram.anchor_step": Key(
        0, "steps done when the ema is copied; the weight is 0 until then; [R]", (0, COUNT)
    ),
    "gram.refresh_every": Key(
        None, "steps between copies of the ema, None = never; [R] 10,000", (1, COUNT), optional=int
    ),
    "gram.refresh_from": Key(0, "steps done before the first of them; [R]", (0, COUNT)),
    "gram.max_refreshes": Key(None, "None = as many as come; [R] 3", (1, COUNT), optional=int),
    "gram.normalize": Key(True, "unit-length patches; [R]"),
    "gram.per_image": Key(True, "a matrix per image, else one per group; [R] 7B"),
    "gram.clip": Key(
        "none",
        "negative similarities become 0: none [R] | both | teacher (as released) | both_negative "
        "(the teacher's, and the student's where both are) [ours]",
        choices=("none", "both", "teacher", "both_negative"),
    ),
    "gram.tokens": Key(
        "all",
        "all [R] | masked | unmasked (the latter two need per_image off)",
        choices=("all", "masked", "unmasked"),
    ),
    "gram.resize": Key(
        "bicubic",
        "bicubic | bilinear: gram features to the student's grid; [R]",
        choices=("bicubic", "bilinear"),
    ),
    "gram.antialias": Key(False, "of that resize; [R]"),
    # optim
    "optim.beta1": Key(0.9, "AdamW; [R]", (0, 1 - 1e-7)),
    "optim.beta2": Key(0.999, "AdamW; [R], 0.99 for 7B", (0, 1 - 1e-7)),
    "optim.eps": Key(1e-8, "AdamW; [R]", (1e-30, 1)),
    "optim.clip": Key(
        3.0,
        "largest gradient norm of each part, None = no clipping; [R], 30 for 7B",
        (SMALL, FLOAT),
        optional=float,
    ),
    "optim.layer_decay": Key(0.9, "learning-rate factor per block below the last; [R]", (0, 1)),
    "optim.patch_embed_lr": Key(0.2, "further factor for the patch embedding; [R]", (0, 1)),
    "optim.lr_scaling": Key(
        "sqrt_1024",
        "sqrt_1024 (x 4 sqrt(batch/1024)) | linear_256 | none; [R]",
        choices=("sqrt_1024", "linear_256", "none"),
    ),
    "optim.freeze_backbone": Key(False, "it and its ema stay to the last bit, heads train; [ours]"),
    # A new patch embedding learns while the rest of the backbone, its trunk, stays what it was.
    "optim.freeze_trunk": Key(
        0, "steps with a learning rate of 0 for the trunk; [R] guided 10,000", (0, COUNT)
    ),
    "optim.trunk_warmup": Key(
        0, "steps in which its rate and decay then rise to all; [R] guided 1000", (0, COUNT)
    ),
    "optim.freeze_last_layer": Key(
        1250, "steps with a learning rate of 0 for the prototypes; [R]", (0, COUNT)
    ),
    # guides: what metadata keep in the backbone, or take out of it: arXiv:2606.05107
    "guides.rows": Key(
        (),
        "rows made by base.guide; () = none; [R] guided",
        columns=(str, str, str, float),
    ),
    "guides.hidden": Key(
        (512,), "widths of hidden layers of heads, of any number; [ours]", (1, CHANNELS), many=int
    ),
    "guides.activation": Key(
        "sigmoid",
        "of regression to 0..1: none | sigmoid | tanh; [R] guided",
        choices=("none", "sigmoid", "tanh"),
    ),
    "guides.temperature": Key(
        0.07, "of prototypes of a class that was not seen yet; [R] guided", (SMALL, FLOAT)
    ),
    "guides.momentum": Key(0.999, "of prototypes, by updates of a class; [R] guided", (0, 1)),
    "guides.min_temperature": Key(0.01, "of prototypes; [R] guided", (SMALL, FLOAT)),
    # none: weights alone; norms: gradients of equal norm whatever the weights (as released);
    "guides.equalize": Key(
        "none",
        "none | norms | weights (equal norms times weights); [ours]",
        choices=("none", "norms", "weights"),
    ),
    "guides.ramp": Key(
        "sigmoid",
        "of gradients to the backbone: sigmoid | linear | constant; [R] guided",
        choices=("sigmoid", "linear", "constant"),
    ),
    "guides.ramp_start": Key(
        0, "steps in which guides learn and send the backbone nothing; [R] guided", (0, COUNT)
    ),
    # adapter: low-rank adapters: LoRA, arXiv:2106.09685
    "adapter.rank": Key(0, "of the blocks' adapters; 0 = all weights train; [ours]", (0, CHANNELS)),
    "adapter.alpha": Key(16.0, "adapters are added alpha / rank times; [ours]", (SMALL, FLOAT)),
    "adapter.targets": Key(
        ("qkv", "proj", "ffn"), "kernels of a block that have one; [ours]", many=str
    ),
    "adapter.norms": Key(False, "norms train as well, beside adapters and heads; [ours]"),
    # schedules
    "schedules.version": Key(
        1, "1 (warm-up reaches its end) | 2 (the cosine does); [R]", choices=(1, 2)
    ),
    "schedules.truncate_extra": Key(0.0, "version 1: share of the cosine cut off; [R]", (0, 10)),
    **schedule_rows("schedules.lr", 0.0, 1e-3, 1e-6, warmup=12_500, says="before lr_scaling"),
    **schedule_rows("schedules.weight_decay", 0.04, 0.04, 0.4, says="AdamW"),
    **schedule_rows("schedules.momentum", 0.992, 0.992, 1.0, limits=(0, 1), says="of the ema"),
    **schedule_rows(
        "schedules.teacher_temperature", 0.04, 0.07, 0.07, warmup=37_500, limits=(SMALL, FLOAT)
    ),
    **schedule_rows("schedules.local_weight", 1.0, 1.0, 1.0, says="factor on the local DINO term"),
    **schedule_rows("schedules.gram_weight", 1.0, 1.0, 1.0, says="weight of the Gram loss"),
    # precision
    "precision.compute": Key(
        "bfloat16",
        "bfloat16 [R] | float32: activations and matmuls",
        choices=("bfloat16", "float32"),
    ),
    # In which gradients of matrices are summed over devices; those of vectors always in float32.
    "precision.reduce": Key(
        "float32", "float32 [R] | bfloat16 (half the bytes) [ours]", choices=("float32", "bfloat16")
    ),
    "precision.matmul": Key(
        "default",
        "default | highest: passes of a float32 matmul on TPU; [ours]",
        choices=("default", "highest"),
    ),
}
