"""LoRA's forward pass and merging beside PyTorch's fused products for the same formulas."""

import torch
from torch import nn

from dojo.benchmarks.references import Case

# One merge takes about a millisecond, less than what a busy machine takes away at a time.
REPEATS = 20


def cases(reference):
    """Return the workloads: a 1,024 x 1,536 float32 layer, rank 16, 256 rows."""
    base = nn.Linear(1024, 1536)
    layer = reference.LoRALinear(base, 16, 32).eval()
    x = torch.randn(256, 1024)
    weight, bias = base.weight.detach(), base.bias.detach()
    a, b = layer.lora_A.detach(), layer.lora_B.detach()

    def forward():
        with torch.no_grad():
            return layer(x)

    def fused_forward():
        return torch.addmm(torch.addmm(bias, x, weight.T), x @ a.T, b.T, alpha=2.0)

    def merge_and_unmerge():
        for _ in range(REPEATS):
            layer.merge()
            layer.unmerge()

    def fused_merge_and_unmerge():
        for _ in range(REPEATS):
            torch.addmm(weight, b, a, alpha=2.0)
            torch.addmm(weight, b, a, alpha=-2.0)

    return [
        Case("forward, beside addmm", forward, fused_forward),
        Case("merge and unmerge, beside addmm", merge_and_unmerge, fused_merge_and_unmerge),
    ]
