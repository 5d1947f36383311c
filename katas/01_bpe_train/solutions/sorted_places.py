"""Sets of places for each pair, whose sizes are the counts; a merge walks its places sorted."""

import re


def train(text, vocab_size, pattern=None):
    if vocab_size < 256:
        raise ValueError(f"vocab_size must be 256 or more, got {vocab_size}")
    pieces = [text] if pattern is None else re.findall(pattern, text)

    # All pieces, one after the other, with -1 at each edge.
    tokens = [-1]
    for piece in pieces:
        tokens.extend(piece.encode("utf-8"))
        tokens.append(-1)
    prev = list(range(-1, len(tokens) - 1))
    next = list(range(1, len(tokens) + 1))

    places = {}
    for i in range(len(tokens) - 1):
        if tokens[i] >= 0 and tokens[i + 1] >= 0:
            places.setdefault((tokens[i], tokens[i + 1]), set()).add(i)

    # Buckets of pairs by their count, so that the best needs no look at all pairs.
    buckets = {}
    for pair, where in places.items():
        buckets.setdefault(len(where), set()).add(pair)
    most = max(buckets, default=0)

    def move(pair, place, adding):
        where = places.setdefault(pair, set())
        old = len(where)
        if adding:
            where.add(place)
        else:
            where.discard(place)
        if len(where) != old:
            buckets.get(old, set()).discard(pair)
            if where:
                buckets.setdefault(len(where), set()).add(pair)
            else:
                del places[pair]

    vocab = {i: bytes((i,)) for i in range(256)}
    merges = []
    for new in range(256, vocab_size):
        while most and not buckets.get(most):
            most -= 1
        if not most:
            break
        pair = min(buckets[most])
        left, right = pair
        merges.append(pair)
        vocab[new] = vocab[left] + vocab[right]
        for i in sorted(places[pair]):
            j = next[i]
            if tokens[i] != left or tokens[j] != right:
                continue
            before, after = prev[i], next[j]
            if tokens[before] >= 0:
                move((tokens[before], left), before, adding=False)
            if tokens[after] >= 0:
                move((right, tokens[after]), j, adding=False)
            move(pair, i, adding=False)
            tokens[i], tokens[j] = new, -2
            next[i], prev[after] = after, i
            if tokens[before] >= 0:
                move((tokens[before], new), before, adding=True)
            if tokens[after] >= 0:
                move((new, tokens[after]), i, adding=True)
    return vocab, merges
