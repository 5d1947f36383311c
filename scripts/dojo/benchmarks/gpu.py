"""Measures the kernel katas' references on a GPU, beside torch's operators."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from dojo.benchmarks.references import KernelCase
from dojo.testrun.device import milliseconds


@dataclass(frozen=True)
class Figures:
    """One workload on a GPU: milliseconds, and rates where the case has a size."""

    label: str
    ours: float
    theirs: float
    bandwidth: float | None  # fraction of what a copy of as many bytes reaches
    teraflops: float | None


def measure(case: KernelCase) -> Figures:
    """Time a case, and where it has a size, a copy of as many bytes."""
    import torch

    ours = milliseconds(case.ours)
    theirs = min(map(milliseconds, case.theirs))
    bandwidth = None
    if case.moved is not None:
        source = torch.empty(case.moved // 2, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        bandwidth = milliseconds(lambda: target.copy_(source)) / ours
    teraflops = None if case.flops is None else case.flops / (ours * 1e9)
    return Figures(case.label, ours, theirs, bandwidth, teraflops)


def machine() -> str:
    """Return one line on the device, its driver, and the versions that ran on it."""
    import torch
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return (
        f"{torch.cuda.get_device_name()}, driver {driver[0] if driver else 'unknown'}, "
        f"CUDA {torch.version.cuda}, torch {torch.__version__}, triton {triton.__version__}"
    )


def markdown(rows: Sequence[tuple[str, Figures]]) -> str:
    """Return a table: a row for each kata's name and figures."""
    lines = [
        "| kata | workload | ours, ms | best of torch, ms | speed | of copy bandwidth | TFLOP/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows:
        bandwidth = "" if row.bandwidth is None else f"{row.bandwidth:.2f}"
        teraflops = "" if row.teraflops is None else f"{row.teraflops:.0f}"
        lines.append(
            f"| {name} | {row.label} | {row.ours:.3f} | {row.theirs:.3f} "
            f"| {row.theirs / row.ours:.2f} | {bandwidth} | {teraflops} |"
        )
    return "\n".join(lines)
