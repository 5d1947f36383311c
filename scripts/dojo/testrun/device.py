"""Says whether there is a GPU, without touching it, and times what runs on it."""

import functools
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
