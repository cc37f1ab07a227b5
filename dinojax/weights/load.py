"""A backbone from a file or folder of any format, ready to be called, with its load report."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models.convnext import ConvNextSpec
from dinojax.models.vit import Features
from dinojax.models.zoo import Spec, module
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout
from dinojax.weights import described, facts, fingerprint, formats, meta, specs
from dinojax.weights.jsons import Fields
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.report import LoadReport, check_values, match
from dinojax.weights.source import Source, named, open_source
from dinojax.weights.tensors import Tensors

# Format of a library -> the key that its config.json has.
TOLD_BY = {"hf": "model_type", "timm": "architecture"}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Parameters and what is needed to use them. Called with images it gives Features.

    images: [B, H, W, C], normalised floats (see `preprocessing`); sides of any size, what does
    not fill a patch at the right and bottom is not seen.
    """

    spec: Spec
    params: dict[str, Any]
    preprocessing: Preprocessing
    report: LoadReport
    layout: Layout | None = None  # None: on jax's default device

    def over(self, devices: Sequence[jax.Device] | None = None) -> "Backbone":
        """The same, with its weights on each of these devices (None: all) and batches spread over.

        Images are independent of each other, so the features are those of one device.
        """
        layout = mesh.make("dp", devices)
        params = jax.device_put(self.params, layout.sharding())
        return dataclasses.replace(self, params=params, layout=layout)

    def __call__(self, images_BHWC) -> Features:
        return self.run(_forward, images_BHWC)

    def intermediate(
        self,
        images_BHWC,
        layers: int | Sequence[int],
        *,
        norm: bool = True,
        patch_size: int | None = None,
    ) -> list[Features]:
        """Features after some blocks (stages of a ConvNeXt); `layers` as for `Vit.intermediate`.

        patch_size: of a ConvNeXt, whose maps are resized to one grid (`ConvNext.intermediate`).
        """
        layers = layers if isinstance(layers, int) else tuple(layers)
        return self.run(_intermediate, images_BHWC, layers, norm, patch_size)

    def run(self, function: Callable, images_BHWC, *static) -> Any:
        """function(spec, params, images, *static) where the weights are; its outputs lead with B.

        A batch that does not divide over the devices is filled up with zeros, which are cut off.
        """
        self._check(images_BHWC)
        if self.layout is None:
            return function(self.spec, self.params, images_BHWC, *static)
        num, num_shards = len(images_BHWC), self.layout.num_shards
        if num % num_shards:
            fill = ((0, -num % num_shards), (0, 0), (0, 0), (0, 0))
            images_BHWC = np.pad(np.asarray(images_BHWC), fill)
        images_BHWC = jax.device_put(images_BHWC, self.layout.sharding("image"))
        with mesh.use(self.layout):
            outputs = function(self.spec, self.params, images_BHWC, *static)
        return jax.tree.map(lambda x: x[:num], outputs) if num % num_shards else outputs

    def _check(self, images_BHWC) -> None:
        if images_BHWC.ndim != 4 or images_BHWC.shape[3] != self.spec.channels:
            raise ValueError(
                f"images have shape {images_BHWC.shape}; this backbone takes "
                f"[B, H, W, {self.spec.channels}]."
            )


@functools.partial(jax.jit, static_argnums=0)
def _forward(spec: Spec, params, images_BHWC) -> Features:
    return module(spec).apply({"params": params}, [images_BHWC])[0]


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _intermediate(spec: Spec, params, images_BHWC, layers, norm, patch_size) -> list[Features]:
    options = {"norm": norm} | ({} if patch_size is None else {"patch_size": patch_size})
    net: Any = module(spec)
    return net.apply({"params": params}, images_BHWC, layers, **options, method="intermediate")


def load(
    path: str | Path,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    prefix: str = "",
) -> Backbone:
    """A backbone from a .pth or .safetensors file, or a folder that holds one.

    format: meta, hf, timm or dinojax; None = told from the names. overrides: fields of the spec,
    such as num_heads, norm or rope.base, that the file does not tell or tells wrongly. allow:
    patterns of names that may be missing or unexpected. prefix: taken off all names.
    Raises ValueError when the file is not, in every tensor, this backbone; FileNotFoundError.
    """
    source = open_source(path, format=format, prefix=prefix)
    _check_digests(source)
    found, spec, report = resolve(source, overrides=overrides or {}, allow=allow)
    params = materialize(found, spec, str(path))
    backbone = Backbone(spec, params, preprocessing(source, spec)[0], report)
    provenance = source.provenance or {}
    if "features" in provenance and not overrides:
        stored = Fields(provenance, f"{path}: provenance.json").section("features").content
        fingerprint.check(fingerprint.features(backbone), stored, str(path))
    return backbone


def resolve(
    source: Source, *, overrides: Mapping[str, Any], allow: Sequence[str] = ()
) -> tuple[Tensors, Spec, LoadReport]:
    """Tensors in the reference's names, the spec they make, and the report; nothing is read.

    Only small constants are looked at: RoPE periods and bias masks.
    """
    name = str(source.path)
    notes = [source.chosen] if source.chosen else []
    with named(name):
        found, unknown = formats.to_reference(source.format, source.tensors)
        given, claims = _given(source)
        known = specs.override(specs.kind_of(found), given, dict(overrides))
        spec, assumed = specs.infer(found, known, claims)
        notes += [*assumed, *preprocessing(source, spec)[1]]
        if source.after:
            notes.append(f"left aside, after the backbone: {', '.join(source.after)}")
        found = _without_buffers(found, spec, notes)
    report = match(
        specs.expected(spec),
        found,
        unknown,
        source=name,
        format=source.format,
        allow=allow,
        optional=sorted(formats.optional(source.format, specs.family(spec), spec)),
        notes=notes,
    )
    return found, spec, report


def _given(source: Source) -> tuple[dict[str, Any], facts.Claims]:
    """Fields of the spec that files beside the weights tell, and what they say of the tensors."""
    config = source.config or {}
    if TOLD_BY.get(source.format) in config:
        return formats.told(source.format, list(source.tensors), Fields(config, "config.json"))
    if source.format in TOLD_BY and config:
        raise ValueError(
            f"config.json has no {TOLD_BY[source.format]}, which one of format {source.format} has."
        )
    if "backbone" in config:
        own = Fields(config, "config.json").section("backbone").content
        with named("config.json"):
            told = specs.to_json(specs.from_json(own))
        del told["family"]
        return told, facts.none
    return {}, facts.none


def _without_buffers(found: Tensors, spec: Spec, notes: list[str]) -> Tensors:
    """Without RoPE periods and bias masks; a bias whose mask hides more than k is folded."""
    kept = {name: t for name, t in found.items() if not meta.BUFFERS.fullmatch(name)}
    if isinstance(spec, ConvNextSpec):
        return kept
    usual = np.repeat([1.0, 0.0, 1.0], spec.width)
    folded = 0
    for name, tensor in found.items():
        if name.endswith("bias_mask"):
            bias, mask = name.removesuffix("_mask"), tensor.read().astype(np.float32)
            if mask.shape != usual.shape or not np.isin(mask, (0, 1)).all():
                raise ValueError(f"{name} is no mask of 0 and 1 with {len(usual)} entries.")
            if bias in kept and not np.array_equal(mask, usual):
                kept[bias] = kept[bias].map(functools.partial(_hide, mask))
                folded += 1
    if folded:
        notes.append(f"{folded} bias masks hide more than k's third: folded into the biases")
    return kept


def _hide(mask: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.where(mask == 0, np.zeros_like(bias), bias)


def preprocessing(source: Source, spec: Spec) -> tuple[Preprocessing, list[str]]:
    """What the files beside the weights say about pixels, or what is assumed, with a note."""
    return described.read(
        source.format,
        spec.channels,
        config=source.config or {},
        processor=source.processor,
        provenance=source.provenance or {},
    )


def materialize(found: Tensors, spec: Spec, source: str) -> dict[str, Any]:
    """Our tree of float32 parameters. What the file lacks (by permission) is as initialised."""
    wanted = specs.expected(spec)
    with np.errstate(over="ignore"):  # of float64; looked for below
        arrays = {
            name: tensor.read().astype(np.float32)
            for name, tensor in found.items()
            if name in wanted
        }
    check_values(arrays, source)
    if missing := [name for name in wanted if name not in arrays]:
        arrays |= specs.initial(spec, missing)
    num_heads = None if isinstance(spec, ConvNextSpec) else spec.num_heads
    tree = meta.to_ours(arrays, num_heads=num_heads)
    return jax.tree.map(jnp.asarray, tree)


def _check_digests(source: Source) -> None:
    """Every tensor is, bit by bit, the one that was written, where this was written down."""
    if source.provenance is not None:
        told = Fields(source.provenance, f"{source.path}: provenance.json")
        digests = told.section("digests").content
        fingerprint.check_digests(source.tensors, digests, str(source.path))
