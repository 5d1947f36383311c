"""The signal as an image one pixel high, for F.unfold and F.fold, with einsum between them."""

import torch
import torch.nn.functional as F


def conv1d_functional(x, weight, bias=None, stride=1, padding=0, dilation=1):
    return torch.conv1d(x, weight, bias, stride, padding, dilation)


def output_length(length, kernel, stride, padding, dilation):
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv1d(x, weight, bias=None, stride=1, padding=0, dilation=1):
    kernel = weight.shape[2]
    if padding == "same":
        if stride != 1:
            raise ValueError(f"padding='same' does not go with stride={stride}")
        zeros = dilation * (kernel - 1)
        x, padding = F.pad(x, (zeros // 2, zeros - zeros // 2)), 0
    columns = _columns(x, kernel, stride, padding, dilation)
    out = torch.einsum("ock,nckl->nol", weight, columns)
    return out if bias is None else out + bias.view(1, -1, 1)


def conv1d_backward(grad_out, x, weight, stride, padding, dilation):
    kernel = weight.shape[2]
    columns = _columns(x, kernel, stride, padding, dilation)
    dweight = torch.einsum("nol,nckl->ock", grad_out, columns)
    dcolumns = torch.einsum("ock,nol->nckl", weight, grad_out).flatten(1, 2)
    dx = F.fold(
        dcolumns,
        (1, x.shape[2]),
        (1, kernel),
        stride=(1, stride),
        padding=(0, padding),
        dilation=(1, dilation),
    )
    return dx.squeeze(2), dweight, torch.einsum("nol->o", grad_out)


def _columns(x, kernel, stride, padding, dilation):
    columns = F.unfold(
        x.unsqueeze(2),
        (1, kernel),
        stride=(1, stride),
        padding=(0, padding),
        dilation=(1, dilation),
    )
    return columns.unflatten(1, (x.shape[1], kernel))
