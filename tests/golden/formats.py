"""Replays of weights and outputs recorded from transformers and timm, read by our loader."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models.vit import Vit, VitSpec
from dinojax.models.zoo import module
from dinojax.weights import formats, load
from dinojax.weights.certificate import layer_outputs
from dinojax.weights.convnext import SAME_NORM
from dinojax.weights.tensors import Tensor
from tests.golden.record import Check, Record, Skip


def outputs_of(path: Path) -> Path:
    """The recorded inputs and outputs that go with a file of weights."""
    return path.with_name(path.stem + "_io.npz") if path.suffix == ".safetensors" else path


# Class of timm -> a function that makes it
ARCHITECTURES = {"Eva": "vit_small_patch16_dinov3_qkvb", "ConvNeXt": "convnext_tiny"}


def open_recorded(record: Record) -> load.Source:
    """The weights beside recorded outputs, with the config.json they would have."""
    file = record.path.with_name(record.path.name.replace("_io.npz", ".safetensors"))
    config = record.meta.get("config")
    if config is None:
        name = record.meta["cls"].rpartition(".")[2]
        config = {"architecture": ARCHITECTURES[name], "model_args": record.meta["kwargs"]}
        config["pretrained_cfg"] = {}  # pixels are not what is replayed
    return dataclasses.replace(load.open_source(file), config=config)


def replay_vit(record: Record) -> Iterator[Check]:
    """Final tokens, pooled, masked, of every layer, and in float64 where recorded."""
    found, spec, _ = load.resolve(open_recorded(record), overrides={})
    params = load.materialize(found, spec, str(record.path))
    for name in (n for n in record.entries if n.startswith("out")):
        if not name.startswith("out/hidden_states"):
            with jax.enable_x64(name.startswith("out64")):
                yield record.check(name, _tokens(record, name, spec, params))
    if layers := record.under("out/hidden_states/"):
        x = jnp.asarray(record["in/x"].transpose(0, 2, 3, 1))
        embed = lambda vit, x: vit._embed(x, None)  # noqa: E731
        first = Vit(spec).apply({"params": params}, x, method=embed)
        every = [first, *layer_outputs(spec, params, x)]
        for number in layers:
            yield record.check(f"out/hidden_states/{number}", every[int(number)])


def _tokens(record: Record, name: str, spec: VitSpec, params: dict):
    """What an output of this name is, computed by us."""
    dtype = np.float64 if name.startswith("out64") else np.float32
    if dtype is np.float64:
        rope = dataclasses.replace(spec.rope, dtype="float64")
        spec = dataclasses.replace(spec, dtype=jnp.dtype(dtype), rope=rope)
    masked = name.startswith("out_masked/")
    masks = [jnp.asarray(record["in/bool_masked_pos"])] if masked else None
    x = jnp.asarray(record["in/x"].transpose(0, 2, 3, 1), dtype)
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), params)
    f = jax.jit(lambda p: Vit(spec).apply({"params": p}, [x], masks)[0])(params)
    if name.endswith("pooler_output"):
        return f.cls
    return np.concatenate([f.cls[:, None], f.registers, f.patches], axis=1)


def replay_convnext(record: Record) -> Iterator[Check]:
    """Final tokens, the mean alone, and the map after every stage."""
    found, spec, _ = load.resolve(open_recorded(record), overrides={})
    params = load.materialize(found, spec, str(record.path))
    x = jnp.asarray(record["in/x"].transpose(0, 2, 3, 1))
    tokens = jax.jit(lambda p: module(spec).apply({"params": p}, [x])[0])(params)
    stages = [x, *(_map(spec, layer, x) for layer in layer_outputs(spec, params, x))]
    for name in (n for n in record.entries if n.startswith("out/")):
        match name.split("/")[1:]:
            case ["last_hidden_state"]:
                found = np.concatenate([tokens.cls[:, None], tokens.patches], axis=1)
            case ["pooler_output" | "pooled"]:
                found = tokens.cls
            case ["forward_features"]:
                found = stages[-1].transpose(0, 3, 1, 2)
            case ["hidden_states", number]:
                found = stages[int(number)].transpose(0, 3, 1, 2)
            case _:
                raise ValueError(f"{record.path}: {name} is of no known kind.")
        yield record.check(name, found)


def _map(spec, tokens_BPD, x_BHWC):
    """Tokens of a stage as the map they come from; every stage halves the last, the first is 4."""
    size = int((x_BHWC.shape[1] * x_BHWC.shape[2] / tokens_BPD.shape[1]) ** 0.5)
    rows, columns = x_BHWC.shape[1] // size, x_BHWC.shape[2] // size
    return tokens_BPD.reshape(len(tokens_BPD), rows, columns, -1)


def replay_name_maps(record: Record) -> Iterator[Check | Skip]:
    """Every recorded name of a library leads to the recorded name of the reference."""
    for model, entry in record.entries.items():
        format = model.split("_")[0]
        if format not in formats.FAMILIES or "rows" not in entry:
            yield Skip(model, "no table of names")
            continue
        tensors = {
            row[0]: Tensor((6, 6), np.dtype(np.float32), lambda: np.zeros((6, 6), np.float32))
            for row in entry["rows"]
            if not row[0].startswith("(")
        }
        found, unknown = formats.to_reference(format, tensors)
        wanted = {row[1] for row in entry["rows"] if not row[0].startswith("(")}
        # Masks and the second name of a norm are made from what there is, so no row names them.
        made = {name for name in found if name.endswith("bias_mask")} | set(SAME_NORM)
        ours = (set(found) - made) | set(unknown)
        yield Check(model, len(ours & wanted), len(ours | wanted), 0.0)
