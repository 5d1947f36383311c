"""Style: merging keeps a copy of the weight, and unmerging puts it back."""

import math

import torch
from torch import nn


class LoRALinear(nn.Module):
    def __init__(self, base, r, alpha, dropout=0.0):
        super().__init__()
        if not r >= 1:
            raise ValueError(f"r={r} must be at least 1")
        self.base = base
        base.requires_grad_(False)
        self.scaling = alpha / r
        self.drop = nn.Dropout(dropout)
        weight = base.weight
        bound = 1 / math.sqrt(weight.shape[1])
        self.lora_A = nn.Parameter(weight.new_empty(r, weight.shape[1]).uniform_(-bound, bound))
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], r))
        self._kept = None

    @property
    def merged(self):
        return self._kept is not None

    def forward(self, x):
        out = self.base(x)
        if not self.merged:
            out = out + (self.drop(x) @ self.lora_A.mT) @ self.lora_B.mT * self.scaling
        return out

    def merge(self):
        if self.merged:
            return
        self._kept = self.base.weight.detach().clone()
        with torch.no_grad():
            self.base.weight.copy_(self._kept + self.scaling * (self.lora_B @ self.lora_A))

    def unmerge(self):
        if self.merged:
            with torch.no_grad():
                self.base.weight.copy_(self._kept)
            self._kept = None

    def lora_state_dict(self):
        return {"lora_A": self.lora_A.data, "lora_B": self.lora_B.data}
