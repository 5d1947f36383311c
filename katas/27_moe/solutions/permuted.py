"""Style: one long table of all choices, sorted by expert with NumPy, and sorted back."""

import math

import numpy as np
import torch
from torch import nn


def route(logits, k):
    wide = logits.float()
    experts = np.argsort(-wide.detach().numpy(), axis=1, kind="stable")[:, :k]
    experts = torch.from_numpy(np.ascontiguousarray(experts)).to(torch.int64)
    return torch.softmax(torch.take_along_dim(wide, experts, dim=1), dim=1), experts


def load_balance_loss(logits, experts, num_experts, mask=None):
    if mask is None:
        mask = torch.ones(logits.shape[0], dtype=torch.bool)
    probability = logits.double().softmax(dim=1)[mask]
    if len(probability) == 0:
        return probability.sum().float()
    counts = np.bincount(experts[mask].numpy().ravel(), minlength=num_experts)
    fraction = torch.from_numpy(counts / counts.sum())
    return (num_experts * (fraction * probability.mean(dim=0)).sum()).float()


class MoE(nn.Module):
    def __init__(self, dim, hidden, num_experts, k, capacity_factor=None):
        super().__init__()
        self.num_experts = num_experts
        self.k = k
        self.capacity_factor = capacity_factor
        self.router = nn.Linear(dim, num_experts, bias=False)
        experts = []
        for _ in range(num_experts):
            experts.append(nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim)))
        self.experts = nn.ModuleList(experts)

    def forward(self, x):
        dim = x.shape[-1]
        tokens = x.reshape(-1, dim)
        count = tokens.shape[0]
        logits = self.router(tokens)
        weights, experts = route(logits, self.k)
        by_expert = torch.from_numpy(np.argsort(experts.numpy().ravel(), kind="stable"))
        # One row for each choice, in the order of the experts; what is dropped stays zero.
        loads = np.bincount(experts.numpy().ravel(), minlength=self.num_experts)
        capacity = count
        if self.capacity_factor is not None:
            capacity = math.ceil(count * self.k * float(self.capacity_factor) / self.num_experts)
        answers, end = [], 0
        for expert, load in zip(self.experts, loads, strict=True):
            start, end = end, end + int(load)
            kept = by_expert[start : min(end, start + capacity)]
            answers.append(expert(tokens[kept // self.k]))
            answers.append(tokens.new_zeros(end - start - len(kept), dim))
        answers = torch.cat(answers)[torch.argsort(by_expert)].view(count, self.k, dim)
        wide = torch.promote_types(x.dtype, torch.float32)
        out = (answers.to(wide) * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)
        return out.reshape(x.shape), load_balance_loss(logits, experts, self.num_experts)
