"""Scores masked with -inf, one filter after another, as libraries chain them."""

import torch
from torch import Tensor


def next_token_probs(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    scores = logits.double()
    if temperature == 0:
        first = scores.max(dim=-1, keepdim=True).indices
        return torch.zeros(logits.shape, dtype=torch.float32).scatter(-1, first, 1.0)
    scores = scores / temperature
    if top_k is not None:
        scores = scores.masked_fill(_ranks(scores) >= top_k, -torch.inf)
    if top_p is not None and top_p != 1:
        # From the least likely up: what is left above a token must not reach top_p.
        order = _ranks(scores).argsort(dim=-1).flip(-1)
        tail = scores.softmax(-1).gather(-1, order).cumsum(-1)
        dropped = tail <= 1 - top_p
        dropped[:, -1] = False
        scores = scores.masked_fill(dropped.gather(-1, order.argsort(-1)), -torch.inf)
    if min_p:
        probs = scores.softmax(-1)
        scores = scores.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -torch.inf)
    return scores.softmax(-1).to(torch.float32)


def _ranks(scores: Tensor) -> Tensor:
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    seen[torch.arange(len(ids))[:, None], ids] = True
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalised, logits)


def generate(step, prompt, max_new_tokens, eos_id, pad_id, choose):
    batch, length = prompt.shape
    out = torch.full((batch, length + max_new_tokens), pad_id, dtype=torch.int64)
    out[:, :length] = prompt
    alive = torch.ones(batch, dtype=torch.bool)
    for at in range(length, length + max_new_tokens):
        chosen = choose(step(out[:, :at]))
        out[alive, at] = chosen[alive]
        alive = alive & (chosen != eos_id)
        if not alive.any():
            return out[:, : at + 1]
    return out
