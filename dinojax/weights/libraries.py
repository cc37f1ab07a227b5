"""An exported folder, opened by the library it was written for: images -> tokens of every layer."""

import contextlib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.models.vit import VitSpec
from dinojax.weights.load import open_source

# images [B, H, W, C] -> final tokens [B, N, D], and the output of each block
Apply = Callable[[np.ndarray], tuple[np.ndarray, list[np.ndarray]]]

# Format -> packages its library needs, in the order of import.
PACKAGES = {"hf": ("torch", "transformers"), "timm": ("torch", "timm"), "meta": ("torch",)}


def missing(format: str) -> str | None:
    """Why the library of a format cannot be used here, or None if it can."""
    for package in PACKAGES[format]:
        try:
            with _torchvision_operators() if package == "timm" else contextlib.nullcontext():
                importlib.import_module(package)
        except ImportError as error:
            return f"{package} cannot be imported ({error}): pip install 'dinojax[torch]'"
    return None


def versions(format: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in PACKAGES[format]}


@contextlib.contextmanager
def _torchvision_operators() -> Iterator[None]:
    """Declares two operators, without which torchvision built for CUDA fails beside CPU torch."""
    import torch

    library = None
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        pass  # timm says itself that it needs it
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield


def open_in_library(folder: Path, format: str, spec: VitSpec) -> Apply:
    """The network of an exported folder in its library, on the CPU, in float32."""
    build = {"hf": _hf, "timm": _timm, "meta": _meta}[format]
    model, final = build(folder, spec)
    return _apply(model.eval(), final, spec.depth)


def _hf(folder: Path, spec: VitSpec) -> tuple[Any, Callable]:
    import torch
    from transformers import AutoModel

    model, told = AutoModel.from_pretrained(
        str(folder),
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
        attn_implementation="eager",
    )
    wrong = {key: value for key, value in told.items() if value}
    if wrong:
        raise ValueError(f"{folder}: transformers loads it with {wrong}.")
    return model, lambda images: model(images).last_hidden_state


def _timm(folder: Path, spec: VitSpec) -> tuple[Any, Callable]:
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model, model.forward_features


def _meta(folder: Path, spec: VitSpec) -> tuple[Any, Callable]:
    import torch

    from dinojax.weights.torch_vit import TorchVit

    model = TorchVit(spec)
    tensors = open_source(folder, format="meta").tensors
    state = {
        name: torch.from_numpy(tensor.read().astype(np.float32)) for name, tensor in tensors.items()
    }
    model.load_state_dict(state)  # strict
    return model, model


def _apply(model, final: Callable, depth: int) -> Apply:
    import torch

    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]

    def apply(images_BHWC: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        layers: list[np.ndarray] = []

        def keep(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            layers.append(output.numpy())

        hooks = [block.register_forward_hook(keep) for block in lists[0]]
        images = torch.from_numpy(np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            tokens = final(images).numpy()
        for hook in hooks:
            hook.remove()
        return tokens, layers

    return apply
