"""What the machine has: cores, and a GPU, which is not touched to see; times what runs on it."""

import functools
import os
import warnings
from collections.abc import Callable


@functools.cache
def has_gpu() -> bool:
    """Return whether torch sees a CUDA device.

    Unlike `torch.cuda.is_available()`, this leaves CUDA alone, so that forks can still use it.
    """
    import torch

    return torch.cuda.device_count() > 0


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call on the GPU, by Triton's own benchmark.

    It empties the cache between calls.
    """
    from triton.testing import do_bench

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's advice is not for here
        return float(do_bench(call, return_mode="median"))


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS; a container may allow fewer than all
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
