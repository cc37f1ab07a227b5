"""Files of named tensors that are read one at a time, and written one at a time.

Conversions between formats map dictionaries of `Tensor`; nothing is read before it is written or
used, so a converter never holds more than the tensors it works on.
"""

import dataclasses
import functools
import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from dinojax.files.drafts import open_new
from dinojax.weights import foreign, index, pickles

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
PICKLES = (".pth", ".pt", ".bin", ".ckpt")


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
    """Tensors one after another along their first axis.

    Raises ValueError where their other axes or their dtypes differ.
    """
    first = tensors[0]
    kinds = {(tensor.shape[1:], tensor.dtype) for tensor in tensors}
    if len(kinds) > 1 or not first.shape:
        told = ", ".join(f"{tensor.dtype} {tensor.shape}" for tensor in tensors)
        raise ValueError(f"tensors that belong in one have shapes that do not fit: {told}.")
    rows = sum(tensor.shape[0] for tensor in tensors)

    def read():
        return np.concatenate([tensor.read() for tensor in tensors])

    return Tensor((rows, *first.shape[1:]), first.dtype, read)


def open_tensors(path: str | Path, *, whole: bool = False) -> Tensors:
    """Tensors of a .safetensors file, a file of PyTorch, or the index of a sharded file.

    whole: of a PyTorch file, all its entries, not only the network to be evaluated. Pickles are
    read with PyTorch's weights-only loader, which runs no code. Raises ValueError for a file that
    is none of these, is damaged or holds no plain tensors, and FileNotFoundError.
    """
    path = Path(path)
    if path.name.endswith(index.SUFFIX):
        told = index.read(path)
        shards = {shard: open_tensors(shard) for shard in told}
        index.check(path, {shard: list(held) for shard, held in shards.items()}, told)
        return {name: tensor for held in shards.values() for name, tensor in held.items()}
    if path.suffix not in (".safetensors", *PICKLES):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist.")
        raise ValueError(
            f"{path}: weights are read from .safetensors, {', '.join(PICKLES)}, or a folder that "
            "holds one of these."
        )
    foreign.refuse(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    found = pickles.read(path, whole=whole)
    return {
        name: Tensor(
            tuple(value.shape), pickles.dtype(value), functools.partial(pickles.values, value)
        )
        for name, value in found.items()
    }


def _open_safetensors(path: Path) -> Tensors:
    try:
        file = safetensors.safe_open(path, framework="np")
        names = list(file.keys())
        parts = {name: file.get_slice(name) for name in names}
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no safetensors file, or damaged: {error}") from None
    found = {}
    for name, part in parts.items():
        if part.get_dtype() not in DTYPES:
            raise ValueError(
                f"{path}: {name} has dtype {part.get_dtype()}, which is not read; save it as "
                "bfloat16 or float32."
            )
        dtype = DTYPES[part.get_dtype()]
        read = lambda name=name: file.get_tensor(name)  # noqa: E731
        found[name] = Tensor(tuple(part.get_shape()), dtype, read)
    return found


def write_safetensors(
    path: str | Path,
    tensors: Tensors,
    metadata: dict[str, str],
    dtype: np.dtype | None = None,
    *,
    constants: re.Pattern | None = None,
) -> dict[str, str]:
    """Write tensors one by one, in their order; name -> SHA-256 of the bytes written.

    dtype: what floating-point tensors are rounded to, or None to keep theirs. constants: pattern
    of names that are no weights, such as RoPE periods, and are never rounded. The file appears
    under its name only when it is complete. Raises ValueError for a value beyond the new dtype.
    """
    path = Path(path)
    kept = {
        name: tensor.dtype
        if constants is not None and constants.fullmatch(name)
        else _stored(tensor.dtype, dtype)
        for name, tensor in tensors.items()
    }
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
            array = _rounded(name, tensor.read(), kept[name])
            data = array.reshape(-1).view(np.uint8).data
            digests[name] = hashlib.sha256(data).hexdigest()
            file.write(data)
    return digests


def _rounded(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):  # looked for below
        rounded = np.ascontiguousarray(array.astype(dtype))
    if np.isfinite(array).all() and not np.isfinite(rounded).all():
        raise ValueError(f"{name} has values beyond {dtype}: use bfloat16 or float32.")
    return rounded


def _stored(own: np.dtype, wanted: np.dtype | None) -> np.dtype:
    return wanted if wanted is not None and is_floating(own) else own


def is_floating(dtype: np.dtype) -> bool:
    return dtype == DTYPES["BF16"] or np.issubdtype(dtype, np.floating)


def digests(tensors: Tensors, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the bytes of some tensors, by name."""
    return {
        name: hashlib.sha256(
            np.ascontiguousarray(tensors[name].read()).reshape(-1).view(np.uint8).data
        ).hexdigest()
        for name in names
    }
