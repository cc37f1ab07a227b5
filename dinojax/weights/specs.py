"""What a backbone is, told from the tensors of a file in the reference's names, and as JSON."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dinojax.models import rope as rope_lib
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.rope import RopeSpec
from dinojax.models.vit import VitSpec
from dinojax.models.zoo import VITS, Spec, module
from dinojax.weights import convnext, facts, fields, jsons, meta
from dinojax.weights.tensors import Tensor, Tensors

# Fields of a spec that say how to run a backbone, not what it is.
RUNTIME = ("dtype", "reduce", "attention", "remat", "unroll", "drop_path")
AUGMENTS = ("shift", "jitter", "rescale")


def family(spec: Spec) -> str:
    """dinov3, dinov2 or convnext: what decides how other libraries keep a backbone."""
    if isinstance(spec, ConvNextSpec):
        return "convnext"
    return "dinov3" if spec.position == "rope" else "dinov2"


def to_json(spec: Spec) -> dict[str, Any]:
    """What a backbone is, as JSON values."""
    own = {k: v for k, v in dataclasses.asdict(spec).items() if k not in RUNTIME}
    if isinstance(spec, ConvNextSpec):
        return {"family": "convnext", **own}
    own["rope"] = {k: v for k, v in own["rope"].items() if k not in AUGMENTS}
    return {"family": "vit", **own}


def from_json(content: dict[str, Any]) -> Spec:
    """The inverse of `to_json`. Raises ValueError for fields that are not known, or no values."""
    told = {**content}
    kind = KINDS.get(str(name := told.pop("family", "vit")))
    if kind is None:
        raise ValueError(f"family {name!r} is unknown to this version of dinojax.")
    rope = told.pop("rope", {})
    if not isinstance(rope, dict):
        raise ValueError(f"rope={jsons.shown(rope)}: it must be an object with keys.")
    for key, value in {**told, **{f"rope.{name}": value for name, value in rope.items()}}.items():
        fields.check(kind, key, value)
    if lacking := [name for name in REQUIRED[kind] if name not in told]:
        raise ValueError(f"a backbone needs {', '.join(lacking)}.")
    if kind is ConvNextSpec:
        return ConvNextSpec(**{**told, **{key: tuple(told[key]) for key in convnext.SIZES}})
    return VitSpec(**told, rope=RopeSpec(**rope))


KINDS: dict[str, type] = {"vit": VitSpec, "convnext": ConvNextSpec}
REQUIRED = {VitSpec: ("width", "depth", "num_heads"), ConvNextSpec: convnext.SIZES}


def override(kind: type, given: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Fields of a spec with others in their place; `rope.base` means the base of its `rope`.

    kind: VitSpec or ConvNextSpec. Raises ValueError for a name that is no field, and for a value
    that the field cannot have.
    """
    given = {**given}
    if kind is VitSpec:
        given["rope"] = {**given.get("rope", {})}
    for name, value in overrides.items():
        fields.check(kind, name, value)
        if name.startswith("rope."):
            given["rope"][name.removeprefix("rope.")] = value
        else:
            given[name] = value
    return given


def replaced(spec: Spec, overrides: dict[str, Any]) -> Spec:
    """A spec with some of its fields replaced."""
    kind = type(spec)
    own = {field.name: getattr(spec, field.name) for field in dataclasses.fields(kind)}
    if isinstance(spec, ConvNextSpec):
        return ConvNextSpec(**override(kind, own, overrides))
    own = override(kind, {**own, "rope": dataclasses.asdict(spec.rope)}, overrides)
    return VitSpec(**{**own, "rope": RopeSpec(**own["rope"])})


def kind_of(tensors: Tensors) -> type:
    """Which spec tensors in the reference's names have."""
    return ConvNextSpec if convnext.STEM in tensors else VitSpec


def infer(
    tensors: Tensors, given: dict[str, Any], claims: facts.Claims = facts.none
) -> tuple[Spec, list[str]]:
    """The spec of a backbone with these tensors (reference names), and what was assumed.

    given: fields that are known from elsewhere, `rope` among them as a dictionary. claims: what
    files beside the weights say of sizes. Raises ValueError when the tensors fit no backbone,
    contradict what is said of them, or leave it open which backbone they are.
    """
    if kind_of(tensors) is ConvNextSpec:
        return convnext.infer(tensors, given, claims)
    if facts.PATCH_EMBED not in tensors:
        raise ValueError("it has no patch embedding, so it holds no backbone.")
    if "pos_embed" in tensors and given.get("position") == "rope":
        raise ValueError(
            "it has learned positions (pos_embed), so it is a DINOv2 backbone; a DINOv3 backbone "
            "has RoPE."
        )
    if "pos_embed" not in tensors and given.get("position") == "learned":
        raise ValueError("it lacks its learned positions (pos_embed): 1 missing.")
    known = facts.of(tensors)
    facts.compare(known, [*claims(known), *facts.of_fields(given, known)])
    own = {name: known[name] for name in TOLD}
    own |= {
        "ffn_ratio": _ffn_ratio(known),
        "layer_scale": 1e-5 if known["has_layer_scale"] else None,
        "untie_cls_norm": "cls_norm.weight" in tensors,
        "untie_local_cls_norm": "local_cls_norm.weight" in tensors,
        **_positions(known),
    }
    notes: list[str] = []
    given = {**given}
    if "depth" not in given and not _is_released(known):
        raise ValueError(
            f"{known['depth']} blocks of width {known['width']} are no DINO model: truncated? If "
            f"they are meant, say so with the override depth={known['depth']}."
        )
    rope_fields = given.pop("rope", {})
    rope = RopeSpec(**rope_fields)
    if "num_heads" not in given:
        given["num_heads"] = _num_heads(tensors, known)
    _check_heads(known, given["num_heads"])
    if "norm" not in given:
        given["norm"] = _norm(tensors, notes)
    spec = VitSpec(**{**own, **given, "rope": rope})
    if (
        spec.position == "rope"
        and "rope_embed.periods" not in tensors
        and "base" not in rope_fields
    ):
        notes.append(f"RoPE of base {rope.base:g} assumed: the file has no periods")
    if "rope_embed.periods" in tensors:
        periods = tensors["rope_embed.periods"].read().astype(np.float32)
        rope = _rope_of(periods, spec)
        if "periods_dtype" not in rope_fields:
            spec = dataclasses.replace(spec, rope=rope)
    return spec, notes


# Fields of a spec that are among the facts.
TOLD: tuple[str, ...] = ("width", "depth", "channels", "patch_size", "num_registers", "ffn")
TOLD += ("qkv_bias", "proj_bias", "ffn_bias", "mask_k_bias")


def _positions(known: dict[str, Any]) -> dict[str, Any]:
    """DINOv2's learned table, where there is one: its models with registers resize it otherwise."""
    if known["position_size"] is None:
        return {"position": "rope"}
    registers = known["num_registers"] > 0
    return {
        "position": "learned",
        "position_size": known["position_size"],
        "position_offset": 0.0 if registers else 0.1,
        "position_antialias": registers,
    }


def _ffn_ratio(known: dict[str, Any]) -> float:
    """A ratio that ffn_width turns back into `hidden`; half a channel keeps off the edge."""
    width, hidden = known["width"], known["hidden"]
    whole = hidden if known["ffn"] == "mlp" else math.ceil(hidden * 3 / 2)
    return whole / width if int(width * (whole / width)) == whole else (whole + 0.5) / width


# Released in the reference's layout by others, of a size that is not in the zoo.
OTHERS = {"eupe_vitt": dict(width=192, depth=12, num_heads=3)}


def _rows(known: dict[str, Any]) -> list[dict[str, Any]]:
    """Known models of this width with positions of this kind."""
    kind = "rope" if known["position_size"] is None else "learned"
    rows = [*VITS.values(), *OTHERS.values()]
    fitting = [row for row in rows if row["width"] == known["width"]]
    return [row for row in fitting if row.get("position", "rope") == kind]


def _is_released(known: dict[str, Any]) -> bool:
    return any(row["depth"] == known["depth"] for row in _rows(known))


def _num_heads(tensors: Tensors, known: dict[str, Any]) -> int:
    if "rope_embed.periods" in tensors:
        shape = tensors["rope_embed.periods"].shape
        if len(shape) != 1 or not shape[0] or known["width"] % (4 * shape[0]):
            raise ValueError(
                f"rope_embed.periods has shape {shape}, which fits no number of heads of width "
                f"{known['width']}."
            )
        return known["width"] // (4 * shape[0])
    heads = {row["num_heads"] for row in _rows(known)}
    if len(heads) != 1:
        raise ValueError(
            "nothing tells the number of attention heads; give the override num_heads."
        )
    return heads.pop()


def _check_heads(known: dict[str, Any], num_heads: int) -> None:
    width, unit = known["width"], 4 if known["position_size"] is None else 1
    if width % num_heads or width // num_heads % unit:
        rest = f", each a multiple of {unit} channels" if unit > 1 else ""
        raise ValueError(f"width {width} cannot be cut into num_heads={num_heads}{rest}.")


def _norm(tensors: Tensors, notes: list[str]) -> str:
    if "norm.bias" not in tensors:
        return "rmsnorm"
    if "pos_embed" in tensors:
        return "layernorm"  # all of DINOv2
    if "storage_tokens" not in tensors:
        raise ValueError(
            "it does not tell the epsilon of its norms; give the override norm=layernorm "
            "(1e-6, the default of training) or norm=layernorm_1e5 (released DINOv3 models)."
        )
    notes.append("norm=layernorm_1e5 assumed, as in all released DINOv3 models")
    return "layernorm_1e5"


def _rope_of(periods: np.ndarray, spec: VitSpec) -> RopeSpec:
    """The RoPE of the spec if it gives these periods, in float32 or rounded to bfloat16."""
    for dtype in (spec.rope.periods_dtype, "float32", "bfloat16"):
        rope = dataclasses.replace(spec.rope, periods_dtype=dtype)
        ours = np.asarray(rope_lib.periods(spec.head_width, rope))
        if ours.shape == periods.shape and np.allclose(ours, periods, rtol=1e-6, atol=0):
            return rope
    with np.errstate(all="ignore"):  # of values that no base has
        base = periods.flat[-1] ** (periods.size / max(periods.size - 1, 1))
    raise ValueError(
        f"its RoPE periods {periods.flat[:3]}... (base {base:.6g}) are not those of base "
        f"{spec.rope.base}; if they are meant, give the override rope.base."
    )


@functools.lru_cache(maxsize=8)
def expected(spec: Spec) -> Tensors:
    """Shapes of all parameters of a backbone, in the reference's names and layouts."""

    def unread():
        raise AssertionError("only the shape of an expected tensor is known")

    tree = jax.eval_shape(lambda: _init(spec))
    return meta.lazily_from_ours(
        jax.tree.map(lambda leaf: Tensor(leaf.shape, np.dtype(leaf.dtype), unread), tree)
    )


def initial(spec: Spec, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some parameters as they are before training, by their names in the reference."""
    tops = {meta.our_path(name)[0][0] for name in names}
    # Only what is asked for is returned, so that the compiler leaves out the rest.
    tree = jax.jit(lambda: {key: leaf for key, leaf in _init(spec).items() if key in tops})()
    tensors = meta.lazily_from_ours(jax.device_get(tree))
    return {name: tensors[name].read() for name in names}


def _init(spec: Spec) -> dict[str, Any]:
    pixels = jnp.zeros((1, spec.patch_size, spec.patch_size, spec.channels))
    return nn.meta.unbox(module(spec).init(jax.random.key(0), [pixels])["params"])
