"""Spoils an implementation: what it computes comes out changed, in the same shape and type.

Tests that pass all the same do not judge what they are given.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

# No two results are changed alike, or what compares them with each other would see nothing.
_number = itertools.count(1)
_CALLED = {"__call__", "__getitem__", "__next__"}  # by what a test does, not by their names


def spoilt(module: ModuleType) -> ModuleType:
    """Return a module of the same names, whose functions and methods return what is wrong.

    Its functions call each other as they did.
    """
    copy = ModuleType(module.__name__, module.__doc__)
    for name, value in vars(module).items():
        vars(copy)[name] = value
        if name.startswith("_"):
            continue
        if isinstance(value, type):
            if value.__module__ == module.__name__:
                _spoil_class(value)
        elif callable(value):
            vars(copy)[name] = _spoiling(value)
    return copy


def _spoil_class(owner: type) -> None:
    for name, value in list(vars(owner).items()):
        if name.startswith("_") and name not in _CALLED:
            continue
        new: Any = value
        if isinstance(value, FunctionType):
            new = _spoiling(value)
        elif isinstance(value, staticmethod | classmethod):
            new = type(value)(_spoiling(value.__func__))
        elif isinstance(value, property) and value.fget is not None:
            new = property(_spoiling(value.fget), value.fset, value.fdel)
        if new is not value:
            setattr(owner, name, new)


def _spoiling(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def spoils(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if result is None:  # it changes what it is given
            for value in (*arguments, *named.values()):
                _spoil_in_place(value)
        return changed(result)

    return spoils


def _spoil_in_place(value: Any) -> None:
    tensors = [value] if isinstance(value, torch.Tensor) else []
    if isinstance(value, torch.nn.Module):
        tensors = [*value.parameters(), *value.buffers()]
    elif isinstance(value, torch.optim.Optimizer):
        tensors = [parameter for group in value.param_groups for parameter in group["params"]]
    elif isinstance(value, list | tuple):
        tensors = [part for part in value if isinstance(part, torch.Tensor)]
    elif hasattr(value, "__dict__"):
        tensors = [part for part in vars(value).values() if isinstance(part, torch.Tensor)]
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.mul_(1.5).add_(1)


def changed(value: Any) -> Any:
    """Return another value of the same kind; what has none is returned as it is."""
    kind = type(value)
    if isinstance(value, bool | np.bool_):
        return kind(not value)
    if isinstance(value, int | float | complex | np.number):
        return kind(value * 2 + next(_number))
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, bytes | bytearray):
        return value + b"?"
    if isinstance(value, torch.Tensor | np.ndarray):
        return _changed_array(value)
    if isinstance(value, tuple):
        parts = map(changed, value)
        return kind(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [changed(part) for part in value]
    if isinstance(value, dict):
        return {key: changed(part) for key, part in value.items()}
    if isinstance(value, Iterator):
        return map(changed, value)
    return value


def _changed_array(array: Any) -> Any:
    name = str(array.dtype)
    if "bool" in name:
        return ~array
    if "float" not in name and "complex" not in name:
        return array + 1
    ramp = np.linspace(0, 1, math.prod(array.shape)).reshape(tuple(array.shape)) + next(_number)
    if isinstance(array, np.ndarray):
        return (array * 1.5 + ramp).astype(array.dtype)
    return array * 1.5 + torch.from_numpy(ramp).to(array)
