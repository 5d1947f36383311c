"""NumPy tables and NumPy rows, and the rotation as a product with the swapped and negated half."""

import numpy as np
import torch
from torch import Tensor


def rope_tables(positions: Tensor, dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    if dim & 1:
        raise ValueError(f"odd dim: {dim}")
    rates = np.float32(1) / np.float32(base) ** (np.arange(0, dim, 2, dtype=np.float32) / dim)
    angles = positions.numpy().astype(np.float32)[..., None] * rates.astype(np.float32)
    return torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles))


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (torch.cat([table, table], dim=-1) for table in (cos, sin))
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    wide = x.float()
    a, b = wide.split(x.shape[-1] // 2, dim=-1)
    return (wide * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (table.repeat_interleave(2, dim=-1) for table in (cos, sin))
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    wide = x.float()
    swapped = torch.empty_like(wide)
    swapped[..., 0::2] = -wide[..., 1::2]
    swapped[..., 1::2] = wide[..., 0::2]
    return (wide * cos + swapped * sin).to(x.dtype)


def to_half_layout(weight: Tensor, num_heads: int) -> Tensor:
    count = weight.size(0)
    if count % num_heads != 0 or count // num_heads % 2 != 0:
        raise ValueError(f"{count} rows cannot be {num_heads} heads of even size")
    size = count // num_heads
    order = np.arange(size).reshape(-1, 2).T.ravel()
    rows = np.concatenate([head * size + order for head in range(num_heads)])
    return weight.index_select(0, torch.from_numpy(rows))
