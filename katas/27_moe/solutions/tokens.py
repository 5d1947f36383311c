"""Style: plain loops over tokens and choices, with a queue for each expert."""

import math

import torch
from torch import nn


def route(logits, k):
    weights, experts = [], []
    for row in logits.float():
        values = row.tolist()
        best = sorted(range(len(values)), key=lambda expert: -values[expert])[:k]
        experts.append(best)
        weights.append(torch.softmax(row[best], dim=0))
    if not weights:
        return logits.new_zeros(0, k, dtype=torch.float32), torch.zeros(0, k, dtype=torch.int64)
    return torch.stack(weights), torch.tensor(experts)


def load_balance_loss(logits, experts, num_experts, mask=None):
    counts, total, real = [0] * num_experts, logits.float()[:0].sum(0), 0
    keep = [True] * len(logits) if mask is None else mask.tolist()
    for row, chosen, is_real in zip(logits, experts.tolist(), keep, strict=True):
        if is_real:
            real += 1
            total = total + row.float().softmax(0)
            for expert in chosen:
                counts[expert] += 1
    if real == 0:
        return logits.float().sum() * 0
    scale = num_experts / (real * real * experts.shape[1])
    return scale * sum(count * part for count, part in zip(counts, total, strict=True))


class Expert(nn.Sequential):
    def __init__(self, dim, hidden):
        super().__init__(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))


class MoE(nn.Module):
    def __init__(self, dim, hidden, num_experts, k, capacity_factor=None):
        super().__init__()
        self.choices, self.factor = k, capacity_factor
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.experts = nn.ModuleList()
        for _ in range(num_experts):
            self.experts.append(Expert(dim, hidden))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        logits = self.router(flat)
        weights, experts = route(logits, self.choices)
        room = math.inf
        if self.factor is not None:
            room = math.ceil(len(flat) / len(self.experts) * self.choices * self.factor)
        queues = [[] for _ in self.experts]
        for token, chosen in enumerate(experts.tolist()):
            for rank, expert in enumerate(chosen):
                if len(queues[expert]) < room:
                    queues[expert].append((token, rank))
        nothing = torch.zeros(x.shape[-1], dtype=torch.promote_types(x.dtype, torch.float32))
        sums = [nothing] * len(flat)
        for expert, queue in zip(self.experts, queues, strict=True):
            if queue:
                answers = expert(flat[[token for token, _ in queue]])
                for (token, rank), answer in zip(queue, answers, strict=True):
                    sums[token] = sums[token] + answer.to(sums[token].dtype) * weights[token, rank]
        out = torch.stack(sums) if sums else torch.zeros_like(flat)
        return out.to(x.dtype).reshape(x.shape), load_balance_loss(
            logits, experts, len(self.experts)
        )
