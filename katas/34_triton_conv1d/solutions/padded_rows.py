"""A padded copy, so that no tap is outside; a program for each row of outputs, without `tl.dot`."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _conv1d_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    channels,
    filters,
    length,
    out_length,
    kernel,
    stride,
    dilation,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the outputs of one filter on one signal; all tensors are contiguous."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row // filters * channels * length
    weight_ptr += row % filters * channels * kernel
    for first in range(0, out_length, BLOCK_P):
        offs_p = first + tl.arange(0, BLOCK_P).to(tl.int64)
        in_p = offs_p < out_length
        acc = tl.zeros((BLOCK_P,), dtype=tl.float32)
        for tap in range(kernel):
            for c in range(0, channels, BLOCK_C):
                offs_c = c + tl.arange(0, BLOCK_C).to(tl.int64)
                in_c = offs_c < channels
                x_ptrs = x_ptr + offs_c[:, None] * length + offs_p[None, :] * stride
                mask = in_c[:, None] & in_p[None, :]
                x = tl.load(x_ptrs + tap * dilation, mask=mask, other=0.0).to(tl.float32)
                weight = tl.load(weight_ptr + offs_c * kernel + tap, mask=in_c, other=0.0)
                acc += tl.sum(x * weight.to(tl.float32)[:, None], axis=0)
        tl.store(out_ptr + row * out_length + offs_p, acc, mask=in_p)


def conv1d(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Return the convolution of `x` (N, C, L) with `weight` (O, C, K)."""
    batch, channels, length = x.shape
    filters, _, kernel = weight.shape
    padded = length + 2 * padding
    starts = padded - dilation * (kernel - 1)
    if starts < 1:
        raise ValueError(f"{kernel} taps do not fit into {length} positions")
    out_length = triton.cdiv(starts, stride)
    out = x.new_empty(batch, filters, out_length)
    if batch:
        wide = x.new_zeros(batch, channels, padded)
        wide[:, :, padding : padding + length] = x
        _conv1d_kernel[(batch * filters,)](
            wide,
            weight.contiguous(),
            out,
            channels,
            filters,
            padded,
            out_length,
            kernel,
            stride,
            dilation,
            BLOCK_P=min(1024, triton.next_power_of_2(out_length)),
            BLOCK_C=min(64, triton.next_power_of_2(channels)),
        )
    return out
