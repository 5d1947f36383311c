"""NumPy arrays: each merge that the piece may hold is made everywhere in it at once."""

import re

import numpy as np


def encode(text, vocab, merges, special_tokens=None):
    special_tokens = special_tokens or {}
    names = sorted((name for name in special_tokens if name), key=len, reverse=True)
    parts = [text]
    if names:
        parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    ids = []
    for number, part in enumerate(parts):
        if number % 2:
            ids.append(special_tokens[part])
        else:
            ids.extend(_encode_piece(part, merges))
    return ids


def _encode_piece(piece, merges):
    tokens = np.frombuffer(piece.encode("utf-8"), dtype=np.uint8).astype(np.int64)
    present = set(tokens.tolist())
    for rank, (left, right) in enumerate(merges):
        # Merges are in the order of training: a pair holds no token that a later merge makes.
        if left not in present or right not in present:
            continue
        matches = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
        if not matches.size:
            continue
        if left == right:
            # In a run of matches, every other one counts, from its first on.
            first = np.ones(len(matches), dtype=bool)
            first[1:] = np.diff(matches) > 1
            run_start = np.maximum.accumulate(np.where(first, matches, -1))
            matches = matches[(matches - run_start) % 2 == 0]
        tokens[matches] = 256 + rank
        tokens = np.delete(tokens, matches + 1)
        present.add(256 + rank)
    return tokens.tolist()


def decode(ids, vocab, special_tokens=None):
    texts = {number: name.encode("utf-8") for name, number in (special_tokens or {}).items()}
    data = bytearray()
    for number in ids:
        piece = vocab.get(number, texts.get(number))
        if piece is None:
            raise ValueError(f"id {number} is in neither vocab nor special_tokens")
        data.extend(piece)
    return str(data, "utf-8", "replace")
