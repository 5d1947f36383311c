"""Convolution and its gradients at the sizes of audio encoders: plain, strided and dilated."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import Case

# x, weight, and stride, padding, dilation
WORKLOADS = [
    ((16, 64, 1000), (128, 64, 5), (1, 2, 1)),
    ((8, 128, 512), (256, 128, 3), (1, 1, 1)),
    ((32, 32, 2000), (64, 32, 7), (2, 3, 1)),
    ((4, 256, 1024), (256, 256, 3), (1, 2, 2)),
]


def cases(reference):
    """Return forward and backward of each workload, beside the operators that autograd calls."""
    return [case for workload in WORKLOADS for case in _both_ways(reference, *workload)]


def _both_ways(reference, x_shape, weight_shape, options):
    x, weight = torch.randn(x_shape), torch.randn(weight_shape)
    bias = torch.randn(weight_shape[0])
    grad_out = torch.randn_like(F.conv1d(x, weight, bias, *options))
    options_as_lists = [len(bias)], *([option] for option in options)
    backward = torch.ops.aten.convolution_backward
    size = f"{x_shape} with {weight_shape}, stride {options[0]}, dilation {options[2]}"
    return [
        Case(
            f"conv1d of {size}",
            lambda: reference.conv1d(x, weight, bias, *options),
            lambda: F.conv1d(x, weight, bias, *options),
        ),
        Case(
            f"conv1d_backward of {size}",
            lambda: reference.conv1d_backward(grad_out, x, weight, *options),
            lambda: backward(grad_out, x, weight, *options_as_lists, False, [0], 1, [True] * 3),
        ),
    ]
