"""NumPy, with the ranking from a sort by two keys."""

import numpy as np
import torch


def next_token_probs(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    scores = logits.to(torch.float64).numpy()
    batch, size = scores.shape
    ids = np.broadcast_to(np.arange(size), scores.shape)
    order = np.lexsort((ids, -scores), axis=-1)
    if temperature == 0:
        probs = (ids == order[:, :1]).astype(np.float32)
        return torch.from_numpy(probs)
    ranked = np.take_along_axis(scores, order, axis=-1)
    probs = np.exp((ranked - ranked[:, :1]) / temperature)
    probs /= probs.sum(axis=-1, keepdims=True)
    if top_k is not None:
        probs = _kept(probs, np.arange(size) < top_k)
    if top_p is not None and top_p < 1:
        sums = np.cumsum(probs, axis=-1)
        count = 1 + (sums < top_p).sum(axis=-1, keepdims=True)
        probs = _kept(probs, np.arange(size) < count)
    if min_p is not None:
        probs = _kept(probs, probs >= min_p * probs[:, :1])
    out = np.zeros((batch, size))
    np.put_along_axis(out, order, probs, axis=-1)
    return torch.from_numpy(out.astype(np.float32))


def _kept(probs, keep):
    probs = np.where(keep, probs, 0.0)
    return probs / probs.sum(axis=-1, keepdims=True)


def repetition_penalty(logits, ids, penalty):
    out = logits.to(torch.float64).numpy().copy()
    for row, tokens in zip(out, ids.numpy(), strict=True):
        tokens = np.unique(tokens)
        row[tokens] *= np.where(row[tokens] > 0, 1 / penalty, float(penalty))
    return torch.from_numpy(out).to(logits.dtype)


def generate(step, prompt, max_new_tokens, eos_id, pad_id, choose):
    columns = [*prompt.unbind(1)]
    unfinished = torch.ones(prompt.shape[0], dtype=torch.int64)
    for _ in range(max_new_tokens):
        token = choose(step(torch.stack(columns, dim=1)))
        token = token * unfinished + pad_id * (1 - unfinished)
        columns.append(token)
        unfinished = unfinished * (token != eos_id)
        if unfinished.max() == 0:
            break
    return torch.stack(columns, dim=1)
