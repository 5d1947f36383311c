"""Layer normalisation and its gradient on a short batch of a small transformer's activations."""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 4 sequences of 64 tokens with 96 float32 features."""
    x = 3 * torch.randn(4, 64, 96) + 1
    weight, bias = torch.randn(96), torch.randn(96)
    grad_out = torch.randn_like(x)
    native_backward = torch.ops.aten.native_layer_norm_backward

    def native_both():
        """Run the operator's forward pass too: ours takes x alone and finds the statistics."""
        _, mean, inv_std = torch.native_layer_norm(x, (96,), weight, bias, 1e-5)
        return native_backward(grad_out, x, (96,), mean, inv_std, weight, bias, [True] * 3)

    return [
        Case(
            "layernorm",
            lambda: reference.layernorm(x, weight, bias),
            lambda: torch.layer_norm(x, (96,), weight, bias),
        ),
        Case("backward", lambda: reference.layernorm_backward(grad_out, x, weight), native_both),
    ]
