"""An exported folder, opened by the library it was written for: images -> tokens of every layer."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinojax.models.convnext import ConvNextSpec
from dinojax.models.zoo import Spec
from dinojax.weights import specs, stablehlo
from dinojax.weights.load import open_source

# images [B, H, W, C] -> final tokens [B, N, D], and the output of each block or stage, [B, N, D],
# where a library shows them
Apply = Callable[[np.ndarray], tuple[np.ndarray, list[np.ndarray] | None]]

# Format -> packages its library needs, in the order of import.
PACKAGES = {
    "hf": ("torch", "transformers"),
    "timm": ("torch", "timm"),
    "meta": ("torch",),
    "stablehlo": ("jax", "flatbuffers"),
}
EXTRAS = {"flatbuffers": "stablehlo"}  # package -> extra that brings it; the others: torch


class Opened(NamedTuple):
    """A module of PyTorch, what makes final tokens [B, N, D], and its blocks or stages."""

    model: Any
    final: Callable
    layers: Any


def missing(format: str) -> str | None:
    """Why the library of a format cannot be used here, or None if it can."""
    for package in PACKAGES[format]:
        try:
            _import(package)
        except ImportError as error:
            extra = EXTRAS.get(package, "torch")
            return f"{package} cannot be imported ({error}): pip install 'dinojax[{extra}]'"
    return None


def _import(package: str) -> None:
    with warnings.catch_warnings(), _torchvision_operators(package):
        warnings.simplefilter("ignore")  # of other people's modules, while they are imported
        importlib.import_module(package)


def versions(format: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in PACKAGES[format]}


@contextlib.contextmanager
def _torchvision_operators(package: str) -> Iterator[None]:
    """Declares two operators, without which torchvision built for CUDA fails beside CPU torch."""
    if package in ("transformers", "timm") and importlib.util.find_spec("torchvision") is not None:
        import torch

        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            DECLARED.append(library)  # the operators go with it
    yield


DECLARED: list[Any] = []


def open_in_library(folder: Path, format: str, spec: Spec) -> Apply:
    """The network of an exported folder in its library, on the CPU, in float32."""
    if format == "stablehlo":
        program = stablehlo.open_program(folder)
        return lambda images_BHWC: (program(images_BHWC), None)
    build = {"hf": _hf, "timm": _timm, "meta": _meta}[format]
    return _apply(build(folder, spec))


def _hf(folder: Path, spec: Spec) -> Opened:
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
    layers = {
        "dinov3": lambda: model.model.layer,
        "dinov2": lambda: model.encoder.layer,
        "convnext": lambda: model.model.stages,
    }[specs.family(spec)]()
    return Opened(model, lambda images: model(images).last_hidden_state, layers)


def _timm(folder: Path, spec: Spec) -> Opened:
    import timm
    import torch

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)

    def convnext(images):
        """timm normalises the mean alone; its norm of the map makes the patches."""
        found = model.forward_features(images)
        cls, patches = model.forward_head(found, pre_logits=True), model.head.norm(found)
        return torch.cat([cls[:, None], patches.flatten(2).transpose(1, 2)], dim=1)

    if specs.family(spec) == "convnext":
        return Opened(model, convnext, model.stages)
    return Opened(model, model.forward_features, model.blocks)


def _meta(folder: Path, spec: Spec) -> Opened:
    import torch

    from dinojax.weights.torch_convnext import TorchConvNext
    from dinojax.weights.torch_vit import TorchVit

    convnext = isinstance(spec, ConvNextSpec)
    model: Any = TorchConvNext(spec) if isinstance(spec, ConvNextSpec) else TorchVit(spec)
    tensors = open_source(folder, format="meta").tensors
    state = {
        name: torch.from_numpy(tensor.read().astype(np.float32)) for name, tensor in tensors.items()
    }
    model.load_state_dict(state)  # strict
    return Opened(model, model, model.stages if convnext else model.blocks)


def _apply(opened: Opened) -> Apply:
    import torch

    opened.model.eval()

    def apply(images_BHWC: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        layers: list[np.ndarray] = []

        def keep(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            tokens = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output
            layers.append(tokens.numpy())

        hooks = [layer.register_forward_hook(keep) for layer in opened.layers]
        images = torch.from_numpy(np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            tokens = opened.final(images).numpy()
        for hook in hooks:
            hook.remove()
        return tokens, layers

    return apply
