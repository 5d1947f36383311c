"""Convolution along one axis as an implicit matrix product, by a Triton kernel."""

import triton
import triton.language as tl
from torch import Tensor


# Sizes and steps change from layer to layer and from batch to batch: one binary is for all of them.
@triton.jit(
    do_not_specialize=[
        "columns",
        "filters",
        "length",
        "out_length",
        "kernel",
        "stride",
        "padding",
        "dilation",
    ]
)
def _conv1d_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    columns,
    channels,
    filters,
    length,
    out_length,
    kernel,
    stride,
    padding,
    dilation,
    stride_xn,
    stride_xc,
    stride_xl,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute BLOCK_O filters at BLOCK_P of the batch's N * L_out output positions, its `columns`.

    `weight` is (kernel, filters, channels) and `out` is (N, filters, out_length), both contiguous;
    `x` has any strides. Tiles of the same columns follow each other, so that they share `x`.
    """
    tile = tl.program_id(0)
    tiles_o = tl.cdiv(filters, BLOCK_O)
    offs_o = tile % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_p = (tile // tiles_o).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_c = tl.arange(0, BLOCK_C)
    in_o = offs_o < filters
    in_p = offs_p < columns

    batch = offs_p // out_length
    place = offs_p % out_length
    start = place * stride - padding
    x_rows = x_ptr + batch * stride_xn

    acc = tl.zeros((BLOCK_O, BLOCK_P), dtype=tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + offs_c
        in_c = channel < channels
        x_channels = channel.to(tl.int64) * stride_xc
        for tap in range(kernel):
            position = start + tap * dilation
            inside = in_p & (position >= 0) & (position < length)
            x = tl.load(
                (x_rows + position * stride_xl)[None, :] + x_channels[:, None],
                mask=in_c[:, None] & inside[None, :],
                other=0.0,
            )
            weight_rows = weight_ptr + (tap * filters + offs_o).to(tl.int64) * channels
            weight = tl.load(
                weight_rows[:, None] + channel[None, :],
                mask=in_o[:, None] & in_c[None, :],
                other=0.0,
            )
            acc = tl.dot(weight, x, acc, input_precision="ieee")

    out_columns = out_ptr + batch * filters * out_length + place
    out_filters = offs_o.to(tl.int64) * out_length
    tl.store(
        out_columns[None, :] + out_filters[:, None],
        acc,
        mask=in_o[:, None] & in_p[None, :],
    )


def conv1d(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Return the convolution of `x` (N, C, L) with `weight` (O, C, K): (N, O, L_out).

    Both are float32 or both float16, of any strides. ValueError if the kernel does not fit into the
    padded input. https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv1d.html
    """
    batch, channels, length = x.shape
    filters, _, kernel = weight.shape
    span = dilation * (kernel - 1) + 1
    out_length = (length + 2 * padding - span) // stride + 1
    if out_length < 1:
        raise ValueError(
            f"a kernel of {kernel} with dilation {dilation} spans {span} positions and does not "
            f"fit into an input of {length} with padding {padding}"
        )
    out = x.new_empty((batch, filters, out_length))
    columns = batch * out_length
    block_o = _block(filters, 128)
    block_p = _block(columns, 256 // x.element_size())
    block_c = _block(channels, 128 // x.element_size())
    _conv1d_kernel[(triton.cdiv(filters, block_o) * triton.cdiv(columns, block_p),)](
        x,
        weight.permute(2, 0, 1).contiguous(),
        out,
        columns,
        channels,
        filters,
        length,
        out_length,
        kernel,
        stride,
        padding,
        dilation,
        *x.stride(),
        BLOCK_O=block_o,
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        num_warps=8,
    )
    return out


def _block(size: int, most: int) -> int:
    """Return the width of a block for `size`: a power of two from 16, tl.dot's least, to `most`."""
    return min(max(triton.next_power_of_2(size), 16), most)
