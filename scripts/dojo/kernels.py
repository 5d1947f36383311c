"""What the kernel katas' tests share: where kernels run, guarded memory, counts, speed on a GPU.

A test file imports this before anything imports triton: without a GPU, kernels are then
interpreted on the CPU. https://triton-lang.org/main/programming-guide/chapter-3/debugging.html
"""

import contextlib
import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dojo.testrun.device import has_gpu, milliseconds
from dojo.testrun.interpreter import prepare_interpreter

DEVICE = "cuda" if has_gpu() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip(
    "triton", reason="kernel katas need triton, which is not installed here"
)

if DEVICE == "cpu":
    prepare_interpreter()

# Elements on either side of a tensor: farther than a tile that runs over its end reaches.
_BAND = 1 << 16
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_FILLED = {"zeros", "zeros_like", "new_zeros", "ones", "ones_like", "full", "full_like", "new_full"}


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
            what = f"the input {self.name} is changed, in {inside} of its elements"
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


def need_gpu_memory(gigabytes: float) -> None:
    """Skip the test where the GPU has less memory to give, in GiB."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of GPU memory, and {free:.0f} are free")


SECTOR = 32  # bytes: the least that a GPU moves


@dataclass
class Traffic:
    """What kernels do, and what torch allocates for them, as `memory_traffic` counts it.

    - `programs`: how many ran, of all launches.
    - `loaded`, `stored`: the elements that masks let through. An atomic is both.
    - `asked`: the bytes of these; `touched`: those of the sectors of 32 bytes in which they lie,
      each sector once a load or store. Where access is coalesced the two are about the same.
    - `lanes`: the elements of all tiles that are loaded or stored, masked or not, so this tells
      how far loops go; `widest`: those of the largest tile.
    - `allocated`: the elements of the largest tensor that torch makes.
    - `float64`: whether anything is cast to it; `tf32`: whether a dot product of float32 is
      allowed to round its inputs, as `tl.dot` is unless `input_precision="ieee"`.
    """

    programs: int = 0
    loaded: int = 0
    stored: int = 0
    asked: int = 0
    touched: int = 0
    lanes: int = 0
    widest: int = 0
    allocated: int = 0
    float64: bool = False
    tf32: bool = False

    def _access(self, pointers: Any, mask: Any = None) -> int:
        """Count one access, and return its elements."""
        chosen = np.broadcast_to(True if mask is None else mask.data, pointers.data.shape)
        addresses = pointers.data[chosen].astype(np.int64)
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        self.asked += addresses.size * size
        # An aligned element lies in one sector.
        self.touched += np.unique(addresses // SECTOR).size * SECTOR
        self.lanes += chosen.size
        self.widest = max(self.widest, chosen.size)
        return int(addresses.size)


class _Allocations(TorchFunctionMode):
    """Notes the size of the largest tensor in memory of its own, whichever function made it."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(value) for value in _flat([*args, *(kwargs or {}).values()])}
        for part in _flat([result]):
            if isinstance(part, Tensor) and _address(part) not in given:
                elements = part.untyped_storage().nbytes() // part.itemsize
                self.traffic.allocated = max(self.traffic.allocated, elements)
        return result


def _flat(values: Sequence[Any]) -> list[Any]:
    """Return values, and what those that are tuples or lists hold."""
    nested = [value if isinstance(value, tuple | list) else (value,) for value in values]
    return [part for value in nested for part in value]


def _address(value: Any) -> int | None:
    if isinstance(value, Tensor):
        value = value.untyped_storage()
    return value.data_ptr() if isinstance(value, torch.UntypedStorage) else None


@contextlib.contextmanager
def memory_traffic() -> Iterator[Traffic]:
    """Count what the kernels of the block do to memory, under the interpreter.

    Where there is a GPU, have it called by `interpreted`.

        with memory_traffic() as traffic:
            impl.softmax(x)
        assert traffic.loaded == x.numel()
    """
    if DEVICE == "cuda":
        raise RuntimeError("kernels are compiled here, and only interpreted ones can be counted")
    from triton.runtime.interpreter import _ir
    from triton.runtime.interpreter import interpreter_builder as builder

    traffic = Traffic()
    begin, cast, dot = builder.set_grid_idx, builder.cast_impl, builder.create_dot
    load, store = builder.create_masked_load, builder.create_masked_store
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas
    language = triton.language

    def counted_begin(*index: int) -> Any:
        traffic.programs += 1
        return begin(*index)

    def counted_load(ptrs: Any, mask: Any, *rest: Any) -> Any:
        traffic.loaded += traffic._access(ptrs, mask)
        return load(ptrs, mask, *rest)

    def counted_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.stored += traffic._access(ptrs, mask)
        return store(ptrs, value, mask, *rest)

    def counted_rmw(operation: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.loaded += traffic._access(ptr, mask)
        traffic.stored += traffic._access(ptr, mask)
        return rmw(operation, ptr, value, mask, *rest)

    def counted_cas(ptr: Any, *rest: Any) -> Any:
        traffic.loaded += traffic._access(ptr)
        traffic.stored += traffic._access(ptr)
        return cas(ptr, *rest)

    def counted_cast(source: Any, dtype: Any) -> Any:
        traffic.float64 |= dtype.scalar == language.float64
        return cast(source, dtype)

    def counted_dot(a: Any, b: Any, acc: Any, precision: Any, *rest: Any) -> Any:
        exact = precision == _ir.INPUT_PRECISION.IEEE
        traffic.tf32 |= a.dtype.scalar == language.float32 and not exact
        return dot(a, b, acc, precision, *rest)

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(builder, "set_grid_idx", counted_begin)
        patch.setattr(builder, "create_masked_load", counted_load)
        patch.setattr(builder, "create_masked_store", counted_store)
        patch.setattr(builder, "create_atomic_rmw", counted_rmw)
        patch.setattr(builder, "create_atomic_cas", counted_cas)
        patch.setattr(builder, "cast_impl", counted_cast)
        patch.setattr(builder, "create_dot", counted_dot)
        with _Allocations(traffic):
            yield traffic


_INTERPRETED = """
import json, sys
from pathlib import Path
from dojo.testrun.loading import load_module

tests, impl = (load_module(Path(p), Path(p).stem, Path(p).read_bytes()) for p in sys.argv[1:3])
print(json.dumps(getattr(tests, sys.argv[3])(impl)))
"""


def interpreted(function: Callable[[ModuleType], Any], impl: ModuleType) -> Any:
    """Return `function(impl)`, which JSON can hold, from where kernels are interpreted.

    That is here where no GPU is, and else a process that sees none, which loads `impl` and the
    test file that `function` stands in anew.
    """
    if DEVICE == "cpu":
        return function(impl)
    path = inspect.getsourcefile(function)
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED, str(path), str(impl.__file__), function.__name__],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"under the interpreter:\n{done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def room(call: Callable[[], object], needed: int) -> int:
    """Return how many elements the programs that `call` launches could write, up to `needed`.

    To run them all takes the interpreter minutes. So the first, the last and one in the middle of
    each launch run, and the one that writes most stands for the others. Nothing is stored, so that
    a kernel which would write elsewhere does no harm here.
    """
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.interpreter import interpreter_builder as builder

    launch, size, begin = GridExecutor.__call__, builder.set_grid_dim, builder.set_grid_idx
    total = programs = stores = 0
    chosen: list[int] = []
    written: list[int] = []

    class Enough(BaseException):
        """Ends a launch; an Exception would be wrapped."""

    def sized(*grid: int) -> None:
        nonlocal programs, chosen
        if max(grid[1:]) > 65_535:
            pytest.fail(f"a GPU has no grid of {grid}: 65,535 is the most along its second axis")
        programs = math.prod(grid)
        chosen = sorted({0, programs // 2, programs - 1}, reverse=True)
        size(*grid)

    def begun(*_: int) -> None:
        nonlocal stores
        if not chosen:
            raise Enough
        stores = 0
        written.append(0)
        begin(*map(int, np.unravel_index(chosen.pop(), builder.grid_dim)))

    def count(pointers: Any, mask: Any) -> None:
        nonlocal stores
        stores += 1
        written[-1] += int(np.count_nonzero(np.broadcast_to(mask.data, pointers.data.shape)))
        if stores == 30:  # this one has a loop over the rest
            written[-1] = needed
        if total + programs * written[-1] >= needed:
            raise Enough

    def stored(pointers: Any, value: Any, mask: Any, *_: Any) -> None:
        count(pointers, mask)

    def added(operation: Any, pointers: Any, value: Any, mask: Any, *_: Any) -> Any:
        count(pointers, mask)
        return value

    def launched(*args: Any, **kwargs: Any) -> None:
        nonlocal total
        written.clear()
        with contextlib.suppress(Enough):
            launch(*args, **kwargs)
        total += programs * max(written, default=0)

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(GridExecutor, "__call__", launched)
        patch.setattr(builder, "set_grid_dim", sized)
        patch.setattr(builder, "set_grid_idx", begun)
        patch.setattr(builder, "create_masked_store", stored)
        patch.setattr(builder, "create_atomic_rmw", added)
        call()
    return total


@contextlib.contextmanager
def tf32_as_on_a_gpu() -> Iterator[None]:
    """Let the interpreter's `tl.dot` keep 11 bits of a float32 where a GPU would.

    It is told which precision a kernel asks for, and works in float32 whatever that is.
    """
    from triton.runtime.interpreter import TensorHandle
    from triton.runtime.interpreter import interpreter_builder as builder

    dot = builder.create_dot

    def rounded(x: Any) -> Any:
        if x.data.dtype != np.float32:
            return x
        bits = np.ascontiguousarray(x.data).view(np.uint32) + np.uint32(1 << 12)
        return TensorHandle((bits & np.uint32(-1 << 13 & 0xFFFFFFFF)).view(np.float32), x.dtype)

    def rounding_dot(a: Any, b: Any, acc: Any, precision: Any, *rest: Any) -> Any:
        if str(precision).endswith(".TF32"):
            a, b = rounded(a), rounded(b)
        return dot(a, b, acc, precision, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_dot", rounding_dot)
        yield
