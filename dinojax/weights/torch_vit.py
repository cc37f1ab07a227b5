"""The forward pass of DINOv3's and DINOv2's ViT in PyTorch, with the reference's parameter names.

It exists to read an export back in PyTorch and compare; it is written from the descriptions in
arXiv:2508.10104 and arXiv:2304.07193 and shares nothing with our JAX code. Import it only where
torch is installed.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from dinojax.models.layers import NORMS, ffn_width
from dinojax.models.vit import VitSpec


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def make_norm(spec: VitSpec) -> nn.Module:
    centred, eps = NORMS[spec.norm]
    return nn.LayerNorm(spec.width, eps=eps) if centred else RmsNorm(spec.width, eps)


class Qkv(nn.Linear):
    """A linear map to q, k and v whose bias may be masked."""

    def __init__(self, spec: VitSpec):
        super().__init__(spec.width, 3 * spec.width, bias=spec.qkv_bias)
        self.bias_mask: torch.Tensor | None = None
        if spec.qkv_bias and spec.mask_k_bias:
            del self.bias_mask
            self.register_buffer("bias_mask", torch.ones(3 * spec.width))

    def forward(self, x):
        bias = self.bias if self.bias_mask is None else self.bias * self.bias_mask
        return functional.linear(x, self.weight, bias)


class Attention(nn.Module):
    def __init__(self, spec: VitSpec):
        super().__init__()
        self.heads = spec.num_heads
        self.qkv = Qkv(spec)
        self.proj = nn.Linear(spec.width, spec.width, bias=spec.proj_bias)

    def forward(self, x, sin, cos):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if sin is not None:
            q, k = rotate(q, sin, cos), rotate(k, sin, cos)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        y = scores.softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


def rotate(x, sin, cos):
    prefix, patches = x[:, :, : -len(sin)], x[:, :, -len(sin) :]
    first, second = patches.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return torch.cat([prefix, patches * cos + turned * sin], dim=2)


class Mlp(nn.Module):
    w1: nn.Linear
    w2: nn.Linear
    w3: nn.Linear
    w12: nn.Linear
    fc1: nn.Linear
    fc2: nn.Linear

    def __init__(self, spec: VitSpec):
        super().__init__()
        hidden = ffn_width(spec.ffn, spec.width, spec.ffn_ratio)
        self.kind = {"mlp": "mlp", "swiglu_fused": "fused"}.get(spec.ffn, "gated")
        for name in {"mlp": ("fc1", "fc2"), "fused": ("w12", "w3")}.get(
            self.kind, ("w1", "w2", "w3")
        ):
            last, both = name in ("w3", "fc2"), 2 if name == "w12" else 1
            sizes = (hidden, spec.width) if last else (spec.width, both * hidden)
            setattr(self, name, nn.Linear(*sizes, bias=spec.ffn_bias))

    def forward(self, x):
        if self.kind == "mlp":
            return self.fc2(functional.gelu(self.fc1(x)))
        if self.kind == "fused":
            gate, value = self.w12(x).chunk(2, dim=-1)
        else:
            gate, value = self.w1(x), self.w2(x)
        return self.w3(functional.silu(gate) * value)


class Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, spec: VitSpec):
        super().__init__()
        self.norm1, self.norm2 = make_norm(spec), make_norm(spec)
        self.attn, self.mlp = Attention(spec), Mlp(spec)
        scales = [Scale(spec.width) if spec.layer_scale else nn.Identity() for _ in range(2)]
        self.ls1, self.ls2 = scales

    def forward(self, x, sin, cos):
        x = x + self.ls1(self.attn(self.norm1(x), sin, cos))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, spec: VitSpec):
        super().__init__()
        self.proj = nn.Conv2d(spec.channels, spec.width, spec.patch_size, spec.patch_size)

    def forward(self, x):
        return self.proj(x)


class Rope(nn.Module):
    """Sine and cosine of every patch; the periods come from the file."""

    periods: torch.Tensor

    def __init__(self, spec: VitSpec):
        super().__init__()
        self.coords = spec.rope.coords
        self.register_buffer("periods", torch.ones(spec.head_width // 4))

    def forward(self, rows: int, columns: int):
        largest, smallest = max(rows, columns), min(rows, columns)
        sides = {"separate": (rows, columns), "max": (largest,) * 2, "min": (smallest,) * 2}
        places = [
            (torch.arange(count) + 0.5) / side * 2 - 1
            for count, side in zip((rows, columns), sides[self.coords], strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).reshape(-1, 2)
        angles = (2 * math.pi * grid[:, :, None] / self.periods).flatten(1)
        angles = angles.repeat(1, 2)
        return angles.sin(), angles.cos()


class TorchVit(nn.Module):
    """images [B, C, H, W] -> tokens [B, 1 + R + P, D] after the final norm."""

    def __init__(self, spec: VitSpec):
        super().__init__()
        self.spec = spec
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.mask_token = nn.Parameter(torch.zeros(1, spec.width))
        self.learned = spec.position == "learned"
        self.registers = "register_tokens" if self.learned else "storage_tokens"
        if spec.num_registers:
            tokens = nn.Parameter(torch.zeros(1, spec.num_registers, spec.width))
            self.register_parameter(self.registers, tokens)
        self.patch_embed = PatchEmbed(spec)
        if self.learned:
            side = spec.position_size // spec.patch_size
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, spec.width))
        else:
            self.rope_embed = Rope(spec)
        self.blocks = nn.ModuleList([Block(spec) for _ in range(spec.depth)])
        self.norm = make_norm(spec)
        if spec.untie_cls_norm:
            self.cls_norm = make_norm(spec)
        if spec.untie_local_cls_norm:
            self.local_cls_norm = make_norm(spec)

    def forward(self, images):
        x = self.patch_embed(images)
        grid, square = x.shape[-2:], images.shape[-2] == images.shape[-1]
        x, cls, sin, cos = x.flatten(2).transpose(1, 2), self.cls_token, None, None
        if self.learned:
            x, cls = x + self.positions(grid, square), cls + self.pos_embed[:, :1]
        else:
            sin, cos = self.rope_embed(*grid)
        prefix = [cls] + ([getattr(self, self.registers)] if self.spec.num_registers else [])
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
        for block in self.blocks:
            x = block(x, sin, cos)
        if not self.spec.untie_cls_norm:
            return self.norm(x)
        count = 1 + self.spec.num_registers
        return torch.cat([self.cls_norm(x[:, :count]), self.norm(x[:, count:])], dim=1)

    def positions(self, grid, square: bool):
        """Learned positions [1, P, D] of a grid; the table's own where it fits a square image."""
        spec, patches = self.spec, self.pos_embed[:, 1:]
        side = math.isqrt(patches.shape[1])
        if square and grid[0] * grid[1] == patches.shape[1]:
            return patches
        offset = spec.position_offset
        factors = [(count + offset) / side for count in grid]
        found = functional.interpolate(
            patches.reshape(1, side, side, -1).permute(0, 3, 1, 2),
            size=None if offset else tuple(grid),
            scale_factor=factors if offset else None,
            mode="bicubic",
            antialias=spec.position_antialias,
        )
        return found.flatten(2).transpose(1, 2)
