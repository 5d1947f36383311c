"""The next token of 8 rows over a vocabulary of 32,000, and the penalty for 512 ids.

There is no operator of PyTorch for either: beside them stand the filters of torch's own sort and
softmax, as libraries chain them.
"""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 8 rows of 32,000 float32 logits."""
    logits, ids = 3 * torch.randn(8, 32_000), torch.randint(32_000, (8, 512))

    def chained():
        ranked, order = (logits / 0.8).sort(dim=-1, stable=True)
        dropped = ranked.softmax(-1).cumsum(-1) <= 0.1
        kept = ranked.masked_fill(dropped, -torch.inf).softmax(-1)
        return torch.empty_like(kept).scatter_(-1, order, kept)

    def mask():
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
        changed = torch.where(logits < 0, logits * 1.3, logits / 1.3)
        return torch.where(seen, changed, logits)

    return [
        Case("softmax", lambda: reference.next_token_probs(logits), lambda: logits.softmax(-1)),
        Case(
            "top_p",
            lambda: reference.next_token_probs(logits, 0.8, None, 0.9),
            chained,
        ),
        Case("repetition_penalty", lambda: reference.repetition_penalty(logits, ids, 1.3), mask),
    ]
