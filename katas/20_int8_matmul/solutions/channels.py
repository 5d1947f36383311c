"""Style: float64 throughout, one channel and one row at a time."""

import torch


def quantize(x, scale, zero_point):
    return saturate(torch.round(x.double() / scale) + zero_point)


def dequantize(q, scale, zero_point):
    return ((q.to(torch.int16) - zero_point).double() * scale).float()


def quantize_per_channel(w, axis):
    codes, scales = [], []
    for channel in w.unbind(axis):
        scale = channel.abs().max().item() / 127 or 1.0
        codes.append(quantize(channel, scale, 0))
        scales.append(scale)
    return torch.stack(codes, axis % w.ndim), torch.tensor(scales, dtype=torch.float32)


def int8_matmul(a, b, scale_a, scale_b, scale_c, zp_a, zp_b, zp_c):
    right = b.double() - zp_b
    # Integers up to 2 ** 53 are exact, and a sum is 2 ** 33 at most.
    rows = [(row.double() - zp_a) @ right for row in a]
    steps = torch.stack(rows) * scale_a * scale_b / scale_c
    return saturate(steps.round() + zp_c)


def saturate(codes):
    return codes.clamp(-128, 127).to(torch.int8)
