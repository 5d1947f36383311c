"""Byte-level BPE training, with counts that are updated and a text that is not read again."""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

Pair = tuple[int, int]


def train(
    text: str, vocab_size: int, pattern: str | None = None
) -> tuple[dict[int, bytes], list[Pair]]:
    """Return (vocab, merges): the bytes of each id, and the merged pairs in order.

    Ids 0 to 255 are the bytes; merge k makes id 256 + k. Raises ValueError if `vocab_size` is
    below 256. The method is that of https://arxiv.org/abs/1508.07909, on the bytes of UTF-8.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size must be at least 256, one id a byte, but is {vocab_size}")
    corpus = _Corpus([text] if pattern is None else re.findall(pattern, text))
    vocab = {byte: bytes([byte]) for byte in range(256)}
    merges: list[Pair] = []
    for pair in islice(corpus.pairs(), vocab_size - 255):
        left, right = pair
        new = len(vocab)
        corpus.merge(pair, new)
        vocab[new] = vocab[left] + vocab[right]
        merges.append(pair)
    return vocab, merges


class _Corpus:
    """The distinct pieces of a text as one doubly linked list of tokens, and the pairs in it.

    A token is known by its place in `ids`, where None is no token.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self.ids: list[int | None] = []
        self.copies: list[int] = []  # of each place's piece, in the text
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.places: defaultdict[Pair, list[int]] = defaultdict(list)  # of left tokens, ascending
        for piece, copies in Counter(pieces).items():
            self.ids.append(None)
            start = len(self.ids)
            self.ids += piece.encode("utf-8")
            for at in range(start, len(self.ids) - 2):
                pair = self.ids[at], self.ids[at + 1]
                self.counts[pair] += copies
                self.places[pair].append(at)
            self.copies += [copies] * (len(self.ids) - len(self.copies))
        self.ids.append(None)
        self.before = [at - 1 for at in range(len(self.ids))]
        self.after = [at + 1 for at in range(len(self.ids))]
        self.heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self.heap)

    def pairs(self) -> Iterator[Pair]:
        """Yield the pair to merge next, each to be merged before the next is asked for."""
        while self.heap:
            entry = heapq.heappop(self.heap)
            *_, pair = entry
            if entry == self._entry(pair):
                yield pair
            else:
                self._push(pair)

    def merge(self, pair: Pair, new: int) -> None:
        """Put the token `new` in place of the pair, from left to right."""
        ids, before, after, counts = self.ids, self.before, self.after, self.counts
        left, right = pair
        made: defaultdict[Pair, list[int]] = defaultdict(list)
        for at in self.places.pop(pair):
            end = after[at]
            if (ids[at], ids[end]) != pair:
                continue
            copies = self.copies[at]
            start, stop = before[at], after[end]
            previous, following = ids[start], ids[stop]
            if previous is not None:
                counts[previous, left] -= copies
                counts[previous, new] += copies
                made[previous, new].append(start)
            if following is not None:
                counts[right, following] -= copies
                counts[new, following] += copies
                made[new, following].append(at)
            ids[at] = new
            ids[end] = None
            after[at] = stop
            before[stop] = at
        self.places |= made
        for candidate in made:
            self._push(candidate)

    def _entry(self, pair: Pair) -> tuple[int, Pair]:
        """Return what stands in the heap for the pair."""
        return -self.counts[pair], pair

    def _push(self, pair: Pair) -> None:
        """Make the pair a candidate if it is anywhere in the text."""
        if self.counts[pair]:
            heapq.heappush(self.heap, self._entry(pair))
