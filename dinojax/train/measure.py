"""What a recipe that computes its values is told of images, devices and weights."""

import os
import statistics
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from dinojax import config as configs
from dinojax.checkpoint.locate import find
from dinojax.config.computed import assumed
from dinojax.config.formulas import Facts
from dinojax.config.recipe import nest
from dinojax.config.stage_rules import BACKBONE_KEYS
from dinojax.config.stages import NOTHING, PREVIOUS
from dinojax.data.header import read_header
from dinojax.data.sources import open_source
from dinojax.models.vit import VitSpec
from dinojax.weights import load as files

SAMPLE = 64  # images whose headers are read


def measure(values: Mapping[str, Any], *, alone: bool = True) -> Facts:
    """Facts of the images at data.path and of this machine.

    alone: the only process, which may ask jax for its devices; of several the numbers of
    mesh.devices or expect.devices are taken, since devices are known only once all have met.
    Without images what `assumed` says. Raises what opening the source or the weights raises.
    """
    facts = assumed(values)
    if alone:
        facts = _machine(values, facts)
    if values["data.path"] or values["data.mixture"]:
        facts = _images(values, facts)
    return facts._replace(start=_start(values["start.source"]))


def _machine(values: Mapping[str, Any], facts: Facts) -> Facts:
    devices = jax.devices()
    memory = facts.memory
    if memory is None:
        stats = devices[0].memory_stats() or {}
        memory = stats.get("bytes_limit")
    if memory is None and devices[0].platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    return facts._replace(
        devices=values["mesh.devices"] or len(devices),
        platform=devices[0].platform,
        memory=memory,
    )


def _images(values: Mapping[str, Any], facts: Facts) -> Facts:
    section = SimpleNamespace(**nest(values)["data"])
    source = open_source(section, channels=values["image.channels"])
    number, counted = len(source), "counted"
    if values["auto.images"] is not None:
        number, counted = values["auto.images"], "auto.images"
    sides = []
    for index in np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int):
        try:
            header = read_header(source.encoded(int(index)).data)[0]
            sides.append(min(header.width, header.height))
        except Exception:  # damaged files are counted by the run
            continue
    side = statistics.median(sides) if sides else None
    return facts._replace(num_images=number, counted=counted, side=side)


def _start(source: str) -> dict[str, Any] | None:
    """Keys of model.* of the weights that a stage starts from; None for none, and for no ViT."""
    if source in (PREVIOUS, NOTHING, "WEIGHTS"):
        return None
    place = find(source, "start.source")
    if place.step is not None:
        values = configs.read(place.path.parent.parent, stage=place.path.name).values()
        return {key: values[key] for key in (*BACKBONE_KEYS, "model.layer_scale")}
    spec = files.resolve(files.open_source(place.path), overrides={})[1]
    if not isinstance(spec, VitSpec):
        return None
    names: tuple[str, ...] = (
        "width",
        "depth",
        "num_heads",
        "ffn",
        "ffn_ratio",
        "patch_size",
        "num_registers",
    )
    names += ("position", "position_size", "norm", "qkv_bias", "proj_bias", "ffn_bias")
    names += ("mask_k_bias", "untie_cls_norm", "untie_local_cls_norm", "layer_scale")
    keys = {f"model.{name}": getattr(spec, name) for name in names}
    if spec.position != "learned":
        keys.pop("model.position_size")
    return keys | {"image.channels": spec.channels}
