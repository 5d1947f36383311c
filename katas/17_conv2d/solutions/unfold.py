"""F.unfold on the whole batch at once, and an einsum over the groups."""

import torch
import torch.nn.functional as F


def conv2d_functional(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return torch.conv2d(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    height, width = (
        (size + 2 * border - gap * (taps - 1) - 1) // step + 1
        for size, border, gap, taps, step in zip(
            x.shape[2:],
            _both(padding),
            _both(dilation),
            weight.shape[2:],
            _both(stride),
            strict=True,
        )
    )
    columns = F.unfold(x, tuple(weight.shape[2:]), dilation, padding, stride)
    columns = columns.unflatten(1, (groups, -1))
    kernels = weight.flatten(1).unflatten(0, (groups, -1))
    out = torch.einsum("gok,ngkp->ngop", kernels, columns).flatten(1, 2)
    if bias is not None:
        out = out + bias.unsqueeze(1)
    return out.unflatten(2, (height, width))


def _both(value):
    return (value, value) if isinstance(value, int) else tuple(value)
