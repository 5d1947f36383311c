"""Figures of a tensor, in few operations, for they are taken at every call of every module."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_DEPTH = 3  # how deep tensors may lie in what a module takes or gives


@dataclass(frozen=True)
class Figures:
    """Figures of a tensor; infinite values count in neither mean nor spread nor size."""

    mean: float
    spread: float
    size: float  # root mean square
    zeros: float  # share
    nans: float  # share
    has_infinity: bool  # plus infinity: minus infinity is how scores are masked


def tensors(value: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    """Yield the tensors in a value: itself, or in tuples, lists, mappings and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth == 0 or isinstance(value, (str, bytes, torch.nn.Module)):
        return
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors(one, depth - 1)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors(one, depth - 1)
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value), depth - 1)


def largest(value: Any) -> Tensor | None:
    """Return the floating-point tensor of most elements, or the largest of any, or None."""
    found = list(tensors(value))
    return max(found, key=lambda x: (x.is_floating_point(), x.numel()), default=None)


def figures(x: Tensor) -> Figures | None:
    """Return the figures of a floating-point tensor; None for any other, and for an empty one."""
    if not x.is_floating_point() or x.numel() == 0 or x.is_meta:
        return None
    values = x.detach()
    if values.dtype != torch.float64:
        values = values.float()
    zeros = 1 - torch.count_nonzero(values).item() / values.numel()
    spread, mean = (one.item() for one in torch.std_mean(values, correction=0))
    if math.isfinite(spread):
        return Figures(mean, spread, math.hypot(mean, spread), zeros, 0.0, False)
    nans = values.isnan().sum().item() / values.numel()
    finite = values[values.isfinite()].double()  # in float32 the squares may have been too large
    spread, mean = 0.0, 0.0
    if finite.numel():
        spread, mean = (one.item() for one in torch.std_mean(finite, correction=0))
    infinite = bool(values.isposinf().any())
    return Figures(mean, spread, math.hypot(mean, spread), zeros, nans, infinite)


def finite(value: Any) -> bool:
    """Say whether no tensor in the value holds NaN or plus infinity."""
    return not any(
        x.is_floating_point() and bool((x.isnan() | x.isposinf()).any()) for x in tensors(value)
    )


def norm(x: Tensor) -> float:
    """Return the 2-norm, computed where it cannot overflow."""
    dense = x.detach().to_dense() if x.is_sparse else x.detach()
    real = dense.abs() if dense.is_complex() else dense
    return float(torch.linalg.vector_norm(real, dtype=torch.float64).item())
