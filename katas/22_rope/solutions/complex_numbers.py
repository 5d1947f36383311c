"""Complex numbers of unit length, and one multiplication."""

import math

import torch
from torch import Tensor


def rope_tables(positions: Tensor, dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    half, odd = divmod(dim, 2)
    if odd:
        raise ValueError(f"dim = {dim}")
    rates = [math.exp(-2 * i / dim * math.log(base)) for i in range(half)]
    angles = positions.double().unsqueeze(-1) * torch.tensor(rates, dtype=torch.float64)
    unit = torch.polar(torch.ones_like(angles), angles)
    return unit.real.float(), unit.imag.float()


def _tables(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, _, tokens, features = x.shape
    table = torch.complex(cos.contiguous(), sin.contiguous())
    return table.expand(batch, tokens, features // 2)[:, None]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.to(torch.float32).unflatten(-1, (2, x.shape[-1] // 2)).mT.contiguous()
    turned = torch.view_as_complex(pairs) * _tables(x, cos, sin)
    return torch.cat([turned.real, turned.imag], -1).type_as(x)


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.to(torch.float32).reshape(*x.shape[:-1], -1, 2).contiguous()
    turned = torch.view_as_complex(pairs) * _tables(x, cos, sin)
    return torch.view_as_real(turned).flatten(3).type_as(x)


def to_half_layout(weight: Tensor, num_heads: int) -> Tensor:
    rows, width = weight.shape
    if rows % num_heads or rows // num_heads % 2:
        raise ValueError(f"cannot make {num_heads} heads of {rows} rows")
    heads = weight.reshape(num_heads, rows // num_heads, width)
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], dim=1).reshape(rows, width)
