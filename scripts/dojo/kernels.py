"""What the kernel katas' tests share: where kernels run, guarded memory, speed on a GPU.

A test file imports this before anything imports triton: without a GPU, kernels are then
interpreted on the CPU. https://triton-lang.org/main/programming-guide/chapter-3/debugging.html
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dojo.testrun.device import has_gpu, milliseconds

DEVICE = "cuda" if has_gpu() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip(
    "triton", reason="kernel katas need triton, which is not installed here"
)

# Elements on either side of a tensor: farther than a tile that runs over its end reaches.
_BAND = 1 << 16
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_FILLED = {"zeros", "zeros_like", "new_zeros", "ones", "ones_like", "full", "full_like", "new_full"}


def _let_tensors_be_bounds() -> None:
    """Let a loop end at a tensor, for which triton before 3.7 relies on numpy before 1.25.

    Newer ones warn where an array of one element is taken for a number, or refuse it.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def _patch_once_a_launch() -> None:
    """Prepare the language once a launch, not at every call of a device function.

    The interpreter looks through all of `triton.language` each time a kernel calls `tl.sum` or a
    function of its own, to put there what is there already: almost half of a kernel's time.
    """
    from triton.runtime import interpreter

    languages = (interpreter.tl, interpreter.tl.core)
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[ModuleType] = set()  # in this launch

    def patched_once(fn: Callable[..., Any]) -> Any:
        seen = {one for one in languages if any(value is one for value in fn.__globals__.values())}
        if seen and seen <= patched:
            return None  # to the call of a device function, which restores nothing afterwards
        patched.update(seen)
        return patch(fn)

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(self, *args, **kwargs)

    interpreter._patch_lang = patched_once
    interpreter.GridExecutor.__call__ = launched


def _leave_masked_lanes_undefined() -> None:
    """Let a masked load without `other` give NaN, 77 in integers, where its mask is false.

    A GPU gives whatever is there, and the interpreter gave a zero that a kernel could rely on.
    https://triton-lang.org/main/python-api/generated/triton.language.load.html
    """
    from triton.runtime import interpreter

    load = interpreter.InterpreterBuilder.create_masked_load

    def load_undefined(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **more: Any) -> Any:
        if other is None and not mask.data.all():
            element = ptrs.get_element_ty()
            dtype = interpreter._get_np_dtype(element)
            # The interpreter holds bfloat16 in integers of 16 bits.
            value = 0x7FC0 if element.is_bf16() else _poison_of(dtype)
            data = np.full_like(ptrs.data, value, dtype=dtype)
            other = interpreter.TensorHandle(data, element)
        return load(self, ptrs, mask, other, *rest, **more)

    interpreter.InterpreterBuilder.create_masked_load = load_undefined


def _poison_of(dtype: "np.dtype[Any] | type[np.generic]") -> float:
    return float("nan") if np.issubdtype(dtype, np.floating) else 77


if DEVICE == "cpu":
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        _let_tensors_be_bounds()
    _patch_once_a_launch()
    _leave_masked_lanes_undefined()


@dataclass
class _Block:
    """A tensor in the middle of a larger buffer, whose other elements are sentinels."""

    name: str
    buffer: Tensor
    view: Tensor
    written: bool  # whether the code under test may write to it
    before: Tensor

    def check(self) -> None:
        owned = torch.zeros_like(self.buffer, dtype=torch.bool)
        if self.written:
            _once(owned.as_strided(self.view.shape, self.view.stride(), _BAND)).fill_(True)
        same = (self.buffer == self.before) | (self.buffer.isnan() & self.before.isnan())
        changed = (~same & ~owned).nonzero().flatten()
        if not len(changed):
            return
        end = len(self.buffer) - _BAND
        inside = int(((changed >= _BAND) & (changed < end)).sum())
        if inside and not self.written:
            what = f"the input {self.name} is left as it was: {inside} of its elements changed"
        else:
            places = {
                "before its start": int((changed < _BAND).sum()),
                "between its elements": inside,
                "past its end": int((changed >= end).sum()),
            }
            counts = ", ".join(f"{count} {place}" for place, count in places.items() if count)
            shape = tuple(self.view.shape)
            what = f"nothing is written outside {self.name} of shape {shape}: {counts} were"
        pytest.fail(what, pytrace=False)


def _once(x: Tensor) -> Tensor:
    """Return each element of an expanded tensor once."""
    return x[tuple(slice(0, 1) if s == 0 else slice(None) for s in x.stride())]


def _filled(value: float, length: int, dtype: torch.dtype) -> Tensor:
    """Return a 1-D tensor, by calls that `Memory` does not see: it must not guard the guard."""
    return torch.tensor(value, dtype=dtype, device=DEVICE).repeat(length)


def _poison(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else 77


class Memory(TorchFunctionMode):
    """Keeps tensors inside guard bands; while active, also those that torch's factories make.

    What `torch.empty` and its kin return is NaN (77 in integers), so an element that is never
    written shows. See `guarded`.
    """

    def __init__(self) -> None:
        """Begin with no tensors."""
        super().__init__()
        self._blocks: list[_Block] = []

    def place(self, x: Tensor, name: str = "x", *, written: bool = False) -> Tensor:
        """Return a tensor of the same values and strides inside guard bands, on the device.

        Unless `written`, the code under test must leave it as it is.
        """
        span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        length = (span if x.numel() else 0) + 2 * _BAND
        # What is read beyond an input shows as NaN; NaN written beyond an output must show too.
        buffer = _filled(55 if written else _poison(x.dtype), length, x.dtype)
        view = buffer.as_strided(x.shape, x.stride(), _BAND)
        _once(view).copy_(_once(x.detach()))
        self._blocks.append(_Block(name, buffer, view, written, buffer.clone()))
        return view

    def poisoned(self, x: Tensor, name: str = "out") -> Tensor:
        """Return a tensor of the same shape and strides to write to, full of NaN or 77."""
        view = self.place(x, name, written=True)
        _once(view).copy_(_filled(_poison(x.dtype), 1, x.dtype)[0])
        return view

    def check(self) -> None:
        """Fail if anything was written outside a tensor, or to an input."""
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        for block in self._blocks:
            block.check()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Guard what a factory returns."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        # An empty one has nothing to guard, and an operator may resize it.
        if isinstance(result, Tensor) and result.numel() and result.device.type == DEVICE:
            if name in _EMPTY:
                return self.poisoned(result, "a tensor made by torch.empty")
            if name in _FILLED:
                return self.place(result, f"a tensor made by torch.{name}", written=True)
        return result


@contextlib.contextmanager
def guarded() -> Iterator[Memory]:
    """Run the block with poisoned, guarded allocations; at its end, check what was written where.

    with guarded() as memory:
        x = memory.place(x)
        out = memory.poisoned(x)
        impl.silu_into(x, out)
    """
    memory = Memory()
    # Masked lanes may compute inf - inf, which a GPU does in silence and numpy does not.
    with memory, np.errstate(all="ignore"):
        yield memory
    memory.check()


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the function inside `guarded`, on guarded copies of its tensors; return its result."""
    with guarded() as memory:
        placed = [
            memory.place(arg, f"argument {i}") if isinstance(arg, Tensor) else arg
            for i, arg in enumerate(args, 1)
        ]
        named = {
            name: memory.place(arg, name) if isinstance(arg, Tensor) else arg
            for name, arg in kwargs.items()
        }
        return function(*placed, **named)


def speed(ours: Callable[[], object], *theirs: Callable[[], object]) -> float:
    """Return how fast `ours` is beside the fastest of `theirs` on a GPU: 2 is twice as fast."""
    return min(map(milliseconds, theirs)) / milliseconds(ours)
