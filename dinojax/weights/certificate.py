"""The proof that an export is the same network: both sides run, every layer is compared."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinojax.models import rope as rope_lib
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.vit import Block, Vit
from dinojax.models.zoo import Spec, module
from dinojax.weights import libraries
from dinojax.weights.fingerprint import synthetic_image
from dinojax.weights.load import Backbone

TOLERANCE = 2e-5  # largest difference, over the largest magnitude of a quantity (at least 1)


def certify(
    backbone: Backbone,
    folder: Path,
    *,
    format: str,
    sizes: list[tuple[int, int]] | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Compares a backbone with an exported folder opened by the format's library; JSON values.

    sizes: (height, width) of the inputs; None = training size, half as large again, and a
    rectangle; a StableHLO program takes the training size alone. Raises ValueError when a quantity
    differs by more than `tolerance`. Where the library is not installed, the certificate says so
    and compares nothing.
    """
    if format not in libraries.PACKAGES:
        return {"library": None, "reason": "our own format, read back and compared bit by bit"}
    if (reason := libraries.missing(format)) is not None:
        return {"library": None, "reason": reason}
    apply = libraries.open_in_library(folder, format, backbone.spec)
    rows = []
    if format == "stablehlo":
        own = backbone.preprocessing
        sizes = [own.out_size or (own.side, own.side)]
    for number, size in enumerate(sizes or input_sizes(backbone)):
        image = synthetic_image(*size, backbone.spec.channels, seed=number)[None]
        for row in _compare(backbone, image, apply):
            rows.append({"input": list(size), **row})
    certificate = {
        "library": libraries.versions(format),
        "tolerance": tolerance,
        "passed": all(row["relative"] <= tolerance for row in rows),
        "rows": rows,
    }
    if not certificate["passed"]:
        worst = max(rows, key=lambda row: row["relative"])
        raise ValueError(
            f"the export is not the same network: {worst['quantity']} at {worst['input']} differs "
            f"by {worst['max_abs']:.2e} ({worst['relative']:.2e} of its largest value; allowed "
            f"{tolerance:.0e}). Nothing was written."
        )
    return certificate


def input_sizes(backbone: Backbone) -> list[tuple[int, int]]:
    """Training size, one half larger, and a rectangle of both, in whole patches."""
    patch = backbone.spec.patch_size
    first = max(1, backbone.preprocessing.side // patch)
    second = first + max(1, first // 2)
    return [
        (rows * patch, columns * patch)
        for rows, columns in ((first, first), (second, second), (first, second))
    ]


def _compare(backbone: Backbone, images_BHWC: np.ndarray, apply: libraries.Apply):
    """One row for cls, registers, patches and the output of every block or stage."""
    with jax.default_matmul_precision("highest"):
        found = backbone(images_BHWC)
        ours = layer_outputs(backbone.spec, backbone.params, images_BHWC)
    tokens, layers = apply(images_BHWC)
    count = 1 + backbone.spec.num_registers
    yield _row("cls", found.cls, tokens[:, 0])
    if backbone.spec.num_registers:
        yield _row("registers", found.registers, tokens[:, 1:count])
    yield _row("patches", found.patches, tokens[:, count:])
    if layers is None:
        return
    kind = "stage" if isinstance(backbone.spec, ConvNextSpec) else "block"
    for number, (own, theirs) in enumerate(zip(ours, layers, strict=True)):
        yield _row(f"{kind} {number}", own, theirs)


def _row(quantity: str, ours, theirs) -> dict[str, Any]:
    own, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if own.shape != other.shape:
        raise ValueError(f"{quantity} is {own.shape} here and {other.shape} in the library.")
    error = float(np.max(np.abs(own - other)))
    own, other = own.reshape(-1, own.shape[-1]), other.reshape(-1, other.shape[-1])
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
    return {
        "quantity": quantity,
        "max_abs": error,
        "relative": error / max(1.0, float(np.max(np.abs(other)))),
        "min_cosine": float(np.min(np.sum(own * other, axis=1) / np.maximum(norms, 1e-30))),
    }


@functools.partial(jax.jit, static_argnums=0)
def layer_outputs(spec: Spec, params: dict, images_BHWC):
    """Output of every block of a ViT, [depth, B, N, D], from one scan that keeps them.

    Of a ConvNeXt a list with one [B, P, D] per stage.
    """
    if isinstance(spec, ConvNextSpec):
        variables, stages = {"params": params}, range(spec.depth)
        found: Any = module(spec).apply(
            variables, images_BHWC, tuple(stages), norm=False, method="intermediate"
        )
        return [features.prenorm for features in found]
    rows, columns = spec.grid(*images_BHWC.shape[1:3])
    table = None
    if spec.position == "rope":
        coords = rope_lib.coordinates(rows, columns, spec.rope)
        table = rope_lib.table(coords, rope_lib.periods(spec.head_width, spec.rope), spec.rope)
    embed = lambda net, images: net._embed(images, None)  # noqa: E731
    tokens = Vit(spec).apply({"params": params}, images_BHWC, method=embed)

    def body(x, block):
        found: Any = Block(spec, parent=None).apply({"params": block}, [x], [table], [None])
        return found[0], found[0]

    return jax.lax.scan(body, tokens, params["blocks"])[1]
