"""A search of 5 beams and the acceptance of 8 drafted tokens over a vocabulary of 32,000.

There is no operator of PyTorch for either: beside the search stands what no search of its rounds
can do without, a log-softmax and a topk of all beams, and beside the acceptance one copy of its
probabilities to float64.
"""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: float32 probabilities."""
    vocab, beams, rounds = 32_000, 5, 8
    logits = torch.randn(beams, vocab)
    prompt = torch.arange(16)
    p, q = torch.randn(9, vocab).softmax(-1), torch.randn(8, vocab).softmax(-1)
    tokens, u = q.multinomial(1)[:, 0], torch.full((8,), 0.01)

    def step(ids):
        return logits[: len(ids)].log_softmax(-1)

    def rounds_alone():
        for _ in range(rounds):
            step(logits).double().flatten().topk(beams)

    return [
        Case(
            "beam_search",
            lambda: reference.beam_search(step, prompt, beams, rounds, 3),
            rounds_alone,
        ),
        Case(
            "accept",
            lambda: reference.accept(p, q, tokens, u, 0.3),
            lambda: (p.double(), q.double()),
        ),
    ]
