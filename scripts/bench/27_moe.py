"""Two of 8 experts for 1,024 tokens, at the size of a small language model.

There is no operator of PyTorch for it: beside the layer stand its experts alone, each on as many
tokens as an even router would send it, and beside the functions what torch has nearest to them.
"""

import torch
from torch import nn

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 1,024 tokens of 256 features, float32."""
    x, logits = torch.randn(1024, 256), torch.randn(1024, 8)
    _, experts = reference.route(logits, 2)
    layer = reference.MoE(256, 512, 8, 2).eval()
    limited = reference.MoE(256, 512, 8, 2, 1.25).eval()
    share = x[:256]

    def softmax_of_the_best():
        best, ids = logits.topk(2, dim=1)
        return best.softmax(dim=1), ids

    def balance():
        chosen = nn.functional.one_hot(experts, 8).float().mean(dim=(0, 1))
        return 8 * (chosen * logits.softmax(dim=1).mean(dim=0)).sum()

    @torch.no_grad()
    def mixture():
        return layer(x)

    @torch.no_grad()
    def with_capacity():
        return limited(x)

    @torch.no_grad()
    def experts_alone():
        return [expert(share) for expert in layer.experts]

    return [
        Case("route", lambda: reference.route(logits, 2), softmax_of_the_best),
        Case(
            "load_balance_loss",
            lambda: reference.load_balance_loss(logits, experts, 8),
            balance,
        ),
        Case("MoE", mixture, experts_alone),
        Case("MoE, capacity 1.25", with_capacity, experts_alone),
    ]
