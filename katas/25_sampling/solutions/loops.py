"""Plain Python, a row and a token at a time."""

import math

import torch


def next_token_probs(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    rows = []
    for row in logits.tolist():
        order = sorted(range(len(row)), key=lambda i: -row[i])  # sorted() keeps equals in order
        probs = [0.0] * len(row)
        rows.append(probs)
        if temperature == 0:
            probs[order[0]] = 1.0
            continue
        if top_k is not None:
            order = order[:top_k]
        best = row[order[0]]
        weight = {i: math.exp((row[i] - best) / temperature) for i in order}
        if top_p is not None and top_p < 1:
            goal = top_p * math.fsum(weight.values())
            kept, reached = [], 0.0
            for i in order:
                if kept and reached >= goal:
                    break
                kept.append(i)
                reached += weight[i]
            order = kept
        if min_p:
            order = [i for i in order if weight[i] >= min_p]
        total = math.fsum(weight[i] for i in order)
        for i in order:
            probs[i] = weight[i] / total
    return torch.tensor(rows, dtype=torch.float32)


def repetition_penalty(logits, ids, penalty):
    out = logits.clone()
    for row, tokens in enumerate(ids.tolist()):
        for token in set(tokens):
            if out[row, token] > 0:
                out[row, token] /= penalty
            else:
                out[row, token] *= penalty
    return out


def generate(step, prompt, max_new_tokens, eos_id, pad_id, choose):
    rows = prompt.tolist()
    running = set(range(len(rows)))
    while max_new_tokens > 0 and running:
        max_new_tokens -= 1
        chosen = choose(step(torch.tensor(rows))).tolist()
        for number, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            row.append(token if number in running else pad_id)
            if token == eos_id:
                running.discard(number)
    return torch.tensor(rows)
