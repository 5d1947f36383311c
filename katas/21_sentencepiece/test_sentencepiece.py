import copy
import random
from itertools import pairwise

import pytest

from dojo.testing import assert_text, first_difference, golden, told_apart

# What the library does with models of its own; fixtures/make_sentencepiece.py says how.
GOLDEN = golden("sentencepiece.json")
BPE_MODELS = [name for name, model in GOLDEN["models"].items() if model["kind"] == "bpe"]
UNIGRAM_MODELS = [name for name, model in GOLDEN["models"].items() if model["kind"] == "unigram"]
ENCODERS = ["encode_bpe", "encode_unigram"]

BYTES = {f"<0x{byte:02X}>": 0.0 for byte in range(256)}
LETTERS = {"▁": -3.0, "a": -4.0, "b": -5.0, "c": -6.0}


def assert_pieces(actual, expected, behaviour):
    """Compare pieces; a failure shows them from the first difference on."""
    assert isinstance(actual, list), f"{behaviour}: got {type(actual).__name__}, not a list"
    if actual == expected:
        return
    start = first_difference(actual, expected)

    def shown(pieces):
        rest = pieces[start:]
        return " ".join(map(repr, rest[:6])) + " ..." * (len(rest) > 6) or "the end"

    pytest.fail(
        f"{behaviour}: from piece {start} on it is {shown(actual)}; expected {shown(expected)}",
        pytrace=False,
    )


def assert_cut(impl, encoder, text, pieces, expected):
    """Encode a text; `expected` is the text cut by | into pieces."""
    actual = getattr(impl, encoder)(text, pieces)
    assert_pieces(actual, expected.split("|") if expected else [], f"{encoder}({text!r})")


def random_text(length):
    """Return words of few letters with runs of spaces, also at the ends."""
    return "".join(random.choice("aaabbc ") * random.choice([1, 1, 1, 2, 5]) for _ in range(length))


def random_pieces(text, count, whole_scores):
    """Return the letters and `count` pieces cut out of the text; whole scores often tie."""
    text = " " + text
    # A dict, not a set, whose order differs from process to process: the seed must fix the scores.
    pieces = dict.fromkeys(LETTERS)
    for _ in range(count):
        start = random.randrange(len(text))
        pieces[text[start : start + random.randrange(2, 7)].replace(" ", "▁")] = None
    return {p: -random.randrange(5) if whole_scores else random.uniform(-9, -1) for p in pieces}


# What both encoders do with the text


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", "▁|a"), ("a b", "▁|a|▁|b"), ("a  b   c", "▁|a|▁|▁|b|▁|▁|▁|c"), ("a ", "▁|a|▁")],
)
def test_one_space_is_put_before_the_text(impl, encoder, text, expected):
    assert_cut(impl, encoder, text, LETTERS, expected)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("text", "expected"), [(" ", "▁|▁"), (" a", "▁|▁|a"), ("   a", "▁|▁|▁|▁|a")]
)
def test_a_text_that_starts_with_a_space_gets_another(impl, encoder, text, expected):
    assert_cut(impl, encoder, text, LETTERS, expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_nothing_is_put_before_a_line(impl, encoder):
    pieces = LETTERS | {"\n": -7.0, "\r": -8.0, "\x0b": -8.5}
    assert_cut(impl, encoder, "a\nb\n\nc", pieces, "▁|a|\n|b|\n|\n|c")
    assert_cut(impl, encoder, "\r\na\x0bb", pieces, "▁|\r|\n|a|\x0b|b")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_empty_text_has_no_pieces(impl, encoder):
    assert_cut(impl, encoder, "", LETTERS, "")
    assert_cut(impl, encoder, "", {"a": -1.0} | BYTES, "")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_space_before_the_text_may_be_part_of_a_piece(impl, encoder):
    pieces = LETTERS | {"▁a": -1.0, "▁▁": -1.5}
    assert_cut(impl, encoder, "a", pieces, "▁a")
    assert_cut(impl, encoder, "b a", pieces, "▁|b|▁a")
    assert_cut(impl, encoder, " b", pieces, "▁▁|b")


def test_the_two_families_differ_as_in_the_brief(impl):
    pieces = {"▁": -4.0, "a": -1.0, "b": -2.0, "c": -5.0, "▁a": -6.0, "ab": -4.5, "bc": -3.0}
    assert_cut(impl, "encode_bpe", "abc", pieces, "▁a|bc")
    assert_cut(impl, "encode_bpe", "ab", pieces, "▁|ab")
    assert_cut(impl, "encode_unigram", "ab", pieces, "▁|a|b")


# Unknown characters


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("é", "▁|<0xC3>|<0xA9>"),
        ("a€b", "▁|a|<0xE2>|<0x82>|<0xAC>|b"),
        ("😀a", "▁|<0xF0>|<0x9F>|<0x98>|<0x80>|a"),
        ("\n\0", "▁|<0x0A>|<0x00>"),
    ],
)
def test_unknown_characters_become_their_bytes(impl, encoder, text, expected):
    assert_cut(impl, encoder, text, LETTERS | BYTES, expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_unknown_characters_in_a_row_are_one_unknown(impl, encoder):
    assert_cut(impl, encoder, "aßb", LETTERS, "▁|a|<unk>|b")
    assert_cut(impl, encoder, "ßßé a ß b", LETTERS, "▁|<unk>|▁|a|▁|<unk>|▁|b")
    assert_cut(impl, encoder, "ßé", {"a": -1.0}, "<unk>")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_bytes_need_all_of_the_character(impl, encoder):
    pieces = LETTERS | {"<0xC3>": 0.0, "<0xA9>": 0.0, "<0x82>": 0.0}
    assert_cut(impl, encoder, "é", pieces, "▁|<0xC3>|<0xA9>")
    assert_cut(impl, encoder, "aèb€", pieces, "▁|a|<unk>|b|<unk>")
    assert_cut(impl, encoder, "è€éè", pieces, "▁|<unk>|<0xC3>|<0xA9>|<unk>")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_names_of_pieces_are_plain_text(impl, encoder):
    signs = dict.fromkeys("</>sunkx041", -9.0)
    assert_cut(impl, encoder, "<s>", LETTERS | signs, "▁|<|s|>")
    assert_cut(impl, encoder, "<unk></s>", LETTERS | signs, "▁|<|u|n|k|>|<|/|s|>")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_byte_pieces_are_not_found_in_text(impl, encoder):
    # Each step on the way to the name of the byte piece is there, at scores that ask for it.
    halves = {"<0": -2.0, "<0x": -1.5, "41": -1.4, "<0x41": -1.0, "4": -9.0, "1": -9.5, ">": -9.7}
    pieces = LETTERS | halves | {"<0x41>": 0.0, "abcabcabc": -1.0}
    assert_cut(impl, encoder, "<0x41>", pieces, "▁|<0x41|>")
    assert_cut(impl, encoder, "aA", pieces, "▁|a|<0x41>")


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("piece", ["<0x4>", "<0x411>", "<0xe9>", "a<0x41>", "<0x41>b", "<0x41>\n"])
def test_what_is_almost_a_byte_piece_is_found_in_text(impl, encoder, piece):
    signs = dict.fromkeys("<0x419e>", -9.0)
    # BPE gets to the piece by its beginnings, or by the last of them that is text and >b.
    beginnings = {piece[:end]: -1.0 - end / 10 for end in range(2, len(piece))}
    pieces = LETTERS | signs | beginnings | {"\n": -9.0, ">b": -8.0, ">\n": -8.0, piece: -0.5}
    assert_cut(impl, encoder, f"b{piece}c", pieces, f"▁|b|{piece}|c")


# BPE


@pytest.mark.parametrize(
    ("joins", "text", "expected"),
    [
        ({"ab": -2.0, "bc": -1.0}, "abc", "▁|a|bc"),
        ({"ab": -1.0, "bc": -2.0}, "abc", "▁|ab|c"),
        ({"▁a": -1.0, "ab": 0.0}, "ab", "▁|ab"),
        ({"bc": -1.0, "ab": -2.0, "abc": -3.0, "ca": -1.5}, "abca", "▁|abc|a"),
    ],
)
def test_best_score_is_joined_first(impl, joins, text, expected):
    assert_cut(impl, "encode_bpe", text, LETTERS | joins, expected)


def test_a_long_piece_of_low_score_waits(impl):
    pieces = LETTERS | {"ab": -1.0, "abc": -4.0, "ca": -2.0, "▁ab": -3.5}
    assert_cut(impl, "encode_bpe", "abca", pieces, "▁ab|ca")
    assert_cut(impl, "encode_bpe", "cabc", pieces, "▁|c|abc")


@pytest.mark.parametrize(
    ("joins", "text", "expected"),
    [
        ({"ab": -1.0, "ba": -1.0}, "aba", "▁|ab|a"),
        ({"ab": -1.0, "ba": -1.0}, "babab", "▁|ba|ba|b"),
        ({"aa": -1.0}, "aaaaa", "▁|aa|aa|a"),
        ({"ab": -1.0, "bcc": -1.0, "cc": 0.0}, "abcc", "▁|ab|cc"),
    ],
)
def test_leftmost_of_equal_scores(impl, joins, text, expected):
    assert_cut(impl, "encode_bpe", text, LETTERS | joins, expected)


def test_scores_of_single_characters_play_no_part(impl):
    for score in (-50.0, 0.0, 30.0):
        pieces = dict.fromkeys(LETTERS, score) | {"ab": -1.0, "bc": -1.5}
        assert_cut(impl, "encode_bpe", "abc", pieces, "▁|ab|c")


def test_joins_reach_over_spaces_and_both_ways(impl):
    pieces = LETTERS | {"bc": -1.0, "abc": -2.0, "abc▁": -3.0, "abc▁a": -4.0, "▁abc▁a": -5.0}
    assert_cut(impl, "encode_bpe", "abc a", pieces, "▁abc▁a")
    assert_cut(impl, "encode_bpe", "aabc a", pieces, "▁|a|abc▁a")


def test_two_joined_pieces_are_joined(impl):
    pieces = LETTERS | {"ab": -1.0, "bc": -9.0, "ca": -2.0, "abca": -3.0}
    assert_cut(impl, "encode_bpe", "abca", pieces, "▁|abca")


def test_a_piece_may_come_about_in_any_way(impl):
    # abc is reached as ab + c or as a + bc, whichever pair is joined first.
    for ab, bc in ((-1.0, -2.0), (-2.0, -1.0)):
        pieces = LETTERS | {"ab": ab, "bc": bc, "abc": -3.0}
        assert_cut(impl, "encode_bpe", "abcb", pieces, "▁|abc|b")


def test_bpe_reaches_no_piece_without_its_parts(impl):
    assert_cut(impl, "encode_bpe", "abc", LETTERS | {"abc": 0.0, "▁abc": 1.0}, "▁|a|b|c")


def test_unknown_characters_may_be_joined(impl):
    pieces = LETTERS | {"aß": -1.0, "ßß": -2.0}
    assert_cut(impl, "encode_bpe", "aßbßßcß", pieces, "▁|aß|b|ßß|c|<unk>")


# Unigram


def unigram_best(text, pieces):
    """Return the best sum of scores for a text whose characters are all pieces, cut from its end.

    The text has its leading space and its U+2581.
    """
    rest, longest = [0.0], max(map(len, pieces))
    for start in reversed(range(len(text))):
        ends = range(start + 1, min(start + longest, len(text)) + 1)
        cuts = [pieces[text[start:end]] + rest[-1 - (end - start - 1)] for end in ends
                if text[start:end] in pieces]  # fmt: skip
        rest.append(max(cuts))
    return rest[-1]


@pytest.mark.parametrize(
    ("joins", "expected"),
    [
        ({"ab": -8.5, "bc": -10.6}, "▁|ab|c"),
        ({"ab": -8.5, "bc": -10.6, "abc": -14.6}, "▁|ab|c"),
        ({"ab": -8.5, "bc": -10.6, "abc": -14.4}, "▁|abc"),
        ({"ab": -8.5, "bc": -10.8, "▁a": -7.4}, "▁|ab|c"),
        ({"ab": -8.5, "bc": -9.8, "▁a": -6.4}, "▁a|bc"),
        ({"ab": -9.1, "▁ab": -12.1, "bc": -11.1}, "▁|a|b|c"),
        ({"▁abc": -17.9}, "▁abc"),
        ({"▁abc": -18.1}, "▁|a|b|c"),
    ],
)
def test_largest_sum_of_scores(impl, joins, expected):
    assert_cut(impl, "encode_unigram", "abc", LETTERS | joins, expected)


def test_a_long_piece_may_end_the_text(impl):
    pieces = LETTERS | {"ab": -4.5, "abc": -5.0, "ca": -5.5}
    assert_cut(impl, "encode_unigram", "bab", pieces, "▁|b|ab")
    assert_cut(impl, "encode_unigram", "b abc", pieces, "▁|b|▁|abc")
    assert_cut(impl, "encode_unigram", "abca", pieces, "▁|abc|a")
    assert_cut(impl, "encode_unigram", "bca", pieces, "▁|b|ca")


def test_a_long_piece_may_stand_inside_the_text(impl):
    pieces = LETTERS | {"abc": -5.0, "▁abcab": -6.0}
    assert_cut(impl, "encode_unigram", "babcb", pieces, "▁|b|abc|b")
    assert_cut(impl, "encode_unigram", "abcabb", pieces, "▁abcab|b")


def test_few_improbable_pieces_against_many_probable_ones(impl):
    # By sums of probabilities, four parts of 0.3 are better than one of 0.5.
    pieces = {"▁": -1.2, "a": -1.2, "b": -1.2, "c": -1.2, "abc": -0.7, "bc": -0.9}
    assert_cut(impl, "encode_unigram", "abc", pieces, "▁|abc")
    assert_cut(impl, "encode_unigram", "bcb", pieces, "▁|bc|b")


def test_long_text_is_cut_like_short_text(impl):
    # Its probability, about exp(-2400), is zero in any float.
    pieces = LETTERS | {"ab": -6.0, "bc": -9.0}
    assert_cut(impl, "encode_unigram", "abc" * 200, pieces, "▁" + "|ab|c" * 200)


@pytest.mark.parametrize(("score", "expected"), [(-10.5, "▁|c|aß"), (-11.5, "▁|ca|<unk>")])
def test_unknown_characters_score_10_below_the_lowest(impl, score, expected):
    # c and aß against ca and an unknown: score - 13 against -1 - 23. Bytes count for nothing.
    pieces = {"▁": -2.0, "a": -5.0, "c": score, "aß": -13.0, "ca": -1.0, "<0xC3>": -90.0}
    assert_cut(impl, "encode_unigram", "caß", pieces, expected)


def test_pieces_with_unknown_characters_are_found(impl):
    pieces = LETTERS | {"aß": -14.0, "ßß": -7.0}
    assert_cut(impl, "encode_unigram", "aßbßßcß", pieces, "▁|aß|b|ßß|c|<unk>")


@pytest.mark.parametrize(("length", "count"), [(1, 2), (6, 8), (40, 60), (200, 150)])
def test_no_other_cut_is_better(impl, length, count):
    text = random_text(length)
    pieces = random_pieces(text, count, whole_scores=False)
    actual = impl.encode_unigram(text, pieces)
    marked = "▁" + text.replace(" ", "▁")
    assert_text("".join(actual), marked, "the pieces of random text, joined")
    unknown = [piece for piece in actual if piece not in pieces]
    assert not unknown, f"these are no pieces of the model: {unknown}"
    score, best = sum(pieces[piece] for piece in actual), unigram_best(marked, pieces)
    theirs, possible = told_apart(score, best)
    assert abs(score - best) < 1e-6, (
        f"the scores of the pieces of {text[:20]!r}... add up to {theirs}, "
        f"and there is a way to cut it that has {possible}"
    )


# Decoding


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [("▁|a|▁|b", "a b"), ("▁a|▁b", "a b"), ("▁", ""), ("a|b", "ab"), ("a|▁", "a "), ("a▁b", "a b")],
)
def test_the_first_space_is_dropped(impl, pieces, expected):
    assert_text(impl.decode(pieces.split("|")), expected, f"decode of {pieces}")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [("▁|▁", " "), ("▁▁▁|a", "  a"), ("▁|▁|▁|a", "  a"), ("▁▁", " "), ("▁|\n|▁a", "\n a")],
)
def test_only_one_space_is_dropped(impl, pieces, expected):
    assert_text(impl.decode(pieces.split("|")), expected, f"decode of {pieces!r}")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [("<0x20>|a", " a"), ("<0x0A>|▁a", "\n a"), ("<unk>|▁a", " \u2047  a"), (" a", " a")],
)
def test_only_a_space_symbol_that_comes_first_is_dropped(impl, pieces, expected):
    assert_text(impl.decode(pieces.split("|")), expected, f"decode of {pieces}")


@pytest.mark.parametrize("character", ["é", "€", "😀", "éé€", "👩\u200d💻"])
def test_byte_pieces_are_read_together(impl, character):
    pieces = ["▁a", *(f"<0x{byte:02X}>" for byte in character.encode()), "b"]
    assert_text(impl.decode(pieces), f"a{character}b", f"decode of {pieces}")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("<0xFF>", "\ufffd"),
        ("<0xE2>|<0x82>", "\ufffd\ufffd"),
        ("<0xE2>|<0x82>|a", "\ufffd\ufffda"),
        ("<0xF0>|<0x9F>|<0x98>|<0xC3>|<0xA9>", "\ufffd\ufffd\ufffdé"),
        ("a|<0xED>|<0xB2>|<0x80>", "a\ufffd\ufffd\ufffd"),
        ("<0xE2>|▁|<0x82>|<0xAC>", "\ufffd \ufffd\ufffd"),
        ("<0xC3>|<unk>|<0xA9>", "\ufffd \u2047 \ufffd"),
    ],
)
def test_each_byte_without_a_character_is_marked(impl, pieces, expected):
    assert_text(impl.decode(pieces.split("|")), expected, f"decode of {pieces}")


def test_what_is_almost_a_byte_piece_is_text(impl):
    for piece in ("<0x4>", "<0x411>", "<0xe9>", "a<0x41>", "<0x41>b", "0x41", "<0x41>\n"):
        assert_text(impl.decode(["▁", piece]), piece, f"decode of the piece {piece!r}")
    for piece in ("<unk>b", "<unk>\n", "<UNK>", "<s>", "</s>", "<pad>"):
        assert_text(impl.decode(["▁", piece]), piece, f"decode of the piece {piece}")


def test_no_pieces_are_no_text(impl):
    assert_text(impl.decode([]), "", "decode of no pieces")


# The library's output, and whatever text


@pytest.mark.parametrize("name", BPE_MODELS)
def test_bpe_matches_sentencepiece(impl, name):
    model = GOLDEN["models"][name]
    for case in model["cases"]:
        actual = impl.encode_bpe(case["text"], model["pieces"])
        assert_pieces(actual, case["pieces"], f"{case['label']}, {case['text'][:20]!r}")


@pytest.mark.parametrize("name", UNIGRAM_MODELS)
def test_unigram_matches_sentencepiece(impl, name):
    model = GOLDEN["models"][name]
    for case in model["cases"]:
        actual = impl.encode_unigram(case["text"], model["pieces"])
        assert_pieces(actual, case["pieces"], f"{case['label']}, {case['text'][:20]!r}")


def test_decode_matches_sentencepiece(impl):
    for case in GOLDEN["decode"]:
        pieces = case["pieces"]
        assert_text(impl.decode(list(pieces)), case["text"], f"decode of {pieces[:6]}")


@pytest.mark.parametrize(("length", "count"), [(1, 2), (6, 8), (40, 60), (150, 90)])
def test_random_text_by_random_joins(impl, length, count):
    text = random_text(length)
    pieces = random_pieces(text, count, whole_scores=True)
    expected = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [left + right for left, right in pairwise(expected)]
        scores = [pieces.get(piece, float("-inf")) for piece in joined]
        if max(scores, default=float("-inf")) == float("-inf"):
            break
        place = scores.index(max(scores))
        expected[place : place + 2] = [joined[place]]
    assert_pieces(impl.encode_bpe(text, pieces), expected, f"random text {text[:20]!r}")


@pytest.mark.parametrize("name", ["scripts, BPE with bytes", "scripts, unigram with bytes"])
def test_any_text_comes_back(impl, name):
    encode = impl.encode_bpe if "BPE" in name else impl.encode_unigram
    pools = [" ", " ", "aes", "мешки", "袋子", "\0\t\n\x85\u2028", "éß", "ก😀👍🏽\U0010ffff"]
    for length in (1, 7, 120):
        text = " " * random.randrange(4)
        text += "".join(random.choice(random.choice(pools)) for _ in range(length))
        actual = impl.decode(encode(text, GOLDEN["models"][name]["pieces"]))
        assert_text(actual, text, "decode of the encoded text")


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa\ufeff",
        "a\r\nb\rc",
        "a\u00a0b\u3000c\tb",
        "\x1ca\x85\u2028",
        "e\u0301é",
        "ﬁK\u212a",
        "▁a▁",
    ],
)
def test_no_character_is_changed_or_dropped(impl, encoder, text):
    pieces = dict.fromkeys("▁abc" + text, -4.0)
    assert_pieces(getattr(impl, encoder)(text, pieces), ["▁", *text], f"{encoder}({text!a})")
    expected = ["▁"]
    for character in text:
        spelled = [f"<0x{byte:02X}>" for byte in character.encode()]
        expected += [character] if character in LETTERS else spelled
    actual = getattr(impl, encoder)(text, LETTERS | BYTES)
    assert_pieces(actual, expected, f"{encoder}({text!a}), by bytes")
    if "▁" not in text:
        assert_text(impl.decode(expected), text, f"decode of the bytes of {text!a}")
        assert_text(impl.decode(["▁", *text]), text, f"decode of the characters of {text!a}")
        assert_text(impl.decode(list(text)), text, f"decode of the characters of {text!a}")


def test_a_space_symbol_of_bytes_is_no_space(impl):
    symbol = ["<0xE2>", "<0x96>", "<0x81>"]
    for pieces, expected in [
        (symbol, "▁"),
        ([*symbol, "a"], "▁a"),
        (["▁", *symbol, "▁a"], "▁ a"),
        (["▁a", *symbol, *symbol, "▁"], "a▁▁ "),
    ]:
        assert_text(impl.decode(pieces), expected, f"decode of {pieces}")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("<0xC0>|<0x80>", "\ufffd" * 2),
        ("<0xF4>|<0x90>|<0x80>|<0x80>", "\ufffd" * 4),
        ("<0xEF>|<0xBF>|<0xBD>|<0xEF>|<0xBF>", "\ufffd" * 3),
        ("<0xE2>|<0x82>|<0xE2>|<0x82>|<0xAC>", "\ufffd\ufffd€"),
        ("▁|<0x20>|<0x20>|▁", "   "),
    ],
)
def test_bytes_at_the_edge_of_utf8(impl, pieces, expected):
    assert_text(impl.decode(pieces.split("|")), expected, f"decode of {pieces}")


@pytest.mark.parametrize(
    ("ab", "bc", "expected"),
    [
        (0.0, -0.0, "▁|ab|c"),
        (-0.0, 0.0, "▁|ab|c"),
        (-1.0 - 2**-52, -1.0, "▁|a|bc"),
        (-16_777_217.0, -16_777_216.0, "▁|a|bc"),
        (-1e300, -2e300, "▁|ab|c"),
        (-2, -1, "▁|a|bc"),
        (1.0, 2.0, "▁|a|bc"),
        (-1.0, 2.0, "▁|a|bc"),
        (1.0, -0.5, "▁|ab|c"),
    ],
)
def test_bpe_scores_of_any_size(impl, ab, bc, expected):
    assert_cut(impl, "encode_bpe", "abc", LETTERS | {"ab": ab, "bc": bc}, expected)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12, 1e200])
def test_unigram_scores_of_any_size(impl, scale):
    pieces = {"▁": -4.0, "a": -4.0, "b": -5.0, "c": -6.0, "ab": -8.5, "bc": -10.6, "▁a": -8.1}
    pieces = {piece: score * scale for piece, score in pieces.items()}
    assert_cut(impl, "encode_unigram", "abc", pieces, "▁|ab|c")


def test_unigram_scores_above_zero(impl):
    # Each part adds to the sum.
    pieces = {"▁": 1.0, "a": 2.0, "b": 3.0, "ab": 4.5}
    assert_cut(impl, "encode_unigram", "ababß", pieces, "▁|a|b|a|b|<unk>")
    assert_cut(impl, "encode_unigram", "ababß", pieces | {"ab": 5.5}, "▁|ab|ab|<unk>")
    # The unknown ß has 60 - 10.
    pieces = {"▁": 60.0, "b": 65.0, "bß": 105.0}
    assert_cut(impl, "encode_unigram", "bß", pieces, "▁|b|<unk>")
    assert_cut(impl, "encode_unigram", "bß", pieces | {"bß": 116.0}, "▁|bß")


@pytest.mark.parametrize(("score", "expected"), [(-26.0, "▁|a|<unk>"), (-24.0, "▁|aß")])
def test_the_lowest_score_may_be_of_a_piece_that_is_not_in_the_text(impl, score, expected):
    # a and an unknown: 15 - 40.
    pieces = {"▁": -2.0, "a": 15.0, "aß": score, "qqq": -30.0}
    assert_cut(impl, "encode_unigram", "aß", pieces, expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_unknown_space_symbol(impl, encoder):
    symbol = ["<0xE2>", "<0x96>", "<0x81>"]
    pieces = {"a": -1.0, "b": -2.0, "▁b": -2.5}
    assert_pieces(getattr(impl, encoder)("a b", pieces), ["<unk>", "a", "▁b"], f"{encoder}('a b')")
    actual = getattr(impl, encoder)("a b", pieces | BYTES)
    assert_pieces(actual, [*symbol, "a", "▁b"], f"{encoder}('a b'), by bytes")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_piece_of_hundreds_of_characters(impl, encoder):
    doubled = {"a" * 2**power: -1.0 - power / 100 for power in range(1, 10)}
    long = "a" * 512
    actual = getattr(impl, encoder)(f"b{long}c", LETTERS | doubled)
    assert_pieces(actual, ["▁", "b", long, "c"], f"{encoder} with a piece of 512 letters")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_long_pieces_and_long_text(impl, encoder):
    # BPE gets to the long piece by its beginnings; in sums, a long piece is worth more.
    word = "ab" * 40 + "c"
    beginnings = {word[:end]: -4.0 - end / 1_000 for end in range(2, len(word) + 1)}
    text = f"{word} " * 15
    expected = [*["▁", word] * 15, "▁"]
    pieces = LETTERS | beginnings
    if encoder == "encode_bpe":
        pieces["ab"] = -9.0  # else each ab is joined first
        pieces |= {"ab" * 2: -8.0, "ab" * 4: -7.0, "ab" * 8: -6.0, "ab" * 16: -5.0}
        pieces["ab" * 32], pieces["ab" * 40], pieces["ab" * 40 + "c"] = -4.5, -4.4, -4.3
    assert_pieces(getattr(impl, encoder)(text, pieces), expected, f"{encoder} of long words")


# One call after another

# The same text, and in turn other scores, other pieces, bytes, and another number of pieces.
MODELS = [
    (LETTERS | {"ab": -6.0, "bc": -8.5}, "▁|ab|c|<unk>"),
    (LETTERS | {"ab": -8.0, "bc": -7.0}, "▁|a|bc|<unk>"),
    (LETTERS | {"▁a": -5.0, "bc": -7.0}, "▁a|bc|<unk>"),
    (LETTERS | {"<0xC3>": 0.0, "<0x9F>": 0.0}, "▁|a|b|c|<0xC3>|<0x9F>"),
    (LETTERS | {"ab": -8.8, "abc": -9.0}, "▁|abc|<unk>"),
    (LETTERS | {"cß": -30.0, "ab": -7.0}, "▁|ab|cß"),
    (LETTERS, "▁|a|b|c|<unk>"),
]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_models_in_turn(impl, encoder):
    encode = getattr(impl, encoder)
    results = [encode("abcß", pieces) for pieces, _ in MODELS]
    for actual, (_, cut) in zip(results, MODELS, strict=True):
        assert_pieces(actual, cut.split("|"), f"{encoder}('abcß'), once others were encoded")
        actual.append("x")  # the caller's own list
    for pieces, cut in reversed(MODELS):
        behaviour = f"{encoder}('abcß'), once the lists of earlier calls were changed"
        assert_pieces(encode("abcß", pieces), cut.split("|"), behaviour)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_pieces_changed_in_place(impl, encoder):
    pieces = {}
    for model, cut in [*MODELS, *reversed(MODELS)]:
        pieces.clear()
        pieces |= model
        actual = getattr(impl, encoder)("abcß", pieces)
        behaviour = f"{encoder}('abcß'), called again with the same dict, changed in place"
        assert_pieces(actual, cut.split("|"), behaviour)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_order_of_pieces_is_free(impl, encoder):
    for model, cut in MODELS:
        items = list((BYTES | model if "<unk>" not in cut else model).items())
        for order in (items[::-1], random.sample(items, len(items))):
            actual = getattr(impl, encoder)("abcß", dict(order))
            assert_pieces(actual, cut.split("|"), f"{encoder}, pieces in another order")


def test_decode_of_a_list_changed_in_place(impl):
    pieces = ["▁", "a"]
    for new, expected in [
        (["▁", "b"], "b"),
        (["a", "▁"], "a "),
        (["<0x41>", "<unk>"], "A \u2047 "),
    ]:
        pieces[:] = new
        assert_text(impl.decode(pieces), expected, "decode of the same list, changed in place")


def test_arguments_by_name(impl):
    pieces = LETTERS | {"ab": -1.0}
    assert_pieces(impl.encode_bpe(text="ab", pieces=pieces), ["▁", "ab"], "encode_bpe by name")
    assert_pieces(impl.encode_unigram(text="ab", pieces=pieces), ["▁", "ab"], "unigram by name")
    assert_text(impl.decode(pieces=["▁", "ab"]), "ab", "decode by name")


def test_arguments_are_left_as_they_were(impl):
    pieces, encoded = LETTERS | BYTES | {"ab": -1.0}, ["▁", "<0xC3>", "<0xA9>", "ab"]
    before = copy.deepcopy((pieces, encoded))
    impl.encode_bpe("abéc", pieces)
    impl.encode_unigram("abéc", pieces)
    impl.decode(encoded)
    assert pieces == before[0], "the dict of pieces is not what it was before the calls"
    assert encoded == before[1], f"the list given to decode is now {encoded}"
