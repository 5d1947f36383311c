"""2-D convolution as neural networks have it: PyTorch's, and from scratch by unfold and matmul."""

import torch.nn.functional as F
from torch import Tensor


def conv2d_functional(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return the convolution of `x` with `weight`, by PyTorch's operator; shapes as in `conv2d`.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv2d.html
    """
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return the convolution of `x` with `weight`, by one matrix product an image.

    `x` is (N, C, H, W), `weight` (O, C / groups, KH, KW) and `bias` (O,); the result is
    (N, O, OH, OW). A pair holds the value for the height, then that for the width.

    Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document
    Processing", 2006.
    """
    batch = x.shape[0]
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    stride_h, stride_w = _pair(stride)
    padding_h, padding_w = _pair(padding)
    dilation_h, dilation_w = _pair(dilation)

    border = (padding_w, padding_w, padding_h, padding_h)
    padded = F.pad(x, border)
    out_h = _output_size(padded.shape[2], kernel_h, stride_h, dilation_h)
    out_w = _output_size(padded.shape[3], kernel_w, stride_w, dilation_w)

    step_n, step_c, step_h, step_w = padded.stride()
    windows = padded.as_strided(
        (batch, groups, out_h, out_w, group_channels, kernel_h, kernel_w),
        (
            step_n,
            step_c * group_channels,
            step_h * stride_h,
            step_w * stride_w,
            step_c,
            step_h * dilation_h,
            step_w * dilation_w,
        ),
    )
    kernels = weight.reshape(groups, out_channels // groups, -1)
    out = x.new_empty(batch, groups, out_channels // groups, out_h * out_w)
    # Image by image: the columns of one fit the cache, those of a batch would not.
    for n in range(batch):
        columns = windows[n].permute(0, 3, 4, 5, 1, 2)
        out[n] = kernels @ columns.reshape(groups, -1, out_h * out_w)
    out = out.view(batch, out_channels, out_h, out_w)
    return out if bias is None else out + bias[:, None, None]


def _output_size(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Return how many places a kernel takes along an axis of `size` padded elements."""
    extent = (kernel - 1) * dilation + 1
    return (size - extent) // stride + 1


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return the values for the height and the width."""
    return (value, value) if isinstance(value, int) else value
