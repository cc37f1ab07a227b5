"""Parameter names and layouts of the reference implementation, to and from our tree.

Names are relative to one part: backbone, dino_head or ibot_head. The public DINOv2 and DINOv3
checkpoints use the same ones; DINOv2's that were saved in chunks of blocks have one number more,
`blocks.CHUNK.BLOCK.`, where BLOCK counts all blocks.
"""

import functools
import re
from typing import Any

import numpy as np

from dinojax.weights.tensors import Tensor, Tensors, held

BUFFERS = re.compile(r"rope_embed\.periods|blocks\.\d+\.attn\.qkv\.bias_mask")
# A second name of `norm` in the reference's ConvNeXt: read nowhere, written beside it.
SAME_NORM = re.compile(r"norms\.3\.(weight|bias)")
STACKED = re.compile(r"blocks|stages_\d")  # parts of our tree with a leading axis of blocks

# Name in the reference -> path in our tree; blocks are stacked along a leading axis.
PATHS: list[tuple[str, str]] = [
    (r"(cls_token|mask_token)", r"\1"),
    (r"storage_tokens|register_tokens", "registers"),
    (r"patch_embed\.proj\.weight", "patch_embed/kernel"),
    (r"patch_embed\.proj\.bias", "patch_embed/bias"),
    (r"(norm|cls_norm|local_cls_norm)\.weight", r"\1/scale"),
    (r"(norm|cls_norm|local_cls_norm)\.bias", r"\1/bias"),
    (r"pos_embed", "positions"),
    (r"blocks\.\d+\.(norm1|norm2)\.weight", r"blocks/\1/scale"),
    (r"blocks\.\d+\.(norm1|norm2)\.bias", r"blocks/\1/bias"),
    (r"blocks\.\d+\.ls([12])\.gamma", r"blocks/scale\1"),
    (r"blocks\.\d+\.(attn|mlp)\.(qkv|proj|fc1|fc2|w1|w2|w3|w12)\.weight", r"blocks/\1/\2/kernel"),
    (r"blocks\.\d+\.(attn|mlp)\.(qkv|proj|fc1|fc2|w1|w2|w3|w12)\.bias", r"blocks/\1/\2/bias"),
    (r"downsample_layers\.0\.0\.weight", "downsamples_0/conv/kernel"),
    (r"downsample_layers\.0\.1\.weight", "downsamples_0/norm/scale"),
    (r"downsample_layers\.0\.0\.bias", "downsamples_0/conv/bias"),
    (r"downsample_layers\.0\.1\.bias", "downsamples_0/norm/bias"),
    (r"downsample_layers\.([123])\.0\.weight", r"downsamples_\1/norm/scale"),
    (r"downsample_layers\.([123])\.1\.weight", r"downsamples_\1/conv/kernel"),
    (r"downsample_layers\.([123])\.0\.bias", r"downsamples_\1/norm/bias"),
    (r"downsample_layers\.([123])\.1\.bias", r"downsamples_\1/conv/bias"),
    (r"stages\.([0-3])\.\d+\.gamma", r"stages_\1/scale1"),
    (r"stages\.([0-3])\.\d+\.norm\.weight", r"stages_\1/norm/scale"),
    (r"stages\.([0-3])\.\d+\.(dwconv|pwconv1|pwconv2)\.weight", r"stages_\1/\2/kernel"),
    (r"stages\.([0-3])\.\d+\.(norm|dwconv|pwconv1|pwconv2)\.bias", r"stages_\1/\2/bias"),
    (r"last_layer\.(weight|weight_v)", "prototypes/kernel"),
    (r"last_layer\.weight_g", "prototypes/scale"),
]
HEAD_LAYER = re.compile(r"mlp\.(?:(\d+)\.)?(weight|bias)")  # activations take the odd numbers


def our_path(name: str) -> tuple[tuple[str, ...], int | None]:
    """Path in our tree and block number (None outside the blocks) of a reference parameter.

    Raises ValueError for a name that is not known.
    """
    if head := HEAD_LAYER.fullmatch(name):
        leaf = "kernel" if head[2] == "weight" else "bias"
        return (f"layer{int(head[1] or 0) // 2}", leaf), None
    plain = without_chunk(name)
    for pattern, path in PATHS:
        if match := re.fullmatch(pattern, plain):
            number = re.match(r"(?:blocks|stages\.\d)\.(\d+)\.", plain)
            block = int(number[1]) if number else None
            return tuple(match.expand(path).split("/")), block
    raise ValueError(f"{name!r} is not a parameter of a known backbone or head.")


def is_backbone(name: str) -> bool:
    """Whether a name is a parameter of a backbone; those of heads are not."""
    if name.startswith(("mlp.", "last_layer.")):
        return False
    known = any(re.fullmatch(pattern, without_chunk(name)) for pattern, _ in PATHS)
    return known or SAME_NORM.fullmatch(name) is not None


def without_chunk(name: str) -> str:
    """The name of a block's parameter without the number of the chunk it was saved in."""
    return re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)


def to_ours(
    tensors: dict[str, Any], *, num_heads: int | None = None, xp: Any = np
) -> dict[str, Any]:
    """Tree of one part in our layouts, from reference tensors by name. Buffers are left out.

    num_heads: attention heads A, needed for ViTs. xp: numpy, or jax.numpy to trace it.
    Raises ValueError for unknown names, for blocks that miss a parameter other blocks have, and
    for the second copy of a ConvNeXt's norm if it differs from the first.
    """
    stacks: dict[tuple[str, ...], dict[int | None, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if SAME_NORM.fullmatch(name):
            _check_same(tensors, name)
        elif not BUFFERS.fullmatch(name):
            path, block = our_path(name)
            stacks.setdefault(path, {})[block] = _layout(path, xp.asarray(tensor), num_heads)
    depths: dict[str, int] = {}  # blocks of each part that has any
    for path, stack in stacks.items():
        for block in stack:
            if block is not None:
                depths[path[0]] = max(depths.get(path[0], 0), block + 1)
    tree: dict[str, Any] = {}
    for path, stack in stacks.items():
        depth = depths.get(path[0], 0)
        if None in stack:
            leaf = stack[None]
        elif set(stack) != set(range(depth)):
            missing = min(set(range(depth)) - set(stack))
            raise ValueError(f"{'.'.join(path)} is missing in block {missing} of {depth}.")
        else:
            leaf = xp.stack([stack[block] for block in range(depth)])
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _check_same(tensors: dict[str, np.ndarray], name: str) -> None:
    first = name.replace("norms.3", "norm")
    if first not in tensors or not np.array_equal(tensors[first], tensors[name]):
        raise ValueError(f"{name} is not the same as {first}, which it is another name of.")


def _layout(path: tuple[str, ...], tensor: np.ndarray, num_heads: int | None) -> np.ndarray:
    """One reference tensor (PyTorch layout) in ours, without the axis of blocks."""
    if path[-1] in ("cls_token", "mask_token"):
        return tensor.reshape(-1)
    if path[-1] in ("registers", "positions"):
        return tensor.reshape(tensor.shape[-2:])
    if path == ("prototypes", "scale"):
        return tensor.reshape(-1)
    if path[-1] == "kernel" and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)  # [D, C, p, p]
    if path[-2:-1] == ("w12",):
        return tensor.T.reshape(*tensor.T.shape[:-1], 2, -1)  # [2 F, D] or [2 F]
    if path[1:2] == ("attn",):
        return _split_heads(path, tensor, num_heads)
    return tensor.T if path[-1] == "kernel" else tensor


def _split_heads(path: tuple[str, ...], tensor: np.ndarray, num_heads: int | None) -> np.ndarray:
    if num_heads is None:
        raise ValueError("A ViT needs num_heads to split its attention weights.")
    if path[2:] == ("qkv", "kernel"):
        heads = tensor.reshape(3, num_heads, -1, tensor.shape[1])  # [3 A E, D]
        return heads.transpose(3, 0, 1, 2)
    if path[2:] == ("qkv", "bias"):
        return tensor.reshape(3, num_heads, -1)
    if path[2:] == ("proj", "kernel"):
        return tensor.T.reshape(num_heads, -1, tensor.shape[0])  # [D, A E]
    return tensor


def from_ours(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """Reference tensors by name, from the tree of one part. The inverse of `to_ours`."""
    return {name: tensor.read() for name, tensor in lazily_from_ours(tree).items()}


def lazily_from_ours(tree: dict[str, Any]) -> Tensors:
    """The same as `from_ours` without reading anything; leaves may be `Tensor`s themselves.

    All blocks of one leaf follow each other, so a reader of the leaf is asked for it once in a row.
    """
    tensors = {}
    for path, leaf in _leaves(tree):
        whole = leaf if isinstance(leaf, Tensor) else held(leaf)
        layout = functools.partial(_reference_layout, path)
        if STACKED.fullmatch(path[0]):
            for block in range(whole.shape[0]):
                part = Tensor(whole.shape[1:], whole.dtype, functools.partial(_part, whole, block))
                tensors[_name(path, block, tree)] = part.map(layout)
        else:
            tensors[_name(path, 0, tree)] = whole.map(layout)
    if "stages_3" in tree:
        tensors |= {f"norms.3.{leaf}": tensors[f"norm.{leaf}"] for leaf in ("weight", "bias")}
    return tensors


def _part(whole: Tensor, block: int) -> np.ndarray:
    return whole.read()[block]


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()):
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from _leaves(node, (*path, key))
        else:
            yield (*path, key), node


def _name(path: tuple[str, ...], block: int, tree: dict[str, Any]) -> str:
    leaf = {"kernel": "weight", "scale": "weight"}
    match path:
        case ("registers",):
            return "storage_tokens"
        case ("positions",):
            return "pos_embed"
        case ("patch_embed", last):
            return f"patch_embed.proj.{leaf.get(last, last)}"
        case ("prototypes", "kernel"):
            return "last_layer.weight_v" if "scale" in tree["prototypes"] else "last_layer.weight"
        case ("prototypes", "scale"):
            return "last_layer.weight_g"
        case ("blocks", ("scale1" | "scale2") as scale):
            return f"blocks.{block}.ls{scale[-1]}.gamma"
        case ("blocks", *modules, last):
            return f"blocks.{block}.{'.'.join(modules)}.{leaf.get(last, last)}"
        case (stage, "scale1") if stage.startswith("stages_"):
            return f"stages.{stage[-1]}.{block}.gamma"
        case (stage, module, last) if stage.startswith("stages_"):
            return f"stages.{stage[-1]}.{block}.{module}.{leaf.get(last, last)}"
        case (part, module, last) if part.startswith("downsamples_"):
            # A sequence of two: the stem convolves first, the others normalise first.
            second = int((module == "norm") == (part == "downsamples_0"))
            return f"downsample_layers.{part[-1]}.{second}.{leaf.get(last, last)}"
        case (layer, last) if layer.startswith("layer"):
            single = "layer1" not in tree
            number = "" if single else f"{2 * int(layer.removeprefix('layer'))}."
            return f"mlp.{number}{leaf.get(last, last)}"
    return ".".join([*path[:-1], leaf.get(path[-1], path[-1])])


def _reference_layout(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    if path in (("cls_token",), ("registers",), ("positions",)):
        return array.reshape(1, -1, array.shape[-1])
    if path == ("mask_token",):
        return array[None]
    if path == ("prototypes", "scale"):
        return array[:, None]
    if path[-1] == "kernel" and array.ndim == 4 and path[1:2] != ("attn",):
        return array.transpose(3, 2, 0, 1)
    if path[-2:-1] == ("w12",):
        return array.reshape(*array.shape[:-2], -1).T
    if path[1:] == ("attn", "qkv", "kernel"):
        return array.transpose(1, 2, 3, 0).reshape(-1, array.shape[0])
    if path[1:] == ("attn", "qkv", "bias"):
        return array.reshape(-1)
    if path[1:] == ("attn", "proj", "kernel"):
        return array.reshape(-1, array.shape[-1]).T
    return array.T if path[-1] == "kernel" else array
