"""A small vision transformer for 32x32 images whose layers are residual blocks, an ODE or a coupled ODE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anodev2 import LowRank

from .blocks import BlockMaker, NormKind, check_images
from .layer_norm import layer_norm
from .pretrained import pretrainable


class TransformerBranch(nn.Module):
    """f(t, z) = a + MLP(LN(z + a)), a = attention(LN z): z + f(z) is a layer of a pre-norm transformer; z is (batch, tokens, features).

    Heads of 16 features; the MLP is four times as wide, with GELU between.
    """

    def __init__(self, features: int, norm: NormKind = "shared", steps: int = 1, time: bool = False) -> None:
        super().__init__()
        if time:
            raise ValueError("time=True needs a network of convolutions, which t can be a channel of")
        self.heads = features // 16
        self.norm1 = layer_norm(features, norm, steps)
        self.qkv = nn.Linear(features, 3 * features)
        self.out = nn.Linear(features, features)
        self.norm2 = layer_norm(features, norm, steps)
        self.widen = nn.Linear(features, 4 * features)
        self.narrow = nn.Linear(4 * features, features)

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        query, key, value = rearrange(self.qkv(self.norm1(z, step)), "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind()
        mixed = rearrange(F.scaled_dot_product_attention(query, key, value), "b h n d -> b n (h d)")
        attended = self.out(mixed)
        return attended + self.narrow(F.gelu(self.widen(self.norm2(z + attended, step))))


class Patches(nn.Module):
    """Images (batch, 3, 32, 32) to 64 tokens of 4x4 patches, projected, and a learned position added to each."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.project = nn.Linear(48, features)
        self.positions = nn.Parameter(0.02 * torch.randn(64, features))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, side=32)
        return self.project(rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4)) + self.positions


class MeanOfTokens(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.mean(1)


@pretrainable
def vit(num_classes: int = 10, *, features: int = 64, depth: int = 4, **block: Any) -> nn.Sequential:
    """Patches of 4x4, ``depth`` transformer layers of ``features``, LayerNorm, the mean of all tokens, linear.

    With block="residual" a stack, 207,946 parameters with 10 classes; else a single layer solved in as many ``steps`` where these are not
    given: 57,994 with block="ode" and norm="shared".

    Args:
        num_classes: outputs.
        features: of each token, a multiple of 16.
        depth: layers of the stack.
        **block: as for ``resnet4``, but for ``time``; ``dynamics=None`` is ``LowRank(4)``, since these weights are matrices.

    Maps (batch, 3, 32, 32) to (batch, num_classes).

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021 (arXiv 2010.11929).
    """
    if features % 16 or features < 16:
        raise ValueError(f"features={features} must be a positive multiple of 16, the size of a head")
    make = BlockMaker(**{"steps": depth, **block})
    if make.block == "coupled" and make.dynamics is None:
        make = replace(make, dynamics=LowRank(4))
    layers = [make(TransformerBranch, features) for _ in range(depth if make.block == "residual" else 1)]
    return nn.Sequential(Patches(features), *layers, nn.LayerNorm(features), MeanOfTokens(), nn.Linear(features, num_classes))
