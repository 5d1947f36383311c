"""Softmax and its gradient at the size of an attention layer's scores."""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 512 rows of 2,048 float32 scores."""
    x = torch.randn(512, 2048)
    grad_out = torch.randn_like(x)
    out = torch.softmax(x, 1)
    backward = torch.ops.aten._softmax_backward_data
    return [
        Case("softmax", lambda: reference.softmax(x, 1), lambda: torch.softmax(x, 1)),
        Case("log_softmax", lambda: reference.log_softmax(x, 1), lambda: torch.log_softmax(x, 1)),
        Case(
            "softmax_backward",
            lambda: reference.softmax_backward(grad_out, out, 1),
            lambda: backward(grad_out, out, 1, torch.float32),
        ),
    ]
