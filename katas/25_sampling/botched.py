"""From logits to text: the next token's distribution, the repetition penalty, the loop."""

from collections.abc import Callable

import torch
from torch import Tensor


def next_token_probs(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Return float32 probabilities, shaped as `logits` (B, V), after temperature and filters.

    Each filter sees what the one before it has left, top_k first. Tokens are ranked by logit,
    equals by id. Holtzman and others, 2019, for top_p: https://arxiv.org/abs/1904.09751; Nguyen
    and others, 2024, for min_p: https://arxiv.org/abs/2407.01082

        next_token_probs(tensor([[0.5, 0.1, 0.3, 0.1]]).log(), top_p=0.7)
        tensor([[0.6250, 0.0000, 0.3750, 0.0000]])
    """
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    probs = (logits.float() / temperature).softmax(dim=1)
    if top_k is not None or top_p is not None:
        order = logits.argsort(dim=1, descending=True, stable=True)
        ranked = probs.gather(1, order)
        if top_k is not None:
            ranked[:, top_k:] = 0
        if top_p is not None and top_p < 1:
            total = ranked.sum(dim=1, keepdim=True)
            ahead = ranked.cumsum(dim=1)
            dropped = ahead >= top_p * total
            dropped[:, 0] = False
            ranked[dropped] = 0
        probs.scatter_(1, order, ranked)
    if min_p is not None:
        probs[probs < min_p * probs.amax(dim=1, keepdim=True)] = 0
    return probs / probs.sum(dim=1, keepdim=True)


def repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Return `logits` (B, V) with each row's tokens in `ids` (B, T) made less likely, once each.

    `ids` is int64; the dtype of `logits` is kept. A penalty below 1 makes them more likely.
    Keskar and others, 2019: https://arxiv.org/abs/1909.05858
    """
    seen = logits.gather(1, ids)
    penalised = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits.scatter(1, ids, penalised)


def generate(
    step: Callable[[Tensor], Tensor],
    prompt: Tensor,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return `prompt` (B, T), int64, with up to `max_new_tokens` new tokens behind each row.

    `step` maps all ids so far, (B, length), to logits (B, V), and `choose` maps these to the next
    ids, (B,). A row ends with its first new `eos_id`; `pad_id` fills it up until all have ended.
    """
    ids = prompt.clone()
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for _ in range(max_new_tokens):
        chosen = choose(step(ids)).masked_fill(ended, pad_id)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        ended = chosen == eos_id
        if ended.all():
            break
    return ids
