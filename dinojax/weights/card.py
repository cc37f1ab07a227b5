"""README.md of an export: what the weights are, where they come from, and how they are used."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.models.convnext import ConvNextSpec
from dinojax.weights import specs
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.snippets import snippet
from dinojax.weights.writers import Network

FILE = "README.md"
LIBRARIES = {"hf": "transformers", "timm": "timm", "meta": "pytorch"}
TITLES = {"dinov3": "DINOv3", "dinov2": "DINOv2", "convnext": "ConvNeXt, DINOv3"}
# Family -> (key, title, first author, year, arXiv number) of its papers
PAPERS = {
    "dinov3": [("dinov3", "DINOv3", "Siméoni, Oriane", 2025, "2508.10104")],
    "dinov2": [
        (
            "dinov2",
            "DINOv2: Learning Robust Visual Features without Supervision",
            "Oquab, Maxime",
            2023,
            "2304.07193",
        )
    ],
    "convnext": [
        ("dinov3", "DINOv3", "Siméoni, Oriane", 2025, "2508.10104"),
        ("convnext", "A ConvNet for the 2020s", "Liu, Zhuang", 2022, "2201.03545"),
    ],
}


def card(
    network: Network, format: str, *, name: str, folder: Path, notes: list[str], parity: dict
) -> str:
    """The text. name: of the folder, as its files are called by the lines for use.

    folder: where the files lie now. notes: what the library does otherwise than training did.
    parity: the certificate.
    """
    family = specs.family(network.spec)
    lines = snippet(name, format, network.spec, network.preprocessing, files=folder)
    license = network.origin.get("license")
    parts = [
        _front_matter(format, family, license),
        f"# {_plain(name)}\n\n{_what(network, family)}",
        f"## Use\n\nFrom the folder that holds `{_plain(name)}`:\n\n```python\n{lines}```",
        f"## Preprocessing\n\n{_listed([*words(network.preprocessing), *notes])}",
        f"## Origin\n\n{_listed(_origin(network.origin))}",
        f"## Certificate\n\n{_certificate(parity)}",
        f"## Licence\n\n{_licence(license)}",
        f"## Citation\n\n```bibtex\n{_citations(family)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


NOT_STATED = (
    "Not stated: whoever passes the weights on gives it (`dinojax export --license NAME`, or "
    "`license` at the head of this file). What it may be depends on the data, and on the weights "
    "that training began with."
)
# Identifiers that the Hugging Face hub knows, as it writes them; others are stated by name.
KNOWN_LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail"),
)


def check_license(license: str | None) -> None:
    """Raise ValueError for what is no name of a licence: a line of text."""
    if license is not None and (_plain(license) != license or not 0 < len(license) <= 100):
        raise ValueError(
            f"--license {license!r} is no name of a licence; give one such as apache-2.0 or "
            "cc-by-nc-4.0, in letters, digits, points and dashes."
        )


def _licence(license: str | None) -> str:
    return NOT_STATED if license is None else f"`{license}`, as stated by who exported the weights."


def _front_matter(format: str, family: str, license: str | None) -> str:
    library = LIBRARIES.get(format, "dinojax")
    tags = ["dinojax", family, "self-supervised-learning", "vision"]
    fields = {
        **_license_fields(license),
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "tags": tags,
    }
    # A JSON value is a YAML value, whatever text it holds.
    body = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
    return f"---\n{body}\n---"


def _license_fields(license: str | None) -> dict[str, str]:
    if license is not None and license.lower() in KNOWN_LICENSES:
        return {"license": license.lower()}
    return {"license": "other", "license_name": license or "not-stated"}


def _what(network: Network, family: str) -> str:
    spec = network.spec
    size = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in network.tensors.values())
    if isinstance(spec, ConvNextSpec):
        shape = f"stages of {list(spec.depths)} blocks, {list(spec.widths)} channels"
    else:
        shape = (
            f"{spec.depth} blocks, width {spec.width}, {spec.num_heads} heads, patches of "
            f"{spec.patch_size} pixels, {spec.num_registers} registers"
        )
    return (
        f"A backbone that makes features of images ({TITLES[family]}, self-supervised), exported "
        f"by dinojax: {size:,} parameters, {shape}, images of {spec.channels} "
        f"channel{'s' if spec.channels > 1 else ''}."
    )


def words(own: Preprocessing) -> list[str]:
    """What happens to pixels, step by step."""
    steps = []
    if own.resize_as == "floats":
        steps.append(f"values times {own.scale:.6g}")
    if own.resize_size is not None:
        how = {"bytes": "bytes by Pillow", "tensors": "bytes by torchvision"}
        rule = {
            "short": "the short side to",
            "exact": "height and width to",
            "bounded": "the short side, and at most the long one, to",
            "inside": "into height and width",
            "cover": "over height and width",
            "contain": "whole, into height and width",
        }[own.rule]
        steps.append(
            f"resize {rule} {own.resize_size} pixels, {own.filter}, "
            f"as {how.get(own.resize_as, 'floats')}"
        )
    if own.crop_size is not None:
        steps.append(f"cut the centre of {own.crop_size} pixels")
    if own.resize_as != "floats":
        steps.append(f"values times {own.scale:.6g}")
    if own.normalize == "per_crop":
        steps.append("subtract the image's own mean, divide by its own standard deviation")
    elif own.normalize == "fixed" and own.mean is None:
        steps.append("subtract mean and divide by std per channel, which are not known")
    elif own.normalize == "fixed":
        steps.append(f"subtract {list(own.mean or ())}, divide by {list(own.std or ())}")
    if own.pad_size is not None:
        steps.append(f"fill up with zeros to {own.pad_size} pixels")
    return steps


def _origin(origin: dict[str, Any]) -> list[str]:
    config = origin.get("config")
    found = [f"from {_code(Path(str(origin.get('from', 'unknown'))).name)}"]
    if "from_format" in origin:
        found[0] += f", format {_plain(origin['from_format'])}"
    if origin.get("chosen"):
        found.append(_plain(origin["chosen"]))
    if not isinstance(config, dict):
        return found
    data = config["data"]
    found += [
        f"recipe {_code(origin.get('recipe') or 'unknown')}, stage {_code(origin['stage'])}, "
        f"{_plain(origin['network'])} of step {origin['step']:,} of {config['num_steps']:,}",
        f"batches of {config['batch_size']:,} images, {config['crops']['global_size']} pixels, "
        f"seed {config['seed']}",
        f"data: source {_code(data['source'])}, path {_code(data['path'] or 'none')}"
        + (f", a mixture of {len(data['mixture'])} sources" if data["mixture"] else ""),
        "the whole config: `provenance.json`",
    ]
    if config["distill"]["enabled"]:
        teacher = Path(str(config["distill"]["teacher"])).name
        found.append(f"taught by {_code(teacher)}")
    return found


def _certificate(parity: dict[str, Any]) -> str:
    if parity["library"] is None:
        return f"Not compared with another library: {_plain(parity['reason'])}."
    worst = max(parity["rows"], key=lambda row: row["relative"])
    names = ", ".join(f"{name} {version}" for name, version in parity["library"].items())
    return (
        f"The same features in {names} as here: {len(parity['rows'])} quantities compared, the "
        f"largest difference {worst['max_abs']:.1e} ({worst['relative']:.1e} relative, allowed "
        f"{parity['tolerance']:.0e}). `parity.json` holds all, `provenance.json` the SHA-256 of "
        "every tensor."
    )


def _citations(family: str) -> str:
    return "\n\n".join(
        f"@article{{{key},\n  title = {{{title}}},\n  author = {{{author} and others}},\n"
        f"  year = {{{year}}},\n  journal = {{arXiv:{number}}}\n}}"
        for key, title, author, year, number in PAPERS[family]
    )


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _plain(text: Any) -> str:
    """On one line, and without what Markdown or HTML would act on."""
    return " ".join("".join(c for c in str(text) if c not in "`<>[]|*\\#").split())


def _code(text: Any) -> str:
    return f"`{_plain(text)}`"
