"""How many entries of a matrix equal a number: in all, and row by row, into a given tensor."""

import torch
from torch import Tensor


def count_equal(x: Tensor, k: float, out: Tensor) -> None:
    """Write how many entries of `x` equal `k` into `out`.

    `x` is (N, M), integer or floating-point; `out` is int64, without axes.
    """
    torch.sum(x == k, dim=0, out=out)


def count_rows(x: Tensor, k: float, out: Tensor) -> None:
    """Write how many entries of each row of `x` equal `k` into `out`.

    `x` is (N, M), integer or floating-point; `out` is int64, of shape (N,).
    """
    torch.sum(x == k, dim=1, out=out)
