"""Configurations of other libraries' preprocessing: their pixels are ours, or a field is refused.

    python -m tests.programs.fuzz --images 0 --configs 0 --preprocess 200 --seed 0

Half of them are preprocessor_config.json of transformers, half pretrained_cfg of timm. Each is read
by the library and by us and applied to small odd images; what we then write is read by the library,
and by us, once more. Pixels agree to 1e-5 of the largest; where torchvision resizes bytes, to the
rounding of its two passes: by 2 of 255 levels at most, and by 1 in a hundred values.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dinojax.data.decode import ReadOptions, decode
from dinojax.weights import libraries, processors, transforms
from dinojax.weights.preprocess import Preprocessing
from tests.support.stored_data import saved

CLASSES = (
    "BitImageProcessor",
    "BitImageProcessorFast",
    "ViTImageProcessor",
    "ConvNextImageProcessor",
    "DINOv3ViTImageProcessorFast",
    "DINOv3ViTImageProcessor",
    "DeiTImageProcessor",
    "CLIPImageProcessor",
)
MODES = {1: ("L",), 3: ("RGB", "RGBA", "L", "P")}


def images(rng, channels: int, transparent: bool) -> list[Image.Image]:
    """Small odd images: tall, wide, square, smaller than any cut; some grey, some transparent."""
    found = []
    for height, width in ((21, 34), (40, 23), (32, 32), (5, 9)):
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        smooth = Image.fromarray(pixels).resize((width, height), reducing_gap=None)
        mode = rng.choice(MODES[channels]) if transparent else MODES[channels][0]
        found.append(smooth.convert("RGB" if mode == "P" else mode))
        if mode == "P":
            found[-1] = found[-1].quantize(16)
    return found


def maybe(rng, fields: dict, **choices) -> dict:
    """Each field is one of its choices, left out, or (seldom) null."""
    for name, values in choices.items():
        kind = rng.random()
        if kind < 0.6:
            fields[name] = values[rng.integers(len(values))]
        elif kind < 0.64:
            fields[name] = None
    return fields


def processor(rng, channels: int) -> dict:
    """A preprocessor_config.json that its class accepts for images of so many channels."""

    def side() -> int:
        return int(rng.integers(4, 40))

    name = str(rng.choice(CLASSES))
    sizes = [
        {"height": side(), "width": side()},
        {"shortest_edge": side()},
        {"shortest_edge": side(), "longest_edge": side() + 20},
        {"max_height": side(), "max_width": side()},
        side(),
        [side(), side()],
    ]
    if name.startswith("ConvNext"):
        sizes = [{"shortest_edge": side()}, side(), {"shortest_edge": 384 + side()}]
    statistics = [0.5, [0.4] * channels, [float(rng.uniform(0.1, 0.9)) for _ in range(channels)]]
    fields = {"image_processor_type": name, "image_mean": statistics[2], "image_std": statistics[1]}
    maybe(
        rng,
        fields,
        size=sizes,
        default_to_square=[True, False],
        resample=[0, 1, 2, 3, 3, 2, 3, 2, 5],
        do_resize=[True, True, False],
        do_center_crop=[True, False],
        crop_size=[side(), {"height": side(), "width": side()}, [side(), side()]],
        do_rescale=[True, True, True, False],
        rescale_factor=[1 / 255, 1 / 255, 1 / 127.5, 1.0],
        do_normalize=[True, True, False],
        do_pad=[False, True],
        pad_size=[{"height": 64, "width": 70}, 80],
        data_format=["channels_first"],
        processor_class=["X"],
        return_tensors=["pt"],
        input_data_format=["channels_last"],
    )
    for field in ("image_mean", "image_std"):
        fields[field] = statistics[rng.integers(3)]
    if rng.random() < (0.8 if fields["image_processor_type"].startswith("ConvNext") else 0.05):
        fields["crop_pct"] = float(rng.choice([0.875, 0.9, 1.0, 1.2]))
    fields["do_convert_rgb"] = bool(rng.random() < 0.6) if channels == 3 else False
    if rng.random() < 0.05:
        fields["do_grayscale"] = True
    return fields


def transform(rng, channels: int) -> dict:
    """A config.json of timm."""

    def side() -> int:
        return int(rng.integers(4, 40))

    square = side()
    fields: dict = {"mean": None, "std": None}
    statistics = [[float(rng.uniform(0.1, 0.9)) for _ in range(channels)] for _ in range(2)]
    maybe(
        rng,
        fields,
        input_size=[[channels, square, square], [channels, side(), side()]],
        interpolation=["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"],
        crop_pct=[0.875, 0.9, 1.0, 0.95, 0.7, float(rng.uniform(0.3, 1.3)), 0],
        crop_mode=["center", "squash", "border", ""],
        mean=statistics[:1],
        std=statistics[1:],
        fixed_input_size=[True, False],
        test_input_size=[[channels, 60, 60]],
        test_crop_pct=[0.5],
        num_classes=[3],
        license=["mit"],
    )
    if channels != 3:
        fields |= {"input_size": [channels, square, square], "mean": [0.4], "std": [0.2]}
    arguments = maybe(rng, {}, img_size=[side(), [side(), side()]], dynamic_img_size=[True])
    config = {"architecture": "vit_small_patch16_224", "model_args": arguments}
    fields = {name: value for name, value in fields.items() if value is not None}
    if fields.get("fixed_input_size"):  # without this field timm fails
        fields.setdefault("input_size", [channels, square, square])
    return {**config, "pretrained_cfg": fields}


def by_transformers(fields: dict, image: Image.Image) -> np.ndarray:
    """[H, W, C] of the processor that transformers opens for these fields."""
    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(fields))
        opened = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    found = opened(images=image, return_tensors="np")["pixel_values"][0]
    return np.moveaxis(np.asarray(found, np.float32), 0, -1)


def by_timm(config: dict, image: Image.Image) -> np.ndarray:
    """[H, W, C] of the transform that timm makes for this file."""
    from timm.data import create_transform, resolve_data_config
    from timm.models._hub import _parse_model_cfg
    from timm.models._pretrained import PretrainedCfg

    copied = json.loads(json.dumps(config))
    fields = PretrainedCfg(**_parse_model_cfg(copied, {})[0]).to_dict()
    made = create_transform(**resolve_data_config({}, pretrained_cfg=fields))
    mode = "L" if len(made.transforms[-1].mean) == 1 else "RGB"
    return np.moveaxis(np.asarray(made(image.convert(mode))), 0, -1)


def ours(own: Preprocessing, image: Image.Image, channels: int) -> np.ndarray:
    extra = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    data = saved(image, "PNG", **extra)
    options = ReadOptions(transparency=own.transparency)
    found = decode(data, name="x", channels=channels, options=options)
    return own(found)


def difference(got: np.ndarray, want: np.ndarray, own: Preprocessing) -> str:
    """What is wrong, or nothing; see the head of this file."""
    if got.shape != want.shape:
        return f"shape {got.shape} for {want.shape}"
    std = own.std if own.normalize == "fixed" and own.std else 1.0
    exact = 1e-5 * max(1.0, float(np.abs(want).max()))
    levels = np.maximum(np.abs(got - want) - exact, 0) * std / own.scale
    allowed = 2 if own.resize_as == "tensors" and own.resize_size is not None else 0
    if levels.max() > allowed * (1 + 1e-3) or np.mean(levels > 1.5) > 0.01:
        return (
            f"{levels.max():.2f} of 255 levels apart, {100 * np.mean(levels > 1.5):.2f} % above 1"
        )
    return ""


LIBRARIES = {
    "transformers": (
        processor,
        lambda fields, channels: processors.read(fields, channels),
        by_transformers,
        processors.expressed,
        processors.write,
    ),
    "timm": (
        transform,
        lambda config, channels: transforms.read(config, channels)[0],
        by_timm,
        transforms.expressed,
        lambda own, channels: {
            "architecture": "vit_small_patch16_224",
            "pretrained_cfg": transforms.write(own, channels),
        },
    ),
}


def check(library: str, rng) -> tuple[str, str]:
    """("read", "refused" or "fault", what was found) of one configuration."""
    make, read, apply, expressed, write = LIBRARIES[library]
    channels = int(rng.choice([3, 3, 3, 1]))
    fields = make(rng, channels)
    told = f"{channels} channels, {json.dumps(fields)}"
    try:
        own = read(fields, channels)
    except ValueError as error:
        names = (*fields, *fields.get("pretrained_cfg", {}), *processors.READ)
        named = any(f" has {name}=" in str(error) for name in names)
        return ("refused", str(error)) if named else ("fault", f"{told}: no field in {error}")
    transparent = own.transparency == "white" or library == "timm"
    for image in images(rng, channels, transparent):
        try:
            want = apply(fields, image)
        except Exception as error:
            if not _ours_fails(own, image, channels):
                return (
                    "fault",
                    f"{told}: read here, but the library says {error!r} of {image.size}",
                )
            continue
        if wrong := difference(ours(own, image, channels), want, own):
            return "fault", f"{told}: {image.mode} {image.size}: {wrong}"
        if wrong := _written(own, image, channels, (apply, expressed, write, read)):
            return "fault", f"{told}: written: {image.mode} {image.size}: {wrong}"
    return "read", ""


def _ours_fails(own, image, channels) -> bool:
    try:
        ours(own, image, channels)
    except ValueError:
        return True
    return False


def _written(own, image, channels, library) -> str:
    """What the library makes of what we write, against us."""
    apply, expressed, write, read = library
    same, notes = expressed(own, channels)
    if [note for note in notes if "transparent" not in note]:  # none of these images is
        return f"not the same: {notes}"
    fields = json.loads(json.dumps(write(same, channels)))
    if read(fields, channels) != same:
        return f"we read back {read(fields, channels)} of {same}"
    return difference(ours(same, image, channels), apply(fields, image), same)


def fuzz(seed: int, count: int, progress=lambda done, faults: None) -> dict:
    """{"read", "refused": numbers, "faults": list of texts} of `count` configurations."""
    for format in ("hf", "timm"):
        if (reason := libraries.missing(format)) is not None:
            raise ModuleNotFoundError(reason)
    rng = np.random.default_rng(seed)
    numbers, faults = {"read": 0, "refused": 0, "fault": 0}, []
    for number in range(count):
        library = list(LIBRARIES)[number % 2]
        outcome, told = check(library, rng)
        numbers[outcome] += 1
        faults += [f"{library} {number} of seed {seed}: {told}"] if outcome == "fault" else []
        progress(number + 1, faults)
    return {"read": numbers["read"], "refused": numbers["refused"], "faults": faults}
