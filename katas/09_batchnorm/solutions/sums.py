"""Channels moved last, sums over a matrix, running statistics written out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batchnorm_functional(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return F.batch_norm(
        x, running_mean, running_var, weight, bias, training=training, momentum=momentum, eps=eps
    )


class BatchNorm1d(nn.Module):
    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        values = x.movedim(1, -1)
        rows = values.reshape(-1, values.shape[-1])
        if not self.training:
            mean, var = self.running_mean, self.running_var
        else:
            n = rows.shape[0]
            if n == 1:
                raise ValueError(f"expected more than one value per channel, got {x.shape}")
            mean = rows.sum(0) / n
            squares = ((rows - mean) ** 2).sum(0)
            var = squares / n
            with torch.no_grad():
                m = self.momentum
                self.running_mean.copy_((1 - m) * self.running_mean + m * mean)
                self.running_var.copy_((1 - m) * self.running_var + m * squares / (n - 1))
                self.num_batches_tracked.add_(1)
        out = self.weight * (values - mean) / torch.sqrt(var + self.eps) + self.bias
        return out.movedim(-1, 1)
