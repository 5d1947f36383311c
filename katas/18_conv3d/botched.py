"""3-D convolution: PyTorch's, and from scratch by windows and matmul."""

import torch.nn.functional as F
from torch import Tensor


def conv3d_functional(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
) -> Tensor:
    """Return the convolution of `x` with `weight`, by PyTorch's operator; shapes as in `conv3d`.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv3d.html
    """
    return F.conv3d(x, weight, bias, stride=stride, padding=padding)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
) -> Tensor:
    """Return the convolution of `x` with `weight`, by one matrix product a slice of the result.

    `x` is (N, C, D, H, W), `weight` (O, C, KD, KH, KW) and `bias` (O,); the result is
    (N, O, OD, OH, OW). A triple holds the values for depth, height and width.
    """
    out_channels, _, kernel_d, kernel_h, kernel_w = weight.shape
    stride_d, stride_h, stride_w = _triple(stride)
    padding_d, padding_h, padding_w = _triple(padding)

    border = (padding_d, padding_d, padding_h, padding_h, padding_w, padding_w)
    padded = F.pad(x, border)
    windows = padded.unfold(3, kernel_h, stride_h)
    windows = windows.unfold(4, kernel_w, stride_w)
    batch, _, depth, out_h, out_w = windows.shape[:5]
    # Each slice is laid out once, and shared by all the windows that it is part of.
    columns = windows.permute(0, 2, 1, 6, 5, 3, 4)
    columns = columns.reshape(batch, depth, -1, out_h * out_w)

    kernels = weight.flatten(1)
    starts = range(0, depth - kernel_d + 1, stride_d)
    out = x.new_empty(batch, out_channels, len(starts), out_h * out_w)
    for place in range(len(starts)):
        out[:, :, place] = kernels @ columns[:, place : place + kernel_d].flatten(1, 2)
    out = out.view(batch, out_channels, len(starts), out_h, out_w)
    return out if bias is None else out + bias[:, None, None, None]


def _triple(value: int | tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the values for depth, height and width."""
    return (value, value, value) if isinstance(value, int) else value
