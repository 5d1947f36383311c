"""As in minbpe: the pair of lowest rank is looked for again after each merge."""

import itertools


def encode(text, vocab, merges, special_tokens=None):
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = []
    for piece, special in _cut(text, special_tokens or {}):
        ids.extend([special] if special is not None else _encode_piece(piece, ranks))
    return ids


def _cut(text, specials):
    """Yield (text, id) of each special token, and (text, None) of each piece between two."""
    start = at = 0
    longest = max(map(len, specials), default=0)
    while at < len(text):
        for length in range(longest, 0, -1):
            word = text[at : at + length]
            if len(word) == length and word in specials:
                yield text[start:at], None
                yield word, specials[word]
                start = at = at + length
                break
        else:
            at += 1
    yield text[start:], None


def _encode_piece(piece, ranks):
    ids = list(piece.encode("utf-8"))
    while len(ids) >= 2:
        pair = min(itertools.pairwise(ids), key=lambda p: ranks.get(p, float("inf")))
        if pair not in ranks:
            break
        new_ids = []
        i = 0
        while i < len(ids):
            if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
                new_ids.append(256 + ranks[pair])
                i += 2
            else:
                new_ids.append(ids[i])
                i += 1
        ids = new_ids
    return ids


def decode(ids, vocab, special_tokens=None):
    inverse = {v: k for k, v in (special_tokens or {}).items()}
    data = b""
    for i in ids:
        if i in inverse:
            data += inverse[i].encode("utf-8")
        elif i in vocab:
            data += vocab[i]
        else:
            raise ValueError(f"invalid token id: {i}")
    return data.decode("utf-8", errors="replace")
