"""Style: a round trip through NumPy, with integers of 64 bits for the product."""

import numpy as np
import torch


def quantize(x, scale, zero_point):
    return codes_of(x.numpy().astype(np.float64) / scale, zero_point)


def dequantize(q, scale, zero_point):
    shifted = q.numpy().astype(np.int64) - zero_point
    return torch.from_numpy(np.asarray(shifted * np.float64(scale), dtype=np.float32))


def quantize_per_channel(w, axis):
    channels = np.moveaxis(w.numpy().astype(np.float64), axis, 0)
    scales = np.abs(channels).reshape(len(channels), -1).max(1) / 127
    scales[scales == 0] = 1
    shape = [-1] + [1] * (w.ndim - 1)
    steps = np.moveaxis(channels / scales.reshape(shape), 0, axis)
    return codes_of(steps, 0), torch.from_numpy(scales.astype(np.float32))


def int8_matmul(a, b, scale_a, scale_b, scale_c, zp_a, zp_b, zp_c):
    left, right = a.numpy().astype(np.int64) - zp_a, b.numpy().astype(np.int64) - zp_b
    return codes_of((left @ right).astype(np.float64) * (scale_a * scale_b / scale_c), zp_c)


def codes_of(steps, zero_point):
    codes = np.clip(np.rint(steps) + zero_point, -128, 127)
    return torch.from_numpy(np.ascontiguousarray(codes).astype(np.int8).reshape(np.shape(steps)))
