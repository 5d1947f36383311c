"""Compiles the kernels of a kata for GPUs that are not here.

The interpreter takes what the compiler refuses: an `if` over tensors, a `tl.dot` of a type that a
GPU has no instruction for, more shared memory than it has. Triton needs no GPU to compile, only
somebody who says for which. https://github.com/triton-lang/triton/blob/main/python/triton/compiler/compiler.py
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.testrun.loading import load_module

# The GPUs that people have: A100, those of Ada (RTX 40, L4), H100. Shared memory that a program
# may have, in bytes: CUDA C++ Programming Guide, "Compute Capabilities".
CAPABILITIES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}


@dataclass(frozen=True)
class Refusal:
    """A version of a kata that does not compile for a compute capability, and why."""

    version: str
    capability: int
    reason: str


@dataclass(frozen=True)
class _Target:
    """The part of Triton's driver that a compiler asks: for which GPU?"""

    capability: int

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # what is compiled is kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_kernels(
    project: Project,
    kata: Kata,
    versions: dict[str, str],
    folder: Path,
    *,
    jobs: int,
    every_configuration: bool,
) -> Iterator[Refusal]:
    """Compile what each version's calls would launch, for every capability; yield what fails.

    The calls are those that `calls_to_compile` in `scripts/bench/NN_name.py` makes, with tensors
    on the CPU. `versions` are texts by name; `folder` is for what Triton reads and writes. Of
    what an autotuner may choose, every configuration is compiled, or the first.
    """
    # Processes of their own: in this one Triton may interpret, which is for good.
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_prepare, initargs=(folder,)) as pool:
        tasks = []
        for name, source in versions.items():
            path = folder / f"{kata.name}-{name}.py"  # Triton reads kernels from their file
            path.write_text(source, encoding="utf-8")
            bench = project.root / "scripts" / "bench" / f"{kata.name}.py"
            tasks.append(pool.submit(_refusals, path, bench, name, every_configuration))
        for task in tasks:
            yield from task.result()


def _prepare(folder: Path) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")


def _refusals(path: Path, bench: Path, name: str, every_configuration: bool) -> list[Refusal]:
    from triton.runtime import driver

    calls = load_module(bench, "bench", bench.read_bytes()).calls_to_compile
    found = []
    for capability, memory in CAPABILITIES.items():
        driver.set_active(_Target(capability))
        impl = load_module(path, "compiled", path.read_bytes())
        with _launches_compile(memory, every_configuration):
            for call in calls(impl):
                if reason := _why_not(call):
                    found.append(Refusal(name, capability, reason))
    return found


def _why_not(call: Callable[[], object]) -> str | None:
    try:
        call()
    except Exception as error:  # whatever the compiler or the code says
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _launches_compile(memory: int, every_configuration: bool) -> Iterator[None]:
    """Let every launch of the block compile its kernel, and do nothing else.

    A kernel that asks for more than `memory` bytes of shared memory is an error, unless it may
    choose and another configuration of its fits.
    """
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    run, tune = JITFunction.run, Autotuner.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if not warmup and kernel.metadata.shared > memory:
            raise MemoryError(f"{kernel.metadata.shared} bytes of shared memory, of {memory}")
        return kernel

    def compiled_in_each_way(self: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        if not every_configuration:
            self.configs = self.configs[:1]
        kernels = self.warmup(*args, **options)
        least = min(kernel.metadata.shared for kernel in kernels)
        if least > memory:
            raise MemoryError(f"at least {least} bytes of shared memory, of {memory}")

    JITFunction.run, Autotuner.run = compiled, compiled_in_each_way
    try:
        yield
    finally:
        JITFunction.run, Autotuner.run = run, tune
