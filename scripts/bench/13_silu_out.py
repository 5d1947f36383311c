"""Writing into a given tensor at the size of a feed-forward layer's activations.

`copy_into` stands alone: there is one operator for it.
"""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 256 tokens of 3,072 float32 features."""
    x, y = torch.randn(256, 3072), torch.randn(256, 3072)
    out = torch.empty_like(x)
    silu = torch.ops.aten.silu.out

    def clamp_of_sum():
        return torch.clamp(torch.add(x, y), -0.75, 1.5, out=out)

    return [
        Case(
            "silu_functional",
            lambda: reference.silu_functional(x),
            lambda: torch.nn.functional.silu(x),
        ),
        Case("silu", lambda: reference.silu(x, out), lambda: silu(x, out=out)),
        Case("copy_into", lambda: reference.copy_into(x, out)),
        Case("clamp_add", lambda: reference.clamp_add(x, y, -0.75, 1.5, out), clamp_of_sum),
    ]
