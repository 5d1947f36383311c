"""Numbers in eight bits: to int8 and back, per channel, and a matrix product on int8 alone."""

import torch
from torch import Tensor


def quantize(x: Tensor, scale: float | Tensor, zero_point: int) -> Tensor:
    """Return the int8 codes of `x`: round(x / scale) + zero_point, saturated to -128..127.

    Halves are rounded to even. `x` is floating point, of any shape; a tensor `scale` broadcasts.
    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    return _to_int8(x / scale, zero_point)


def dequantize(q: Tensor, scale: float | Tensor, zero_point: int) -> Tensor:
    """Return the float32 numbers that the int8 codes `q` stand for: (q - zero_point) * scale."""
    return (q.float() - zero_point).mul_(scale)


def quantize_per_channel(w: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return int8 codes in -127..127 and one float32 scale for each index along `axis`.

    The zero point is 0. The scales have shape (w.shape[axis],); a channel of zeros has scale 1.
    https://docs.pytorch.org/docs/stable/generated/torch.quantize_per_channel.html
    """
    others = [dim for dim in range(w.ndim) if dim != axis % w.ndim]
    scales = w.abs().amax(dim=others, keepdim=True) / 127
    scales = torch.where(scales == 0, 1.0, scales)
    return quantize(w, scales, 0), scales.flatten()


def int8_matmul(
    a: Tensor,
    b: Tensor,
    scale_a: float,
    scale_b: float,
    scale_c: float,
    zp_a: int,
    zp_b: int,
    zp_c: int,
) -> Tensor:
    """Return the int8 codes, under `scale_c` and `zp_c`, of the product that `a` and `b` stand for.

    `a` is int8 (M, K), `b` is int8 (K, N), the result (M, N). The sum over K is exact for K up to
    100,000. Jacob et al., 2017, section 2.3: https://arxiv.org/abs/1712.05877
    """
    a, b = a.contiguous(), b.contiguous()
    sum_a = a.sum(1, keepdim=True)  # int64, as torch sums any smaller integers
    sum_b = b.sum(0)
    acc = (a @ b).long()
    acc -= zp_a * sum_a
    acc -= zp_b * (sum_b - a.shape[1] * zp_a)
    return _to_int8(acc.double() * (scale_a * scale_b / scale_c), zp_c)


def _to_int8(steps: Tensor, zero_point: int) -> Tensor:
    """Return the int8 codes of numbers given in `steps` of the scale; `steps` is overwritten."""
    codes = steps.add_(zero_point)
    return codes.to(torch.int32).to(torch.int8)
