"""SentencePiece: text to pieces by BPE or by a unigram model, and pieces back to text."""

import heapq
import math
import re
from itertools import pairwise

SPACE = "\u2581"
UNKNOWN = "<unk>"
BYTE = re.compile("<0x([0-9A-F]{2})>")


def encode_bpe(text: str, pieces: dict[str, float]) -> list[str]:
    """Return the pieces of `text`: neighbours are joined as long as that makes a piece.

    Kudo and Richardson, 2018, https://arxiv.org/abs/1808.06226
    """
    scores = _text_pieces(pieces)
    parts = [*_marked(text), ""]  # "": no part, at the end and where one was joined to the left
    before = [place - 1 for place in range(len(parts))]
    after = [place + 1 for place in range(len(parts))]
    queue: list[tuple[float, int, tuple[str, str]]] = []

    def push(left: int, right: int) -> None:
        pair = parts[left], parts[right]
        joined = "".join(pair)
        if all(pair) and joined in scores:
            heapq.heappush(queue, (-len(joined), left, pair))

    for left, right in pairwise(range(len(parts))):
        push(left, right)
    while queue:
        _, left, pair = heapq.heappop(queue)
        right = after[left]
        if (parts[left], parts[right]) != pair:
            continue
        parts[left], parts[right] = "".join(pair), ""
        after[left] = after[right]
        before[after[left]] = left
        push(before[left], left)
        push(left, after[left])
    return _with_unknowns([part for part in parts if part], pieces)


def encode_unigram(text: str, pieces: dict[str, float]) -> list[str]:
    """Return the pieces of `text` whose scores have the largest sum.

    Kudo, 2018, https://arxiv.org/abs/1804.10959
    """
    scores = _text_pieces(pieces)
    unknown = min(scores.values()) - 10
    lengths = set(map(len, scores))
    text = _marked(text)
    best = [0.0] + [-math.inf] * len(text)  # best[end]: of all ways to cut text[:end]
    begin: dict[int, int] = {}  # begin[end]: where the last part of that way starts

    for start, character in enumerate(text):
        ends = [start + length for length in lengths]
        found = [text[start:end] for end in ends if end < len(text)]
        for part in [character, *(part for part in found if part in scores)]:
            score = scores.get(part, unknown)
            end = start + len(part)
            if best[start] + score > best[end]:
                best[end] = best[start] + score
                begin[end] = start

    parts: list[str] = []
    end = len(text)
    while end:
        parts.append(text[begin[end] : end])
        end = begin[end]
    return _with_unknowns(parts[::-1], pieces)


def decode(pieces: list[str]) -> str:
    """Return the text of the pieces; bytes that are no UTF-8 become U+FFFD, one each."""
    data = bytearray()
    for place, piece in enumerate(pieces):
        if byte := BYTE.fullmatch(piece):
            data += bytes.fromhex(byte[1]).decode(errors="replace").encode()
        elif piece == UNKNOWN:
            data += " \u2047 ".encode()
        else:
            shown = piece if place else piece.removeprefix(SPACE)
            data += shown.replace(SPACE, " ").encode()
    text = data.decode(errors="surrogateescape").lstrip(" ")
    return re.sub("[\udc80-\udcff]", "\ufffd", text)


def _marked(text: str) -> str:
    """Return `text` as the models see it."""
    return (text if text[:1] in ("", " ") else " " + text).replace(" ", SPACE)


def _text_pieces(pieces: dict[str, float]) -> dict[str, float]:
    """Return the pieces that stand for text, with their scores."""
    return {piece: score for piece, score in pieces.items() if not BYTE.fullmatch(piece)}


def _with_unknowns(parts: list[str], pieces: dict[str, float]) -> list[str]:
    """Return `parts` with byte pieces or <unk> for each character that is no piece."""
    out: list[str] = []
    for part in parts:
        spelled = [f"<0x{byte:02X}>" for byte in part.encode()]
        if part in pieces:
            out.append(part)
        elif all(byte in pieces for byte in spelled):
            out += spelled
        elif out[-1:] != [UNKNOWN]:
            out.append(UNKNOWN)
    return out
