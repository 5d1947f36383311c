"""NumPy in float64, copied back."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def silu_functional(x: Tensor) -> Tensor:
    return F.silu(x, inplace=False)


def silu(x: Tensor, out: Tensor) -> None:
    a = x.double().numpy()
    with np.errstate(over="ignore"):
        result = np.asarray(a / (1 + np.exp(-a)))
    out.copy_(torch.from_numpy(result))


def copy_into(x: Tensor, out: Tensor) -> None:
    out.copy_(x.clone())


def clamp_add(x: Tensor, y: Tensor, lo: float, hi: float, out: Tensor) -> None:
    with np.errstate(over="ignore"):
        total = x.double().numpy() + y.double().numpy()
    out.copy_(torch.from_numpy(np.asarray(np.clip(total, lo, hi))))
