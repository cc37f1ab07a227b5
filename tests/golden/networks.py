"""Replays of recorded backbones, RoPE tables and projection heads."""

import dataclasses
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models import rope
from dinojax.models.convnext import ConvNext, ConvNextSpec
from dinojax.models.heads import Head, HeadSpec
from dinojax.models.rope import RopeDraw, RopeSpec
from dinojax.models.vit import Draws, Vit, VitSpec, num_kept
from dinojax.weights import meta
from tests.golden.record import Check, Record

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp64": "float64"}
NORMS = {"layernorm": "layernorm", "layernormbf16": "layernorm_1e5", "rmsnorm": "rmsnorm"}
OUTPUTS = {
    "x_norm_clstoken": "cls",
    "x_storage_tokens": "registers",
    "x_norm_patchtokens": "patches",
    "x_prenorm": "prenorm",
}


def vit_spec(cfg: dict, *, num_heads: int, dtype, rope_dtype: str | None = None) -> VitSpec:
    """Our spec from a recorded configuration of a backbone, in the reference's words."""
    return VitSpec(
        width=cfg["embed_dim"],
        depth=cfg["depth"],
        num_heads=num_heads,
        ffn=cfg["ffn_layer"],
        ffn_ratio=cfg["ffn_ratio"],
        qkv_bias=cfg["qkv_bias"],
        proj_bias=cfg["proj_bias"],
        ffn_bias=cfg["ffn_bias"],
        mask_k_bias=cfg["mask_k_bias"],
        patch_size=cfg["patch_size"],
        channels=cfg["in_chans"],
        num_registers=cfg["n_storage_tokens"],
        norm=NORMS[cfg["norm_layer"]],
        layer_scale=cfg["layerscale_init"],
        drop_path=cfg["drop_path_rate"],
        untie_cls_norm=cfg["untie_cls_and_patch_norms"],
        untie_local_cls_norm=cfg["untie_global_and_local_cls_norm"],
        rope=RopeSpec(
            base=cfg["pos_embed_rope_base"],
            min_period=cfg["pos_embed_rope_min_period"],
            max_period=cfg["pos_embed_rope_max_period"],
            coords=cfg["pos_embed_rope_normalize_coords"],
            dtype=rope_dtype or DTYPES[cfg["pos_embed_rope_dtype"]],
        ),
        dtype=jnp.dtype(dtype),
    )


def params_of(record: Record, prefix: str, *, num_heads: int | None, dtype) -> dict:
    """A part of our tree from the recorded tensors under a prefix."""
    tensors = {name: record[prefix + name] for name in record.under(prefix)}
    tree = meta.to_ours(tensors, num_heads=num_heads)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, dtype)), tree)


def images(record: Record, name: str, dtype) -> jax.Array:
    """[B, C, H, W] as recorded -> [B, H, W, C]."""
    return jnp.asarray(record[name].transpose(0, 2, 3, 1), dtype)


def replay_vit(record: Record) -> Iterator[Check]:
    """Every `out.../` of a vit_* file, in the precision its prefix names."""
    for prefix in sorted({name.split("/")[0] for name in record.under("out") if "/" in name}):
        wide = prefix.startswith("64")
        with jax.enable_x64(wide):
            yield from _replay_vit(record, "out" + prefix, np.float64 if wide else np.float32)


def _replay_vit(record: Record, prefix: str, dtype) -> Iterator[Check]:
    cfg = record.meta["cfg"]
    spec = vit_spec(
        cfg,
        num_heads=cfg["num_heads"],
        dtype=dtype,
        rope_dtype="float64" if dtype == np.float64 else None,
    )
    if "fp32rope" in prefix:
        spec = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, dtype="float32"))
    if "bf16periods" in prefix:
        rounded = dataclasses.replace(spec.rope, periods_dtype="bfloat16")
        spec = dataclasses.replace(spec, rope=rounded)
    params = params_of(record, "w/", num_heads=spec.num_heads, dtype=dtype)
    vit, variables = Vit(spec), {"params": params}
    if dtype == np.float64 and "periods64" in record:
        yield record.check("periods64", rope.periods(spec.head_width, spec.rope))
    if "in/x_global" in record:
        yield from _lists(record, prefix, vit, variables, dtype)
    elif record.under(f"{prefix}/n1/"):
        yield from _intermediate(record, prefix, vit, variables, dtype)
    else:
        x = images(record, "in/x", dtype)
        masks = [jnp.asarray(record["in/masks"])] if "in/masks" in record else None
        draws = [_subsets(record, spec, len(x))] if "in/perms" in record else None
        found = jax.jit(lambda v: vit.apply(v, [x], masks, draws, train=bool(draws)))(variables)
        yield from _features(record, prefix, found[0])


def _features(record: Record, prefix: str, found) -> Iterator[Check]:
    for theirs, ours in OUTPUTS.items():
        yield record.check(f"{prefix}/{theirs}", getattr(found, ours))


def _subsets(record: Record, spec: VitSpec, num: int) -> Draws:
    """Recorded permutations (attention, MLP of block 0, attention, ...) as one group's draws."""
    kept = record["in/perms"][:, : num_kept(num, spec.drop_path)]
    return Draws(jnp.asarray(kept.reshape(spec.depth, 1, 2, -1), jnp.int32), None)


def _lists(record: Record, prefix: str, vit: Vit, variables, dtype) -> Iterator[Check]:
    """Global and local crops together, in training and evaluation mode."""
    sets = [images(record, f"in/x_{name}", dtype) for name in ("global", "local")]
    masks = [jnp.asarray(record["in/masks"]), None]
    for mode in sorted({name.split("/")[0] for name in record.under(f"{prefix}/")}):
        train = mode == "train"
        found = jax.jit(lambda v, t=train: vit.apply(v, sets, masks, train=t))(variables)
        for name, features in zip(("global", "local"), found, strict=True):
            yield from _features(record, f"{prefix}/{mode}/{name}", features)


def _intermediate(record: Record, prefix: str, vit: Vit, variables, dtype) -> Iterator[Check]:
    x = images(record, "in/x", dtype)
    grid = vit.spec.grid(*x.shape[1:3])
    cases: dict[str, set[int]] = {}
    for name in record.under(f"{prefix}/"):
        case, number, _ = re.fullmatch(r"(.+)/(\d+)/(\w+)", name).groups()  # type: ignore[union-attr]
        cases.setdefault(case, set()).add(int(number))
    for case, numbers in cases.items():
        layers, reshape, norm = re.fullmatch(r"(\w+)/reshape(\d)/norm(\d)", case).groups()  # type: ignore[union-attr]
        wanted = int(layers[1:]) if layers[0] == "n" else [int(n) for n in layers[1:].split("_")]
        found = jax.jit(
            lambda v, n=wanted, norm=norm: vit.apply(
                v, x, n, norm=norm == "1", method=Vit.intermediate
            )
        )(variables)
        if len(found) != len(numbers):
            raise ValueError(f"{case}: {len(found)} layers instead of {len(numbers)}")
        for number, features in enumerate(found):
            patches = np.asarray(features.patches)
            if reshape == "1":
                patches = patches.reshape(len(patches), *grid, -1).transpose(0, 3, 1, 2)
            ours = {"patch": patches, "cls": features.cls, "extra": features.registers}
            for part, value in ours.items():
                if f"{prefix}/{case}/{number}/{part}" in record:
                    yield record.check(f"{prefix}/{case}/{number}/{part}", value)


def replay_convnext(record: Record) -> Iterator[Check]:
    """Features of each input, and of the stages of the first one, in both precisions."""
    for mark, dtype in (("", np.float32), ("64", np.float64)):
        with jax.enable_x64(mark == "64"):
            cfg = record.meta["cfg"]
            spec = ConvNextSpec(
                depths=tuple(cfg["depths"]),
                widths=tuple(cfg["dims"]),
                channels=cfg["in_chans"],
                layer_scale=cfg["layer_scale_init_value"],
                drop_path=cfg["drop_path_rate"],
                dtype=jnp.dtype(dtype),
            )
            net = ConvNext(spec)
            variables = {"params": params_of(record, "w/", num_heads=None, dtype=dtype)}
            for name in record.under("in/"):
                x = images(record, f"in/{name}", dtype)
                found = jax.jit(lambda v, x=x, net=net: net.apply(v, [x]))(variables)
                yield from _features(record, f"out{mark}/{name}", found[0])
            yield from _stages(record, f"gil{mark}", net, variables)


def _stages(record: Record, prefix: str, net: ConvNext, variables) -> Iterator[Check]:
    dtype = net.spec.dtype
    x = images(record, "in/xa", dtype)
    cases = {tuple(name.split("/")[:4]) for name in record.under(f"{prefix}/")}
    run = jax.jit(
        lambda v, layers, norm, patch_size: net.apply(
            v, x, layers, norm=norm, patch_size=patch_size, method=ConvNext.intermediate
        ),
        static_argnums=(1, 2, 3),
    )
    for resize, layers, reshape, norm in sorted(cases):
        folder = f"{prefix}/{resize}/{layers}/{reshape}/{norm}"
        size = None if resize == "psNone" else int(resize.removeprefix("ps"))
        wanted = int(layers[1:]) if layers[0] == "n" else tuple(map(int, layers[1:].split("_")))
        for number, features in enumerate(run(variables, wanted, norm == "norm1", size)):
            patches = np.asarray(features.patches)
            recorded = record[f"{folder}/{number}/patch"]
            if reshape == "reshape1":
                shape = (len(patches), *recorded.shape[2:], patches.shape[-1])
                patches = patches.reshape(shape).transpose(0, 3, 1, 2)
            yield record.check(f"{folder}/{number}/patch", patches)
            yield record.check(f"{folder}/{number}/cls", features.cls)


def replay_rope(record: Record) -> Iterator[Check]:
    """Tables of sines and cosines, with and without changes of the coordinates."""
    for name in record.under(""):
        parts = name.split("/")
        dtype = parts[1] if parts[0] == "aug" else parts[0]
        with jax.enable_x64(dtype == "fp64"):
            yield from _replay_rope(record, name, parts, DTYPES[dtype])


def _replay_rope(record: Record, name: str, parts: list[str], dtype: str) -> Iterator[Check]:
    head_width, base = record.meta["D_head"], record.meta["base"]
    if parts[1].startswith("periods"):
        spec = RopeSpec(base=base, dtype=dtype)
        if ends := re.fullmatch(r"periods_min([\d.]+)_max([\d.]+)", parts[1]):
            low, high = map(float, ends.groups())
            spec = RopeSpec(base=None, min_period=low, max_period=high, dtype=dtype)
        yield record.check(name, rope.periods(head_width, spec))
    if parts[-1] != "sin":
        return  # draws are inputs; the cosine is checked with the sine
    folder = name.removesuffix("sin")
    if parts[0] == "aug":
        spec, grid = RopeSpec(base=base, dtype=dtype), (3, 5)
    else:
        spec = RopeSpec(base=base, coords=parts[1], dtype=dtype)
        rows, columns = parts[2].split("x")
        grid = int(rows), int(columns)
    coords = rope.coordinates(*grid, spec)
    if parts[0] == "aug":
        coords = rope.move(coords, _draw(parts[2], record[f"{folder}draws"]), spec)
    sin, cos = rope.table(coords, rope.periods(head_width, spec), spec)
    yield record.check(f"{folder}sin", sin)
    yield record.check(f"{folder}cos", cos)


def _draw(kind: str, draws: np.ndarray) -> RopeDraw:
    """The recorded numbers of one kind of change, or of all three in their order."""
    sizes = {"shift": 2, "jitter": 2, "rescale": 1}
    found, at = {}, 0
    for name, size in sizes.items():
        if kind in (name, "all"):
            found[name] = jnp.asarray(draws[at : at + size])
            at += size
        else:
            found[name] = jnp.zeros(size, draws.dtype)
    return RopeDraw(**found)


def replay_head(record: Record) -> Iterator[Check]:
    """Logits, the two halves, and gradients for a recorded cotangent."""
    cfg = record.meta["cfg"]
    for mark, dtype in (("", np.float32), ("64", np.float64)):
        with jax.enable_x64(mark == "64"):
            spec = HeadSpec(
                inputs=cfg["in_dim"],
                num_layers=cfg["nlayers"],
                hidden=cfg["hidden_dim"],
                bottleneck=cfg["bottleneck_dim"],
                prototypes=cfg["out_dim"],
                bias=cfg["mlp_bias"],
                dtype=jnp.dtype(dtype),
            )
            head = Head(spec)
            params = params_of(record, "w/", num_heads=None, dtype=dtype)
            x, cotangent = (jnp.asarray(record[f"in/{n}"], dtype) for n in ("x", "grad_out"))
            half = head.apply({"params": params}, x, method=Head.bottleneck)
            yield record.check(f"out{mark}/bottleneck_normalized", half)
            last = head.apply({"params": params}, half, method=Head.logits)
            yield record.check(f"out{mark}/only_last_layer_of_bottleneck", last)
            logits, pull = jax.vjp(lambda p, x, h=head: h.apply({"params": p}, x), params, x)
            yield record.check(f"out{mark}/logits", logits)
            grads, grad_x = pull(cotangent)
            yield record.check(f"grad{mark}/x", grad_x)
            for name, grad in meta.from_ours(grads).items():
                yield record.check(f"grad{mark}/w/{name}", grad)
