"""Seeds the generators that code may draw from without one of its own."""

import random
import sys


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's; whatever is not imported makes no random data."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        # torch.manual_seed formats a stack trace for each kind of device, at every call.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
