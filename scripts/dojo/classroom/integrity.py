"""Sees whether what judges is still what it was before the code under test was loaded."""

import builtins
import importlib
import operator
import sys
import threading
from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch.utils import _python_dispatch

# With all that is below them.
_JUDGES = ("pytest", "_pytest", "pluggy", "dojo", "torch.testing", "numpy.testing")
# What tests compare with, and what they are run by.
_ORACLES = (
    "builtins",
    "math",
    "operator",
    "os",
    "random",
    "signal",
    "numpy",
    "torch",
    "torch.autograd",
    "torch.fft",
    "torch.functional",
    "torch.linalg",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.optim",
    "torch.overrides",
    "torch.special",
    "torch.utils._python_dispatch",
)
# What torch itself replaces when it imports more of itself.
_UNSETTLED = {"torch.manual_seed"}
_CLASSES = (torch.Tensor, torch.nn.Module, torch.autograd.Function)


class Integrity:
    """What functions and classes there were, and what they did."""

    def __init__(self, tests: Iterable[ModuleType], plugins: pytest.PytestPluginManager) -> None:
        """Take note of everything that judges: these tests, pytest, comparisons and oracles."""
        self._plugins = plugins
        self._holders: list[tuple[str, Mapping[str, Any], tuple[str, ...], tuple[Any, ...]]] = []
        self._functions: dict[int, FunctionType] = {}
        for name in _ORACLES:
            importlib.import_module(name)
        modules = [
            module
            for name, module in list(sys.modules.items())
            if name in _ORACLES or any(f"{name}.".startswith(f"{judge}.") for judge in _JUDGES)
        ]
        for module in {id(one): one for one in (*modules, *tests)}.values():
            self._note_module(module)
        for owner in _CLASSES:
            self._note(f"torch.{owner.__name__}", vars(owner))
        self._functions_kept = tuple(self._functions.values())
        self._done = self._what_they_do()
        self._state = _state(plugins)

    def broken(self) -> str:
        """Return what is not as it was, in a few words; nothing if everything is."""
        for where, holder, names, values in self._holders:
            if not all(map(operator.is_, map(holder.get, names), values)):
                return _first_changed(where, holder, names, values)
        done = self._what_they_do()
        if not all(map(operator.is_, done, self._done)):
            pairs = zip(done, self._done, strict=True)
            place = next(place for place, (now, then) in enumerate(pairs) if now is not then)
            function = self._functions_kept[place % len(self._functions_kept)]
            return f"{function.__module__}.{function.__qualname__} does something else"
        now = _state(self._plugins)
        return next((what for what, value in self._state.items() if now[what] != value), "")

    def _note_module(self, module: ModuleType) -> None:
        name = module.__name__
        self._note(name, vars(module))
        for value in list(vars(module).values()):
            # Of the judges' own classes; torch's are many, and C's cannot be changed.
            own = isinstance(value, type) and value.__module__ == name and name not in _ORACLES
            if own and not issubclass(value, torch.optim.Optimizer):  # torch wraps their `step`
                self._note(f"{name}.{value.__name__}", vars(value))

    def _note(self, where: str, holder: Mapping[str, Any]) -> None:
        values = {
            name: value
            for name, value in holder.items()
            if _does_something(value) and f"{where}.{name}" not in _UNSETTLED
        }
        self._holders.append((where, holder, tuple(values), tuple(values.values())))
        for value in values.values():
            function = getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                self._functions[id(function)] = function

    def _what_they_do(self) -> list[Any]:
        functions = self._functions_kept
        return [
            *(function.__code__ for function in functions),
            *(function.__defaults__ for function in functions),
            *(function.__kwdefaults__ for function in functions),
        ]


def _does_something(value: Any) -> bool:
    return callable(value) or isinstance(value, staticmethod | classmethod | property)


def _first_changed(
    where: str, holder: Mapping[str, Any], names: Iterable[str], values: Iterable[Any]
) -> str:
    pairs = zip(names, values, strict=True)
    return f"{where}.{next(n for n, v in pairs if holder.get(n) is not v)} is replaced"


def _state(plugins: pytest.PytestPluginManager) -> dict[str, Any]:
    """Return what else can bend a judge, by what is said if it differs."""
    return {
        "a trace function is set": (sys.gettrace(), threading.gettrace()),
        "a profile function is set": (sys.getprofile(), threading.getprofile()),
        "a mode of torch's is left on": (
            torch._C._len_torch_function_stack(),
            len(_python_dispatch._get_current_dispatch_mode_stack()),
        ),
        "pytest has got other plugins": set(map(id, plugins.get_plugins())),
        "pytest's hooks are others": {
            name: tuple(map(id, hook.get_hookimpls()))
            for name, hook in vars(plugins.hook).items()
            if hasattr(hook, "get_hookimpls")
        },
        "builtins is another module": id(sys.modules.get("builtins")) == id(builtins),
    }
