"""Results written where the caller says: SiLU, a copy, and a clamped sum."""

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_functional(x: Tensor) -> Tensor:
    """Return `x * sigmoid(x)`, by PyTorch's operator; same shape and dtype.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.silu.html
    """
    return F.silu(x)


def silu(x: Tensor, out: Tensor) -> None:
    """Write `x * sigmoid(x)` into `out`, a tensor of the shape and dtype of `x`.

    Hendrycks and Gimpel, "Gaussian error linear units", 2016, https://arxiv.org/abs/1606.08415
    """
    out = torch.sigmoid(x)
    out *= x


def copy_into(x: Tensor, out: Tensor) -> None:
    """Write `x` into `out`, a tensor of the shape and dtype of `x`."""
    out.copy_(x)


def clamp_add(x: Tensor, y: Tensor, lo: float, hi: float, out: Tensor) -> None:
    """Write `x + y`, no less than `lo` and no more than `hi`, into `out`.

    The three tensors share one shape and dtype; `lo` is at most `hi`.
    """
    torch.add(x, y, out=out)
    out.clamp_(lo, hi)
