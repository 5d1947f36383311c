"""Convolution along one axis: PyTorch's, from scratch, and its gradients by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv1d_functional(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
) -> Tensor:
    """Return the convolution of `x` (N, C, L) with `weight` (O, C, K), by PyTorch's operator.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv1d.html
    """
    return F.conv1d(x, weight, bias, stride, padding, dilation)


def output_length(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the length of the output for an input of `length`, `padding` on both sides."""
    span = dilation * (kernel - 1) + 1
    return (length + 2 * padding - span) // stride + 1


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
) -> Tensor:
    """Return the convolution of `x` (N, C, L) with `weight` (O, C, K); (N, O, output length).

    `bias` is (O,). ValueError if `padding` is "same" and `stride` is not 1.
    """
    kernel = weight.shape[2]
    if padding == "same":
        if stride != 1:
            raise ValueError(f'padding "same" needs stride 1, not {stride}')
        total = dilation * (kernel - 1)
        left = total // 2
        right = total - left
    else:
        left = right = padding
    windows = _windows(F.pad(x, (left + right, 0)), kernel, stride, dilation)
    out = weight.flatten(1) @ windows.flatten(1, 2)
    if bias is not None:
        out += bias[:, None]
    return out


def conv1d_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for `x`, `weight` and the bias, given that of the output."""
    kernel = weight.shape[2]
    padded = F.pad(x, (padding, padding))
    windows = _windows(padded, kernel, stride, dilation)
    dweight = (grad_out @ windows.flatten(1, 2).mT).sum(0).view_as(weight)

    dwindows = (weight.flatten(1).T @ grad_out).view_as(windows)
    dpadded = torch.zeros_like(padded)
    places = _windows(dpadded, kernel, stride, dilation)
    for k in range(kernel):
        places[:, :, k] += dwindows[:, :, k]
    dx = dpadded[:, :, padding : padding + x.shape[2]]
    return dx, dweight, grad_out.sum((0, 2))


def _windows(x: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """Return a view of `x` (N, C, L) as (N, C, kernel, output length): what the kernel meets."""
    count = (x.shape[2] - kernel) // stride + 1
    batch, channel, step = x.stride()
    return x.as_strided(
        (*x.shape[:2], kernel, count), (batch, channel, step * dilation, step * stride)
    )
