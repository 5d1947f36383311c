"""A loop over the taps of the kernel: each adds a matrix product of the voxels that it meets."""

from itertools import product

import torch
import torch.nn.functional as F


def conv3d_functional(x, weight, bias=None, stride=1, padding=0):
    return torch.conv3d(x, weight, bias, stride, padding)


def conv3d(x, weight, bias=None, stride=1, padding=0):
    strides, borders = _three(stride), _three(padding)
    padded = F.pad(x, [border for border in reversed(borders) for _ in range(2)])
    taps = weight.shape[2:]
    sizes = [
        (room - reach) // step + 1
        for room, reach, step in zip(padded.shape[2:], taps, strides, strict=True)
    ]
    out = 0
    for tap in product(*map(range, taps)):
        d, h, w = (
            slice(start, start + (size - 1) * step + 1, step)
            for start, size, step in zip(tap, sizes, strides, strict=True)
        )
        out = out + weight[:, :, *tap] @ padded[:, :, d, h, w].flatten(2)
    out = out.unflatten(2, sizes)
    return out if bias is None else out + bias.view(-1, 1, 1, 1)


def _three(value):
    return [value] * 3 if isinstance(value, int) else list(value)
