"""Keys of images: where they come from, crops, colour, masks."""

from dinojax.configs.keys.key import FLOAT, IMAGES, PIXELS, SMALL, Key
from dinojax.data.sources import SOURCES

# Published normalisations of three channels: of images of the web and of satellites (DINOv3's model
# cards), and of the released code for canopy height, whose first mean is another one.
MEANS = {
    "web": (0.485, 0.456, 0.406),
    "satellite": (0.430, 0.411, 0.296),
    "canopy": (0.420, 0.411, 0.296),
}
STDS = {
    "web": (0.229, 0.224, 0.225),
    "satellite": (0.213, 0.156, 0.143),
    "canopy": (0.213, 0.156, 0.143),
}

IMAGES_KEYS: dict[str, Key] = {
    # data
    "data.source": Key(
        "folder",
        "kind of data set; auto: as data.path looks; [ours]",
        choices=(*SOURCES, "auto"),
    ),
    "data.path": Key("", "of the images; a folder is read to any depth; [ours]"),
    "data.metadata": Key(
        "", "table (CSV, Parquet) of a folder's images: column path, and others; [ours]"
    ),
    "data.mixture": Key(
        (),
        "rows made by base.part, instead of one source; () = no mixture; [P]",
        columns=(
            str,
            str,
            str,
            float,
            float,
        ),
    ),
    "data.box_size": Key(
        512, "pixels, side of the uint8 box the host fits an image into; [ours]", (1, PIXELS)
    ),
    "data.num_workers": Key(0, "decoding processes per host, 0 = threads only; [ours]", (0, 1024)),
    "data.num_threads": Key(2, "decoding threads per process; [ours]", (1, 1024)),
    "data.prefetch": Key(2, "batches decoded ahead; [ours]", (1, 1024)),
    "data.max_bad_share": Key(
        0.001, "of images that cannot be read; ten are allowed, 0 = none; [ours]", (0, 1)
    ),
    "data.max_pixels": Key(
        2**26, "pixels of an image, told by its header before it is decoded; [ours]", (1, 178956970)
    ),
    # One pair for all channels, or LOW, HIGH of each after the other; also for knn.bank and query.
    # Signed and float values need it. 8 bits are taken as they are. (docs/data.md)
    "data.value_range": Key(
        (),
        "LOW, HIGH stored values of above 8 bits; () = all of the type; [ours]",
        (-FLOAT, FLOAT),
        many=float,
    ),
    "data.mixture_ranges": Key(
        (),
        "rows (source of the mixture, LOW, HIGH) instead of it; [ours]",
        columns=(
            str,
            float,
            float,
        ),
    ),
    # Of scenes (docs/satellite.md)
    "data.tile_size": Key(512, "pixels, side of a tile of a scene; [ours]", (1, PIXELS)),
    "data.max_nodata": Key(
        0.25, "share of a tile's pixels; tiles with more are left out; [ours]", (0, 1)
    ),
    "data.bands": Key(
        (), "of a scene that are read, from 1 on; () = all; [ours]", (1, 65_535), many=int
    ),
    # image
    "image.channels": Key(
        3, "after decoding: 1 (grey), 3 (RGB), or as many as files store; [R]", (1, 1024)
    ),
    "image.normalize": Key(
        "fixed",
        "fixed (mean, std below) [R] | per_crop (each crop's own) [ours]",
        choices=("fixed", "per_crop"),
    ),
    "image.mean": Key(
        MEANS["web"],
        f"of values scaled to 0..1, or one of {', '.join(MEANS)}; [R]",
        (0, 1),
        many=float,
        named=MEANS,
    ),
    "image.std": Key(
        STDS["web"],
        f"of values scaled to 0..1, or one of {', '.join(STDS)}; [R]",
        (SMALL, FLOAT),
        many=float,
        named=STDS,
    ),
    # crops
    "crops.global_size": Key(224, "pixels, a multiple of model.patch_size; [R]", (1, PIXELS)),
    "crops.local_size": Key(96, "pixels; [R]", (1, PIXELS)),
    "crops.num_local": Key(8, "local crops per image; [R]", (1, 1024)),
    "crops.global_area": Key((0.32, 1.0), "share of the image's area; [R]", (SMALL, 1)),
    "crops.local_area": Key((0.05, 0.32), "share of the image's area; [R]", (SMALL, 1)),
    "crops.aspect": Key(
        (3 / 4, 4 / 3), "width over height, drawn log-uniformly; [R]", (0.001, 1e3)
    ),
    "crops.gram_size": Key(
        None,
        "pixels of the crops the gram network sees, None = no such crops; [R]",
        (1, PIXELS),
        optional=int,
    ),
    "crops.gram_distortions": Key(
        False, "gram crops share colour and blur of the global crop; [R] 7B"
    ),
    # Of distillation: pixels of a patch in crops of these sizes. None = model.patch_size; a network
    # with smaller patches sees the crops reduced by the ratio (docs/distillation.md).
    "crops.patch_size": Key(
        None,
        "for students of one teacher with patches of several sizes; [ours]",
        (1, 1024),
        optional=int,
    ),
    # Steps of several sizes: each step draws one; the sizes above keep what these rates leave of 1.
    "crops.more_rates": Key(
        (), "probabilities of further sizes, () = none; [R] high resolution", (SMALL, 1), many=float
    ),
    "crops.more_global": Key((), "pixels, one per rate; [R]", (1, PIXELS), many=int),
    "crops.more_local": Key((), "pixels, one per rate; [R]", (1, PIXELS), many=int),
    "crops.more_gram": Key(
        (), "pixels, one per rate, () = no gram crops; [R]", (1, PIXELS), many=int
    ),
    "crops.more_box": Key(
        (), "pixels of the box, one per rate, () = data.box_size; [ours]", (1, PIXELS), many=int
    ),
    # augment
    "augment.flip_rate": Key(
        0.5, "probability of a horizontal flip; [R], 0 for 7B and students", (0, 1)
    ),
    "augment.jitter_rate": Key(0.8, "probability of colour jitter; [R]", (0, 1)),
    "augment.brightness": Key(0.4, "factor in [1 - b, 1 + b]; [R]", (0, 1)),
    "augment.contrast": Key(0.4, "factor in [1 - c, 1 + c]; [R]", (0, 1)),
    "augment.saturation": Key(0.2, "factor in [1 - s, 1 + s]; three channels only; [R]", (0, 1)),
    "augment.hue": Key(0.1, "shift in [-h, h] of a full turn; three channels only; [R]", (0, 0.5)),
    "augment.grayscale_rate": Key(0.2, "probability; three channels only; [R]", (0, 1)),
    # What the released models saw: the reference's wrapper inverts the probabilities it is given.
    "augment.blur_rates": Key(
        (0.0, 0.9, 0.5), "first global crop, second, each local crop; [R]", (0, 1)
    ),
    "augment.blur_sigma": Key((0.1, 2.0), "pixels; [R]", (0.001, 1e3)),
    "augment.blur_kernel": Key(9, "pixels, odd; [R]", (1, 1023)),
    "augment.solarize_rate": Key(0.2, "probability, second global crop only; [R]", (0, 1)),
    "augment.solarize_threshold": Key(
        128, "values of 0..255 at or above it are inverted; [R]", (0, 256)
    ),
    # masks
    "masks.rate": Key(0.5, "share of a group's global crops that are masked; [R]", (0, 1)),
    "masks.ratio": Key(
        (0.1, 0.5), "share of patches hidden, a ladder over the masked crops; [R]", (0, 1)
    ),
    "masks.min_block": Key(4, "patches, smallest block; [R]", (1, IMAGES)),
    "masks.aspect": Key((0.3, 1 / 0.3), "of a block, drawn log-uniformly; [R]", (0.001, 1e3)),
    "masks.roll": Key(False, "shift each mask circularly; [R]"),
}
