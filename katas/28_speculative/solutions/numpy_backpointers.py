"""NumPy, with back-pointers: ids are put together once the best beam is known."""

import numpy as np
import torch


def beam_search(step, prompt, beams, max_new_tokens, eos_id, length_penalty=1.0):
    head = prompt.numpy()
    nodes = []  # (number of the parent, token)

    def walk(node):
        tail = []
        while node >= 0:
            node, token = nodes[node]
            tail.append(token)
        return np.concatenate([head, np.array(tail[::-1], dtype=np.int64)])

    live = np.array([-1])
    sums = np.zeros(1)
    ended = {}
    for n in range(1, max_new_tokens + 1):
        ids = torch.from_numpy(np.stack([walk(node) for node in live]))
        values = step(ids).to(torch.float64).numpy()
        totals = (sums[:, None] + values).ravel()
        order = np.argsort(-totals, kind="stable")[:beams]
        order = order[np.isfinite(totals[order])]
        rows, tokens = np.unravel_index(order, values.shape)
        kept = range(len(nodes), len(nodes) + len(order))
        nodes.extend(zip(live[rows].tolist(), tokens.tolist(), strict=True))
        is_end = tokens == eos_id
        for node, total, end in zip(kept, totals[order].tolist(), is_end, strict=True):
            if end or n == max_new_tokens:
                ended[node] = total / n**length_penalty
        live, sums = np.array(kept)[~is_end], totals[order][~is_end]
        if live.size == 0:
            break
    best = max(ended, key=ended.get)
    return torch.from_numpy(walk(best)), ended[best]


def accept(p, q, tokens, u, v):
    p, q, u = (x.to(torch.float64).numpy() for x in (p, q, u))
    places, tokens = np.arange(len(tokens)), tokens.numpy()
    rejected = np.flatnonzero(u * q[places, tokens] >= p[places, tokens])
    count = rejected[0] if rejected.size else len(tokens)
    weights = p[count]
    if rejected.size:
        residual = np.maximum(weights - q[count], 0)
        weights = residual if residual.max() > 0 else weights
    sums = np.cumsum(weights)
    drawn = np.searchsorted(sums, v * sums[-1], side="right")
    return [*tokens[:count].tolist(), int(drawn)]
