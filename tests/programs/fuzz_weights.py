"""Mutated files and folders of weights: the network that was saved, or a refusal that says why.

A mutant may give other weights only where nothing could tell: bits of a tensor in a file without
checksums, and values of a config that are as legal as the sound ones (ANOTHER). These are counted.
"""

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinojax.weights import load as loading
from dinojax.weights.export import export
from dinojax.weights.tensors import Tensors, held, open_tensors, write_safetensors
from dinojax.weights.writers import reference_buffers
from tests.programs.fuzz_images import mutated
from tests.support import peak_memory
from tests.support.networks_small import CONVNEXT, GATED, PLAIN, RELEASED, SMOOTH, random_network

SECONDS, BYTES = 20, 2**30  # what one mutant may cost
# Keys whose other legal values make another network that the same tensors fit.
ANOTHER = {"rope_theta", "rope_temperature", "layer_norm_eps", "num_attention_heads", "num_heads"}
ANOTHER |= {"norm", "base", "coords", "periods_dtype", "dtype", "position_offset", "ffn_ratio"}
ANOTHER |= {"position_antialias", "mask_k_bias", "min_period", "max_period", "layer_scale", "ffn"}
PASSED = {"arguments"}  # what says nothing of the network
VALUES = (None, True, False, 0, -1, 3, 3.0, 10**9, 10**30, 1e300, -0.5, "", "3", "x" * 2000, [], {})
VALUES += ([1, 2], [None], {"a": 1}, float("nan"), float("inf"), float("-inf"), [[[]]], "../x")
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "student.", "x.")
DTYPES = (np.float64, np.float16, np.int8, np.int64, np.bool_, np.uint8)


class Sound:
    """A file or folder as it was saved, and what loads from it."""

    def __init__(self, path: Path, overrides: dict[str, Any]):
        self.path, self.overrides = path, overrides
        found = loading.load(path, overrides=overrides)
        self.spec, self.params = found.spec, jax.tree.map(np.asarray, found.params)

    def differs(self, path: Path) -> str:
        """What another loaded network has otherwise, or nothing. Raises what `load` raises."""
        found = loading.load(path, overrides=self.overrides)
        if found.spec != self.spec:
            return f"spec {found.spec}"
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), self.params, found.params)
        wrong = [str(key) for key, equal in jax.tree_util.tree_leaves_with_path(same) if not equal]
        return f"values of {wrong[0]}" if wrong else ""


def originals(folder: Path) -> list[Sound]:
    """One of each kind, small."""
    kinds = {"hf": (RELEASED, PLAIN, GATED, CONVNEXT), "timm": (RELEASED, SMOOTH, CONVNEXT)}
    kinds |= {"dinojax": (RELEASED,), "meta": (RELEASED, CONVNEXT)}
    found = []
    for format, specs in kinds.items():
        for number, spec in enumerate(specs):
            out = folder / f"{format}{number}"
            export(random_network(spec), out, format=format, certify=False)
            for name in ("provenance.json", "parity.json"):
                (out / name).unlink()
            found.append(Sound(out, {}))
    found.append(Sound(_sharded(folder / "hf0", folder / "sharded"), {}))
    given = {"depth": RELEASED.depth}
    bare = {**random_network(RELEASED).tensors, **reference_buffers(RELEASED)}
    write_safetensors(folder / "bare.safetensors", bare, {})
    found.append(Sound(folder / "bare.safetensors", given))
    export(random_network(RELEASED), folder / "summed", format="hf", certify=False)
    found.append(Sound(folder / "summed", {}))
    return found + [Sound(path, given) for path in _pickles(folder, bare)]


def _sharded(source: Path, out: Path) -> Path:
    tensors = open_tensors(source / "model.safetensors")
    out.mkdir()
    shutil.copy(source / "config.json", out)
    table = {name: f"{'ab'[number % 2]}.safetensors" for number, name in enumerate(tensors)}
    for file in set(table.values()):
        part = {name: tensors[name] for name in tensors if table[name] == file}
        write_safetensors(out / file, part, {})
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return out


def _pickles(folder: Path, bare: Tensors) -> list[Path]:
    """A .pth of each of PyTorch's two formats, and a training checkpoint."""
    try:
        import torch
    except ModuleNotFoundError:
        return []
    state = {name: torch.from_numpy(tensor.read().copy()) for name, tensor in bare.items()}
    torch.save(state, folder / "new.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    nested = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    torch.save({"teacher": nested, "epoch": 3}, folder / "training.pth")
    return [folder / name for name in ("new.pth", "old.pth", "training.pth")]


# -- mutations: each gives words for what it did, and whether other values may come of it ----------


def of_bytes(path: Path, rng) -> tuple[str, bool]:
    data = path.read_bytes()
    other = mutated(data, rng)
    path.write_bytes(other)
    # Without checksums nothing tells the values of a tensor; archives of PyTorch have them.
    return f"bytes of {path.name}", path.suffix == ".safetensors" or path.name == "old.pth"


def of_tensors(path: Path, rng) -> tuple[str, bool]:
    """One tensor with another name, shape or dtype, missing, or there a second time."""
    tensors = dict(open_tensors(path))
    name = list(tensors)[rng.integers(len(tensors))]
    tensor, kind = tensors[name], rng.integers(6)
    wrapper = WRAPPERS[rng.integers(len(WRAPPERS))]
    array = tensor.read()
    if kind == 0:
        del tensors[name]
        tensors[wrapper + name] = tensor
    elif kind == 1:
        tensors[wrapper + name] = held(array + np.ones((), array.dtype))
    elif kind == 2:
        del tensors[name]
    elif kind == 3:
        dtype = DTYPES[rng.integers(len(DTYPES))]
        with np.errstate(all="ignore"):
            tensors[name] = held(array.astype(dtype))
        _write(path, tensors)
        return f"{name} as {np.dtype(dtype)}", dtype is np.float16
    elif kind == 4:
        shapes = [array.T, array[None], array[:-1], array[..., :0], array.reshape(-1), array[:1]]
        tensors[name] = held(shapes[rng.integers(len(shapes))] if array.ndim else array[None])
        _write(path, tensors)
        # A square turned over, and fewer periods, which tell more heads, are as good as the others.
        legal = tensors[name].shape == array.shape or name.endswith("rope_embed.periods")
        return f"{name} as {tensors[name].shape}", legal
    else:
        cut = int(rng.integers(len(name)))
        del tensors[name]
        tensors[name[:cut] + name[cut + 1 :]] = tensor
    _write(path, tensors)
    return f"tensor {name}, change {kind}, {wrapper}", False


def _write(path: Path, tensors: Tensors) -> None:
    if path.suffix == ".safetensors":
        other = {name: held(tensor.read()) for name, tensor in tensors.items()}
        path.unlink()
        write_safetensors(path, other, {})
        return
    import torch

    state = {name: torch.from_numpy(np.array(tensor.read())) for name, tensor in tensors.items()}
    path.unlink()
    torch.save(state, path, _use_new_zipfile_serialization=path.name != "old.pth")


def of_json(path: Path, rng) -> tuple[str, bool]:
    """One value of a JSON file replaced, taken out or added, at any depth."""
    content = json.loads(path.read_text())
    node, key, keys = content, None, []
    while isinstance(node, dict) and node and (key is None or rng.random() < 0.7):
        names = [name for name in node if name not in PASSED]
        key, parent = names[rng.integers(len(names))], node
        keys.append(key)
        node = node[key]
    value = VALUES[rng.integers(len(VALUES))]
    kind = rng.integers(4)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(node, (int, float)) and not isinstance(node, bool):
        parent[key] = value = type(node)(node * rng.choice([-1, 0, 0.5, 2, 1000]))
    else:
        parent[key] = value
    path.write_text(json.dumps(content))
    return f"{path.name} {'.'.join(keys)} = {str(value)[:40]} ({kind})", bool(ANOTHER & set(keys))


def of_index(path: Path, rng) -> tuple[str, bool]:
    content = json.loads(path.read_text())
    table = content["weight_map"]
    name = list(table)[rng.integers(len(table))]
    kind = rng.integers(5)
    if kind == 0:
        table[name] = rng.choice(["b.safetensors", "a.safetensors"])
    elif kind == 1:
        table[name] = rng.choice(["../bare.safetensors", "/etc/passwd", "c.safetensors", ".", ""])
    elif kind == 2:
        del table[name]
    elif kind == 3:
        table[name + ".x"] = table.pop(name)
    else:
        content["weight_map"] = VALUES[rng.integers(len(VALUES))]
    path.write_text(json.dumps(content))
    return f"index {name}, change {kind}", False


def mutate(path: Path, rng) -> tuple[str, bool]:
    """Change one file of a copy; what was done, and whether other values may come of it."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    file = files[rng.integers(len(files))]
    kinds: list[Callable] = [of_bytes]
    if file.name.endswith(".index.json"):
        kinds = [of_index, of_index, of_bytes]
    elif file.suffix == ".json":
        kinds = [of_json, of_json, of_json, of_bytes]
    elif file.suffix in (".safetensors", ".pth"):
        kinds = [of_bytes, of_tensors]
    before = file.read_bytes()
    told, other = kinds[rng.integers(len(kinds))](file, rng)
    if file.suffix == ".json" and told.startswith("bytes"):
        other = bool(ANOTHER & _changed(before, file.read_bytes()))
    return told, other


def _changed(*texts: bytes) -> set[str]:
    """Keys, and those above them, that have other values in one JSON object than in another."""
    try:
        first, second = (_leaves(json.loads(text)) for text in texts)
    except (ValueError, RecursionError):
        return set()
    paths = [path for path in first | second if first.get(path) != second.get(path)]
    return {key for path in paths for key in path}


def _leaves(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    if not isinstance(node, dict):
        return {path: repr(node)}
    return {p: leaf for key in node for p, leaf in _leaves(node[key], (*path, key)).items()}


# -- judgement -------------------------------------------------------------------------------------


def combine(sound: Sound, path: Path, may_differ: bool) -> tuple[str, str]:
    """("equal", "refused" or "other", what is wrong with that; empty if nothing)."""
    began, held = time.monotonic(), peak_memory.begin()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        different = sound.differs(path)
        verdict, wrong = ("other", different) if different else ("equal", "")
        wrong = "" if may_differ else wrong
    except (ValueError, FileNotFoundError) as error:
        told = str(error)
        named = path.name in told or path.parent.name in told or str(path) in told
        verdict = "refused"
        wrong = "" if named and len(told) > len(str(path)) + 10 else f"a poor message: {told[:300]}"
    except BaseException as error:  # an uncaught one is what is looked for
        verdict, wrong = "refused", f"uncaught {type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
    if (grown := peak_memory.grown(held)) > BYTES:
        wrong += f" took {grown:,} bytes"
    if time.monotonic() - began > SECONDS:
        wrong += f" took {time.monotonic() - began:.0f} s"
    return verdict, wrong


def _late(signum, frame):
    raise TimeoutError(f"not done after {SECONDS} s")


def fuzz(seed: int, count: int, progress=lambda done, faults: None) -> dict:
    """{"equal", "refused", "other", "other_of_tensors": numbers, "faults": texts} of mutants.

    other: other weights or another network, where nothing could tell (see above); of them,
    other_of_tensors by values of tensors, the rest by a config.
    """
    rng = np.random.default_rng(seed)
    result = {"equal": 0, "refused": 0, "other": 0, "other_of_tensors": 0}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        sounds = originals(Path(folder))
        for number in range(count):
            sound = sounds[number % len(sounds)]
            copy = Path(tempfile.mkdtemp(dir=folder)) / sound.path.name
            copied = shutil.copytree if sound.path.is_dir() else shutil.copy
            copied(sound.path, copy)
            told, other = mutate(copy, rng)
            verdict, wrong = combine(sound, copy, other)
            shutil.rmtree(copy.parent)
            result[verdict] += 1
            result["other_of_tensors"] += verdict == "other" and ".json" not in told
            if wrong:
                faults.append(
                    f"weights {number} of seed {seed}, {sound.path.name}, {told}: {wrong}"
                )
            progress(number + 1, faults)
    return {**result, "faults": faults}
