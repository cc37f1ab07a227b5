"""The forward pass of a backbone as a StableHLO program, which runs with nothing but jax.

The program takes the tensors of `backbone.safetensors`, as they are there, and images, so that
weights are kept once and in a format that everything reads.
"""

from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from dinojax.files.drafts import write_bytes
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.zoo import Spec, module
from dinojax.weights import convnext, meta
from dinojax.weights.tensors import Tensors, open_tensors

FILE = "backbone.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(folder: Path, tensors: Tensors, spec: Spec, size: tuple[int, int]) -> None:
    """FILE in `folder`: tensors by name and images [B, *size, C] of any B to three arrays.

    These are cls [B, D], registers [B, R, D] and patches [B, P, D]. Of tensors only shapes and
    dtypes are looked at.
    """
    (batch,) = jax.export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, *size, spec.channels), jnp.float32)
    inputs = {name: jax.ShapeDtypeStruct(t.shape, t.dtype) for name, t in tensors.items()}

    def run(tensors, images_BHWC):
        return _forward(spec, tensors, images_BHWC)

    with jax.default_matmul_precision("highest"):  # float32 products on every platform
        exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(inputs, images)
    write_bytes(folder / FILE, bytes(exported.serialize()))


def _forward(spec: Spec, tensors, images_BHWC):
    wide = {name: tensor.astype(jnp.float32) for name, tensor in tensors.items()}
    wide = {name: tensor for name, tensor in wide.items() if name not in convnext.SAME_NORM}
    num_heads = None if isinstance(spec, ConvNextSpec) else spec.num_heads
    params = meta.to_ours(wide, num_heads=num_heads, xp=jnp)
    features = module(spec).apply({"params": params}, [images_BHWC])[0]
    return features.cls, features.registers, features.patches


def missing() -> str | None:
    """Why programs cannot be written or read here, or None if they can."""
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError as error:
        return f"{error}: pip install 'dinojax[stablehlo]'"
    return None


def open_program(folder: Path):
    """images [B, *size, C] -> tokens [B, 1 + R + P, D], by the program of a folder."""
    program = jax.export.deserialize(bytearray((folder / FILE).read_bytes()))
    tensors = open_tensors(folder / "backbone.safetensors")
    values = {name: tensor.read() for name, tensor in tensors.items()}

    def apply(images_BHWC: np.ndarray) -> np.ndarray:
        cls, registers, patches = program.call(values, images_BHWC)
        return np.concatenate([cls[:, None], registers, patches], axis=1)

    return apply
