"""The gradient of attention at the size of a small model's layer, beside autograd."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 4 sequences of 128 tokens in 8 heads of 64 features, float32."""
    q, k, v, grad_out = torch.randn(4, 4, 8, 128, 64).unbind()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def ours(causal):
        return lambda: reference.attention_backward(grad_out, q, k, v, causal)

    def autograd(causal):
        # The reference computes the weights again, as memory-saving kernels do: so must autograd.
        def run():
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                out = scaled_dot_product_attention(*leaves, is_causal=causal)
            return torch.autograd.grad(out, leaves, grad_out)

        return run

    def backward_alone(causal):
        # Here autograd has kept the weights.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            out = scaled_dot_product_attention(*leaves, is_causal=causal)
        return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)

    return [
        Case("forward and backward", ours(False), autograd(False)),
        Case("the same, causal", ours(True), autograd(True)),
        Case("backward alone", ours(False), backward_alone(False)),
    ]
