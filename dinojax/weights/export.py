"""Writes a network in another format: streamed weights, configs, provenance and parity."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.files.drafts import draft_folder, write_json
from dinojax.weights import (
    card,
    certificate,
    fingerprint,
    formats,
    meta,
    processors,
    snippets,
    specs,
    stablehlo,
    transforms,
)
from dinojax.weights.formats import LIBRARIES
from dinojax.weights.load import (
    Backbone,
    Source,
    load,
    materialize,
    preprocessing,
    resolve,
)
from dinojax.weights.meta import lazily_from_ours
from dinojax.weights.report import LoadReport
from dinojax.weights.source import HEADS_FILE
from dinojax.weights.tensors import DTYPES, Tensor, open_tensors, write_safetensors
from dinojax.weights.writers import WRITERS, Network

# Value of --dtype -> name in safetensors; None keeps what the tensors have.
STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def export(
    network: Network,
    out: str | Path,
    *,
    format: str,
    dtype: str | None = None,
    with_heads: bool = False,
    certify: bool = True,
    tolerance: float = certificate.TOLERANCE,
    license: str | None = None,
) -> dict[str, Any]:
    """Write `network` to a new folder `out`; returns the certificate.

    format: meta, hf, timm or dinojax. dtype: a key of STORED, or None to keep each tensor's.
    license: what the model card states, None = that none is stated.
    certify: run the network here and in the format's library, and compare.
    Raises ValueError if the format cannot hold the network, or the certificate fails; then there
    is no folder.
    """
    out = Path(out)
    _refuse(network, out, format=format, dtype=dtype, with_heads=with_heads)
    card.check_license(license)
    network, notes = _as_expressed(network, format)
    with draft_folder(out) as draft:
        stored = None if dtype is None else DTYPES[STORED[dtype]]
        digests = _write(network, draft, format=format, stored=stored, with_heads=with_heads)
        provenance = {
            **network.origin,
            "format": format,
            "dtype": dtype,
            "license": license,
            "preprocessing": network.preprocessing.to_json(),
            "preprocessing_notes": notes,
            "left_out": formats.left_out(format, specs.family(network.spec), network.spec),
            "digests": digests,
        }
        parity: dict[str, Any] = {"library": None, "reason": "left out on request"}
        if certify:
            backbone = _backbone(network, stored)
            provenance["features"] = fingerprint.features(backbone)
            parity = certificate.certify(backbone, draft, format=format, tolerance=tolerance)
        write_json(draft / "provenance.json", provenance)
        write_json(draft / "parity.json", parity)
        snippets.write_example(draft, network.spec.channels)
        network = dataclasses.replace(network, origin=provenance)
        text = card.card(network, format, name=out.name, folder=draft, notes=notes, parity=parity)
        (draft / card.FILE).write_text(text, encoding="utf-8")
        if certify:
            _read_back(network, draft)
    return parity


def _refuse(network: Network, out: Path, *, format: str, dtype: str | None, with_heads: bool):
    """Raise before anything is written."""
    if format not in WRITERS:
        raise ValueError(f"--format {format} is unknown; choose of {', '.join(WRITERS)}.")
    if dtype is not None and dtype not in STORED:
        raise ValueError(f"--dtype {dtype} is unknown; choose of {', '.join(STORED)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; give another --out.")
    if format == "stablehlo" and (reason := stablehlo.missing()) is not None:
        raise ModuleNotFoundError(f"--format stablehlo: {reason}")
    if with_heads and not network.heads:
        raise ValueError("--with-heads: this network comes without heads; export it from a --run.")
    library = LIBRARIES.get((format, specs.family(network.spec)))
    if library is not None and (reasons := library.refusals(network.spec)):
        raise ValueError(f"--format {format} cannot hold this network: " + "; ".join(reasons) + ".")


def _as_expressed(network: Network, format: str) -> tuple[Network, list[str]]:
    """With the preprocessing that the library will do, and notes of what differs."""
    library = {"hf": processors, "timm": transforms}.get(format)
    if library is None:
        return network, []
    own, notes = library.expressed(network.preprocessing, network.spec.channels)
    return dataclasses.replace(network, preprocessing=own), notes


def _write(network: Network, folder: Path, *, format: str, stored, with_heads: bool):
    """All files but the proofs; name -> digest of the backbone's tensors."""
    tensors, files, name = WRITERS[format](network)
    for file, content in files.items():
        write_json(folder / file, content)
    path = folder / name
    metadata = {"format": "pt"}  # the framework, in transformers' words
    digests = write_safetensors(path, tensors, metadata, stored, constants=meta.BUFFERS)
    if with_heads:
        write_safetensors(folder / HEADS_FILE, network.heads, metadata, stored)
    if format == "meta":
        _pickled(path)
    if format == "stablehlo":
        own = network.preprocessing
        size = own.out_size or (own.side, own.side)
        stablehlo.write(folder, open_tensors(path), network.spec, size)
    return digests


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
    for name in DESCRIBES[specs.family(network.spec)]:
        own, other = (getattr(spec, name) for spec in (network.spec, found))
        if own != other:
            raise ValueError(f"{folder} reads back with {name}={other!r}, not {own!r}.")


VIT = ("width", "depth", "num_heads", "qkv_bias", "patch_size", "channels", "norm")
DESCRIBES = {
    "dinov3": VIT,
    "dinov2": (*VIT, "position_size", "position_offset", "position_antialias"),
    "convnext": ("depths", "widths", "channels"),
}


def from_source(
    source: Source, *, overrides: Mapping[str, Any], allow: Sequence[str] = ()
) -> Network:
    """A network from an opened file (`load.open_source`), unread unless something is missing."""
    found, spec, report = resolve(source, overrides=overrides, allow=allow)
    if report.filled:
        found = lazily_from_ours(materialize(found, spec, str(source.path)))
    origin = {"from": str(source.path), "from_format": source.format, "report": str(report)}
    origin |= {"chosen": source.chosen} if source.chosen else {}
    return Network(spec, found, source.heads, preprocessing(source, spec)[0], origin)
