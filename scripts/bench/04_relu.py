"""ReLU and its relatives at the size of a feed-forward layer's activations.

The brief asks for some by a mask or by `torch.where`. On a CPU PyTorch's kernels of those are plain
loops, which take ten to fifty times as long as a fused activation, whatever is built from them.
"""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 256 tokens of 3,072 float32 features."""
    x = torch.randn(256, 3072)
    grad_out = torch.randn_like(x)
    return [
        Case("relu_functional", lambda: reference.relu_functional(x), lambda: torch.relu(x)),
        Case("ReLU.apply", lambda: reference.ReLU.apply(x), lambda: torch.relu(x)),
        Case("relu, by a mask", lambda: reference.relu(x), lambda: torch.relu(x)),
        Case("leaky_relu, by where", lambda: reference.leaky_relu(x), lambda: F.leaky_relu(x)),
        Case("hardswish, by where", lambda: reference.hardswish(x), lambda: F.hardswish(x)),
        Case(
            "relu_backward, by a mask",
            lambda: reference.relu_backward(grad_out, x),
            lambda: torch.ops.aten.threshold_backward(grad_out, x, 0),
        ),
    ]
