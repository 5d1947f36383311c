"""SentencePiece on 100 KB of words, beside the sentencepiece library if it is installed.

For information: the library is compiled C++, and pure Python does not come within 3x of it. What
counts is that time grows with the length of the text, not with its square.
"""

import io
import random

from dojo.benchmarks.references import Case
from dojo.testing import golden

try:
    import sentencepiece
except ImportError:
    sentencepiece = None


def cases(reference):
    """Return the workloads: words of the fixture, shuffled, by both families of models."""
    draw = random.Random(0)
    models = golden("sentencepiece.json")["models"]
    prose = next(
        case["text"]
        for case in models["prose, BPE"]["cases"]
        if case["label"] == "half of the prose"
    )
    words = " ".join(draw.choices(prose.split(), k=25_000))[:100_000]
    found = []
    for name, kind, encode in (
        ("prose, BPE", "bpe", reference.encode_bpe),
        ("prose, unigram", "unigram", reference.encode_unigram),
    ):
        pieces = models[name]["pieces"]
        encoded = encode(words, pieces)
        theirs = trained(words, kind) if sentencepiece else None
        found += [
            Case(
                f"encode 100 KB of words, {kind} (info: sentencepiece is C++)",
                lambda encode=encode, pieces=pieces: encode(words, pieces),
                (lambda theirs=theirs: theirs.encode(words, out_type=str)) if theirs else None,
            ),
            Case(
                f"decode 100 KB of words, {kind} (info: sentencepiece is C++)",
                lambda encoded=encoded: reference.decode(encoded),
                (lambda theirs=theirs, encoded=encoded: theirs.decode(encoded)) if theirs else None,
            ),
        ]
    return found


def trained(words, kind):
    """Return a model of the library, of a size like the fixture's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words[:4000]]),
        model_writer=model,
        model_type=kind,
        vocab_size=150,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
