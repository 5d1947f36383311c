import copy
import random
from itertools import product

import pytest

from dojo.testing import assert_text, first_difference, golden, refuses

BYTES = {byte: bytes([byte]) for byte in range(256)}
# What tiktoken makes of these vocabularies; fixtures/make_bpe_codec.py says how.
GOLDEN = golden("bpe_codec.json")
SPECIALS = {"<|endoftext|>": 900, "[MASK]": 901, "a+b*": 902, "end.": 903, "<終>": 904}


def vocab_of(merges):
    vocab = dict(BYTES)
    for new, (left, right) in enumerate(merges, 256):
        vocab[new] = vocab[left] + vocab[right]
    return vocab


def vocabulary(*joins):
    """Return vocab and merges in which these texts are joined: ("n", "a"), ("a", "na"), ..."""
    ids = {token: token_id for token_id, token in BYTES.items()}
    merges = []
    for left, right in joins:
        merges.append((ids[left.encode()], ids[right.encode()]))
        ids[(left + right).encode()] = 255 + len(merges)
    return vocab_of(merges), merges


def joined(ids, pair, new):
    """Return the ids with each occurrence of the pair replaced, in one walk from the left."""
    left, right = pair
    out = []
    for token in ids:
        if token == right and out and out[-1] == left:
            out[-1] = new
        else:
            out.append(token)
    return out


def encoded_slowly(text, merges):
    """Return the ids of a text without special tokens: one walk over it for each merge."""
    ids = list(text.encode())
    for new, pair in enumerate(merges, 256):
        ids = joined(ids, pair, new)
    return ids


def random_text(length):
    """Return text of few letters, in runs and out, and of characters of every width."""
    pools = ["ab", "ab", "aabc \n", "\0\t\r\x1b\x7f\x85", "éßñ", "жщλ", "한字ก\u2028", "😀👍\u200d"]
    text = ""
    while len(text) < length:
        if random.random() < 0.1:
            text += chr(
                random.choice([random.randrange(0xD800), random.randrange(0xE000, 0x110000)])
            )
        text += random.choice(random.choice(pools)) * random.choice([1, 1, 1, 2, 3, 7])
    return text[:length]


def random_merges(text, count):
    """Return merges as of a trainer with a taste of its own: each joins some pair of the text."""
    ids, merges = list(text.encode()), []
    while len(merges) < count and len(ids) > 1:
        place = random.randrange(len(ids) - 1)
        merges.append((ids[place], ids[place + 1]))
        ids = joined(ids, merges[-1], 255 + len(merges))
    return merges


def assert_ids(actual, expected, behaviour, vocab):
    """Compare ids; a failure shows the tokens from the first difference on."""
    assert isinstance(actual, list), f"{behaviour}: got {type(actual).__name__}, not a list"
    kinds = ", ".join(sorted({type(token).__name__ for token in actual}))
    assert kinds in ("", "int"), f"{behaviour}: the ids are of type {kinds}, not int"
    if actual == expected:
        return
    start = first_difference(actual, expected)

    def shown(ids):
        tokens = [f"{token} {vocab.get(token, '(not in vocab)')}" for token in ids[start:]]
        return ", ".join(tokens[:5]) + ", ..." * (len(tokens) > 5) or "the end"

    pytest.fail(
        f"{behaviour}: from token {start} on it is {shown(actual)}; expected {shown(expected)}",
        pytrace=False,
    )


def assert_encodes(impl, text, joins, expected):
    """Encode a text without special tokens; `expected` is the text cut by | into tokens."""
    vocab, merges = vocabulary(*joins)
    ids = {token: token_id for token_id, token in vocab.items()}
    expected = [ids[token.encode()] for token in expected.split("|")]
    names = ", ".join(f"{left}+{right}" for left, right in joins)
    behaviour = f"{text!r} by the merges {names}"
    assert_ids(impl.encode(text, vocab, merges), expected, behaviour, vocab)


# The order of merges


@pytest.mark.parametrize(
    ("text", "joins", "expected"),
    [
        ("abc", [("b", "c"), ("a", "b")], "a|bc"),
        ("banana", [("n", "a"), ("a", "na"), ("b", "a")], "b|ana|na"),
        ("lower", [("w", "e"), ("l", "o"), ("lo", "w"), ("we", "r")], "lo|wer"),
        ("a--b", [("-", "b"), ("-", "-")], "a|-|-b"),
    ],
)
def test_lowest_rank_is_merged_first(impl, text, joins, expected):
    assert_encodes(impl, text, joins, expected)


def test_longest_token_is_not_always_the_answer(impl):
    joins = [("c", "d"), ("b", "c"), ("a", "bc"), ("a", "b")]
    assert_encodes(impl, "abcd", joins, "ab|cd")
    assert_encodes(impl, "abc", joins, "abc")


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7, 8, 13, 31])
def test_runs_of_one_letter(impl, length):
    expected = ["aaaa"] * (length // 4) + ["aa"] * (length % 4 // 2) + ["a"] * (length % 2)
    assert_encodes(impl, "a" * length, [("a", "a"), ("aa", "aa")], "|".join(expected))


def test_a_byte_belongs_to_one_token(impl):
    assert_encodes(impl, "cab", [("a", "b"), ("c", "a")], "c|ab")
    assert_encodes(impl, "abab", [("b", "a"), ("a", "b")], "a|ba|b")
    assert_encodes(impl, "dcab", [("a", "b"), ("c", "a"), ("d", "c")], "dc|ab")


def test_a_token_merges_with_what_follows_it(impl):
    assert_encodes(impl, "xabcd", [("a", "b"), ("ab", "c"), ("abc", "d")], "x|abcd")


def test_a_token_merges_with_what_precedes_it(impl):
    assert_encodes(impl, "abcdx", [("c", "d"), ("b", "cd"), ("a", "bcd")], "abcd|x")


def test_two_merged_tokens_merge(impl):
    assert_encodes(impl, "xabcd", [("a", "b"), ("c", "d"), ("ab", "cd")], "x|abcd")


def test_merges_join_bytes_not_characters(impl):
    # é is C3 A9 and € is E2 82 AC: one token is the end of the first and the start of the second.
    merges = [(0xA9, 0xE2), (0x82, 0xAC)]
    vocab = vocab_of(merges)
    assert_ids(impl.encode("é€", vocab, merges), [0xC3, 256, 257], "'é€' by A9+E2, 82+AC", vocab)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "\0",
        "\x7f",
        "\x80é",
        "ÿĀā",
        "€川",
        "😀\U0010ffff",
        "\ufeffa\ufeff",
        "a\r\nb\rc\n",
        " \u2028\x85",
        "e\u0301é",
        "ﬁK\u212a",
    ],
)
def test_pieces_start_as_utf8_bytes(impl, text):
    # "q" is merged so that an id of 256 exists; none of the texts has one.
    vocab, merges = vocabulary(("q", "q"))
    assert_ids(impl.encode(text, vocab, merges), list(text.encode()), f"{text!a}", vocab)


def test_empty_text_has_no_tokens(impl):
    vocab, merges = vocabulary(("a", "b"))
    for specials in (None, {"<|endoftext|>": 900}):
        assert_ids(impl.encode("", vocab, merges, specials), [], "the empty text", vocab)


def test_without_merges_tokens_are_bytes(impl):
    assert_ids(impl.encode("abé", BYTES, []), [97, 98, 0xC3, 0xA9], "no merges, 'abé'", BYTES)


# Special tokens


@pytest.mark.parametrize("special", SPECIALS)
def test_a_special_token_is_one_id(impl, special):
    vocab, merges = vocabulary(("a", "b"), ("<", "|"), ("e", "n"))
    text = f"ab{special}{special}abab"
    token = SPECIALS[special]
    for specials in ({special: token}, SPECIALS):
        actual = impl.encode(text, vocab, merges, specials)
        behaviour = f"{text!a} with {special!a} special"
        assert_ids(actual, [256, token, token, 256, 256], behaviour, vocab)


def test_text_around_special_tokens_is_kept(impl):
    specials = {"END": 900}
    vocab, merges = vocabulary(("a", "b"))
    for text, expected in [
        ("END", [900]),
        ("ENDab", [900, 256]),
        ("abEND", [256, 900]),
        ("cENDENDcab", [99, 900, 900, 99, 256]),
    ]:
        actual = impl.encode(text, vocab, merges, specials)
        assert_ids(actual, expected, f"{text!r} with the special token 'END'", vocab)


@pytest.mark.parametrize("shortest_first", [True, False])
def test_longest_special_token_wins(impl, shortest_first):
    specials = {"EN": 902, "END": 901, "ENDING": 900}
    if not shortest_first:
        specials = dict(reversed(specials.items()))
    for text, expected in [
        ("aENDINGb", [97, 900, 98]),
        ("ENDINENDING", [901, 73, 78, 900]),
        ("ENEND", [902, 901]),
    ]:
        actual = impl.encode(text, BYTES, [], specials)
        assert_ids(actual, expected, f"{text!r} with special tokens {', '.join(specials)}", BYTES)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("text", "specials", "expected"),
    [
        ("abcd", {"ab": 300, "bcd": 301}, [300, 99, 100]),
        ("abcde", {"cde": 300, "bc": 301, "ab": 302}, [302, 300]),
        ("ababa", {"aba": 300, "bab": 301}, [300, 98, 97]),
        ("aaaaa", {"aa": 300, "aaa": 301}, [301, 300]),
        ("abcabd", {"abcabc": 300, "abd": 301}, [97, 98, 99, 301]),
        ("xabcx", {"abc": 300, "b": 301, "xa": 302}, [302, 301, 99, 120]),
    ],
)
def test_special_tokens_that_overlap(impl, text, specials, expected, reverse):
    if reverse:
        specials = dict(reversed(specials.items()))
    actual = impl.encode(text, BYTES, [], specials)
    assert_ids(actual, expected, f"{text!r} with special tokens {', '.join(specials)}", BYTES)


@pytest.mark.parametrize("alphabet", ["ab", "ab<é"])
def test_random_special_tokens_that_overlap(impl, alphabet):
    def word(longest):
        return "".join(random.choices(alphabet, k=random.randint(1, longest)))

    for _ in range(20):
        text = word(40)
        specials = {word(5): 500 + number for number in range(4)}
        expected, rest = [], text
        while rest:
            found = [special for special in specials if rest.startswith(special)]
            taken = max(found, key=len, default=rest[0])
            expected += [specials[taken]] if found else taken.encode()
            rest = rest[len(taken) :]
        actual = impl.encode(text, BYTES, [], specials)
        assert_ids(actual, expected, f"{text!r} with special tokens {', '.join(specials)}", BYTES)
        assert_text(impl.decode(expected, BYTES, specials), text, "decode with special tokens")


def test_many_special_tokens(impl):
    specials = {f"<|{number}|>": 256 + number for number in range(1_000)}
    text = "a".join([*specials, "<|1000|"])
    actual = impl.encode(text, BYTES, [], specials)
    expected = [token for token_id in specials.values() for token in (token_id, 97)]
    assert_ids(actual, [*expected, *b"<|1000|"], "a thousand special tokens, each once", BYTES)


@pytest.mark.parametrize(
    "special",
    [
        " ",
        "\n",
        " a",
        "a ",
        "\r\n",
        "\ufeff",
        "é",
        "u\u0308",
        "\u212a",
        "\0",
        "😀",
        "#",
        "\\d",
        "^",
    ],
)
def test_any_text_may_be_special(impl, special):
    text = f"b{special}{special}c\ne\u0301\rB"
    expected = [98, 900, 900, *b"c\ne\xcc\x81\rB"]
    if special == "\n":
        expected[4:5] = [900]
    actual = impl.encode(text, BYTES, [], {special: 900})
    assert_ids(actual, expected, f"{text!a} with {special!a} special", BYTES)
    assert_text(impl.decode(actual, BYTES, {special: 900}), text, f"decode with {special!a}")


@pytest.mark.parametrize("token", [-1, -256, 2**31, 2**40])
def test_special_tokens_may_have_any_id(impl, token):
    actual = impl.encode("aENDb", BYTES, [], {"END": token})
    assert_ids(actual, [97, token, 98], f"'aENDb' with the special token END, {token}", BYTES)
    assert_text(impl.decode(actual, BYTES, {"END": token}), "aENDb", f"decode of {token}, special")


def test_merges_do_not_cross_special_tokens(impl):
    vocab, merges = vocabulary(("a", "E"), ("D", "b"), ("a", "b"), ("N", "D"))
    actual = impl.encode("aENDbENDa", vocab, merges, {"END": 900})
    assert_ids(actual, [97, 900, 98, 900, 97], "merges a+E and D+b beside the special END", vocab)


def test_text_like_a_special_token_is_ordinary(impl):
    vocab, merges = vocabulary(("E", "N"), ("a", "e"), ("d", "b"), ("a", "E"))
    for text in ["EN", "end", "E ND", "ENX", "aendb", "aEndb", "aE\nNDb"]:
        expected = encoded_slowly(text, merges)
        actual = impl.encode(text, vocab, merges, {"END": 900})
        assert_ids(actual, expected, f"{text!r}, which is not the special token END", vocab)


def test_special_tokens_may_be_left_out(impl):
    vocab, merges = vocabulary(("E", "N"), ("EN", "D"), ("a", "b"))
    expected = [258, 257, 258]
    assert_ids(impl.encode("abENDab", vocab, merges), expected, "no special tokens", vocab)
    assert_ids(impl.encode("abENDab", vocab, merges, {}), expected, "special tokens {}", vocab)
    assert_ids(impl.encode("abENDab", vocab, merges, None), expected, "special tokens None", vocab)
    assert_text(impl.decode(expected, vocab), "abENDab", "no special tokens")
    assert_text(impl.decode(expected, vocab, {}), "abENDab", "special tokens {}")


# Decoding


@pytest.mark.parametrize("text", ["é", "€", "😀", "naïve 川", "👩\u200d💻", "cafe\u0301"])
def test_characters_cut_into_tokens_are_read_whole(impl, text):
    actual = impl.decode(list(text.encode()), BYTES)
    assert_text(actual, text, f"decode of the single bytes of {text!a}")


def test_tokens_may_hold_parts_of_characters(impl):
    vocab = vocab_of([(0xA9, 0xE2), (0x82, 0xAC)])
    assert_text(impl.decode([0xC3, 256, 257], vocab), "é€", "decode of C3 | A9 E2 | 82 AC")


def test_bytes_that_are_not_utf8_are_marked(impl):
    for ids, expected in [
        ([97, 0xFF, 98], "a\ufffdb"),
        ([0x80], "\ufffd"),
        ([98, 0xFE, 0xFF, 97], "b\ufffd\ufffda"),
        ([97, 0xE2, 0x82], "a\ufffd"),
        ([0xED, 0xA0, 0x80], "\ufffd\ufffd\ufffd"),
        ([0xC0, 0x80, 0xF0, 0x9F, 0x98], "\ufffd\ufffd\ufffd"),
    ]:
        actual = impl.decode(ids, BYTES)
        assert_text(actual, expected, f"decode of the bytes {bytes(ids).hex(' ')}")


def test_special_tokens_are_decoded(impl):
    vocab, _ = vocabulary(("a", "b"))
    actual = impl.decode([256, 904, 900, 901, 97], vocab, SPECIALS)
    expected = "ab<終><|endoftext|>[MASK]a"
    assert_text(actual, expected, "decode with special tokens")


def test_special_tokens_are_read_with_what_surrounds_them(impl):
    actual = impl.decode([0xE2, 900, 0x82, 0xAC], BYTES, {"é": 900})
    assert_text(actual, "\ufffdé\ufffd\ufffd", "decode of a special token within a character")


@pytest.mark.parametrize(
    "text", ["\ufeffa", "a\ufeff\ufeff", "a\r\nb\rc\n", " a ", "\0", "ﬁK\u212a"]
)
def test_decode_drops_and_changes_nothing(impl, text):
    actual = impl.decode(list(text.encode()), BYTES)
    assert_text(actual, text, f"decode of the bytes of {text!a}")
    actual = impl.decode([900, *b"b", 900], BYTES, {text: 900})
    assert_text(actual, f"{text}b{text}", f"decode with {text!a} special")


@pytest.mark.parametrize("unknown", [257, 900, 123456, -1, -97, -257, 2**40])
def test_unknown_ids_are_named(impl, unknown):
    vocab, _ = vocabulary(("a", "b"))
    named = rf"(?<![-\d]){unknown}\b"
    with refuses(f"the unknown id {unknown} in decode", named):
        impl.decode([97, unknown, 98], vocab)
    with refuses(f"the unknown id {unknown} in decode with a special token", named):
        impl.decode([97, unknown, 98], vocab, {"END": 800})


def test_no_ids_are_no_text(impl):
    assert_text(impl.decode([], BYTES), "", "decode of no ids")


def test_arguments_by_name(impl):
    vocab, merges = vocabulary(("a", "b"))
    specials = {"END": 900}
    ids = impl.encode(text="abEND", vocab=vocab, merges=merges, special_tokens=specials)
    assert_ids(ids, [256, 900], "'abEND'", vocab)
    text = impl.decode(ids=[256, 900], vocab=vocab, special_tokens=specials)
    assert_text(text, "abEND", "decode by keyword")


def test_arguments_are_left_as_they_were(impl):
    vocab, merges = vocabulary(("a", "b"), ("ab", "c"))
    arguments = {"vocab": vocab, "merges": merges, "specials": {"END": 900}, "ids": [257, 900, 99]}
    before = copy.deepcopy(arguments)
    impl.encode("abcENDab", vocab, merges, arguments["specials"])
    impl.decode(arguments["ids"], vocab, arguments["specials"])
    for name, value in arguments.items():
        extra = f"it has {len(value)} entries, not {len(before[name])}"
        assert value == before[name], f"{name} is not what it was before the calls: {extra}"


# One call after another


def test_order_of_vocab_is_free(impl):
    vocab, merges = vocabulary(("a", "b"), ("ab", "c"), ("b", "a"))
    specials = {"END": 900}
    items = list(vocab.items())
    for order in (items[::-1], random.sample(items, len(items)), items[256:] + items[:256]):
        actual = impl.encode("abcENDbaab", dict(order), merges, specials)
        expected = [257, 900, 258, 256]
        assert_ids(actual, expected, "'abcENDbaab', with vocab in another order", vocab)
        actual = impl.decode(expected, dict(order), specials)
        assert_text(actual, "abcENDbaab", "decode with vocab in another order")


MODELS = [
    (vocabulary(("a", "b"), ("ab", "c")), {"END": 900}, [257, 256, 900]),
    (vocabulary(("b", "c"), ("a", "bc")), {"abE": 900}, [257, 900, 78, 68]),
    (vocabulary(("c", "a"), ("b", "ca")), {"END": 901}, [97, 257, 98, 901]),
]


def test_two_vocabularies_in_turn(impl):
    results = [impl.encode("abcabEND", *model, specials) for model, specials, _ in MODELS]
    for ids, (model, _, expected) in zip(results, MODELS, strict=True):
        assert_ids(ids, expected, "'abcabEND', once others were encoded", model[0])
    for (vocab, merges), specials, expected in 2 * MODELS:
        ids = impl.encode("abcabEND", vocab, merges, specials)
        assert_ids(ids, list(expected), "'abcabEND', by vocabularies in turn", vocab)
        ids.append(65)  # the caller's own list
        ids = impl.encode("abcabEND", vocab, merges, specials)
        behaviour = "'abcabEND', once the list of an earlier call was changed"
        assert_ids(ids, list(expected), behaviour, vocab)
        assert_text(impl.decode(ids, vocab, specials), "abcabEND", "decode by another vocabulary")


def test_arguments_changed_in_place(impl):
    vocab, merges, specials, ids = {}, [], {}, []
    for (new_vocab, new_merges), new_specials, expected in 2 * MODELS:
        vocab.clear()
        vocab.update(new_vocab)
        merges[:] = new_merges
        specials.clear()
        specials.update(new_specials)
        ids[:] = list(expected)
        actual = impl.encode("abcabEND", vocab, merges, specials)
        behaviour = "'abcabEND', called again with the same objects, changed in place"
        assert_ids(actual, ids, behaviour, vocab)
        assert_text(impl.decode(ids, vocab, specials), "abcabEND", "decode of what was changed")


def test_merges_and_special_tokens_that_grow_and_shrink(impl):
    vocab, merges = vocabulary(("a", "b"), ("ab", "c"))
    for count in (0, 1, 2, 1, 0):
        actual = impl.encode("abcEND", vocab, merges[:count], {"END": 900} if count else None)
        expected = [[97, 98, 99], [256, 99], [257]][count] + ([900] if count else [*b"END"])
        assert_ids(actual, expected, f"'abcEND' by {count} merges, after other counts", vocab)
    for specials, text in ({"END": 900}, "END"), ({"AND": 900}, "AND"):
        assert_text(impl.decode([900], BYTES, specials), text, "decode by other special tokens")
    with refuses("900 in decode, once no special token has that id", r"\b900\b"):
        impl.decode([900], BYTES)


def test_ids_above_two_bytes(impl):
    ab, cd = 256 + 97 * 256 + 98, 256 + 99 * 256 + 100
    # Two ids in one number are mixed up where the right one is too large for its bits: then
    # ab and 2**bits + 300 look like ac and 300.
    mixed = [(ab, 2**bits + 300) for bits in range(9, 16)] + [(ab, 65_792)]
    merges = [*product(range(256), repeat=2), (ab, cd), *mixed]
    vocab = vocab_of(merges)
    ac, text = ab + 1, "abcdabac\0,ac\0\0\0,"
    actual = impl.encode(text, vocab, merges)
    expected = [65_792, ab, ac, 300, ac, 256, 300]
    assert_ids(actual, expected, f"{text!r} by 65,545 merges", vocab)
    assert_text(impl.decode(expected, vocab), text, "decode by 65,545 merges")


def test_a_chain_of_merges(impl):
    letters = bytes(range(128))
    merges = [(0, 1), *((256 + place, 2 + place) for place in range(126))]
    vocab = vocab_of(merges)
    text = letters.decode()
    actual = impl.encode(text + text[:-1], vocab, merges)
    assert_ids(actual, [382, 381], "a text of two tokens, that 127 merges make", vocab)
    assert_text(impl.decode([382, 381], vocab), text + text[:-1], "decode of two long tokens")


def test_long_text(impl):
    vocab, merges = vocabulary(("a", "b"), ("ab", "c"))
    # Nothing is merged but at powers of two and at the end, so that any way of merging is quick.
    length = 66_001
    places = [2**power + shift for power in (8, 10, 12, 14, 15, 16) for shift in (-1, 8)]
    letters = ["x"] * length
    expected, done = [], 0
    for place in [*places, length - 3]:
        letters[place : place + 3] = "abc"
        expected += [120] * (place - done) + [257]
        done = place + 3
    actual = impl.encode("".join(letters), vocab, merges)
    assert_ids(actual, expected, f"a text of {length:,} characters", vocab)


def test_long_lists_of_ids(impl):
    # A character of three bytes lies across a power of two, in ids or in bytes.
    for power in (8, 10, 12, 13):
        for shift in (1, 2):
            length = 2**power - shift
            actual = impl.decode([97] * length + [0xE2, 0x82, 0xAC], BYTES)
            assert_text(actual, "a" * length + "€", f"decode of {length:,} a and the bytes of €")
    vocab, _ = vocabulary(*[("a" * 2**power, "a" * 2**power) for power in range(12)])
    for power in (14, 15, 16):
        for shift in (1, 2):
            length = 2**power - shift
            ids = [267] * (length // 4096) + [97] * (length % 4096) + [0xE2, 0x82, 0xAC]
            actual = impl.decode(ids, vocab)
            assert_text(actual, "a" * length + "€", f"decode of {length:,} a and the bytes of €")


# Golden output, and whatever text


@pytest.mark.parametrize("name", GOLDEN)
def test_encode_matches_tiktoken(impl, name):
    merges = [tuple(pair) for pair in GOLDEN[name]["merges"]]
    vocab = vocab_of(merges)
    for case in GOLDEN[name]["encode"]:
        actual = impl.encode(case["text"], vocab, merges, GOLDEN[name]["special_tokens"])
        behaviour = f"{case['label']}, {case['text'][:20]!r}..., as tiktoken encodes it"
        assert_ids(actual, case["ids"], behaviour, vocab)


@pytest.mark.parametrize("name", GOLDEN)
def test_decode_matches_tiktoken(impl, name):
    vocab = vocab_of(GOLDEN[name]["merges"])
    for case in GOLDEN[name]["decode"]:
        actual = impl.decode(case["ids"], vocab, GOLDEN[name]["special_tokens"])
        assert_text(actual, case["text"], f"{case['label']}, as tiktoken decodes it")


@pytest.mark.parametrize(("length", "count"), [(3, 2), (20, 12), (100, 40), (600, 100)])
def test_random_text_by_random_merges(impl, length, count):
    text = random_text(length)
    merges = random_merges(random_text(length) + text, count)
    vocab = vocab_of(merges)
    actual = impl.encode(text, vocab, merges)
    expected = encoded_slowly(text, merges)
    assert_ids(actual, expected, f"{length} random characters by {len(merges)} merges", vocab)


@pytest.mark.parametrize("length", [1, 15, 60])
def test_random_text_with_special_tokens(impl, length):
    # No random text has a character of a special token, so how to cut is known beforehand.
    specials = {"<|END|>": 900, "[END]": 901, "<|END|>.": 902}
    merges = random_merges(random_text(200), 40)
    vocab = vocab_of(merges)
    text, expected = "", []
    for _ in range(12):
        piece = random_text(random.randrange(length + 1)).translate({ord(c): "a" for c in "<[."})
        special = random.choice(list(specials))
        text += piece + special
        expected += [*encoded_slowly(piece, merges), specials[special]]
    actual = impl.encode(text, vocab, merges, specials)
    assert_ids(actual, expected, "random text with special tokens", vocab)
    assert_text(impl.decode(expected, vocab, specials), text, "decode with special tokens")


@pytest.mark.parametrize("length", [1, 30, 400])
def test_any_text_comes_back(impl, length):
    text = random_text(length)
    merges = random_merges(random_text(length), 60)
    vocab = vocab_of(merges)
    ids = impl.encode(text, vocab, merges)
    assert_text(impl.decode(ids, vocab), text, "decode(encode(text))")
