"""AdamW with parameter groups, clipping by the global norm, and a schedule with warm-up."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_OPTIONS = ("lr", "betas", "eps", "weight_decay")


class AdamW:
    """Adam with decoupled weight decay, and options for each group of parameters.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
    https://arxiv.org/abs/1711.05101. Options, update and state dict are those of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html, but moments of parameters
    in half precision are float32, and a state dict shares no memory with the optimiser.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        """Take parameters of any shapes, or groups: dicts with `params` and options of their own.

        ValueError for an option out of range, for no parameters and for the same one twice.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        groups = list(params)
        if groups and isinstance(groups[0], Tensor):
            groups = [{"params": groups}]
        self.param_groups: list[dict[str, Any]] = [
            {**defaults, **group, "params": list(group["params"])} for group in groups
        ]
        for group in self.param_groups:
            _check_options(group)
        parameters = self._parameters()
        if not parameters:
            raise ValueError("there are no parameters to optimise")
        if len(set(parameters)) < len(parameters):
            raise ValueError("a parameter is given twice")
        self._state: dict[Tensor, dict[str, Any]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, in place; all others stay as they are."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self._state_of(p)
                state["step"] += 1
                direction = _direction(state, p.grad, group["betas"], group["eps"])
                decay = group["lr"] * group["weight_decay"]
                p.copy_(p.to(direction.dtype) * (1 - decay) - group["lr"] * direction)

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to None."""
        for p in self._parameters():
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot: `state`, by the numbers of the parameters, and `param_groups`."""
        numbers = {p: number for number, p in enumerate(self._parameters())}
        return {
            "state": {numbers[p]: copy.deepcopy(state) for p, state in self._state.items()},
            "param_groups": [
                {**group, "params": [numbers[p] for p in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over moments, counts and options from a state dict, this class's or torch's.

        ValueError, before anything is changed, if its groups are not as many or as long as here.
        """
        saved_groups = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        saved_sizes = [len(group["params"]) for group in saved_groups]
        if sizes != saved_sizes:
            raise ValueError(f"the groups have {saved_sizes} parameters, and here {sizes}")
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            group.update({name: saved[name] for name in _OPTIONS})
        self._state = {
            p: _loaded(state_dict["state"][number], _wide(p.dtype))
            for number, p in enumerate(self._parameters())
            if number in state_dict["state"]
        }

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        """Return the moments of a parameter and its count of steps, new ones at its first step."""
        if p not in self._state:
            zeros = torch.zeros_like(p, dtype=_wide(p.dtype))
            self._state[p] = {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        return self._state[p]


def _direction(
    state: dict[str, Any], grad: Tensor, betas: tuple[float, float], eps: float
) -> Tensor:
    """Take a gradient into the moments; return Adam's step, before the learning rate."""
    beta1, beta2 = betas
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    grad = grad.to(exp_avg.dtype)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    mean = exp_avg / (1 - beta1 ** state["step"])
    square = exp_avg_sq / (1 - beta2 ** state["step"])
    return mean / (square.sqrt() + eps)


def _loaded(saved: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a parameter's state from a state dict, with moments of its own in `dtype`."""
    moments = {name: saved[name].to(dtype, copy=True) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": int(saved["step"]), **moments}


def _check_options(group: dict[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        if group[name] < 0:
            raise ValueError(f"{name} is negative: {group[name]}")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas are from 0 to below 1, and not {group['betas']}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in for numbers of this one."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def clip_grad_norm_(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients, in place, so that their common norm is at most `max_norm`.

    Returns the norm from before, of shape (): float64 if a gradient is, and float32 otherwise.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html
    """
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return torch.zeros((), dtype=torch.float32)
    norms = [torch.linalg.vector_norm(grad, dtype=_wide(grad.dtype)) for grad in grads]
    total = torch.linalg.vector_norm(torch.stack(norms))
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.copy_(grad.to(scale.dtype).mul_(scale))
    return total


def lr_at(step: int, max_lr: float, min_lr: float, warmup: int, total: int) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine, then `min_lr`.

    The first step, 0, gets `max_lr / warmup`, step `warmup - 1` and step `warmup` get `max_lr`, and
    from `total` on it stays. After Loshchilov and Hutter, https://arxiv.org/abs/1608.03983.
    """
    if step < warmup:
        return max_lr * (step + 1) / warmup
    if step >= total:
        return min_lr
    progress = (step - warmup) / (total - warmup)
    return min_lr + (max_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2
