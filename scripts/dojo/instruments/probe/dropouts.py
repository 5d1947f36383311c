"""Tells of every dropout that drops something, by whatever module or function it is called.

Torch has no hook for that: `F.dropout(x)` in a forward, which drops in evaluation mode too, belongs
to no module. So the functions of `torch.nn.functional` stand behind others while this is on.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

# Whether each drops when it is not told.
_DROPOUTS = {
    "dropout": True,
    "dropout1d": True,
    "dropout2d": True,
    "dropout3d": True,
    "alpha_dropout": False,
    "feature_alpha_dropout": False,
}
_P = 0.5


@contextlib.contextmanager
def told(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` at each dropout in the block that drops something."""
    kept = {name: getattr(functional, name) for name in _DROPOUTS}
    attention, of_torch = functional.scaled_dot_product_attention, torch.dropout

    def dropping(function: Any, default: bool) -> Any:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            p = _given(args, kwargs, 1, "p", _P)
            if p > 0 and _given(args, kwargs, 2, "training", default):
                tell()
            return function(*args, **kwargs)

        return called

    @functools.wraps(attention)
    def attended(*args: Any, **kwargs: Any) -> Any:
        if _given(args, kwargs, 4, "dropout_p", 0.0) > 0:
            tell()
        return attention(*args, **kwargs)

    @functools.wraps(of_torch)
    def dropped(*args: Any, **kwargs: Any) -> Any:
        if _given(args, kwargs, 1, "p", 0.0) > 0 and _given(args, kwargs, 2, "train", False):
            tell()
        return of_torch(*args, **kwargs)

    for name, function in kept.items():
        setattr(functional, name, dropping(function, _DROPOUTS[name]))
    functional.scaled_dot_product_attention = attended
    torch.dropout = dropped
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(functional, name, function)
        functional.scaled_dot_product_attention = attention
        torch.dropout = of_torch


def _given(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any
) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)
