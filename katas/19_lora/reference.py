"""LoRA: a frozen linear layer with a trainable low-rank update, which can be merged into it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen linear layer plus an update of rank `r`, after https://arxiv.org/abs/2106.09685.

    `lora_A` (r, in) and `lora_B` (out, r) are the adapter, in the dtype and on the device of the
    base's weight; `merged` says whether that weight holds their update. `ValueError` if r < 1.
    """

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float = 0.0) -> None:
        """Wrap `base`, which is kept as an attribute; `dropout` is a probability."""
        super().__init__()
        if r < 1:
            raise ValueError(f"r must be at least 1, not {r}")
        self.base = base.requires_grad_(False)
        self.scale = alpha / r
        self.dropout = nn.Dropout(dropout)
        self.merged = False
        self.lora_A = nn.Parameter(base.weight.new_empty(r, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_empty(base.out_features, r))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted layer's output, (..., out), for `x`, (..., in)."""
        out = self.base(x)
        if self.merged:
            return out
        low_rank = F.linear(self.dropout(x), self.lora_A)
        return out + self.scale * F.linear(low_rank, self.lora_B)

    def update(self) -> Tensor:
        """Return the adapter's update of the base's weight, (out, in)."""
        return self.scale * self.lora_B @ self.lora_A

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the base's weight, if it is not in there."""
        if self.merged:
            return
        self.base.weight.add_(self.update())
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the update out of the base's weight, if it is in there."""
        if not self.merged:
            return
        self.base.weight.sub_(self.update())
        self.merged = False

    def lora_state_dict(self) -> dict[str, Tensor]:
        """Return the adapter alone, under the names that `load_state_dict` knows."""
        return {"lora_A": self.lora_A.detach(), "lora_B": self.lora_B.detach()}
