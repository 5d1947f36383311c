"""Batch normalisation and its gradient on a batch of a tabular model's activations."""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 256 examples of 96 float32 features."""
    x = 3 * torch.randn(256, 96) + 1
    gamma, beta = torch.randn(96), torch.randn(96)
    grad_out = torch.randn_like(x)
    _, cache = reference.batchnorm_forward(x, gamma, beta)

    def native_forward():
        return torch.native_batch_norm(x, gamma, beta, None, None, True, 0.1, 1e-5)

    _, mean, inv_std = native_forward()

    def native_backward():
        return torch.ops.aten.native_batch_norm_backward(
            grad_out, x, gamma, None, None, mean, inv_std, True, 1e-5, [True, True, True]
        )

    return [
        Case("forward", lambda: reference.batchnorm_forward(x, gamma, beta), native_forward),
        Case("backward", lambda: reference.batchnorm_backward(grad_out, cache), native_backward),
    ]
