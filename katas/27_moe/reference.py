"""A mixture of experts: a router sends each token to a few of many small networks."""

import math

import torch
from torch import Tensor, nn


def route(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the weights, float32, and the ids, int64, of each token's `k` experts, best first.

    `logits` is (N, E), and both results are (N, k). The weights are the softmax over the chosen
    logits alone, in float32; of equal logits the lowest id comes first.

    Jiang et al., "Mixtral of Experts", section 2.1: https://arxiv.org/abs/2401.04088

        route(tensor([[0.3, 0.1, 0.6]]).log(), 2)
        tensor([[0.6667, 0.3333]]), tensor([[2, 0]])
    """
    ranked, experts = logits.float().sort(dim=1, descending=True, stable=True)
    return ranked[:, :k].softmax(dim=1), experts[:, :k]


def load_balance_loss(
    logits: Tensor, experts: Tensor, num_experts: int, mask: Tensor | None = None
) -> Tensor:
    """Return how unevenly tokens go to the experts, a float32 scalar; 1 is even.

    `logits` is (N, E) and `experts` (N, k), int64, distinct in a row; `mask` is bool, (N,), True
    where a token is real, and without it all are. E times the sum over experts of the fraction of
    the choices that are this expert and its mean probability. No gradient goes through the
    fraction. Without a real token it is 0.

    Fedus et al., "Switch Transformers", equations 4 to 6, https://arxiv.org/abs/2101.03961, for
    one choice a token.
    """
    if mask is not None:
        logits, experts = logits[mask], experts[mask]
    tokens = max(len(logits), 1)
    choices = torch.bincount(experts.flatten(), minlength=num_experts)
    fraction = choices.float() / (tokens * experts.shape[1])
    probability = logits.float().softmax(dim=1).sum(dim=0) / tokens
    return num_experts * fraction.dot(probability)


class MoE(nn.Module):
    """A layer of experts, small networks of which each token goes through its best `k`.

    With a `capacity_factor` an expert takes no more than so many times its even share of the
    tokens; those that come later are dropped from it. Shazeer et al., "Outrageously Large Neural
    Networks", https://arxiv.org/abs/1701.06538; capacity as in Fedus et al., "Switch
    Transformers", https://arxiv.org/abs/2101.03961, equation 3.
    """

    def __init__(
        self, dim: int, hidden: int, num_experts: int, k: int, capacity_factor: float | None = None
    ) -> None:
        """Make the router, without a bias, and the experts, `dim` to `hidden` to `dim`."""
        super().__init__()
        self.k = k
        self.capacity_factor = capacity_factor
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
            for _ in range(num_experts)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, like `x`, (..., dim), in shape and dtype, and the load balance loss.

        The loss is over all choices of this call, before any is dropped.
        """
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.router(tokens)
        weights, experts = route(logits, self.k)
        out = self._combine(tokens, weights, experts, self._capacity(len(tokens)))
        aux = load_balance_loss(logits, experts, len(self.experts))
        return out.to(x.dtype).reshape(x.shape), aux

    def _capacity(self, tokens: int) -> int | None:
        """Return how many of the tokens an expert takes at most, None for all."""
        if self.capacity_factor is None:
            return None
        return math.ceil(self.k * tokens * self.capacity_factor / len(self.experts))

    def _combine(
        self, tokens: Tensor, weights: Tensor, experts: Tensor, capacity: int | None
    ) -> Tensor:
        """Return the weighted sums of the experts' outputs, (N, dim), in float32 or better.

        Choice c of all, counted row by row, is one of token c // k. Sorted by expert, those of one
        expert stand together, and within it in the order of the tokens.
        """
        choices = experts.flatten()
        order = choices.argsort(stable=True)
        counts = torch.bincount(choices, minlength=len(self.experts)).tolist()
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        out = torch.zeros(tokens.shape, dtype=dtype, device=tokens.device)
        for expert, chosen in zip(self.experts, order.split(counts), strict=True):
            kept = chosen[:capacity]
            if len(kept):
                rows = kept // self.k
                part = expert(tokens[rows]) * weights.flatten()[kept, None]
                out.index_add_(0, rows, part)
        return out
