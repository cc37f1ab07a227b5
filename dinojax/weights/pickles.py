"""Tensors of a PyTorch file, found without running its code, or why there are none to be had."""

import argparse
import collections
import importlib
import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

# Entries of a training checkpoint that hold the network to be evaluated, best first.
INNER = ("teacher", "model_ema", "state_dict", "model")
MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # of old versions
MAX_PICKLE = 64 * 2**20  # bytes without the tensors
MAX_DEPTH, MAX_DICTIONARIES = 32, 10_000
# Tensors may share storage, and small ones may be one value that is repeated; not more than this.
SHARED, SPARE = 2, 64 * 2**20  # times the size of the file, and bytes

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}


def needs_torch(reason: str) -> Any:
    """PyTorch, or a ModuleNotFoundError that says what it was needed for and how to get it."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{reason}, which needs PyTorch: pip install 'dinojax[torch]', or give a .safetensors."
        ) from None
    return torch


def read(path: Path, *, whole: bool = False) -> dict[str, Any]:
    """The tensors of a file by name, as PyTorch's, mapped from the disk where that can be done.

    Names of dictionaries in dictionaries are joined with dots. whole: of the whole file; else of
    its entry that holds the network to be evaluated (INNER), where it has one.
    Raises ValueError, with a sentence of its own for each kind of file that gives no tensors.
    """
    torch = needs_torch(f"{path} is a PyTorch file")
    content = _load(torch, path, mmap=_check_archive(path))
    seen: set[int] = set()
    while not whole and isinstance(content, dict) and id(content) not in seen:
        seen.add(id(content))
        inner = [key for key in INNER if isinstance(content.get(key), dict)]
        content = content[inner[0]] if inner else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, no tensors by name.")
    found: dict[str, Any] = {}
    for name, value in _leaves(content, str(path)):
        if name in found:
            raise ValueError(f"{path} holds {name} twice, in dictionaries of dictionaries.")
        if isinstance(value, (torch.Tensor, np.ndarray)):
            found[name] = _plain(torch, name, value, str(path))
    if not found:
        raise ValueError(f"{path} holds no tensors by name; its entries: {_some(content)}.")
    size, told = path.stat().st_size, sum(value.nbytes for value in found.values())
    if told > SHARED * size + SPARE:
        raise ValueError(f"{path} tells {told:,} bytes of tensors in a file of {size:,}.")
    return found


def values(tensor: Any) -> np.ndarray:
    """A tensor of `read` as an array."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def dtype(tensor: Any) -> np.dtype:
    return np.dtype(DTYPES[str(tensor.dtype).removeprefix("torch.")])


def _check_archive(path: Path) -> bool:
    """Whether the file is an archive whose tensors can be mapped; others are of old versions.

    Raises ValueError for an archive that is none of PyTorch, and for entries whose bytes have
    another checksum than was written: PyTorch itself does not look.
    """
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any("/code/" in name for name in names):
                raise ValueError(f"{path} is a TorchScript program; save its state_dict() instead.")
            if not any(name.endswith("data.pkl") for name in names):
                raise ValueError(f"{path} is an archive, but none that PyTorch wrote: {names[:3]}.")
            if len(set(names)) < len(names):
                raise ValueError(f"{path} is damaged: an entry of the archive stands twice.")
            told = sum(entry.file_size for entry in entries)
            if told > SHARED * path.stat().st_size + SPARE:
                raise ValueError(f"{path} would unpack to {told:,} bytes; it is not read.")
            for entry in entries:
                if entry.CRC:  # 0: written without
                    with archive.open(entry) as file:
                        while file.read(2**22):
                            pass
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is damaged: {error}") from None
    except Exception as error:  # of zipfile, on an archive that is none
        raise ValueError(f"{path} is damaged: {error}") from None


def _load(torch, path: Path, *, mmap: bool) -> Any:
    """What torch.load gives of tensors, numbers, text and their containers, and no code."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if not _is_complete(path):
            raise ValueError(f"{path} is cut off, or damaged, before its tensors.") from None
        raise ValueError(f"{path} {_unpicklable(str(error))}") from None
    except Exception as error:  # whatever a reader of damaged files runs into
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path} is no PyTorch file, or damaged: {reason}") from None


def _is_complete(path: Path) -> bool:
    """Whether the first pickle of a file has an end; nothing of it is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
                content = archive.read(name)
            streams, file = 1, io.BytesIO(content)
        else:
            with open(path, "rb") as whole:
                file = io.BytesIO(whole.read(MAX_PICKLE))
            streams = 4 if file.getvalue().startswith(MAGIC) else 1
        for _ in range(streams):  # of old versions: a number, a version, the system, the tensors
            collections.deque(pickletools.genops(file), maxlen=0)
        return True
    except Exception:  # of pickletools, on what is no pickle
        return False


def _harmless() -> list[Any]:
    """What checkpoints hold beside tensors and is no more than data."""
    scalars = [type(np.dtype(kind)) for kind in "fdeilqhbBHILQ?"]
    core = importlib.import_module("numpy._core.multiarray")
    found: list[Any] = [argparse.Namespace, np.dtype, np.ndarray, *set(scalars)]
    for function in (core.scalar, core._reconstruct):
        name = function.__name__
        found += [(function, f"numpy.{part}.multiarray.{name}") for part in ("core", "_core")]
    return found


def _unpicklable(message: str) -> str:
    """What to say of a file of which PyTorch's reader of weights refuses an entry."""
    if "DTensor" in message or "ShardedTensor" in message:
        return (
            "holds tensors that are spread over processes (DTensor, of FSDP2): save whole ones, "
            "with torch.distributed.checkpoint.state_dict.get_model_state_dict and "
            "StateDictOptions(full_state_dict=True)."
        )
    named = re.search(r"Unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", message)
    named = named or re.search(r"GLOBAL ([\w.]+) was not an allowed", message)
    named = named or re.search(
        r"(?:reduce for unrecognized function|object of type) (.{1,80})", message
    )
    if named:
        return (
            f"holds more than tensors ({named[1]}), and reading it would run its code. It was not "
            "run. Ask for a .safetensors file, or for torch.save(model.state_dict(), ...)."
        )
    detail = re.search(r"(?:WeightsUnpickler error|weights_only[^:]*): *([^\n]+)", message)
    reason = (detail[1] if detail else message.split("\n")[0])[:200]
    return f"is damaged, or no PyTorch file: {reason}"


def _leaves(content: dict[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """What nested dictionaries hold under names; one that holds itself is not followed.

    Raises ValueError where this has no end in sight: dictionaries may be shared many times over.
    """
    stack: list[tuple[tuple[str, ...], tuple[int, ...], dict[str, Any]]] = [((), (), content)]
    count = 0
    while stack:
        path, above, node = stack.pop()
        count += 1
        if len(path) > MAX_DEPTH or count > MAX_DICTIONARIES:
            raise ValueError(
                f"{source} holds dictionaries more than {MAX_DEPTH} deep, or more than "
                f"{MAX_DICTIONARIES:,}; no checkpoint does."
            )
        above = (*above, id(node))
        for key, value in node.items():
            if not isinstance(key, str):
                continue  # of an optimizer
            if not isinstance(value, dict):
                yield ".".join((*path, key)), value
            elif id(value) not in above:
                stack.append(((*path, key), above, value))


def _plain(torch, name: str, value: Any, source: str) -> Any:
    """A tensor without gradients whose values lie in memory or in the mapped file."""
    if isinstance(value, np.ndarray):
        if value.dtype.name not in DTYPES:
            raise ValueError(f"{source}: {name} has dtype {value.dtype}, which is not read.")
        return value
    if type(value).__name__ in ("DTensor", "ShardedTensor"):
        raise ValueError(f"{source} {_unpicklable('DTensor')}")
    if str(value.dtype).removeprefix("torch.") not in DTYPES:
        raise ValueError(
            f"{source}: {name} has dtype {str(value.dtype).removeprefix('torch.')}, which is not "
            "read; save it as bfloat16 or float32."
        )
    if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
        kind = "without values (device meta)" if value.device.type == "meta" else value.layout
        raise ValueError(f"{source}: {name} is a tensor {kind}, no plain one.")
    return value.detach().resolve_neg()


def _some(content: dict[Any, Any]) -> str:
    told = [f"{key} ({type(value).__name__})" for key, value in list(content.items())[:5]]
    return ", ".join(told) or "none"
