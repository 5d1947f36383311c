"""Counting among the token ids of a batch, beside PyTorch's count of what is not zero."""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 64 rows of 1,024 int64 ids."""
    x = torch.randint(0, 50, (64, 1024))
    total, rows = torch.tensor(0), torch.zeros(64, dtype=torch.int64)
    return [
        Case(
            "count_equal",
            lambda: reference.count_equal(x, 7, total),
            lambda: torch.count_nonzero(x == 7),
        ),
        Case(
            "count_rows",
            lambda: reference.count_rows(x, 7, rows),
            lambda: torch.count_nonzero(x == 7, dim=1),
        ),
    ]
