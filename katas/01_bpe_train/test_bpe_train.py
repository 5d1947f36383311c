import random
import re
import sys
from collections import Counter
from itertools import pairwise, product

import pytest

from dojo.testing import golden, refuses

ENGLISH = (
    "It was the ferryman's habit to count his passengers twice: once when they came aboard, and\n"
    "once again when they had left.  The numbers never agreed; nor, he said, should they.  Some\n"
    "who cross a river come back as somebody else, and the ferry charges them for both."
)
TEXTS = {
    "an English text": ENGLISH,
    "several scripts and emoji": "Où est l'été ? Де літо, де зима? 夏天在哪里 夏天 🌞🌝🌞🌞",
    "runs of one letter": "aaaa aaa aaaaaaaaa ba baaaab aa aaaaaaa bbbbb",
    "two letters in turn": "ababababab bababa abab aba ba",
    "indented code": "def f(x):\n    if x:\n        return x\n\treturn -x  \n\n\n",
    "digits": "3.14159 31415 2718281828 1828 0.001 1000000 100",
    "zero bytes": "\0\0\0a\0\0a\0",
    "two bytes": "no",
    "one byte": "x",
    "nothing": "",
}
PATTERNS = {
    "words": r"\S+",
    "words and what stands between them": r"\w+|\W+",
    "words with the space before them": r"'\w+| ?\w+| ?[^\s\w]+|\s+",
    "small letters alone": r"[a-z]+",
    "single characters": r"(?s:.)",
    "runs that may be empty": r"a*",
}
WORDS = PATTERNS["words"]
BYTES = {byte: bytes([byte]) for byte in range(256)}


def spaced(**words):
    """Return a text of these words, each as often as its number says."""
    return " ".join(word for word, copies in words.items() for _ in range(copies))


def merged(ids, pair, new):
    """Merge a pair from left to right."""
    out = []
    for token in ids:
        if out and (out[-1], token) == pair:
            out[-1] = new
        else:
            out.append(token)
    return out


def recount(text, vocab_size, pattern=None):
    """Train the slow way: count all pairs anew for each merge. Returns each step's pair, counts."""
    cut = [text] if pattern is None else re.findall(pattern, text)
    pieces = [list(piece.encode()) for piece in cut]
    steps = []
    for new in range(256, vocab_size):
        counts = Counter(pair for ids in pieces for pair in pairwise(ids))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        pieces = [merged(ids, pair, new) for ids in pieces]
        steps.append((pair, counts))
    return steps


def assert_learns(actual, expected, behaviour, counts=None):
    """Compare what was learnt with the expected merges; a failure shows the first difference."""
    vocab, merges = actual
    tokens = BYTES.copy()
    for new, (left, right) in enumerate(expected, 256):
        tokens[new] = tokens[left] + tokens[right]

    def show(pair, counts=None):
        text = " + ".join(repr(tokens.get(token, "?")) for token in pair)
        return f"{pair} ({text}{f', {counts[pair]} times there' if counts else ''})"

    assert type(merges) is list, f"{behaviour}: merges is a {type(merges).__name__}, not a list"
    kinds = {type(pair).__name__ for pair in merges} - {"tuple"}
    assert not kinds, f"{behaviour}: a pair of merges is a {min(kinds)}, not a tuple"
    kinds = {type(token).__name__ for pair in merges for token in pair} - {"int"}
    assert not kinds, f"{behaviour}: an id in merges is a {min(kinds)}, not an int"
    at_step = counts or [None] * len(expected)
    for step, (got, wanted) in enumerate(zip(merges, expected, strict=False)):
        if got != wanted:
            found = show(got, at_step[step])
            pytest.fail(
                f"{behaviour}: merge {step} is {found}, not {show(wanted, at_step[step])}",
                pytrace=False,
            )
    if len(merges) != len(expected):
        rest = merges[len(expected) :] or expected[len(merges) :]
        first = "the first too many is" if len(merges) > len(expected) else "the next would be"
        pytest.fail(
            f"{behaviour}: there are {len(merges)} merges, not {len(expected)}; "
            f"{first} {show(rest[0])}",
            pytrace=False,
        )
    assert_vocab(vocab, tokens, behaviour)


def assert_vocab(vocab, tokens, behaviour):
    assert isinstance(vocab, dict), f"{behaviour}: vocab is a {type(vocab).__name__}, not a dict"
    kinds = {type(token).__name__ for token in vocab} - {"int"}
    assert not kinds, f"{behaviour}: an id in vocab is a {min(kinds)}, not an int"
    kinds = {type(token).__name__ for token in vocab.values()} - {"bytes"}
    assert not kinds, f"{behaviour}: a token of vocab is a {min(kinds)}, not bytes"
    for token in sorted(tokens.keys() | vocab.keys()):
        got, wanted = vocab.get(token), tokens.get(token)
        assert got == wanted, f"{behaviour}: vocab has {got!r} for id {token}, not {wanted!r}"


def assert_as_recounted(impl, text, vocab_size, pattern, behaviour):
    actual = impl.train(text, vocab_size, pattern)
    steps = recount(text, vocab_size, pattern)
    counts = [counts for _, counts in steps]
    assert_learns(actual, [pair for pair, _ in steps], behaviour, counts)


def assert_first_merge(impl, text, expected):
    """Compare the first merge alone."""
    _, merges = impl.train(text, 257, WORDS)
    first = tuple(merges[0]) if merges else None
    if first != expected:
        text = " ".join(f"{word} x{copies}" for word, copies in Counter(text.split()).items())
        pytest.fail(
            f"{text}: the first pair merged is {first}, not {expected}, "
            f"{bytes(expected[:1])!r} + {bytes(expected[1:])!r}",
            pytrace=False,
        )


@pytest.mark.parametrize("vocab_size", [255, 1, 0, -300])
def test_no_room_for_the_bytes(impl, vocab_size):
    with refuses(f"vocab_size {vocab_size}, below the 256 bytes", str(vocab_size)):
        impl.train(ENGLISH, vocab_size)


@pytest.mark.parametrize("vocab_size", [256, 257, 258, 300])
def test_vocab_has_the_size_asked_for(impl, vocab_size):
    vocab, merges = impl.train(ENGLISH, vocab_size)
    if (len(vocab), len(merges)) != (vocab_size, vocab_size - 256):
        pytest.fail(
            f"vocab_size={vocab_size} asks for {vocab_size} entries of vocab and "
            f"{vocab_size - 256} merges; there are {len(vocab)} and {len(merges)}",
            pytrace=False,
        )


def test_arguments_by_name(impl):
    actual = impl.train(pattern=r"[a-z]+", vocab_size=300, text="xy-xyz")
    assert_learns(actual, [(120, 121), (256, 122)], "train(text=..., vocab_size=..., pattern=...)")


def test_last_pair_of_a_piece(impl):
    assert_learns(impl.train("no", 260), [(110, 111)], "a text of two bytes")
    assert_first_merge(impl, spaced(no=2, yes=1), (110, 111))
    assert_first_merge(impl, "stone bone tune", (110, 101))


def test_token_is_merged_once(impl):
    # Merging a + b uses up that b, which then is no part of b + c.
    actual = impl.train(spaced(ab=5, abc=1, bc=1), 300, WORDS)
    expected = [(97, 98), (98, 99), (256, 99)]
    assert_learns(actual, expected, "ab five times, abc and bc once")


def test_runs_are_merged_from_left_to_right(impl):
    assert_learns(impl.train("aaa", 300), [(97, 97), (256, 97)], "aaa")
    assert_learns(impl.train("aaaa", 300), [(97, 97), (256, 256)], "aaaa")
    expected = [(97, 97), (256, 97), (256, 257)]
    assert_learns(impl.train("aaaaa", 300), expected, "aaaaa")


def test_overlapping_positions_count(impl):
    # zzzz holds three pairs of z, which is more often than x + y and y + q stand anywhere.
    assert_first_merge(impl, spaced(zzzzq=1, xyq=2), (122, 122))
    assert_first_merge(impl, spaced(zzzq=3, xyq=5), (122, 122))


def test_tie_goes_to_the_smaller_pair(impl):
    actual = impl.train("zy xw xv", 300, WORDS)
    assert_learns(actual, [(120, 118), (120, 119), (122, 121)], "zy, xw and xv once each")
    # 256 is a smaller id than 257, and larger than every byte.
    text = spaced(ab=9, cd=7, abq=2, zcd=2, zab=2, zx=2)
    actual = impl.train(text, 300, WORDS)
    expected = [(97, 98), (99, 100), (122, 120), (122, 256), (122, 257), (256, 113)]
    assert_learns(actual, expected, "ties between bytes and merged tokens")


def test_pieces_stay_apart(impl):
    actual = impl.train("abcdabcd", 300, r"..")
    assert_learns(actual, [(97, 98), (99, 100)], "abcdabcd cut into twos")
    actual = impl.train("a-b-a-b-a-b", 300, r"\w")
    assert_learns(actual, [], "single letters")


def test_text_between_matches_is_left_out(impl):
    actual = impl.train("12ab3412cd1212", 300, r"[a-z]+")
    assert_learns(actual, [(97, 98), (99, 100)], "letters between digits, by a pattern of letters")


def test_without_a_pattern_merges_cross_anything(impl):
    expected = [(32, 98), (97, 256), (32, 257), (257, 258)]
    assert_learns(impl.train("a b a b", 300), expected, "a b a b without a pattern")


def test_repeated_pieces_count_each_time(impl):
    actual = impl.train(spaced(abc=5, de=4, fg=2, fh=1), 300, WORDS)
    expected = [(97, 98), (256, 99), (100, 101), (102, 103), (102, 104)]
    assert_learns(actual, expected, "abc five times, de four times")


def test_pair_that_loses_its_right_token_counts_less(impl):
    # Merging a + b leaves one c + a of four.
    actual = impl.train(spaced(cab=3, ab=2, ca=1, de=2), 300, WORDS)
    expected = [(97, 98), (99, 256), (100, 101), (99, 97)]
    assert_learns(actual, expected, "cab three times, ab and de twice, ca once")


def test_pair_that_loses_its_left_token_counts_less(impl):
    # Merging a + b leaves one b + c of four.
    actual = impl.train(spaced(abc=3, ab=2, bc=1, de=2), 300, WORDS)
    expected = [(97, 98), (256, 99), (100, 101), (98, 99)]
    assert_learns(actual, expected, "abc three times, ab and de twice, bc once")


def test_merged_tokens_merge_with_each_other(impl):
    actual = impl.train(spaced(abcd=2, ab=2, cd=1), 300, WORDS)
    expected = [(97, 98), (99, 100), (256, 257)]
    assert_learns(actual, expected, "abcd and ab twice, cd once")


def test_characters_of_several_bytes(impl):
    assert_learns(impl.train("é", 300), [(0xC3, 0xA9)], "é, two bytes of UTF-8")
    expected = [(0x82, 0xAC), (0xE2, 256)]
    assert_learns(impl.train("€", 300), expected, "€, three bytes of UTF-8")


@pytest.mark.parametrize(
    "text", ["\ufeffa\ufeffa", "a\r\nb\r\nb\r", "  a  ", "e\u0301é\u0301", "Aa\0\0"]
)
def test_no_character_is_changed_or_dropped(impl, text):
    assert_as_recounted(impl, text, 300, None, f"{text!a} without a pattern")
    assert_as_recounted(impl, text, 300, r"(?s:.+)", f"{text!a}, all of it one match")


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        r"(?:ab)+",
        r"(?i:A)b+",
        r"b(?=a)|a",
        r"^\w+",
        r"\w+$",
        r"(?m)^.+$",
        r"\b",
        r"x",
        r"\Aab|\n.*",
    ],
)
def test_patterns_of_every_kind(impl, pattern):
    text = "ababab abab\nbbabb aab\nab Ab abb"
    assert_as_recounted(impl, text, 300, pattern, f"{text!r} cut into {pattern!r}")


def test_counts_above_two_bytes(impl):
    text = "ab " * 65_537 + "cd " * 65_539 + "ef ef"
    actual = impl.train(text, 300, r"\w+")
    expected = [(99, 100), (97, 98), (101, 102)]
    assert_learns(actual, expected, "ab 65,537 times, cd 65,539 times, ef twice")


def test_counts_above_two_bytes_that_fall(impl):
    # Merging a + b leaves three b + c of 65,541.
    text = "abc " * 65_538 + "ab " * 5 + "bc bc bc de de de de"
    actual = impl.train(text, 300, r"\w+")
    expected = [(97, 98), (256, 99), (100, 101), (98, 99)]
    assert_learns(actual, expected, "abc 65,538 times, bc three times, de four times")


def test_stops_early_however_much_is_asked_for(impl):
    assert_learns(impl.train("aba", 10**9), [(97, 98), (256, 97)], "aba, vocab_size=10**9")


def test_one_call_after_another(impl):
    calls = [
        ("abab abc", 300, None),
        ("abab abc", 300, WORDS),
        ("abab abc", 258, WORDS),
        ("bcbc abc", 300, WORDS),
        ("abab abc", 256, WORDS),
        ("abab abc", 300, ""),
    ]
    expected = [[pair for pair, _ in recount(*arguments)] for arguments in calls]
    results = [impl.train(*arguments) for arguments in calls]
    for arguments, result, merges in zip(calls, results, expected, strict=True):
        assert_learns(result, merges, f"train{arguments}, once others were called")
    for vocab, merges in results:  # the caller's own
        vocab[97] = b"?"
        merges.append((0, 0))
    for arguments, merges in zip(reversed(calls), reversed(expected), strict=True):
        behaviour = f"train{arguments}, once the results of earlier calls were changed"
        assert_learns(impl.train(*arguments), merges, behaviour)


@pytest.mark.parametrize("name", TEXTS)
def test_stops_when_no_pair_is_left(impl, name):
    behaviour = f"{name}, as many merges as it has"
    assert_as_recounted(impl, TEXTS[name], 1_000, None, behaviour)
    assert_as_recounted(impl, TEXTS[name], 1_000, WORDS, f"{behaviour}, by words")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", list(TEXTS)[:4])
def test_text_cut_by_a_pattern(impl, name, pattern):
    behaviour = f"{name}, cut into {pattern}"
    assert_as_recounted(impl, TEXTS[name], 330, PATTERNS[pattern], behaviour)


def test_every_short_text_of_two_letters(impl):
    for length in range(8):
        for letters in product("ab", repeat=length):
            text = "".join(letters)
            assert_as_recounted(impl, text, 300, None, repr(text))


@pytest.mark.parametrize("alphabet", ["ab", "abc", "ab ", "aé", "abcdefgh \n"])
def test_random_text(impl, alphabet):
    for length in (20, 33, 90):
        text = "".join(random.choices(alphabet, k=length))
        assert_as_recounted(impl, text, 400, None, f"{text!r} without a pattern")
        assert_as_recounted(impl, text, 400, WORDS, f"{text!r} by words")


def lines_run(call):
    """Return how many lines of Python a call runs: work that does not depend on the machine."""
    lines = 0

    def trace(frame, event, arg):
        nonlocal lines
        lines += event == "line"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(previous)
    return lines


def repeated(words, length, copies):
    """Return a text of so many different words, each of so many letters, in random order."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    different = ["".join(random.choices(letters, k=length)) for _ in range(words)]
    return " ".join(random.sample(different * copies, words * copies))


def test_counts_are_updated_not_recounted(impl):
    # Words of 15 letters: 14 merges a word make each of them one token, so each byte of the text is
    # merged about once. A scan of the text for each merge looks at each byte four times as often
    # where there are four times as many words.
    few, many = repeated(3, 15, 30), repeated(12, 15, 30)
    lines = lines_run(lambda: impl.train(few, 256 + 3 * 14))
    more = lines_run(lambda: impl.train(many, 256 + 12 * 14))
    if more > 8 * lines:
        pytest.fail(
            f"42 merges on a text of {len(few):,} bytes, in one piece, ran {lines:,} lines of "
            f"Python, and four times the merges on four times the text {more:,}, "
            f"{more / lines:.1f} times as many; about 4 times do if a merge updates the counts "
            f"next to it and looks at nothing else",
            pytrace=False,
        )


def test_a_thousand_merges_of_the_tokenizers_library(impl):
    expected = golden("bpe_train.json")
    vocab, merges = impl.train(expected["text"], 1_256, WORDS)
    assert_learns(
        (vocab, merges), [tuple(pair) for pair in expected["merges"]], "29,000 bytes of text"
    )
    learnt = {256 + step: token.encode() for step, token in enumerate(expected["tokens"])}
    assert_vocab(vocab, BYTES | learnt, "the tokens of the tokenizers library")
