"""Names and layouts of dino.txt's released weights, to and from our tree.

A released file holds the two sides that were trained, `visual_model.head.*`, `text_model.*` and
`logit_scale`, with or without the frozen `visual_model.backbone.*`.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dinojax.models.text_tower import TextHead, TextSpec, TextTower
from dinojax.models.vision_head import VisionHead, VisionHeadSpec
from dinojax.models.zoo import Spec
from dinojax.weights import meta
from dinojax.weights.report import LoadReport, check_values, match
from dinojax.weights.tensors import Tensors, held

BACKBONE = "visual_model.backbone."
SCALE = "logit_scale"
# Part of our tree -> prefix of its released names.
PREFIXES = {
    "vision_head": "visual_model.head.",
    "text_tower": "text_model.backbone.",
    "text_head": "text_model.head.",
}
# Released name of a module -> ours, which is that of the reference's vision transformer.
MODULES = {
    "attention_norm": "norm1",
    "attention": "attn",
    "ffn_norm": "norm2",
    "feed_forward": "mlp",
    "ln_final": "norm",
}
# Released tensors that lie beside blocks and norm -> path in our tree.
BESIDE = {
    "positional_embedding": ("positions",),
    "token_embedding.weight": ("tokens",),
    "linear_projection.weight": ("proj", "kernel"),
}
HEAD_WIDTH = 64  # of every released attention; no tensor tells it


def is_released(names) -> bool:
    """Whether names are those of dino.txt."""
    return any(name.startswith((*PREFIXES.values(), BACKBONE)) for name in names)


def to_ours(tensors: Mapping[str, Any], part: str, *, num_heads: int) -> dict[str, Any]:
    """The tree of one part of PREFIXES, from arrays by released name; other parts are left aside.

    Raises ValueError for an unknown name, and for a block that lacks what another has.
    """
    prefix = PREFIXES[part]
    own = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
    blocks = {_ours(name): np.asarray(x) for name, x in own.items() if name not in BESIDE}
    tree = meta.to_ours(blocks, num_heads=num_heads)
    for name, path in BESIDE.items():
        if name in own:
            array = np.asarray(own[name])
            tree |= {path[0]: {path[1]: array.T}} if len(path) > 1 else {path[0]: array}
    return tree


def from_ours(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by released name from the parts of PREFIXES and the scale; a backbone as well."""
    found = {SCALE: np.asarray(params["logit_scale"]).reshape(1)}
    for part, prefix in PREFIXES.items():
        tree = dict(params[part])
        for name, path in BESIDE.items():
            if path[0] in tree:
                leaf = tree.pop(path[0])
                found[prefix + name] = np.asarray(leaf["kernel"]).T if len(path) > 1 else leaf
        gated = part == "vision_head"
        for name, array in meta.from_ours(tree).items():
            found[prefix + _released(name, gated=gated)] = array
    if "backbone" in params:
        found |= {BACKBONE + n: x for n, x in meta.from_ours(params["backbone"]).items()}
    return {name: np.asarray(array) for name, array in found.items()}


def specs_of(
    shapes: Mapping[str, tuple[int, ...]], **runtime: Any
) -> tuple[VisionHeadSpec, TextSpec]:
    """What the two sides are, from the shapes of their tensors.

    runtime: fields of both specs that tensors do not tell: dtype, attention, remat. Attention has
    heads of HEAD_WIDTH channels; replace `num_heads` where it has others. Raises ValueError that
    names a tensor that is missing.
    """
    tower, head = PREFIXES["text_tower"], PREFIXES["text_head"]
    vision = PREFIXES["vision_head"]
    needed = (
        f"{vision}ln_final.weight",
        f"{tower}token_embedding.weight",
        f"{tower}positional_embedding",
        f"{tower}blocks.0.feed_forward.fc1.weight",
        f"{head}linear_projection.weight",
    )
    if missing := [name for name in needed if name not in shapes]:
        raise ValueError(f"{missing[0]} is missing, so these are no weights of dino.txt.")
    width = shapes[needed[0]][0]
    projection = shapes.get(f"{vision}linear_projection.weight")
    vision_spec = VisionHeadSpec(
        width=width,
        depth=_depth(shapes, vision),
        num_heads=max(1, width // HEAD_WIDTH),
        outputs=None if projection is None else projection[0],
        **runtime,
    )
    vocabulary, width = shapes[needed[1]]
    text_spec = TextSpec(
        vocabulary=vocabulary,
        context=shapes[needed[2]][0],
        width=width,
        depth=_depth(shapes, tower),
        num_heads=max(1, width // HEAD_WIDTH),
        outputs=shapes[needed[4]][0],
        ffn_ratio=shapes[needed[3]][0] / width,
        layer_scale=1.0 if f"{tower}blocks.0.ls1.gamma" in shapes else None,
        head_depth=_depth(shapes, head),
        **runtime,
    )
    return vision_spec, text_spec


def expected(vision: VisionHeadSpec, text: TextSpec) -> Tensors:
    """Released names of the trained sides of some specs, with shapes and no values."""

    def shapes(module, *inputs):
        found = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)["params"])
        return jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), nn.meta.unbox(found))

    token = jnp.zeros((1, 1, vision.width), vision.dtype)
    ids, states = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2, text.width), text.dtype)
    params: dict[str, Any] = {
        "vision_head": shapes(VisionHead(vision), token, token),
        "text_tower": shapes(TextTower(text), ids),
        "text_head": shapes(TextHead(text), states, ids),
        "logit_scale": np.float32(0),
    }
    return {name: held(array) for name, array in from_ours(params).items()}


def read(
    tensors: Tensors, vision: VisionHeadSpec, text: TextSpec, *, source: str
) -> tuple[dict[str, Any], LoadReport]:
    """Our float32 parameters of both sides and the scale, and the report of every tensor.

    tensors: without those of a backbone. Raises ValueError, naming tensors, unless each of them is
    used and none is missing, in the shape that it must have.
    """
    wanted = expected(vision, text)
    unknown = [name for name in tensors if name not in wanted]
    known = {name: tensor for name, tensor in tensors.items() if name in wanted}
    report = match(wanted, known, unknown, source=source, format="dinotxt")
    arrays = {name: tensor.read().astype(np.float32) for name, tensor in known.items()}
    check_values(arrays, source)
    heads = {
        "vision_head": vision.num_heads,
        "text_tower": text.num_heads,
        "text_head": text.num_heads,
    }
    params: dict[str, Any] = {}
    for part, count in heads.items():
        params[part] = to_ours(arrays, part, num_heads=count)
    params["logit_scale"] = arrays[SCALE].reshape(())
    return jax.tree.map(jnp.asarray, params), report


def backbone_of(tensors: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """Our tree of the frozen backbone that lies beside the trained sides."""
    own = {n.removeprefix(BACKBONE): x for n, x in tensors.items() if n.startswith(BACKBONE)}
    return meta.to_ours(own, num_heads=getattr(spec, "num_heads", None))


def _ours(name: str) -> str:
    return ".".join(MODULES.get(word, word) for word in name.split("."))


def _released(name: str, *, gated: bool) -> str:
    """gated: of the vision head, whose blocks have the names of a vision transformer."""
    if name.startswith("norm."):
        return name.replace("norm.", "ln_final.", 1)
    if gated:
        return name
    back = {ours: theirs for theirs, ours in MODULES.items() if ours != "norm"}
    return ".".join(back.get(word, word) for word in name.split("."))


def _depth(shapes: Mapping[str, Any], prefix: str) -> int:
    numbers = [re.match(re.escape(prefix) + r"blocks\.(\d+)\.", name) for name in shapes]
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)
