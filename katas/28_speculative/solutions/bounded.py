"""A preallocated board of ids, and a search that ends when no live beam can win any more."""

import math

import torch


def beam_search(step, prompt, beams, max_new_tokens, eos_id, length_penalty=1.0):
    length = prompt.shape[0]
    board = torch.empty((beams, length + max_new_tokens), dtype=torch.int64)
    board[0, :length] = prompt
    totals = torch.zeros((1, 1), dtype=torch.float64)
    winner, record = None, -math.inf
    for new in range(1, max_new_tokens + 1):
        at = length + new - 1
        log_probs = step(board[: len(totals), :at].clone()).double()
        vocab = log_probs.size(1)
        # Of each beam no more than `beams` tokens can be kept, then of all of them together.
        values, tokens = (totals + log_probs).topk(min(beams, vocab), dim=1)
        parents = torch.arange(len(totals)).unsqueeze(1).expand_as(tokens)
        order = values.flatten().sort(descending=True).indices[:beams]
        values, tokens, parents = (x.flatten()[order] for x in (values, tokens, parents))
        alive = []
        for slot, value in enumerate(values.tolist()):
            if value == -math.inf:
                break
            if tokens[slot] != eos_id and new < max_new_tokens:
                alive.append(slot)
            elif value / new**length_penalty > record:
                record = value / new**length_penalty
                winner = torch.cat([board[parents[slot], :at], tokens[slot : slot + 1]])
        if not alive:
            break
        chosen = board[parents[alive]]
        chosen[:, at] = tokens[alive]
        board[: len(alive)] = chosen
        totals = values[alive].unsqueeze(1)
        # Sums only fall, so a score is best at the length that divides them by the most.
        longest = max_new_tokens if length_penalty > 0 else new + 1
        if totals.max().item() / longest**length_penalty < record:
            break
    return winner, record


def accept(p, q, tokens, u, v):
    p, q, u = p.to(torch.float64), q.to(torch.float64), u.to(torch.float64)
    count = 0
    while count < len(tokens):
        token = tokens[count]
        if not u[count] < p[count, token] / q[count, token]:
            break
        count += 1
    weights = p[count].clone()
    if count < len(tokens):
        weights = torch.relu(weights - q[count])
        if weights.sum() == 0:
            weights = p[count]
    sums = torch.cumsum(weights, 0)
    above = sums > sums[-1] * v
    return [*map(int, tokens[:count]), int(above.int().argmax())]
