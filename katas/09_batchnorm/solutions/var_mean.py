"""Torch's var_mean, and buffers replaced rather than written to."""

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
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


class BatchNorm1d(nn.Module):
    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            dims = [0] if x.dim() == 2 else [0, 2]
            n = x.numel() // x.size(1)
            if n < 2:
                raise ValueError(f"cannot train on {tuple(x.shape)}")
            var, mean = torch.var_mean(x, dim=dims, unbiased=False)
            new = mean.detach(), var.detach() * (n / (n - 1))
            self.running_mean = self.running_mean + self.momentum * (new[0] - self.running_mean)
            self.running_var = self.running_var + self.momentum * (new[1] - self.running_var)
            self.num_batches_tracked = self.num_batches_tracked + 1
        shape = [1, -1] + [1] * (x.dim() - 2)
        x_hat = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        return x_hat * self.weight.view(shape) + self.bias.view(shape)
