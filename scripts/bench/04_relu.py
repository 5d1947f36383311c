"""ReLU and its relatives at the size of a feed-forward layer's activations.

The versions by a mask or by `torch.where` stand alone: on a CPU PyTorch's kernels of both are plain
loops, which take many times as long as a fused activation, whatever is built from them.
"""

import torch

from dojo.bench import Case


def cases(reference):
    """Return the workloads: 256 tokens of 3,072 float32 features."""
    x = torch.randn(256, 3072)
    grad_out = torch.randn_like(x)
    return [
        Case("relu_functional", lambda: reference.relu_functional(x), lambda: torch.relu(x)),
        Case("ReLU.apply", lambda: reference.ReLU.apply(x), lambda: torch.relu(x)),
        Case("relu", lambda: reference.relu(x)),
        Case("leaky_relu", lambda: reference.leaky_relu(x)),
        Case("hardswish", lambda: reference.hardswish(x)),
        Case("relu_backward", lambda: reference.relu_backward(grad_out, x)),
    ]
