"""BPE on one piece of 100 KB and on a long run, beside tiktoken if it is installed.

For information: tiktoken is compiled Rust, and pure Python does not come within 3x of it. What
counts is that time grows with the length of a piece, not with its square: 100 KB in about a second.
"""

import random

from dojo.benchmarks.references import Case
from dojo.testing import golden

try:
    import tiktoken
except ImportError:
    tiktoken = None


def cases(reference):
    """Return the workloads: shuffled words with 220 merges, and one letter with 120."""
    draw = random.Random(0)
    vocabularies = golden("bpe_codec.json")
    prose = next(
        case["text"]
        for case in vocabularies["prose"]["encode"]
        if case["label"] == "all of the text"
    )
    words = " ".join(draw.choices(prose.split(), k=25_000))[:100_000]
    return [
        *codec(reference, "100 KB of words", words, vocabularies["prose"]["merges"]),
        *codec(reference, "100 KB of one letter", "a" * 100_000, vocabularies["runs"]["merges"]),
    ]


def codec(reference, label, text, pairs):
    """Return the cases of encoding a text and decoding it again."""
    merges = [tuple(pair) for pair in pairs]
    vocab = {byte: bytes([byte]) for byte in range(256)}
    for new, (left, right) in enumerate(merges, 256):
        vocab[new] = vocab[left] + vocab[right]
    ids = reference.encode(text, vocab, merges)
    encode, decode = their_codec(vocab, text, ids) if tiktoken else (None, None)
    return [
        Case(
            f"encode {label} (info: tiktoken is Rust)",
            lambda: reference.encode(text, vocab, merges),
            encode,
        ),
        Case(
            f"decode {label} (info: tiktoken is Rust)",
            lambda: reference.decode(ids, vocab),
            decode,
        ),
    ]


def their_codec(vocab, text, ids):
    """Return calls of tiktoken that encode the text and decode the ids."""
    encoding = tiktoken.Encoding(
        "bench",
        pat_str=r"[\s\S]+",
        mergeable_ranks={token: token_id for token_id, token in vocab.items()},
        special_tokens={},
    )
    return lambda: encoding.encode(text), lambda: encoding.decode(ids)
