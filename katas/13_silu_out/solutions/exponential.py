"""The exponential, and each result made whole before it is copied."""

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_functional(x: Tensor) -> Tensor:
    return F.silu(x)


def silu(x: Tensor, out: Tensor) -> None:
    out[...] = x / (1 + torch.exp(-x))


def copy_into(x: Tensor, out: Tensor) -> None:
    out[...] = x


def clamp_add(x: Tensor, y: Tensor, lo: float, hi: float, out: Tensor) -> None:
    total = x + y
    total = torch.where(total < lo, lo, total)
    out[...] = torch.where(total > hi, hi, total)
