"""Writes a network in another format: streamed weights, configs, provenance and parity."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.models import rope as rope_lib
from dinojax.models.vit import VitSpec
from dinojax.weights import certificate, fingerprint, hf, preprocess, specs, timm
from dinojax.weights.load import Backbone, Source, load, materialize, preprocessing, resolve
from dinojax.weights.meta import lazily_from_ours
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.report import LoadReport
from dinojax.weights.tensors import DTYPES, Tensor, Tensors, held, write_safetensors

# Value of --dtype -> name in safetensors; None keeps what the tensors have.
STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Names of the reference's norms and arguments, for the config that goes with its weights.
REFERENCE_NORMS = {
    "layernorm": "layernorm",
    "layernorm_1e5": "layernormbf16",
    "rmsnorm": "rmsnorm",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone in the reference's names, no tensor read, and where it comes from."""

    spec: VitSpec
    tensors: Tensors
    heads: Tensors  # dino_head.* and ibot_head.*; empty where there are none
    preprocessing: Preprocessing
    origin: dict[str, Any]  # JSON values


def export(
    network: Network,
    out: str | Path,
    *,
    format: str,
    dtype: str | None = None,
    with_heads: bool = False,
    certify: bool = True,
    tolerance: float = certificate.TOLERANCE,
) -> dict[str, Any]:
    """Write `network` to a new folder `out`; returns the certificate.

    format: meta, hf, timm or dinojax. dtype: a key of STORED, or None to keep each tensor's.
    certify: run the network here and in the format's library, and compare.
    Raises ValueError if the format cannot hold the network, or the certificate fails; then there
    is no folder.
    """
    out = Path(out)
    _refuse(network, out, format=format, dtype=dtype, with_heads=with_heads)
    draft = out.with_name(out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        stored = None if dtype is None else DTYPES[STORED[dtype]]
        digests = _write(network, draft, format=format, stored=stored, with_heads=with_heads)
        provenance = {
            **network.origin,
            "format": format,
            "dtype": dtype,
            "preprocessing": network.preprocessing.to_json(),
            "left_out": _left_out(network.spec, format),
            "digests": digests,
        }
        parity: dict[str, Any] = {"library": None, "reason": "left out on request"}
        if certify:
            backbone = _backbone(network, stored)
            provenance["features"] = fingerprint.features(backbone)
            parity = certificate.certify(backbone, draft, format=format, tolerance=tolerance)
        _json(draft / "provenance.json", provenance)
        _json(draft / "parity.json", parity)
        if certify:
            _read_back(network, draft)
        if out.exists():
            out.rmdir()  # it was empty
        os.replace(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return parity


def _refuse(network: Network, out: Path, *, format: str, dtype: str | None, with_heads: bool):
    """Raise before anything is written."""
    if format not in WRITERS:
        raise ValueError(f"--format {format} is unknown; choose of {', '.join(WRITERS)}.")
    if dtype is not None and dtype not in STORED:
        raise ValueError(f"--dtype {dtype} is unknown; choose of {', '.join(STORED)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; give another --out.")
    if with_heads and not network.heads:
        raise ValueError("--with-heads: this network comes without heads; export it from a --run.")
    refusals = {"hf": hf.refusals, "timm": timm.refusals}
    if format in refusals and (reasons := refusals[format](network.spec)):
        raise ValueError(f"--format {format} cannot hold this network: " + "; ".join(reasons) + ".")


def _left_out(spec: VitSpec, format: str) -> dict[str, str]:
    table = {"hf": hf.left_out, "timm": timm.left_out}
    return table[format](spec) if format in table else {}


def _write(network: Network, folder: Path, *, format: str, stored, with_heads: bool):
    """All files but the proofs; name -> digest of the backbone's tensors."""
    tensors, files, name = WRITERS[format](network)
    for file, content in files.items():
        _json(folder / file, content)
    path = folder / name
    metadata = {"format": "pt"}  # the framework, in transformers' words
    digests = write_safetensors(path, tensors, metadata, stored)
    if with_heads:
        write_safetensors(folder / "heads.safetensors", network.heads, metadata, stored)
    if format == "meta":
        _pickled(path)
    return digests


def _hf(network: Network):
    spec, own = network.spec, network.preprocessing
    files = {
        "config.json": hf.config(spec, own.crop_size),
        "preprocessor_config.json": preprocess.to_hf(own),
    }
    return hf.from_reference(network.tensors, spec), files, "model.safetensors"


def _timm(network: Network):
    spec, own = network.spec, network.preprocessing
    config = timm.config(spec, preprocess.to_timm(own, spec.channels))
    return timm.from_reference(network.tensors, spec), {"config.json": config}, "model.safetensors"


def _meta(network: Network):
    tensors = {**network.tensors, **reference_buffers(network.spec)}
    files = {"config.json": {**_own_config(network, "meta"), "dinov3": arguments(network.spec)}}
    return tensors, files, "model.safetensors"


def _dinojax(network: Network):
    return network.tensors, {"config.json": _own_config(network, "dinojax")}, "backbone.safetensors"


# Format -> tensors to write, files of JSON, name of the file of weights.
WRITERS = {"meta": _meta, "hf": _hf, "timm": _timm, "dinojax": _dinojax}


def _own_config(network: Network, format: str) -> dict[str, Any]:
    return {
        "format": format,
        "backbone": specs.to_json(network.spec),
        "preprocessing": network.preprocessing.to_json(),
    }


def reference_buffers(spec: VitSpec) -> Tensors:
    """What the reference keeps beside parameters: RoPE periods, and masks of biases."""
    buffers = {}
    if spec.position == "rope":
        periods = np.asarray(rope_lib.periods(spec.head_width, spec.rope))
        buffers["rope_embed.periods"] = held(periods)
    if spec.qkv_bias and spec.mask_k_bias:
        mask = held(np.repeat(np.array([1, 0, 1], np.float32), spec.width))
        buffers |= {f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(spec.depth)}
    return buffers


def arguments(spec: VitSpec) -> dict[str, Any]:
    """The arguments with which the reference builds this backbone."""
    return {
        "patch_size": spec.patch_size,
        "in_chans": spec.channels,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "ffn_layer": spec.ffn,
        "ffn_ratio": spec.ffn_ratio,
        "qkv_bias": spec.qkv_bias,
        "proj_bias": spec.proj_bias,
        "ffn_bias": spec.ffn_bias,
        "mask_k_bias": spec.mask_k_bias,
        "n_storage_tokens": spec.num_registers,
        "norm_layer": REFERENCE_NORMS[spec.norm],
        "layerscale_init": spec.layer_scale,
        "untie_cls_and_patch_norms": spec.untie_cls_norm,
        "untie_global_and_local_cls_norm": spec.untie_local_cls_norm,
        "pos_embed_rope_base": spec.rope.base,
        "pos_embed_rope_min_period": spec.rope.min_period,
        "pos_embed_rope_max_period": spec.rope.max_period,
        "pos_embed_rope_normalize_coords": spec.rope.coords,
        "pos_embed_rope_dtype": {"float32": "fp32", "bfloat16": "bf16"}[spec.rope.dtype],
    }


def _pickled(path: Path) -> None:
    """The safetensors file as a .pth, where torch is installed; tensors stay on disk meanwhile."""
    try:
        import torch
    except ModuleNotFoundError:
        return  # the .safetensors holds the same names; `snippet` shows how to read it
    header, start = _header(path)
    state = {}
    for name, entry in header.items():
        dtype = DTYPES[entry["dtype"]]
        plain = np.dtype(np.int16) if entry["dtype"] == "BF16" else dtype
        at, shape = start + entry["data_offsets"][0], tuple(entry["shape"])
        tensor = torch.from_numpy(np.memmap(path, plain, "c", at, shape))
        state[name] = tensor.view(torch.bfloat16) if entry["dtype"] == "BF16" else tensor
    torch.save(state, path.with_suffix(".pth"))
    path.unlink()


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    del header["__metadata__"]
    return header, 8 + length


def _backbone(network: Network, stored: np.dtype | None) -> Backbone:
    """The network as its exported values make it, in float32."""

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.map(lambda x: x if stored is None else x.astype(stored))

    tensors = {name: rounded(tensor) for name, tensor in network.tensors.items()}
    params = materialize(tensors, network.spec, "this network")
    size = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    report = LoadReport("dinojax", len(tensors), (), (), 0, size, 1.0, ())
    return Backbone(network.spec, params, network.preprocessing, report)


def _read_back(network: Network, folder: Path) -> None:
    """Our own loader gives the spec that was written."""
    found = load(folder).spec
    for field in dataclasses.fields(VitSpec):
        own, other = (getattr(spec, field.name) for spec in (network.spec, found))
        if field.name in DESCRIBES and own != other:
            raise ValueError(f"{folder} reads back with {field.name}={other!r}, not {own!r}.")


DESCRIBES = ("width", "depth", "num_heads", "qkv_bias", "patch_size", "channels", "norm")


def snippet(out: str | Path, format: str, spec: VitSpec) -> str:
    """Lines to paste: the export in the library it is for, and in ours."""
    ours = f'import dinojax\nbackbone = dinojax.load("{out}")\nfeatures = backbone(images_BHWC)\n'
    texts = {"hf": hf.SNIPPET, "timm": timm.SNIPPET, "meta": META_SNIPPET}
    if format not in texts:
        return ours
    return texts[format].format(out=out, prefix=1 + spec.num_registers) + "\n# or\n" + ours


META_SNIPPET = """\
import json
import torch
from dinov3.models.vision_transformer import DinoVisionTransformer
model = DinoVisionTransformer(**json.load(open("{out}/config.json"))["dinov3"])
model.load_state_dict(torch.load("{out}/model.pth", weights_only=True))
found = model.eval().forward_features(images)
cls, patches = found["x_norm_clstoken"], found["x_norm_patchtokens"]
"""


def from_source(
    source: Source, *, overrides: Mapping[str, Any], allow: Sequence[str] = ()
) -> Network:
    """A network from an opened file (`load.open_source`), unread unless something is missing."""
    found, spec, report = resolve(source, overrides=overrides, allow=allow)
    if report.filled:
        found = lazily_from_ours(materialize(found, spec, str(source.path)))
    origin = {"from": str(source.path), "from_format": source.format, "report": str(report)}
    return Network(spec, found, source.heads, preprocessing(source, spec)[0], origin)


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
