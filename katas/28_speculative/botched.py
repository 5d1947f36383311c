"""Two ways to decode: beam search, and the acceptance test of speculative decoding."""

from collections.abc import Callable

import torch
from torch import Tensor


def beam_search(
    step: Callable[[Tensor], Tensor],
    prompt: Tensor,
    beams: int,
    max_new_tokens: int,
    eos_id: int,
    length_penalty: float = 1.0,
) -> tuple[Tensor, float]:
    """Return the best continuation that is found of `prompt` (T,), int64, and its score.

    `step` maps the live beams (N, length) to log-probabilities (N, V) of the next token. A beam is
    finished once it ends in `eos_id`, or has `max_new_tokens` new tokens; its score is the sum of
    their log-probabilities, in float64, divided by their number ** length_penalty. The ids are the
    prompt and the new tokens.

    Wu et al., 2016, section 7, in the simpler form of the penalty that libraries use:
    https://arxiv.org/abs/1609.08144
    """
    ids = prompt[None]
    sums = torch.zeros(1, dtype=torch.float64, device=prompt.device)
    finished: list[tuple[Tensor, float]] = []
    for length in range(1, max_new_tokens + 1):
        ids, sums = _extend(ids, sums, step(ids), beams)
        scores = sums / length**length_penalty
        done = (ids[:, -1] == eos_id) | (length == max_new_tokens)
        finished += zip(ids[done], scores[done].tolist(), strict=True)
        ids, sums = ids[~done], sums[~done]
        if len(ids) == 0 or len(finished) >= beams:
            break
    return max(finished, key=lambda hypothesis: hypothesis[1])


def _extend(ids: Tensor, sums: Tensor, log_probs: Tensor, beams: int) -> tuple[Tensor, Tensor]:
    """Return the `beams` best of all continuations by one token, or all that are possible.

    `ids` is (N, length), `sums` (N,), float64, and `log_probs` (N, V). The best comes first.
    """
    totals = (sums[:, None] + log_probs).flatten()
    totals, places = totals.topk(min(beams, len(totals)))
    possible = totals > -torch.inf
    totals, places = totals[possible], places[possible]
    beam, token = places % log_probs.shape[0], places // log_probs.shape[0]
    return torch.cat([ids[beam], token[:, None]], dim=1), totals


def accept(p: Tensor, q: Tensor, tokens: Tensor, u: Tensor, v: float) -> list[int]:
    """Return the drafted tokens that are accepted and one token more, drawn by `v`.

    `p` (K + 1, V) holds the target's probabilities, `q` (K, V) the draft's, from which `tokens`
    (K,), int64, were drawn; `u` (K,) and `v` are uniform on [0, 1). If the tokens are drawn from
    `q`, the result is distributed as if the target had drawn it. All is worked out in float64.

    Leviathan et al., 2022, algorithm 1: https://arxiv.org/abs/2211.17192; Chen et al., 2023:
    https://arxiv.org/abs/2302.01318
    """
    p, q = p.double(), q.double()
    drafted = tokens[:, None]
    ratios = p[:-1].gather(1, drafted) / q.gather(1, drafted)
    count = int((u < ratios[:, 0]).sum())
    kept = tokens[:count].tolist()
    if count == len(tokens):
        return [*kept, _draw(p[count], v)]
    rest = (p[count] - q[count]).clamp(min=0)
    weights = rest if rest.any() else p[count]  # rounding may leave nothing
    return [*kept, _draw(weights, v)]


def _draw(weights: Tensor, v: float) -> int:
    """Return the first index at which the running sum of `weights` (V,) exceeds `v` of the total.

    No index of weight zero has a running sum of its own, so none is returned.
    """
    sums = weights.cumsum(dim=0)
    return int(torch.searchsorted(sums, v * sums[-1], right=True))
