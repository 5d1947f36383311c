"""Style: one-hot tables of tokens by experts, places by a running count, and einsum."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def route(logits, k):
    logits = logits.to(torch.float32)
    left, picks = logits, []
    for _ in range(k):
        pick = left.argmax(dim=-1, keepdim=True) if len(left) else left[:, :1].long()
        # argmax may take any of several equal ones: take the first place where the best stands.
        best = left.gather(-1, pick)
        place = torch.arange(left.shape[-1]).expand_as(left)
        pick = torch.where(left == best, place, left.shape[-1]).amin(-1, keepdim=True)
        picks.append(pick)
        left = left.scatter(-1, pick, -torch.inf)
    experts = torch.cat(picks, dim=-1)
    chosen = logits.gather(-1, experts)
    odds = (chosen - chosen[:, :1]).exp()
    return odds / odds.sum(-1, keepdim=True), experts


def load_balance_loss(logits, experts, num_experts, mask=None):
    real = torch.ones(len(logits), dtype=torch.bool) if mask is None else mask
    real = real.to(torch.float32)
    count = real.sum().clamp(min=1)
    busy = torch.einsum("nke,n->e", F.one_hot(experts, num_experts).float(), real)
    probability = torch.einsum("ne,n->e", logits.float().log_softmax(-1).exp(), real)
    return (busy * probability).sum() * num_experts / (count * count * experts.shape[1])


class MoE(nn.Module):
    def __init__(self, dim, hidden, num_experts, k, capacity_factor=None):
        super().__init__()
        self.k = k
        self.capacity_factor = capacity_factor
        self.experts = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
                for _ in range(num_experts)
            ]
        )
        self.router = nn.Linear(dim, num_experts, bias=False)

    def forward(self, x):
        num_experts = len(self.experts)
        tokens = x.flatten(0, -2) if x.dim() > 1 else x[None]
        logits = self.router(tokens)
        weights, experts = route(logits, self.k)
        table = weights.new_zeros(len(tokens), num_experts).scatter(1, experts, weights)
        taken = F.one_hot(experts, num_experts).sum(dim=1)
        if self.capacity_factor is not None:
            capacity = math.ceil(self.k * len(tokens) * self.capacity_factor / num_experts)
            taken = taken * (taken.cumsum(dim=0) <= capacity)
        answers = tokens.new_zeros(len(tokens), num_experts, tokens.shape[1])
        for e in range(num_experts):
            mine = taken[:, e].bool()
            answers[mine, e] = self.experts[e](tokens[mine])
        wide = torch.promote_types(x.dtype, torch.float32)
        out = torch.einsum("ne,ned->nd", (table * taken).to(wide), answers.to(wide))
        aux = load_balance_loss(logits, experts, num_experts)
        return out.to(x.dtype).view(x.shape), aux
