"""Plain Python: beams as tuples with a heap, probabilities as lists of floats."""

import heapq
from itertools import accumulate

import torch


def beam_search(step, prompt, beams, max_new_tokens, eos_id, length_penalty=1.0):
    start = tuple(prompt.tolist())
    live = [(0.0, start)]
    best = None
    for n in range(1, max_new_tokens + 1):
        rows = step(torch.tensor([ids for _, ids in live])).tolist()
        candidates = (
            (total + value, ids, token)
            for (total, ids), row in zip(live, rows, strict=True)
            for token, value in enumerate(row)
            if value != float("-inf")
        )
        live = []
        for total, ids, token in heapq.nlargest(beams, candidates):
            if token == eos_id or n == max_new_tokens:
                score = total / n**length_penalty
                if best is None or score > best[0]:
                    best = (score, (*ids, token))
            else:
                live.append((total, (*ids, token)))
        if not live:
            break
    return torch.tensor(best[1]), best[0]


def accept(p, q, tokens, u, v):
    p, q, u = p.tolist(), q.tolist(), u.tolist()
    out = []
    for i, token in enumerate(tokens.tolist()):
        if u[i] >= p[i][token] / q[i][token]:
            weights = [max(a - b, 0.0) for a, b in zip(p[i], q[i], strict=True)]
            return [*out, _draw(weights if sum(weights) > 0 else p[i], v)]
        out.append(token)
    return [*out, _draw(p[-1], v)]


def _draw(weights, v):
    sums = list(accumulate(weights))
    goal = v * sums[-1]
    for token, reached in enumerate(sums):
        if reached > goal:
            return token
