"""Released heads of DINOv3 in and out, by name, every tensor counted.

Facts: facebookresearch/dinov3, builders of its hub. A file may hold the backbone as well, which is
left aside, and the detector's last layers twice.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.tasks import names
from dinojax.tasks.detr import DETECTOR_7B, Detector
from dinojax.tasks.dpt import CANOPY, DEPTH_7B, DEPTH_L, Dpt
from dinojax.tasks.mask2former import SEGMENTER_7B
from dinojax.weights.report import LoadReport
from dinojax.weights.tensors import Tensors, held, open_tensors, write_safetensors

# Tensors of the backbone, which some files hold beside the head.
BACKBONE = re.compile(r"(?:backbone|segmentation_model\.0\.backbone)\..+")
# A second name of the detector's last layers.
TWICE = re.compile(r"transformer\.decoder\.((?:class|bbox)_embed\..+)")


class Released(NamedTuple):
    """A head, and small inputs of the shapes that it is made for."""

    module: nn.Module
    inputs: Callable[[], tuple]


def _levels(width: int) -> Callable[[], tuple]:
    return lambda: ([(jnp.zeros((1, 2, 2, width)), jnp.zeros((1, width)))] * 4,)


def _image_and_tokens() -> tuple:
    return jnp.zeros((1, 32, 32, 3)), [jnp.zeros((1, 4, 4096))] * 4


def _map() -> tuple:
    # Four blocks of 4096 channels, of the whole image and of its windows.
    return jnp.zeros((1, 40, 40, 2 * 4 * 4096)), jnp.zeros((1, 40, 40), bool)


HEADS = {
    "depther_dpt_dinov3_vit7b16": Released(Dpt(DEPTH_7B), _levels(4096)),
    "depther_dpt_dinov3_vitl16": Released(Dpt(DEPTH_L), _levels(1024)),
    "canopy_chmv2_vitl16": Released(Dpt(CANOPY), _levels(1024)),
    "segmentor_m2f_dinov3_vit7b16": Released(SEGMENTER_7B, _image_and_tokens),
    "detector_dinov3_vit7b16": Released(Detector(DETECTOR_7B), _map),
}


def shapes(head: str) -> dict[str, Any]:
    """Variables of a released head, without any memory. Raises ValueError for an unknown name."""
    if head not in HEADS:
        raise ValueError(f"no released head {head!r}; choose of {', '.join(HEADS)}.")
    own = HEADS[head]

    def init():
        return own.module.init(jax.random.key(0), *own.inputs(), train=True)

    return nn.meta.unbox(jax.eval_shape(init))


def released_names(variables: dict[str, Any]) -> Tensors:
    """Names, shapes and no values of all tensors of a released file, without a backbone's."""
    found = names.expected(variables)
    counters = {
        name.replace("running_var", "num_batches_tracked"): held(np.zeros((), np.int64))
        for name in found
        if name.endswith(".running_var")
    }
    return _with_second_names({**found, **counters})


def read(tensors: Tensors, variables: dict[str, Any], *, source: str):
    """(float32 variables, report). Raises ValueError, naming tensors, unless each of them is used.

    variables: shapes of the head. Second names must hold what the first ones hold.
    """
    own: Tensors = {}
    for name, tensor in tensors.items():
        if BACKBONE.fullmatch(name):
            continue
        if twice := TWICE.fullmatch(name):
            first = tensors.get(twice[1])
            if first is not None and not np.array_equal(first.read(), tensor.read()):
                raise ValueError(f"{source}: {name} and {twice[1]} differ, which are one tensor.")
            own.setdefault(twice[1], tensor)
        else:
            own[name] = tensor
    return names.read(own, variables, source=source)


def load(head: str, path: str | Path) -> tuple[dict[str, Any], LoadReport]:
    """Variables of a released head from its file, and what became of every tensor.

    Raises ValueError for a name that is missing, unexpected or of another shape, and for a file
    that is none; FileNotFoundError.
    """
    return read(open_tensors(path), shapes(head), source=str(path))


def export(variables: dict[str, Any], path: str | Path, metadata: dict[str, str]) -> None:
    """A .safetensors file with the names and layouts of the reference, whole or not at all."""
    tensors = {name: held(array) for name, array in names.from_ours(variables).items()}
    write_safetensors(path, _with_second_names(tensors), metadata)


def _with_second_names(tensors: Tensors) -> Tensors:
    if not any(name.startswith("transformer.decoder.") for name in tensors):
        return tensors
    last = re.compile(r"(?:class|bbox)_embed\..+")
    second = {
        f"transformer.decoder.{name}": tensor
        for name, tensor in tensors.items()
        if last.fullmatch(name)
    }
    return {**tensors, **second}
