"""All windows as one strided view, and a single einsum over it."""

import torch
import torch.nn.functional as F


def conv3d_functional(x, weight, bias=None, stride=1, padding=0):
    return F.conv3d(input=x, weight=weight, bias=bias, stride=stride, padding=padding)


def conv3d(x, weight, bias=None, stride=1, padding=0):
    steps = (stride,) * 3 if isinstance(stride, int) else stride
    pd, ph, pw = (padding,) * 3 if isinstance(padding, int) else padding
    windows = F.pad(x, (pw, pw, ph, ph, pd, pd))
    for axis, (taps, step) in enumerate(zip(weight.shape[2:], steps, strict=True), 2):
        windows = windows.unfold(axis, taps, step)
    out = torch.einsum("ncijktuv,octuv->noijk", windows, weight)
    if bias is not None:
        out = out + bias[None, :, None, None, None]
    return out
