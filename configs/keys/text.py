"""Keys of text alignment: captions and a frozen backbone meet (docs/text.md)."""

from dinojax.configs.keys.key import CHANNELS, FLOAT, Key

DEPTH = 4096  # blocks, and heads

TEXT_KEYS: dict[str, Key] = {
    "text.enabled": Key(
        False,
        "instead of self-supervision; the backbone is start.source's; [R]",
        terms=("contrastive", "sigmoid"),
    ),
    "text.vocabulary": Key(
        "clip", "clip (read from open_clip_torch), tiles, or FILE of merges; [R] clip"
    ),
    "text.context": Key(
        77, "tokens of a caption with its start and end; longer ones are cut; [R]", (2, 2**14)
    ),
    "text.width": Key(1280, "channels of the text tower; [R]", (1, CHANNELS)),
    "text.depth": Key(24, "blocks of the text tower; [R]", (1, DEPTH)),
    "text.num_heads": Key(20, "attention heads of the text tower and its head; [R]", (1, DEPTH)),
    "text.ffn_ratio": Key(4.0, "MLP width over the tower's width; [R]", (1e-3, 1e3)),
    "text.pool": Key(
        "end",
        "end | first | last: the token that stands for a text; [R]",
        choices=("end", "first", "last"),
    ),
    "text.head_depth": Key(
        0, "blocks between tower and projection, 2 for a frozen tower; [R]", (0, DEPTH)
    ),
    "text.tower": Key("", "FILE of dino.txt or RUN that the text tower is taken from; [R]"),
    "text.freeze_tower": Key(False, "the tower takes no gradient, its head does; [R]"),
    "text.vision_depth": Key(2, "trained blocks on the backbone's tokens; [R]", (1, DEPTH)),
    "text.vision_heads": Key(
        None, "attention heads there, None = the backbone's; [R]", (1, DEPTH), optional=int
    ),
    "text.vision_drop_path": Key(
        0.3, "share of a group's images that each branch skips there; [R]", (0, 0.999)
    ),
    "text.vision_pool": Key(
        "mean", "mean | max of the patches, behind cls; [R]", choices=("mean", "max")
    ),
    "text.patch_layer": Key(
        1, "layer of patches and registers, 1 = the last; cls is the last's; [R]", (1, DEPTH)
    ),
    "text.outputs": Key(
        None,
        "channels of an embedding, even; None = twice the backbone's width; [R]",
        (2, CHANNELS),
        optional=int,
    ),
    "text.loss": Key(
        "contrastive",
        "contrastive (of each image among all captions, and back) [R] | sigmoid (of each image "
        "with each caption, arXiv:2303.15343) [ours]",
        choices=("contrastive", "sigmoid"),
    ),
    "text.bias": Key(
        -10.0,
        "what sigmoid adds to logits at first; it trains; arXiv:2303.15343; [ours]",
        (-1e3, 1e3),
    ),
    "text.scale": Key(1 / 0.07, "what multiplies cosines at first; [R]", (1, 1e6)),
    "text.max_scale": Key(100.0, "the most that it may become; [R]", (1, 1e6)),
    "text.gram": Key(
        0.0, "weight of the Gram loss of its patches with the backbone's; [R] off", (0, FLOAT)
    ),
}
