"""Times references beside the operators of the libraries they imitate, as ratios in one run."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.testrun.loading import load_module

# Enough to let an outlier go by, few enough that all katas take a minute.
ROUNDS = 7


@dataclass(frozen=True)
class Case:
    """One workload: ours, and the library's operator for it where there is one."""

    label: str
    ours: Callable[[], object]
    theirs: Callable[[], object] | None = None


@dataclass(frozen=True)
class KernelCase:
    """One workload of a kernel on a GPU, and the library's ways of doing the same.

    `moved` is how many bytes it has to read and write, `flops` how much it has to compute.
    """

    label: str
    ours: Callable[[], object]
    theirs: tuple[Callable[[], object], ...]
    moved: int | None = None
    flops: int | None = None


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call."""

    label: str
    ours: float
    theirs: float | None


def timings(project: Project, kata: Kata) -> Iterator[Timing]:
    """Time the cases that `scripts/bench/NN_name.py` makes of the kata's reference."""
    for case in _made(project, kata, "cases"):
        yield time_case(case)


def kernel_cases(project: Project, kata: Kata) -> list[KernelCase]:
    """Return the cases that `scripts/bench/NN_name.py` makes of a kernel kata; needs a GPU."""
    return _made(project, kata, "kernel_cases")


def _made(project: Project, kata: Kata, maker: str) -> list[Any]:
    """Return `maker(reference)` from the kata's file of benchmarks, nothing where there is none."""
    path = project.root / "scripts" / "bench" / f"{kata.name}.py"
    if not path.is_file():
        return []
    module = load_module(path, f"bench_{kata.name}", path.read_bytes())
    if not hasattr(module, maker):
        return []
    source = kata.correct_source.encode()
    made: list[Any] = getattr(module, maker)(
        load_module(kata.reference, f"bench_reference_{kata.name}", source)
    )
    return made


def use_one_thread() -> None:
    """Keep torch's and numpy's pools to one thread: ratios on busy cores mean little.

    To be called before either is imported, since they size their pools as they load.
    """
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")


def startup(project: Project) -> Timing:
    """Time `pytest katas/03_softmax` beside pytest on one line that imports torch."""
    with tempfile.TemporaryDirectory() as folder:
        one_line = Path(folder) / "test_one_line.py"
        one_line.write_text("def test_one_line():\n    import torch\n")
        pytest = [sys.executable, "-m", "pytest", "-q"]
        case = Case(
            "pytest katas/03_softmax",
            lambda: _run([*pytest, "katas/03_softmax"], project.root),
            lambda: _run([*pytest, one_line.name], Path(folder)),
        )
        return time_case(case)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False)


def time_case(case: Case) -> Timing:
    """Time ours and theirs in turn, so that a change of the machine's speed meets both."""
    rounds: list[tuple[float, float]] = []
    case.ours()  # first calls pay for caches and lazy imports
    if case.theirs is not None:
        case.theirs()
    for _ in range(ROUNDS):
        rounds.append((_seconds(case.ours), _seconds(case.theirs) if case.theirs else 0.0))
    ours = median(ours for ours, _ in rounds)
    theirs = median(theirs for _, theirs in rounds) if case.theirs else None
    return Timing(case.label, ours, theirs)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
