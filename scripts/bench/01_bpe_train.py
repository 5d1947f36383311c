"""BPE training on 1 MB of text, in one piece and cut into words."""

import random

from dojo.benchmarks.references import Case

SIZE = 1_000_000
WORDS = r"\S+"


def text():
    """Return pseudo-words whose frequencies fall as those of a language do, 11,000 of them."""
    rng = random.Random(0)
    syllables = [onset + vowel for onset in "bcdfghklmnprstvw" for vowel in "aeiou"]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20_000)]
    frequencies = [1 / rank for rank in range(3, 3 + len(lexicon))]
    return " ".join(rng.choices(lexicon, frequencies, k=SIZE // 4))[:SIZE]


def cases(reference):
    """Return the workloads; the library has its say on words, as it is slow on one long piece."""
    corpus = text()
    return [
        Case("1,000 merges, one piece", lambda: reference.train(corpus, 1_256)),
        Case(
            "1,000 merges, words",
            lambda: reference.train(corpus, 1_256, WORDS),
            tokenizers(corpus, 1_256),
        ),
        Case(
            "8,000 merges, words",
            lambda: reference.train(corpus, 8_256, WORDS),
            tokenizers(corpus, 8_256),
        ),
    ]


def tokenizers(corpus, vocab_size):
    """Return the same training by the tokenizers library, or None where it is missing."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        return None

    def train():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator([corpus], trainer)

    return train
