"""A Llama's norm, activations and feed-forward block, and their gradients, at a small size."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 4 sequences of 64 tokens with 128 float32 features, 344 hidden."""
    x, grad_out = 3 * torch.randn(4, 64, 128), torch.randn(4, 64, 128)
    weight = torch.randn(128)
    w_gate, w_up, w_down = torch.randn(344, 128), torch.randn(344, 128), torch.randn(128, 344)
    leaves = [t.clone().requires_grad_() for t in (x, weight, w_gate, w_up, w_down)]

    def norm(x, weight):
        return F.rms_norm(x, (128,), weight, 1e-6)

    def block(x, w_gate, w_up, w_down):
        return F.linear(F.silu(F.linear(x, w_gate)) * F.linear(x, w_up), w_down)

    def both_ways(forward, inputs):
        """Run the forward pass too: ours has nothing kept from one."""
        with torch.enable_grad():
            return torch.autograd.grad(forward(*inputs), inputs, grad_out)

    weights = (w_gate, w_up, w_down)
    return [
        Case("rmsnorm", lambda: reference.rmsnorm(x, weight), lambda: norm(x, weight)),
        Case(
            "rmsnorm_backward",
            lambda: reference.rmsnorm_backward(grad_out, x, weight),
            lambda: both_ways(norm, leaves[:2]),
        ),
        Case("gelu", lambda: reference.gelu(x), lambda: F.gelu(x)),
        Case(
            "gelu by tanh", lambda: reference.gelu(x, "tanh"), lambda: F.gelu(x, approximate="tanh")
        ),
        Case("swiglu", lambda: reference.swiglu(x, *weights), lambda: block(x, *weights)),
        Case(
            "swiglu_backward",
            lambda: reference.swiglu_backward(grad_out, x, *weights),
            lambda: both_ways(block, [leaves[0], *leaves[2:]]),
        ),
    ]
