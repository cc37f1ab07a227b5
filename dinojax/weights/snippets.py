"""Lines that open an export in the library it is for, and in ours: they run as pasted.

They open `example.png` of the export, where the reader puts an image of their own. Where a
library's own processor cannot do what the backbone was trained with, the lines do it themselves.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinojax.models.zoo import Spec
from dinojax.weights import jsons, specs
from dinojax.weights.pixels import MIN_STD
from dinojax.weights.preprocess import Preprocessing, assumed

EXAMPLE = "example"
HEIGHT, WIDTH = 240, 320  # pixels of the example
MODES = {1: "L", 3: "RGB"}  # of Pillow


def write_example(folder: Path, channels: int) -> None:
    """A smooth image: example.png, or example.npy where no format of images has the channels."""
    y, x, c = np.meshgrid(*map(np.arange, (HEIGHT, WIDTH, channels)), indexing="ij")
    phase = 9 * y / HEIGHT + 7 * x / WIDTH + 1.7 * c + 20 * (x / WIDTH - 0.4) * (y / HEIGHT)
    pixels_HWC = np.round(127.5 + 127.5 * np.sin(phase)).astype(np.uint8)
    if channels in MODES:
        Image.fromarray(pixels_HWC.squeeze()).save(folder / f"{EXAMPLE}.png", optimize=True)
    else:
        np.save(folder / f"{EXAMPLE}.npy", pixels_HWC)


def snippet(
    out: str | Path,
    format: str,
    spec: Spec,
    own: Preprocessing | None = None,
    *,
    files: Path | None = None,
) -> str:
    """The lines of an export in the folder `out`.

    own: None = what its provenance.json says. files: where its files lie now, None = in `out`.
    """
    out = Path(out)
    own = _preprocessing(out, spec.channels) if own is None else own
    ours = "\n".join(_dinojax(out, spec.channels)) + "\n"
    if format == "dinojax":
        return ours
    pickled = ((out if files is None else files) / "model.pth").exists()
    lines = {
        "hf": lambda: _hf(out, spec, own),
        "timm": lambda: _timm(out, spec, own),
        "meta": lambda: _meta(out, spec, own, pickled),
        "stablehlo": lambda: _stablehlo(out, spec, own),
    }[format]
    return "\n".join(lines()) + "\n\n# or\n" + ours


def _preprocessing(out: Path, channels: int) -> Preprocessing:
    path = out / "provenance.json"
    if path.is_file():
        return Preprocessing.from_json(jsons.read(path)["preprocessing"])
    return assumed(channels)[0]


def _text(value: Any) -> str:
    """A string as Python writes it, whatever is in it."""
    return json.dumps(str(value))


def _opened(out: Path, channels: int, *, white: bool = False) -> list[str]:
    """Lines that give `image`: Pillow's, or an array of other channels."""
    if channels not in MODES:
        file = _text(out / f"{EXAMPLE}.npy")
        return [f"image = np.load({file})  # or yours: uint8 [height, width, {channels}]"]
    mode = "" if white else f'.convert("{MODES[channels]}")'
    return [f"image = Image.open({_text(out / f'{EXAMPLE}.png')}){mode}  # or an image of yours"]


def _hf(out: Path, spec: Spec, own: Preprocessing) -> list[str]:
    by_library = spec.channels in MODES
    model = [
        f"model = AutoModel.from_pretrained({_text(out)}).float().eval()",
        "with torch.inference_mode():",
        "    tokens = model(pixel_values=pixels).last_hidden_state",
        *_cut(spec),
    ]
    if not by_library:
        head = ["import numpy as np", "import torch", "from PIL import Image"]
        head += ["from transformers import AutoModel", ""]
        return [*head, *_opened(out, spec.channels), *_by_hand(out, own), TENSOR, *model]
    return [
        "import torch",
        "from PIL import Image",
        "from transformers import AutoImageProcessor, AutoModel",
        "",
        *_opened(out, spec.channels, white=own.transparency == "white"),
        f"processor = AutoImageProcessor.from_pretrained({_text(out)})",
        'pixels = processor(image, return_tensors="pt")["pixel_values"].float()',
        *_standardized(own),
        *model,
    ]


def _timm(out: Path, spec: Spec, own: Preprocessing) -> list[str]:
    created = f"model = timm.create_model({_text(f'local-dir:{out}')}, pretrained=True).eval()"
    if specs.family(spec) == "convnext":
        tokens = [
            "with torch.inference_mode():",
            "    features = model.forward_features(pixels)",
            "    cls = model.forward_head(features, pre_logits=True)",
            "    patches = model.head.norm(features).flatten(2).transpose(1, 2)",
        ]
    else:
        tokens = ["with torch.inference_mode():", "    tokens = model.forward_features(pixels)"]
        tokens += _cut(spec)
    if spec.channels not in MODES:
        head = ["import numpy as np", "import timm", "import torch", "from PIL import Image", ""]
        return [*head, *_opened(out, spec.channels), *_by_hand(out, own), TENSOR, created, *tokens]
    return [
        "import timm",
        "import torch",
        "from PIL import Image",
        "",
        *_opened(out, spec.channels),
        created,
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "pixels = transform(image)[None]",
        *_standardized(own),
        *tokens,
    ]


# Family -> what to import from the reference's code
CLASSES = {
    "dinov3": "from dinov3.models.vision_transformer import DinoVisionTransformer as Backbone",
    "dinov2": "from dinov2.models.vision_transformer import DinoVisionTransformer as Backbone",
    "convnext": "from dinov3.models.convnext import ConvNeXt as Backbone",
}


def _meta(out: Path, spec: Spec, own: Preprocessing, pickled: bool) -> list[str]:
    load = f"torch.load({_text(out / 'model.pth')}, weights_only=True)"
    if not pickled:
        load = f"load_file({_text(out / 'model.safetensors')})"
    return [
        "import json",
        "import numpy as np",
        "import torch",
        "from PIL import Image",
        *([] if pickled else ["from safetensors.torch import load_file"]),
        CLASSES[specs.family(spec)],
        "",
        *_opened(out, spec.channels),
        *_by_hand(out, own),
        TENSOR,
        f'model = Backbone(**json.load(open({_text(out / "config.json")}))["arguments"])',
        f"model.load_state_dict({load})",
        "with torch.inference_mode():",
        "    found = model.float().eval().forward_features(pixels)",
        'cls, patches = found["x_norm_clstoken"], found["x_norm_patchtokens"]',
    ]


def _stablehlo(out: Path, spec: Spec, own: Preprocessing) -> list[str]:
    return [
        "from pathlib import Path",
        "import numpy as np",
        "from jax import export",
        "from PIL import Image",
        "from safetensors.numpy import load_file",
        "",
        *_opened(out, spec.channels),
        *_by_hand(out, own),
        "images_BHWC = np.moveaxis(values, 0, 2)[None].astype(np.float32)",
        f"program = bytearray(Path({_text(out / 'backbone.stablehlo')}).read_bytes())",
        f"tensors = load_file({_text(out / 'backbone.safetensors')})",
        "cls, registers, patches = export.deserialize(program).call(tensors, images_BHWC)",
    ]


def _dinojax(out: Path, channels: int) -> list[str]:
    numpy = channels not in MODES
    return [
        "import dinojax",
        "import numpy as np",
        *([] if numpy else ["from PIL import Image"]),
        "",
        *_opened(out, channels),
        f"backbone = dinojax.load({_text(out)})",
        "features = backbone(backbone.preprocessing(np.asarray(image))[None])",
    ]


def _cut(spec: Spec) -> list[str]:
    """What the tokens of a ViT (or transformers' ConvNeXt) are."""
    registers = getattr(spec, "num_registers", 0)
    if specs.family(spec) == "convnext" or not registers:
        return ["cls, patches = tokens[:, 0], tokens[:, 1:]"]
    first = 1 + registers
    return [f"cls, registers, patches = tokens[:, 0], tokens[:, 1:{first}], tokens[:, {first}:]"]


def _standardized(own: Preprocessing) -> list[str]:
    """What no processor does: each image by its own mean and standard deviation."""
    if own.normalize != "per_crop":
        return []
    return [
        "# As in training: each image by its own mean and standard deviation.",
        "pixels = pixels - pixels.mean(dim=(1, 2, 3), keepdim=True)",
        "spread = pixels.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()",
        f"pixels = pixels / spread.clamp(min={MIN_STD})",
    ]


TENSOR = "pixels = torch.from_numpy(values.astype(np.float32))[None]"


def _by_hand(out: Path, own: Preprocessing) -> list[str]:
    """From `image` to `values` [C, h, w] with Pillow and numpy alone, but for rare rules."""
    if own.rule not in ("short", "exact") or any(own.fill or ()) or own.pad_size is not None:
        return [
            "import dinojax  # does what this preprocessing asks for",
            f"values = dinojax.load({_text(out)}).preprocessing(np.asarray(image))",
            "values = np.moveaxis(values, 2, 0)",
        ]
    kind = ", np.float32" if own.resize_as == "floats" else ""
    lines = [f"planes = np.moveaxis(np.atleast_3d(np.asarray(image{kind})), 2, 0)"]
    lines += ["planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes]"]
    lines += _resized(own)
    if own.crop_size is not None:
        height, width = own.out_size or (0, 0)
        half = "round({} / 2)" if own.offset == "even" else "{} // 2"
        lines += [
            f"rest = planes[0].width - {width}, planes[0].height - {height}",
            f"left, top = ({half.format('x')} if x > 0 else -(-x // 2) for x in rest)",
            f"box = left, top, left + {width}, top + {height}",
            "planes = [plane.crop(box) for plane in planes]",
        ]
    lines += ["values = np.stack([np.asarray(plane, np.float32) for plane in planes])"]
    scale = "/ 255" if own.scale == 1 / 255 else f"* {own.scale!r}"
    lines += [] if own.scale == 1 else [f"values = values {scale}"]
    if own.normalize == "fixed" and own.mean is not None and own.std is not None:
        mean, std = (f"np.reshape({list(x)}, (-1, 1, 1))" for x in (own.mean, own.std))
        lines += [f"values = (values - {mean}) / {std}"]
    if own.normalize == "per_crop":
        lines += ["values = values - values.mean()", f"values /= max(values.std(), {MIN_STD})"]
    if own.normalize == "fixed" and own.mean is None:
        lines += ["# mean and std are not known: subtract and divide by those of your data"]
    return lines


def _resized(own: Preprocessing) -> list[str]:
    if own.resize_size is None:
        return []
    if own.rule == "exact":
        height, width = own.resize_size if isinstance(own.resize_size, tuple) else (0, 0)
        size = [f"size = {width}, {height}"]
    else:
        size = [
            "width, height = planes[0].size",
            f"short = {own.resize_size}",
            "size = (short, short * height // width)",
            "if height < width:",
            "    size = (short * width // height, short)",
        ]
    filter = f"Image.Resampling.{own.filter.upper()}"
    width_first = "" if own.resize_as == "bytes" else f".resize((size[0], p.height), {filter})"
    return [*size, f"planes = [p{width_first}.resize(size, {filter}) for p in planes]"]
