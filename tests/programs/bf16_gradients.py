"""How far gradients in bfloat16 compute are from those in float32, ours and PyTorch's.

    python -m tests.programs.bf16_gradients [--images 32]

prints a table, a row per parameter: |gradient in bfloat16 - in float32| / |in float32|, ours, that
of the same network in PyTorch with bfloat16 weights and activations, and their ratio. Networks
have the widths of a test and images of 224 pixels; gradients have both signs. `positions` are
single layers on 100,352 positions whose gradients have one sign.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.losses import blockwise
from dinojax.models.convnext import Conv, ConvNextSpec
from dinojax.models.heads import Head, HeadSpec
from dinojax.models.layers import Linear, Norm, spread
from dinojax.models.vit import VitSpec
from dinojax.models.zoo import module
from dinojax.weights import meta

HALF, FULL = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
Gradients = dict[str, np.ndarray]  # by name of the parameter
VIT = dict(width=64, depth=2, num_heads=2, channels=3)
SPECS: dict[str, Any] = {
    "vit": VitSpec(**VIT, num_registers=4, untie_cls_norm=True),
    "vit, gated": VitSpec(**VIT, ffn="swiglu64", mask_k_bias=True),
    "vit, learned": VitSpec(**VIT, ffn="swiglu_fused", position="learned", norm="layernorm_1e5"),
    "convnext": ConvNextSpec((1, 1, 2, 1), (16, 32, 64, 128)),
}
HEAD = HeadSpec(inputs=64, num_layers=3, hidden=64, bottleneck=32, prototypes=96)
TEMPERATURE = 0.1


def flat(tree: Any) -> Gradients:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    simple = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    return {simple(path): np.asarray(leaf, np.float32) for path, leaf in leaves}


def errors(found: Gradients, want: Gradients) -> dict[str, float]:
    """Of each parameter that has a gradient: length of the difference over that of the gradient."""
    size = {name: float(np.linalg.norm(x)) for name, x in want.items()}
    largest = max(size.values())
    return {
        name: float(np.linalg.norm(found[name] - x)) / size[name]
        for name, x in want.items()
        if size[name] > 1e-6 * largest
    }


def numbers(shapes: Any, seed: int = 0) -> Any:
    """Parameters from numpy, far from any special value."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        scales = {"scale": 1.0, "scale1": 0.3, "scale2": 0.3}
        offset, width = scales.get(path[-1].key, 0.0), 0.02 if path[-1].key == "bias" else 0.1
        return (offset + width * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, nn.meta.unbox(shapes))


class Network:
    """A backbone, gradients of the product of its tokens with fixed numbers; a ViT has masks."""

    def __init__(self, spec: Any, images: int, side: int):
        self.spec = dataclasses.replace(spec, **({"position_size": side} if _learned(spec) else {}))
        rng = np.random.default_rng(1)
        self.images = rng.normal(size=(images, side, side, 3)).astype(np.float32)
        rows, columns = self.spec.grid(side, side)
        mask = rng.random((images, rows * columns)) < 0.3
        self.mask = mask if isinstance(spec, VitSpec) else None
        tokens = (images, 1 + spec.num_registers + rows * columns, spec.width)
        self.pull = rng.normal(size=tokens).astype(np.float32)
        shapes = jax.eval_shape(module(self.spec).init, jax.random.key(0), [self.images[:1]])
        self.params = numbers(shapes["params"])

    def ours(self, dtype) -> Gradients:
        net = module(dataclasses.replace(self.spec, dtype=dtype))
        masks = [None if self.mask is None else jnp.asarray(self.mask)]

        def loss(params, images, masks, pull):
            found = net.apply({"params": params}, [images], masks)[0]
            tokens = [found.cls[:, None], found.registers, found.patches]
            return jnp.sum(jnp.concatenate(tokens, axis=1).astype(jnp.float32) * pull)

        return flat(jax.jit(jax.grad(loss))(self.params, self.images, masks, self.pull))

    def theirs(self, dtype) -> Gradients:
        import torch

        from dinojax.weights.torch_convnext import TorchConvNext
        from dinojax.weights.torch_vit import TorchVit

        kind = torch.bfloat16 if dtype == HALF else torch.float32
        net = TorchVit(self.spec) if self.mask is not None else TorchConvNext(self.spec)
        stored = meta.from_ours(self.params)
        own = {
            name: torch.from_numpy(np.array(stored[name]))
            for name in net.state_dict()
            if name in stored
        }
        net.load_state_dict(own, strict=False)
        if isinstance(self.spec, VitSpec):
            _tell_periods(net, self.spec)
        net = net.to(kind)
        if self.mask is not None:
            mask = torch.from_numpy(self.mask)
            _mask_patches(net, mask)
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2).to(kind)
        (net(images).float() * torch.from_numpy(self.pull)).sum().backward()
        grads = {n: p.grad.float().numpy() for n, p in net.named_parameters() if p.grad is not None}
        heads = getattr(self.spec, "num_heads", None)
        return flat(meta.to_ours(grads, num_heads=heads))


def _learned(spec: Any) -> bool:
    return isinstance(spec, VitSpec) and spec.position == "learned"


def _tell_periods(net, spec: VitSpec) -> None:
    """Periods as in our tables, and sines in the dtype of tokens, as the reference has them."""
    import torch

    from dinojax.models import rope

    if spec.position != "rope":
        return
    periods = np.asarray(rope.periods(spec.head_width, spec.rope))
    found = net.rope_embed
    forward = found.forward
    found.register_buffer("periods", None)
    held = torch.from_numpy(periods.copy())

    def in_dtype(rows, columns):
        found.periods = held
        return [x.to(net.cls_token.dtype) for x in forward(rows, columns)]

    found.forward = in_dtype


def _mask_patches(net, mask) -> None:
    import torch

    def hide(_, __, out):
        grid = mask.reshape(len(mask), 1, *out.shape[-2:])
        return torch.where(grid, net.mask_token.reshape(1, -1, 1, 1), out)

    net.patch_embed.register_forward_hook(hide)


class HeadAndLoss:
    """A head and the cross-entropy with targets that a teacher's softmax makes."""

    def __init__(self, rows: int, *, prototype_norm: str = "none"):
        self.spec = dataclasses.replace(HEAD, prototype_norm=prototype_norm)
        rng = np.random.default_rng(1)
        self.tokens = rng.normal(size=(rows, 1, HEAD.inputs)).astype(np.float32)
        self.taught = rng.normal(size=(rows, 1, HEAD.bottleneck)).astype(np.float32)
        self.taught /= np.linalg.norm(self.taught, axis=-1, keepdims=True)
        self.kernel = rng.normal(size=(HEAD.bottleneck, HEAD.prototypes)).astype(np.float32)
        shapes = jax.eval_shape(Head(self.spec).init, jax.random.key(0), self.tokens[:1])
        self.params = numbers(shapes["params"])

    def ours(self, dtype) -> Gradients:
        head = Head(dataclasses.replace(self.spec, dtype=dtype))
        given = (jnp.asarray(x, HALF).astype(dtype) for x in (self.taught, self.kernel))
        center_K = jnp.zeros(HEAD.prototypes)
        targets = blockwise.softmax_factors(*given, TEMPERATURE, center_K=center_K)

        def loss(params, tokens, targets):
            run = lambda method, *x: head.apply({"params": params}, *x, method=method)  # noqa: E731
            rows, kernel = run(Head.bottleneck, tokens), run(Head.kernel)
            return jnp.mean(blockwise.cross_entropy(rows, kernel, targets, TEMPERATURE)[0])

        return flat(jax.jit(jax.grad(loss))(self.params, self.tokens, targets))

    def theirs(self, dtype) -> Gradients:
        import torch
        from torch.nn import functional

        kind = torch.bfloat16 if dtype == HALF else torch.float32
        leaves = {n: torch.from_numpy(x).to(kind) for n, x in flat(self.params).items()}
        leaves = {n: x.requires_grad_() for n, x in leaves.items()}
        x = torch.from_numpy(self.tokens[:, 0]).to(kind)
        for i in range(HEAD.num_layers):
            x = x if i == 0 else functional.gelu(x)
            x = x @ leaves[f"layer{i}/kernel"] + leaves[f"layer{i}/bias"]
        kernel = leaves["prototypes/kernel"]
        if self.spec.prototype_norm != "none":
            kernel = functional.normalize(kernel, dim=0)
        scores = functional.normalize(x, dim=-1) @ kernel
        half = (torch.from_numpy(y).bfloat16().to(kind) for y in (self.taught[:, 0], self.kernel))
        taught, theirs = half
        targets = ((taught @ theirs).float() / TEMPERATURE).softmax(-1)
        logs = (scores.float() / TEMPERATURE).log_softmax(-1)
        (-(targets * logs).sum(-1).mean()).backward()
        return {n: y.grad.float().numpy() for n, y in leaves.items()}


class Positions:
    """Single layers whose gradients have one sign, at images x 56 x 56 positions."""

    def __init__(self, images: int, *, side: int = 56, width: int = 16):
        rng = np.random.default_rng(1)
        shape = (images, side, side)
        self.images = rng.normal(size=(images, 4 * side, 4 * side, 3)).astype(np.float32)
        self.x = (1.0 + rng.normal(size=(*shape, width))).astype(np.float32)
        self.pull = rng.uniform(0.5, 1.5, size=(*shape, width)).astype(np.float32)
        self.mask = rng.random((*shape, 1)) < 0.5
        normal = lambda *sizes: (0.1 * rng.normal(size=sizes)).astype(np.float32)  # noqa: E731
        self.params = {
            "conv": {"kernel": normal(4, 4, 3, width), "bias": normal(width)},
            "linear": {"kernel": normal(width, width), "bias": normal(width)},
            "norm": {"scale": 1 + normal(width), "bias": normal(width)},
            "layer_scale": normal(width),
            "token": normal(width),
            "table": normal(side, side, width),
        }

    def ours(self, dtype) -> Gradients:
        width = self.x.shape[-1]
        conv = Conv(4, 3, width, dtype, stride=4)
        linear, norm = Linear((width, width), (None, None), dtype), Norm("layernorm", dtype)

        def loss(params, images, x, mask, pull):
            made = [
                conv.apply({"params": params["conv"]}, images),
                linear.apply({"params": params["linear"]}, x),
                norm.apply({"params": params["norm"]}, x),
                x * spread(params["layer_scale"], x),
                jnp.where(mask, spread(params["token"], x), x),
                x + spread(params["table"], x),
            ]
            return sum(jnp.sum(y.astype(jnp.float32) * pull) for y in made)

        given = self.images, jnp.asarray(self.x, dtype), self.mask, self.pull
        return flat(jax.jit(jax.grad(loss))(self.params, *given))

    def theirs(self, dtype) -> Gradients:
        import torch
        from torch.nn import functional

        kind = torch.bfloat16 if dtype == HALF else torch.float32
        leaves = {n: torch.from_numpy(x).to(kind) for n, x in flat(self.params).items()}
        leaves = {n: x.requires_grad_() for n, x in leaves.items()}
        x, pull = torch.from_numpy(self.x).to(kind), torch.from_numpy(self.pull)
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2).to(kind)
        kernel = leaves["conv/kernel"].permute(3, 2, 0, 1)
        shape = (x.shape[-1],)
        made = [
            functional.conv2d(images, kernel, leaves["conv/bias"], 4).permute(0, 2, 3, 1),
            functional.linear(x, leaves["linear/kernel"].T, leaves["linear/bias"]),
            functional.layer_norm(x, shape, leaves["norm/scale"], leaves["norm/bias"], 1e-6),
            x * leaves["layer_scale"],
            torch.where(torch.from_numpy(self.mask), leaves["token"], x),
            x + leaves["table"],
        ]
        sum((y.float() * pull).sum() for y in made).backward()
        return {n: y.grad.float().numpy() for n, y in leaves.items()}


def cases(images: int, side: int = 224, positions: int = 32) -> dict[str, Callable[[], Any]]:
    """What is compared, by name; images of `side` pixels, `positions` images of 56 x 56 places."""
    networks = {
        name: lambda spec=spec: Network(spec, images, side)  # type: ignore[misc]
        for name, spec in SPECS.items()
    }
    rows = images * (1 + (side // 16) ** 2)
    heads = {
        f"head and loss, {norm}": lambda norm=norm: HeadAndLoss(rows, prototype_norm=norm)  # type: ignore[misc]
        for norm in ("none", "unit")
    }
    return {**networks, **heads, "positions": lambda: Positions(positions)}


def table(images: int) -> list[tuple[str, str, float, float]]:
    """(case, parameter, our error, PyTorch's) of every parameter."""
    rows = []
    for case, make in cases(images).items():
        one = make()
        want = one.ours(FULL)
        ours, theirs = errors(one.ours(HALF), want), errors(one.theirs(HALF), one.theirs(FULL))
        rows += [(case, name, ours[name], theirs[name]) for name in ours]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    rows = table(parser.parse_args().images)
    print("| network | parameter | dinojax | PyTorch | ratio |\n|---|---|---|---|---|")
    for case, name, ours, theirs in rows:
        print(f"| {case} | `{name}` | {ours:.4f} | {theirs:.4f} | {ours / theirs:.2f} |")
    print(f"\nlargest ratio {max(ours / theirs for _, _, ours, theirs in rows):.2f}")


if __name__ == "__main__":
    main()
