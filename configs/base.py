"""Every configuration key, once: default value, unit, and where the value comes from.

A recipe calls `get_config()`, changes what differs, and returns the object. The object is locked:
a key that is not declared here cannot be set. Sources: [R] released DINOv3 configuration (the
ImageNet-1k ViT-L recipe where stages differ), [P] DINOv3 paper (arXiv:2508.10104), [D2] DINOv2
(arXiv:2304.07193), [ours] a choice of this project.
"""

from ml_collections import ConfigDict

from dinojax.eval import suite


def schedule(start: float, peak: float, end: float, warmup: int = 0, cosine: int | None = None):
    """One value over steps: linear start -> peak, half-cosine peak -> end, then constant end."""
    return ConfigDict(
        {
            "start": float(start),  # value at step 0; [R]
            "peak": float(peak),  # value after the warm-up; [R]
            "end": float(end),  # value after the cosine; [R]
            "warmup": warmup,  # steps of linear warm-up; [R]
            "cosine": cosine,  # steps of half-cosine, None = all that remain; [R]
        },
        convert_dict=True,
        allow_dotted_keys=False,
    )


def head(hidden: int, bottleneck: int, prototypes: int):
    """A projection head: tokens -> logits over prototypes."""
    return ConfigDict(
        {
            "num_layers": 3,  # linear layers before the prototypes; [R]
            "hidden": hidden,  # channels; [R]
            "bottleneck": bottleneck,  # channels; [R]
            "prototypes": prototypes,  # K, outputs; [R]
            "bias": True,  # biases in the linear layers; [R]
            "prototype_norm": "none",  # none [R] | unit [ours] | weight_norm [D2]
        }
    )


def part(name: str, path: str, *, source: str = "folder", weight: float = 0.0, alone: float = 0.0):
    """One source of `data.mixture`, drawn with seeded shares (dinojax/data/mixture.py)."""
    return (
        name,  # of lower case letters, digits, - and _; in the log; [ours]
        source,  # as data.source; [ours]
        path,  # absolute, or from data.path on; [ours]
        float(weight),  # share of the images of mixed batches, relative to the others; [ours]
        float(alone),  # share of the batches that hold this source alone; [P] 0.1 ImageNet-1k
    )


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # integer; every random draw derives from it; [R]
    c.stage = "pretrain"  # of a recipe with STAGES: set to the stage's name; a folder; [ours]
    c.num_steps = 125_000  # updates of this stage; [R]
    c.batch_size = 2048  # images per step over all devices and micro-batches; [R]
    c.group_size = 64  # images that share masks, drop-path subsets, RoPE draws, KoLeo; [R] per GPU
    c.accumulate = 1  # micro-batches per step; changes memory, not results; [ours]

    # What a stage starts from (docs/stages.md).
    c.start = ConfigDict()
    c.start.source = "previous"  # stage, or: nothing, RUN[/checkpoints/STAGE[/STEP]], FILE; [ours]
    c.start.what = "ema"  # ema (into student and ema; optimizer anew) [R] | state (all of it) [R]
    c.start.heads = "keep"  # keep [R] | new (random: files of weights hold no heads) [ours]
    c.start.schedules = "restart"  # restart | continue (count on from the stage before); [R]
    c.start.steps_before = 0  # steps of the recipe's earlier stages, which fill this in; [ours]

    c.distill = ConfigDict()  # a frozen teacher instead of the ema (docs/distillation.md)
    c.distill.enabled = False  # its targets; student unmasked, masks select patches; [R]
    # RUN[/checkpoints/STAGE[/STEP]], a file or folder of weights, random:RECIPE (plans and tests)
    c.distill.teacher = ""  # or smoke:RECIPE, the same of a recipe's smoke; [R]
    c.distill.targets = "heads"  # heads (the teacher's, trained) [R] | features (no heads) [ours]
    c.distill.compute = None  # of the teacher: float32 | bfloat16, None = precision.compute; [R]
    # Of `dinojax distill`: all students in turn on every device, or each apart on its own.
    c.distill.place = "auto"  # auto (measured) | apart | turn; [ours]
    c.distill.share = None  # devices of this student when apart, None = by its cost; [R] given
    c.distill.strategy = None  # of its weights: dp | fsdp | hsdp | fsdp_tp, None = mesh's; [R]

    c.until = ConfigDict()  # a stage may end before num_steps, as soon as its losses left chance
    c.until.left_chance = None  # share of the way to the floor, every term; None = never; [ours]
    c.until.every = 10  # steps between looks at the losses, of which three in a row count; [ours]

    c.data = ConfigDict()
    c.data.source = "folder"  # folder|manifest | tar | arrayrecord | tfds | parquet | tiles; [ours]
    c.data.path = ""  # of the images; a folder is read to any depth; [ours]
    c.data.mixture = ()  # rows made by base.part, instead of one source; () = no mixture; [P]
    c.data.box_size = 512  # pixels, side of the uint8 box the host fits an image into; [ours]
    c.data.num_workers = 0  # decoding processes per host, 0 = threads only; [ours]
    c.data.num_threads = 2  # decoding threads per process; [ours]
    c.data.prefetch = 2  # batches decoded ahead; [ours]
    c.data.max_bad_share = 0.001  # of images that cannot be read; ten are allowed, 0 = none; [ours]
    c.data.max_pixels = 2**26  # pixels of an image, told by its header before it is decoded; [ours]
    # One pair for all channels, or LOW, HIGH of each after the other; also for knn.bank and query.
    # Signed and float values need it. 8 bits are taken as they are. (docs/data.md)
    c.data.value_range = ()  # LOW, HIGH stored values of above 8 bits; () = all of the type; [ours]
    c.data.mixture_ranges = ()  # rows (source of the mixture, LOW, HIGH) instead of it; [ours]

    c.image = ConfigDict()
    c.image.channels = 3  # after decoding: 1 (grey), 3 (RGB), or as many as files store; [R]
    c.image.normalize = "fixed"  # fixed (mean, std below) [R] | per_crop (each crop's own) [ours]
    c.image.mean = (0.485, 0.456, 0.406)  # of values scaled to 0..1; [R]
    c.image.std = (0.229, 0.224, 0.225)  # of values scaled to 0..1; [R]

    c.crops = ConfigDict()
    c.crops.global_size = 224  # pixels, a multiple of model.patch_size; [R]
    c.crops.local_size = 96  # pixels; [R]
    c.crops.num_local = 8  # local crops per image; [R]
    c.crops.global_area = (0.32, 1.0)  # share of the image's area; [R]
    c.crops.local_area = (0.05, 0.32)  # share of the image's area; [R]
    c.crops.aspect = (3 / 4, 4 / 3)  # width over height, drawn log-uniformly; [R]
    c.crops.gram_size = None  # pixels of the crops the gram network sees, None = no such crops; [R]
    c.crops.gram_distortions = False  # gram crops share colour and blur of the global crop; [R] 7B
    # Of distillation: pixels of a patch in crops of these sizes. None = model.patch_size; a network
    # with smaller patches sees the crops reduced by the ratio (docs/distillation.md).
    c.crops.patch_size = None  # for students of one teacher with patches of several sizes; [ours]
    # Steps of several sizes: each step draws one; the sizes above keep what these rates leave of 1.
    c.crops.more_rates = ()  # probabilities of further sizes, () = none; [R] high resolution
    c.crops.more_global = ()  # pixels, one per rate; [R]
    c.crops.more_local = ()  # pixels, one per rate; [R]
    c.crops.more_gram = ()  # pixels, one per rate, () = no gram crops; [R]
    c.crops.more_box = ()  # pixels of the box, one per rate, () = data.box_size; [ours]

    c.augment = ConfigDict()
    c.augment.flip_rate = 0.5  # probability of a horizontal flip; [R], 0 for 7B and students
    c.augment.jitter_rate = 0.8  # probability of colour jitter; [R]
    c.augment.brightness = 0.4  # factor in [1 - b, 1 + b]; [R]
    c.augment.contrast = 0.4  # factor in [1 - c, 1 + c]; [R]
    c.augment.saturation = 0.2  # factor in [1 - s, 1 + s]; three channels only; [R]
    c.augment.hue = 0.1  # shift in [-h, h] of a full turn; three channels only; [R]
    c.augment.grayscale_rate = 0.2  # probability; three channels only; [R]
    # What the released models saw: the reference's wrapper inverts the probabilities it is given.
    c.augment.blur_rates = (0.0, 0.9, 0.5)  # first global crop, second, each local crop; [R]
    c.augment.blur_sigma = (0.1, 2.0)  # pixels; [R]
    c.augment.blur_kernel = 9  # pixels, odd; [R]
    c.augment.solarize_rate = 0.2  # probability, second global crop only; [R]
    c.augment.solarize_threshold = 128  # values of 0..255 at or above it are inverted; [R]

    c.masks = ConfigDict()
    c.masks.rate = 0.5  # share of a group's global crops that are masked; [R]
    c.masks.ratio = (0.1, 0.5)  # share of patches hidden, a ladder over the masked crops; [R]
    c.masks.min_block = 4  # patches, smallest block; [R]
    c.masks.aspect = (0.3, 1 / 0.3)  # of a block, drawn log-uniformly; [R]
    c.masks.roll = False  # shift each mask circularly; [R]

    c.model = ConfigDict()
    c.model.name = "vitl"  # a row of dinojax/models/zoo.py; [R]
    c.model.patch_size = 16  # pixels, 32 for every ConvNeXt; [R]
    c.model.width = None  # channels D, None = the zoo's row; ConvNeXt: of the last stage; [ours]
    c.model.depth = None  # blocks, None = the zoo's row; ConvNeXt: of each stage; [ours]
    c.model.num_heads = None  # attention heads A, None = the zoo's row; [ours]
    c.model.ffn = None  # None|mlp | swiglu | swiglu32 | swiglu64 | swiglu128 | swiglu_fused; [ours]
    c.model.ffn_ratio = None  # MLP width over D, None = the zoo's row; [ours]
    c.model.num_registers = 0  # register tokens R; [R], 4 in released models
    c.model.position = None  # rope | learned (as DINOv2), None = the zoo's row; [ours]
    c.model.position_size = 224  # pixels of images the learned table fits; [D2], 518 released
    c.model.position_offset = 0.1  # patches added when the table is resized, 0 = antialias; [D2]
    c.model.norm = "layernorm"  # layernorm (eps 1e-6) | layernorm_1e5 | rmsnorm (1e-5); [R]
    c.model.qkv_bias = None  # None = the zoo's row (off for 7B); [R]
    c.model.proj_bias = True  # bias of the attention's output projection; [R]
    c.model.ffn_bias = True  # biases of the MLP; [R]
    c.model.mask_k_bias = False  # the key third of the qkv bias is held at 0; [R]
    c.model.layer_scale = 1e-5  # initial LayerScale, None = none; [R]
    # The same in every ViT block: DINOv2's rates that grow with depth are not offered. ConvNeXt:
    # the probability in the last block, 0 in the first, linear between.
    c.model.drop_path = 0.3  # share of a group's sequences each branch skips; [R]
    c.model.untie_cls_norm = False  # own final norm for cls and registers; [R]
    c.model.untie_local_cls_norm = False  # own one for local crops in training; [R], on for 7B
    c.model.attention = "auto"  # auto | plain | xla | cudnn | splash; [ours]
    c.model.remat = "none"  # none | dots | full: what the backward pass recomputes; [R] none

    c.rope = ConfigDict()
    c.rope.base = 100.0  # ratio of the longest period to the shortest, or None; [R]
    c.rope.min_period = None  # with max_period, instead of base; [R]
    c.rope.max_period = None  # with min_period, instead of base; [R]
    c.rope.coords = "separate"  # separate | max | min: what a grid side is divided by; [R]
    c.rope.shift = None  # largest shift of coordinates, None = none; [R]
    c.rope.jitter = None  # largest factor per axis, None = none; [R]
    c.rope.rescale = None  # largest factor for both axes, None = none; [R], 2 for 7B
    c.rope.dtype = "float32"  # float32 [P] | bfloat16 (what public training code really uses) [R]
    c.rope.periods_dtype = "float32"  # float32 | bfloat16 (rounded as in released files); [P]

    c.dino_head = head(hidden=2048, bottleneck=256, prototypes=65_536)
    c.ibot_head = head(hidden=2048, bottleneck=256, prototypes=65_536)

    c.losses = ConfigDict()
    c.losses.dino = 1.0  # weight; [R]
    c.losses.ibot = 1.0  # weight; [R]
    c.losses.koleo = 0.1  # weight, times the number of global crops; [R]
    c.losses.student_temperature = 0.1  # divides the student's logits; [R]
    c.losses.skip_same_crop = True  # leave out the pairs of a global crop with itself; [R]
    c.losses.koleo_group = None  # images among which neighbours are sought, None = group_size; [R]
    c.losses.koleo_neighbors = 1  # nearest neighbours; [R]
    c.losses.centering = "sinkhorn"  # sinkhorn [R] | softmax [D2]
    c.losses.sinkhorn_iterations = 3  # of rows and columns; [R]
    c.losses.center_momentum = 0.9  # softmax centering only; [D2]

    c.gram = ConfigDict()
    c.gram.enabled = False  # add the Gram loss; [R], on from stage 2 of 7B
    c.gram.teacher = "frozen"  # frozen (the state's gram network) | ema (this step's teacher); [R]
    # What the frozen network is: STAGE/STEP of this run, or ema (of this stage, at anchor_step),
    c.gram.anchor = ""  # or RUN[/checkpoints/STAGE[/STEP]], or a file or folder of weights; [R]
    c.gram.anchor_step = 0  # steps done when the ema is copied; the weight is 0 until then; [R]
    c.gram.refresh_every = None  # steps between copies of the ema, None = never; [R] 10,000
    c.gram.refresh_from = 0  # steps done before the first of them; [R]
    c.gram.max_refreshes = None  # None = as many as come; [R] 3
    c.gram.normalize = True  # unit-length patches; [R]
    c.gram.per_image = True  # a matrix per image, else one per group; [R] 7B
    c.gram.clip = "none"  # none [R] | both | teacher: set negative similarities to 0
    c.gram.tokens = "all"  # all [R] | masked | unmasked (the latter two need per_image off)
    c.gram.resize = "bicubic"  # bicubic | bilinear: gram features to the student's grid; [R]
    c.gram.antialias = False  # of that resize; [R]

    c.optim = ConfigDict()
    c.optim.beta1 = 0.9  # AdamW; [R]
    c.optim.beta2 = 0.999  # AdamW; [R], 0.99 for 7B
    c.optim.eps = 1e-8  # AdamW; [R]
    c.optim.clip = 3.0  # largest gradient norm of each part, None = no clipping; [R], 30 for 7B
    c.optim.layer_decay = 0.9  # learning-rate factor per block below the last; [R]
    c.optim.patch_embed_lr = 0.2  # further factor for the patch embedding; [R]
    c.optim.lr_scaling = "sqrt_1024"  # sqrt_1024 (x 4 sqrt(batch/1024)) | linear_256 | none; [R]
    c.optim.freeze_backbone = False  # it and its ema stay to the last bit, heads train; [ours]
    c.optim.freeze_last_layer = 1250  # steps with a learning rate of 0 for the prototypes; [R]

    c.adapter = ConfigDict()  # low-rank adapters: LoRA, arXiv:2106.09685
    c.adapter.rank = 0  # of the blocks' adapters; 0 = all weights train; [ours]
    c.adapter.alpha = 16.0  # adapters are added alpha / rank times; [ours]
    c.adapter.targets = ("qkv", "proj", "ffn")  # kernels of a block that have one; [ours]
    c.adapter.norms = False  # norms train as well, beside adapters and heads; [ours]

    c.schedules = ConfigDict()
    c.schedules.version = 1  # 1 (warm-up reaches its end) | 2 (the cosine does); [R]
    c.schedules.truncate_extra = 0.0  # version 1: share of the cosine cut off; [R]
    c.schedules.lr = schedule(0.0, 1e-3, 1e-6, warmup=12_500)  # before lr_scaling; [R]
    c.schedules.weight_decay = schedule(0.04, 0.04, 0.4)  # AdamW; [R]
    c.schedules.momentum = schedule(0.992, 0.992, 1.0)  # of the ema; [R]
    c.schedules.teacher_temperature = schedule(0.04, 0.07, 0.07, warmup=37_500)  # [R]
    c.schedules.local_weight = schedule(1.0, 1.0, 1.0)  # factor on the local DINO term; [R]
    c.schedules.gram_weight = schedule(1.0, 1.0, 1.0)  # weight of the Gram loss; [R]

    c.precision = ConfigDict()
    c.precision.compute = "bfloat16"  # bfloat16 [R] | float32: activations and matmuls
    # In which gradients of matrices are summed over devices; those of vectors always in float32.
    c.precision.reduce = "float32"  # float32 [R] | bfloat16 (half the bytes) [ours]
    c.precision.matmul = "default"  # default | highest: passes of a float32 matmul on TPU; [ours]

    c.mesh = ConfigDict()
    c.mesh.strategy = "fsdp"  # dp | fsdp | hsdp | fsdp_tp; see dinojax/sharding/axes.py; [ours]
    c.mesh.devices = None  # number of devices, None = all that jax sees; [ours]
    c.mesh.replicas = None  # copies of the weights; hsdp: None = leaves each 2^n devices; [ours]
    c.mesh.tensor = None  # devices that share prototypes, fsdp_tp; None = up to 8; [ours]

    # What the machines must be; anything else ends the run before it begins (docs/hosts.md).
    c.expect = ConfigDict()
    c.expect.platform = None  # cpu | gpu | tpu, None = any: not to train on the CPU unseen; [ours]
    c.expect.devices = None  # number of devices over all hosts, None = any; [ours]
    c.expect.hosts = None  # number of processes, None = any; [ours]

    # A run in which nothing happens any more is ended with exit code 77
    # (dinojax/monitor/watchdog.py).
    c.hang = ConfigDict()
    c.hang.factor = 20.0  # times the median step without a step, None = never ended; [ours]
    c.hang.seconds = 300.0  # without a step at least, however short steps are; [ours]
    c.hang.minutes = 120.0  # of compiling, of an evaluation, of a save, at most each; [ours]

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 3750  # steps; [R]
    c.checkpoint.minutes = None  # and at least this often, None = by steps alone; [ours]
    c.checkpoint.keep_last = 3  # newest checkpoints kept; [R]
    c.checkpoint.keep_every = 12_500  # steps; these are kept for good; None = none; [R]

    c.log = ConfigDict()
    c.log.every = 10  # steps between lines of metrics.jsonl; [R]
    c.log.pictures = True  # crops, and PCA and similarity PNGs every knn.every steps; [ours]
    c.log.tensorboard = False  # event files in RUN/tensorboard/ as well; [ours]

    # Of each evaluation the keys that its file declares (dinojax/eval/suite.py): c.knn and others.
    for section, keys in suite.defaults().items():
        c[section] = ConfigDict(keys)

    c.lock()
    return c


def shrink(c: ConfigDict) -> ConfigDict:
    """Any recipe, in any of its stages, as two steps of a narrow, shallow network: its `smoke`."""
    patch = c.crops.patch_size or c.model.patch_size
    num_sizes = min(len(c.crops.more_rates), 1)
    c.update(num_steps=2, batch_size=4, group_size=2)
    c.data.update(num_workers=0, box_size=4 * patch)
    c.crops.update(global_size=2 * patch, local_size=patch, num_local=2)
    c.crops.more_rates = (0.5,) * num_sizes
    c.crops.update(more_global=(2 * patch,) * num_sizes, more_local=(2 * patch,) * num_sizes)
    if c.crops.gram_size is not None:
        c.crops.update(gram_size=4 * patch, more_gram=(4 * patch,) * num_sizes)
    if c.crops.more_box:
        c.crops.more_box = (5 * patch,) * num_sizes
    c.model.update(width=32, depth=2, remat="none")
    if not c.model.name.startswith("convnext"):
        c.model.num_heads = 2
    c.dino_head.update(hidden=32, bottleneck=16, prototypes=64)
    c.ibot_head.update(hidden=32, bottleneck=16, prototypes=48)
    c.losses.koleo_group = None
    c.optim.freeze_last_layer = min(c.optim.freeze_last_layer, 1)
    c.until.left_chance = None
    for name in c.schedules:
        if isinstance(c.schedules[name], ConfigDict):
            c.schedules[name].warmup = min(c.schedules[name].warmup, 1)
            c.schedules[name].cosine = None
    if "/" in c.gram.anchor:
        c.gram.anchor = f"{c.gram.anchor.split('/')[0]}/1"
    if c.gram.refresh_every is not None:
        c.gram.update(refresh_every=1, refresh_from=1, max_refreshes=1)
    c.checkpoint.update(every=1, keep_every=1)
    for section in suite.defaults():
        c[section].every = None
    c.knn.update(alarm=None, alarm_stops=False)
    return c
