"""Style: one effective weight, W + s BA, wherever nothing is dropped; einsum where it is."""

import torch
import torch.nn.functional as F
from torch import nn


class LoRALinear(nn.Module):
    def __init__(self, base, r, alpha, dropout=0.0):
        super().__init__()
        if r < 1:
            raise ValueError(f"a rank of {r} is too small")
        self.base, self.r, self.alpha, self.p = base, r, alpha, dropout
        for parameter in base.parameters():
            parameter.requires_grad = False
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        spread = base.in_features**-0.5
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, **like))
        nn.init.uniform_(self.lora_A, -spread, spread)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, **like))
        self.merged = False

    def delta(self):
        return torch.einsum("or,ri->oi", self.lora_B, self.lora_A) * (self.alpha / self.r)

    def forward(self, x):
        if self.merged:
            return self.base(x)
        if not self.training or self.p == 0:
            return F.linear(x, self.base.weight + self.delta(), self.base.bias)
        dropped = F.dropout(x, self.p)
        return self.base(x) + torch.einsum("...i,oi->...o", dropped, self.delta())

    def merge(self):
        if not self.merged:
            self.base.weight.data = self.base.weight.data + self.delta().detach()
        self.merged = True

    def unmerge(self):
        if self.merged:
            self.base.weight.data = self.base.weight.data - self.delta().detach()
        self.merged = False

    def lora_state_dict(self):
        return {k: v for k, v in self.state_dict().items() if k in ("lora_A", "lora_B")}
