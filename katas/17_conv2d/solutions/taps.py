"""A loop over groups and taps: each tap adds a matrix product of the pixels that it meets."""

import torch
import torch.nn.functional as F


def conv2d_functional(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    convolve = F.conv2d
    return convolve(x, weight, bias, stride, padding, dilation, groups)


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    (sh, sw), (ph, pw), (dh, dw) = map(_pair, (stride, padding, dilation))
    padded = F.pad(x, (pw, pw, ph, ph))
    taps_h, taps_w = weight.shape[2:]
    rows = (padded.shape[2] - dh * (taps_h - 1) - 1) // sh + 1
    columns = (padded.shape[3] - dw * (taps_w - 1) - 1) // sw + 1
    results = []
    for images, kernels in zip(padded.chunk(groups, 1), weight.chunk(groups, 0), strict=True):
        total = 0
        for u in range(taps_h):
            for v in range(taps_w):
                met = images[:, :, u * dh :: sh, v * dw :: sw][:, :, :rows, :columns]
                total = total + torch.tensordot(kernels[:, :, u, v], met, dims=([1], [1]))
        results.append(total.transpose(0, 1))
    out = torch.cat(results, 1)
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)
