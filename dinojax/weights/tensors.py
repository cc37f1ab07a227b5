"""Files of named tensors that are read one at a time, and written one at a time.

Conversions between formats map dictionaries of `Tensor`; nothing is read before it is written or
used, so a converter never holds more than the tensors it works on.
"""

import dataclasses
import functools
import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from dinojax.files.drafts import open_new

# Name of a dtype in the header of a safetensors file.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PICKLES = (".pth", ".pt", ".bin")
# Entries of a training checkpoint that hold the network to be evaluated, best first.
INNER = ("teacher", "model_ema", "state_dict", "model")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file: shape and dtype are known, values come when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def map(self, layout: Callable[[np.ndarray], np.ndarray]) -> "Tensor":
        """The tensor in another layout. `layout` must not look at values."""
        shape = layout(np.broadcast_to(np.zeros((), self.dtype), self.shape)).shape
        return Tensor(shape, self.dtype, lambda: layout(self.read()))


Tensors = dict[str, Tensor]


def held(array: Any) -> Tensor:
    """A Tensor of an array that is in memory (or on a device)."""
    return Tensor(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


def _rows(rows: slice, array: np.ndarray) -> np.ndarray:
    return array[rows]


def cut(tensor: Tensor, rows: slice) -> Tensor:
    """Some rows of a tensor."""
    return tensor.map(functools.partial(_rows, rows))


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Tensors one after another along their first axis."""
    first = tensors[0]
    rows = sum(tensor.shape[0] for tensor in tensors)

    def read():
        return np.concatenate([tensor.read() for tensor in tensors])

    return Tensor((rows, *first.shape[1:]), first.dtype, read)


def open_tensors(path: str | Path) -> Tensors:
    """Tensors of a .safetensors file, a .pth or .pt file, or the index of a sharded file.

    Pickles are read with PyTorch's weights-only loader, which runs no code. Raises ValueError for
    a file that is none of these, is damaged or holds anything but tensors, and FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.name.endswith(".safetensors.index.json"):
        files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        return {name: t for file in files for name, t in open_tensors(path.parent / file).items()}
    if path.suffix in PICKLES:
        return _open_pickle(path)
    raise ValueError(
        f"{path}: weights are read from .safetensors, {', '.join(PICKLES)}, or a folder that holds "
        "one of these."
    )


def _open_safetensors(path: Path) -> Tensors:
    try:
        file = safetensors.safe_open(path, framework="np")
        names = list(file.keys())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or damaged: {error}") from None
    found = {}
    for name in names:
        part = file.get_slice(name)
        if part.get_dtype() not in DTYPES:
            raise ValueError(f"{path}: {name} has dtype {part.get_dtype()}, which is not read.")
        dtype = DTYPES[part.get_dtype()]
        read = lambda name=name: file.get_tensor(name)  # noqa: E731
        found[name] = Tensor(tuple(part.get_shape()), dtype, read)
    return found


def _open_pickle(path: Path) -> Tensors:
    torch = needs_torch(f"{path} is a PyTorch file")
    mmap = zipfile.is_zipfile(path)  # files of old versions of PyTorch cannot be mapped
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} holds more than tensors, and reading it would run its code. It was not run. "
            f"Ask for a .safetensors file. ({reason})"
        ) from None
    except (RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no PyTorch file, or damaged: {reason}") from None
    while isinstance(content, dict) and (inner := [key for key in INNER if key in content]):
        content = content[inner[0]]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, no tensors by name.")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(value).__name__}, no tensor.")
    return {name: _of_torch(torch, value) for name, value in content.items()}


def _of_torch(torch, value) -> Tensor:
    names = {getattr(torch, name): name for name in ("float64", "float32", "float16", "int64")}
    names |= {getattr(torch, name): name for name in ("int32", "int16", "int8", "uint8", "bool")}
    if value.dtype == torch.bfloat16:
        bits = lambda: value.contiguous().view(torch.int16).numpy()  # noqa: E731
        return Tensor(tuple(value.shape), DTYPES["BF16"], lambda: bits().view(ml_dtypes.bfloat16))
    return Tensor(tuple(value.shape), np.dtype(names[value.dtype]), lambda: value.numpy())


def needs_torch(reason: str) -> Any:
    """PyTorch, or a ModuleNotFoundError that says what it was needed for and how to get it."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{reason}, which needs PyTorch: pip install 'dinojax[torch]', or give a .safetensors."
        ) from None
    return torch


def write_safetensors(
    path: str | Path, tensors: Tensors, metadata: dict[str, str], dtype: np.dtype | None = None
) -> dict[str, str]:
    """Write tensors one by one, in their order; name -> SHA-256 of the bytes written.

    dtype: what floating-point tensors are rounded to, or None to keep theirs. The file appears
    under its name only when it is complete.
    """
    path = Path(path)
    kept = {name: _stored(tensor.dtype, dtype) for name, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape, dtype=np.int64)) * kept[name].itemsize
        header[name] = {
            "dtype": NAMES[kept[name]],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # readers map the data, which wants to start aligned
    digests = {}
    with open_new(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            array = np.ascontiguousarray(tensor.read().astype(kept[name], copy=False))
            data = array.reshape(-1).view(np.uint8).data
            digests[name] = hashlib.sha256(data).hexdigest()
            file.write(data)
    return digests


def _stored(own: np.dtype, wanted: np.dtype | None) -> np.dtype:
    floating = own in (DTYPES["BF16"],) or np.issubdtype(own, np.floating)
    return wanted if wanted is not None and floating else own


def digests(tensors: Tensors, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the bytes of some tensors, by name."""
    return {
        name: hashlib.sha256(
            np.ascontiguousarray(tensors[name].read()).reshape(-1).view(np.uint8).data
        ).hexdigest()
        for name in names
    }
