"""A loop over the taps: one matrix product for each, of the elements that the tap meets."""

import torch
import torch.nn.functional as F


def conv1d_functional(x, weight, bias=None, stride=1, padding=0, dilation=1):
    return F.conv1d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)


def output_length(length, kernel, stride, padding, dilation):
    room = length + 2 * padding - dilation * (kernel - 1)
    return -(-room // stride)


def conv1d(x, weight, bias=None, stride=1, padding=0, dilation=1):
    kernel = weight.shape[2]
    if padding == "same":
        if stride != 1:
            raise ValueError(f"'same' is for stride 1; got stride {stride}")
        left, more = divmod(dilation * (kernel - 1), 2)
        right = left + more
    else:
        left = right = padding
    padded = F.pad(x, (left, right))
    length = output_length(padded.shape[2], kernel, stride, 0, dilation)
    out = 0
    for k in range(kernel):
        out = out + weight[:, :, k] @ padded[:, :, _met(k, length, stride, dilation)]
    return out if bias is None else out + bias.unsqueeze(1)


def conv1d_backward(grad_out, x, weight, stride, padding, dilation):
    length, kernel = grad_out.shape[2], weight.shape[2]
    padded = F.pad(x, (padding, padding))
    dpadded = torch.zeros_like(padded)
    dweight = torch.empty_like(weight)
    for k in range(kernel):
        met = _met(k, length, stride, dilation)
        dpadded[:, :, met] += weight[:, :, k].T @ grad_out
        dweight[:, :, k] = torch.tensordot(grad_out, padded[:, :, met], dims=([0, 2], [0, 2]))
    dx = dpadded[:, :, padding : padding + x.shape[2]].contiguous()
    return dx, dweight, grad_out.sum(dim=(0, 2))


def _met(k, length, stride, dilation):
    start = k * dilation
    return slice(start, start + (length - 1) * stride + 1, stride)
