"""Batch normalisation of (N, C) and (N, C, L): PyTorch's operator, and a module from scratch."""

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
    """Return the batch norm of `x`, by PyTorch's operator; all other tensors are (C,).

    Updates `running_mean` and `running_var` if `training`.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.batch_norm.html
    """
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


class BatchNorm1d(nn.Module):
    """Batch normalisation over the channels of (N, C) or (N, C, L).

    Ioffe and Szegedy, 2015: https://arxiv.org/abs/1502.03167
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """Make a layer for `num_features` channels; `momentum` weighs the newest batch."""
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the batch norm of `x`; same shape and dtype.

        Raises ValueError for a single value per channel in training.
        """
        if self.training:
            count = x[:, 0].numel()
            if count < 2:
                raise ValueError(f"one value per channel in training: x is {tuple(x.shape)}")
            mean, var = _statistics(x)
            self._track(mean, var)
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        channels = (-1, 1)[: x.ndim - 1]
        return torch.addcmul(shift.view(channels), x, scale.view(channels))

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Let a batch's statistics, both (C,), into the running ones."""
        self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)
        self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var)
        self.num_batches_tracked += 1


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of every channel, both (C,)."""
    axes = (0, 2)[: x.ndim - 1]
    mean = x.mean(axes, keepdim=True)
    var = (x - mean).square().mean(axes)
    return mean.flatten(), var
