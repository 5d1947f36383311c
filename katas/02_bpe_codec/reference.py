"""Byte-level BPE: text to token ids, and ids back to text."""

import heapq
import re
from collections.abc import Sequence
from typing import NamedTuple


def encode(
    text: str,
    vocab: dict[int, bytes],
    merges: list[tuple[int, int]],
    special_tokens: dict[str, int] | None = None,
) -> list[int]:
    """Return the token ids of `text`; each special token in it becomes its one id.

    Sennrich et al., 2016, https://arxiv.org/abs/1508.07909
    """
    special_tokens = special_tokens or {}
    ids: list[int] = []
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for piece in _split(text, special_tokens):
        if piece in special_tokens:
            ids.append(special_tokens[piece])
        else:
            ids += _merge(piece.encode("utf-8"), ranks)
    return ids


class _Candidate(NamedTuple):
    """Two neighbours that a merge joins: its rank, and the place of the left one."""

    rank: int
    left: int


def _merge(piece: Sequence[int], ranks: dict[tuple[int, int], int]) -> list[int]:
    """Return the ids that remain of those in `piece` when no merge applies any more."""
    ids = [None, *piece, None]  # None: no token, at the ends and where one was merged away
    before = [place - 1 for place in range(len(ids))]
    after = [place + 1 for place in range(len(ids))]
    queue: list[_Candidate] = []

    def push(left: int) -> None:
        pair = ids[left], ids[after[left]]
        if pair in ranks:
            heapq.heappush(queue, _Candidate(rank=ranks[pair], left=left))

    for left in range(len(piece)):
        push(left)
    while queue:
        merge = heapq.heappop(queue)
        left, right = merge.left, after[merge.left]
        if ranks.get((ids[left], ids[right])) != merge.rank:
            continue
        ids[left], ids[right] = 256 + merge.rank, None
        after[left] = after[right]
        before[after[left]] = left
        push(before[left])
        push(left)
    return [token for token in ids if token is not None]


def _split(text: str, special_tokens: dict[str, int]) -> list[str]:
    """Cut `text` into special tokens and what stands between them, in order."""
    if not special_tokens:
        return [text]
    by_length = sorted(special_tokens, key=len, reverse=True)
    pattern = "|".join(re.escape(special) for special in by_length)
    return re.split(f"({pattern})", text)


def decode(
    ids: list[int], vocab: dict[int, bytes], special_tokens: dict[str, int] | None = None
) -> str:
    """Return the text of the token ids; bytes that are no UTF-8 become U+FFFD.

    An id that neither `vocab` nor `special_tokens` has raises a ValueError that names it.
    """
    specials = {token: text.encode("utf-8") for text, token in (special_tokens or {}).items()}
    tokens = vocab | specials
    try:
        parts = [tokens[token] for token in ids]
    except KeyError as error:
        raise ValueError(f"unknown token id {error}") from None
    return b"".join(parts).decode("utf-8", errors="replace")
