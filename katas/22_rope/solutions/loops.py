"""Loops over pairs, features, heads and rows, with float32 angles."""

import torch
from torch import Tensor


def rope_tables(positions: Tensor, dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    if dim % 2 == 1:
        raise ValueError(f"dim must be even, not {dim}")
    cos = torch.empty(*positions.shape, dim // 2, dtype=torch.float32)
    sin = torch.empty_like(cos)
    for i in range(dim // 2):
        angle = positions.to(torch.float32) / float(base) ** (2 * i / dim)
        cos[..., i] = torch.cos(angle)
        sin[..., i] = torch.sin(angle)
    return cos, sin


def _turn(x: Tensor, cos: Tensor, sin: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    columns: list[Tensor] = [x] * x.shape[-1]
    for i, (first, second) in enumerate(pairs):
        a, b = x[..., first].double(), x[..., second].double()
        c, s = cos[..., i].double(), sin[..., i].double()
        if c.ndim == 2:
            c, s = c[:, None, :], s[:, None, :]
        columns[first] = a * c - b * s
        columns[second] = a * s + b * c
    return torch.stack(columns, dim=-1).to(x.dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return _turn(x, cos, sin, [(i, half + i) for i in range(half)])


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _turn(x, cos, sin, [(i, i + 1) for i in range(0, x.shape[-1], 2)])


def to_half_layout(weight: Tensor, num_heads: int) -> Tensor:
    size, rest = divmod(weight.shape[0], num_heads)
    if rest or size % 2:
        raise ValueError(f"{weight.shape[0]} rows for {num_heads} heads")
    rows = []
    for head in weight.split(size):
        rows += [head[i] for i in range(0, size, 2)]
        rows += [head[i] for i in range(1, size, 2)]
    return torch.stack(rows)
