"""The forward pass of DINOv3's ConvNeXt in PyTorch, with the reference's parameter names.

It exists to read an export back in PyTorch and compare; it is written from the description in
arXiv:2201.03545 and arXiv:2508.10104 and shares nothing with our JAX code. Import it only where
torch is installed.
"""

import torch
from torch import nn
from torch.nn import functional

from dinojax.models.convnext import NUM_STAGES, ConvNextSpec

EPS = 1e-6


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map [B, D, H, W]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, spec: ConvNextSpec, width: int):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width)) if spec.layer_scale else None

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(functional.gelu(self.pwconv1(y)))
        y = y if self.gamma is None else y * self.gamma
        return x + y.permute(0, 3, 1, 2)


def downsample(spec: ConvNextSpec, stage: int) -> nn.Sequential:
    width = spec.widths[stage]
    if stage == 0:
        return nn.Sequential(nn.Conv2d(spec.channels, width, 4, 4), MapNorm(width, eps=EPS))
    before = spec.widths[stage - 1]
    return nn.Sequential(MapNorm(before, eps=EPS), nn.Conv2d(before, width, 2, 2))


class TorchConvNext(nn.Module):
    """images [B, C, H, W] -> tokens [B, 1 + P, D] after the final norm."""

    def __init__(self, spec: ConvNextSpec):
        super().__init__()
        self.downsample_layers = nn.ModuleList([downsample(spec, s) for s in range(NUM_STAGES)])
        self.stages = nn.ModuleList(
            [
                nn.Sequential(*[Block(spec, width) for _ in range(depth)])
                for depth, width in zip(spec.depths, spec.widths, strict=True)
            ]
        )
        self.norm = nn.LayerNorm(spec.width, eps=EPS)
        # Its second name in the reference; both hold the same tensors.
        self.norms = nn.ModuleList([nn.Identity() for _ in range(3)] + [self.norm])

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        patches = x.flatten(2).transpose(1, 2)
        return self.norm(torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1))
