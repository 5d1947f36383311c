"""Says whether there is a GPU, without touching it."""


def has_gpu() -> bool:
    """Return whether torch sees a CUDA device.

    Unlike `torch.cuda.is_available()`, this leaves CUDA alone, so that forks can still use it.
    """
    import torch

    return torch.cuda.device_count() > 0
