"""Unigram walks a trie, BPE keeps the scores of neighbours in a list, decode splits by a regex."""

import codecs
import itertools
import math
import re

BYTE = re.compile(r"<0x[0-9A-F][0-9A-F]>\Z")
codecs.register_error(
    "one mark a byte", lambda error: ("\ufffd" * (error.end - error.start), error.end)
)


def model(pieces):
    return {piece: score for piece, score in pieces.items() if not BYTE.match(piece)}


def characters(text):
    return re.sub(" ", "▁", " " + text) if text != "" else ""


def encode_bpe(text, pieces):
    scores = model(pieces)

    def worth(place):
        pair = parts[place : place + 2]
        return scores.get("".join(pair), -math.inf) if len(pair) == 2 else -math.inf

    parts = list(characters(text))
    worths = [worth(place) for place in range(len(parts))]  # of each part with the next one
    while parts and (best := max(worths)) > -math.inf:
        place = worths.index(best)
        parts[place] += parts.pop(place + 1)
        del worths[place + 1]
        for changed in range(max(0, place - 1), place + 1):
            worths[changed] = worth(changed)
    return known_or_not(parts, pieces, scores)


def encode_unigram(text, pieces):
    scores = model(pieces)
    root = {}
    for piece in scores:
        node = root
        for character in piece:
            node = node.setdefault(character, {})
        node["score"] = scores[piece]  # no character is as long as that
    root = {character: root.get(character, {}) for character in {*root, *characters(text)}}
    unknown = min(scores.values()) - 10
    for node in root.values():
        node.setdefault("score", unknown)

    text = characters(text)
    best = [(0.0, 0)] + [None] * len(text)
    for start in range(len(text)):
        node = root
        for end in range(start, len(text)):
            node = node.get(text[end])
            if node is None:
                break
            if "score" in node:
                total = best[start][0] + node["score"]
                if best[end + 1] is None or best[end + 1][0] < total:
                    best[end + 1] = total, start
    cuts = [len(text)]
    while cuts[-1] > 0:
        cuts.append(best[cuts[-1]][1])
    parts = [text[start:end] for start, end in itertools.pairwise(cuts[::-1])]
    return known_or_not(parts, pieces, scores)


def known_or_not(parts, pieces, scores):
    out = []
    for part in parts:
        names = [f"<0x{byte:02X}>" for byte in part.encode()]
        out += (
            [part] if part in scores else names if all(name in pieces for name in names) else [None]
        )
    return ["<unk>" if kind is None else kind for kind in collapsed(out)]


def collapsed(parts):
    for kind, run in itertools.groupby(parts):
        yield from [None] if kind is None else run


def decode(pieces):
    shown = []
    for of_bytes, run in itertools.groupby(pieces, key=lambda piece: bool(BYTE.match(piece))):
        if of_bytes:
            data = bytes(int(piece[3:5], 16) for piece in run)
            shown.append(data.decode("utf-8", errors="one mark a byte"))
        else:
            words = [" \u2047 " if piece == "<unk>" else piece.replace("▁", " ") for piece in run]
            shown.append("".join(words))
    text = "".join(shown)
    return text[1:] if pieces and pieces[0].startswith("▁") else text
