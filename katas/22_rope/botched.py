"""Rotary position embedding, in both conventions, and the way from one to the other."""

import torch
from torch import Tensor


def rope_tables(positions: Tensor, dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Return the cosine and the sine of each angle, both float32 and (*positions.shape, dim // 2).

    Pair i of a token at position p is turned by p * base ** (-2 * i / dim). `positions` is an
    integer tensor of any shape. `ValueError` if `dim` is odd.

    Su et al., "RoFormer", section 3.2.2: https://arxiv.org/abs/2104.09864
    """
    if dim % 2:
        raise ValueError(f"features are turned in pairs, so dim may not be odd: {dim}")
    # In float64: of an angle of 100,000, float32 has no more than two digits after the point.
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    angles = positions[..., None].bfloat16() * base**-exponents
    return angles.cos().float(), angles.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` (B, H, T, D) with feature i turned together with feature i + D / 2; same dtype.

    `cos` and `sin` are (T, D / 2), or (B, T, D / 2) where sequences have positions of their own.
    This is the convention of GPT-NeoX, and of Llama in `transformers`.
    """
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(dim=-1)
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)  # the same for every head
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` (B, H, T, D) with feature 2i turned together with feature 2i + 1; same dtype.

    `cos` and `sin` are (T, D / 2), or (B, T, D / 2) where sequences have positions of their own.
    This is the convention of the paper, of GPT-J, and of Llama as it was published.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.complex(cos, sin).unsqueeze(-3)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def to_half_layout(weight: Tensor, num_heads: int) -> Tensor:
    """Return the rows of `weight` (H * D, E) in the order that `apply_rope` expects.

    `weight` projects to queries or keys for `apply_rope_interleaved`. `ValueError` if its rows do
    not make `num_heads` heads of an even size.

    With one head of six rows, the pairs (0, 1), (2, 3) and (4, 5) become (0, 3), (1, 4) and (2, 5):
    the rows of the result are 0, 2, 4, 1, 3, 5 of `weight`.
    """
    if len(weight) % (2 * num_heads):
        raise ValueError(f"{len(weight)} rows do not make {num_heads} heads of an even size")
    pairs = weight.unflatten(0, (num_heads, -1, 2))
    return torch.cat(pairs.unbind(dim=2), dim=1).flatten(0, 1)
