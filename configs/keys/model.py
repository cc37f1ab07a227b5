"""Keys of networks: backbone, positions, projection heads."""

from dinojax.configs.keys.key import CHANNELS, FLOAT, PIXELS, SMALL, Key, head_rows

MODEL_KEYS: dict[str, Key] = {
    # model
    "model.name": Key("vitl", "a row of dinojax/models/zoo.py; [R]"),
    "model.patch_size": Key(16, "pixels, 32 for every ConvNeXt; [R]", (1, 1024)),
    "model.width": Key(
        None,
        "channels D, None = the zoo's row; ConvNeXt: of the last stage; [ours]",
        (1, CHANNELS),
        optional=int,
    ),
    "model.depth": Key(
        None,
        "blocks, None = the zoo's row; ConvNeXt: of each stage; [ours]",
        (1, 4096),
        optional=int,
    ),
    "model.num_heads": Key(
        None, "attention heads A, None = the zoo's row; [ours]", (1, 4096), optional=int
    ),
    "model.ffn": Key(
        None,
        "None|mlp | swiglu | swiglu32 | swiglu64 | swiglu128 | swiglu_fused; [ours]",
        choices=("mlp", "swiglu", "swiglu32", "swiglu64", "swiglu128", "swiglu_fused"),
        optional=str,
    ),
    "model.ffn_ratio": Key(
        None, "MLP width over D, None = the zoo's row; [ours]", (0.001, 1e3), optional=float
    ),
    "model.num_registers": Key(0, "register tokens R; [R], 4 in released models", (0, 4096)),
    "model.position": Key(
        None,
        "rope | learned (as DINOv2), None = the zoo's row; [ours]",
        choices=("rope", "learned"),
        optional=str,
    ),
    "model.position_size": Key(
        224, "pixels of images the learned table fits; [D2], 518 released", (1, PIXELS)
    ),
    "model.position_offset": Key(
        0.1, "patches added when the table is resized, 0 = antialias; [D2]", (0, 1)
    ),
    "model.norm": Key(
        "layernorm",
        "layernorm (eps 1e-6) | layernorm_1e5 | rmsnorm (1e-5); [R]",
        choices=("layernorm", "layernorm_1e5", "rmsnorm"),
    ),
    "model.qkv_bias": Key(None, "None = the zoo's row (off for 7B); [R]", optional=bool),
    "model.proj_bias": Key(True, "bias of the attention's output projection; [R]"),
    "model.ffn_bias": Key(True, "biases of the MLP; [R]"),
    "model.mask_k_bias": Key(False, "the key third of the qkv bias is held at 0; [R]"),
    "model.layer_scale": Key(
        1e-5, "initial LayerScale, None = none; [R]", (0, FLOAT), optional=float
    ),
    # The same in every ViT block: DINOv2's rates that grow with depth are not offered. ConvNeXt:
    # the probability in the last block, 0 in the first, linear between.
    "model.drop_path": Key(0.3, "share of a group's sequences each branch skips; [R]", (0, 0.999)),
    "model.untie_cls_norm": Key(False, "own final norm for cls and registers; [R]"),
    "model.untie_local_cls_norm": Key(False, "own one for local crops in training; [R], on for 7B"),
    "model.attention": Key(
        "auto",
        "auto | plain | xla | cudnn | splash; [ours]",
        choices=("auto", "plain", "xla", "cudnn", "splash"),
    ),
    "model.remat": Key(
        "none",
        "none | products (keeps them and attention) | dots (products of weights) | full: what the "
        "backward pass recomputes; [R] none",
        choices=("none", "products", "dots", "full"),
    ),
    "model.unroll": Key(
        None,
        "blocks in a row between turns of a program's loop, None = all of up to 12 on GPUs with "
        "whole weights, else 1; [ours]",
        (1, 4096),
        optional=int,
    ),
    # rope
    "rope.base": Key(
        100.0,
        "ratio of the longest period to the shortest, or None; [R]",
        (SMALL, 1e9),
        optional=float,
    ),
    "rope.min_period": Key(
        None, "with max_period, instead of base; [R]", (SMALL, 1e9), optional=float
    ),
    "rope.max_period": Key(
        None, "with min_period, instead of base; [R]", (SMALL, 1e9), optional=float
    ),
    "rope.coords": Key(
        "separate",
        "separate | max | min: what a grid side is divided by; [R]",
        choices=("separate", "max", "min"),
    ),
    "rope.shift": Key(
        None, "largest shift of coordinates, None = none; [R]", (0, 1e3), optional=float
    ),
    "rope.jitter": Key(None, "largest factor per axis, None = none; [R]", (1, 1e3), optional=float),
    "rope.rescale": Key(
        None, "largest factor for both axes, None = none; [R], 2 for 7B", (1, 1e3), optional=float
    ),
    "rope.dtype": Key(
        "float32",
        "float32 [P] | bfloat16 (what public training code really uses) [R]",
        choices=("float32", "bfloat16"),
    ),
    "rope.periods_dtype": Key(
        "float32",
        "float32 | bfloat16 (rounded as in released files); [P]",
        choices=("float32", "bfloat16"),
    ),
    **head_rows("dino_head", 2048, 256, 65_536),
    **head_rows("ibot_head", 2048, 256, 65_536),
}
