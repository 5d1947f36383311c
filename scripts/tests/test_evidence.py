"""What a failed comparison says beside its first line is so: slow checks look at every element."""

import itertools
import math
import random
import re

import numpy as np
import pytest
import torch

from dojo.instruments.error_map import error_map
from dojo.instruments.evidence import sentences
from dojo.instruments.mismatch import Mismatch
from dojo.testing import assert_matches

RTOL, ATOL = 1e-6, 1e-6
SEEDS = range(200)
NOUN = r"(element|row|column|slice)s?"
ALONG = r"(?: along axis (\d))?"


def close(a, b):
    if not (math.isfinite(a) and math.isfinite(b)):
        return a == b or (math.isnan(a) and math.isnan(b))
    return abs(a - b) <= ATOL + RTOL * abs(b)


def indices(shape):
    return itertools.product(*map(range, shape))


def mismatch(actual, expected):
    wrong = np.zeros(expected.shape, dtype=bool)
    for index in indices(expected.shape):
        wrong[index] = not close(float(actual[index]), float(expected[index]))
    return Mismatch(actual, expected, wrong, RTOL, ATOL)


def said(actual, expected):
    with np.errstate(all="ignore"):
        return sentences(mismatch(actual, expected))


def along(noun, axis, shape):
    """Return the axis that a noun speaks of."""
    if noun == "element":
        return max(range(len(shape)), key=shape.__getitem__)
    return int(axis) if axis else {"row": 0, "column": 1}[noun]


def in_place(sentence, shape, expected):
    """Return the claimed place as a function of an index; None if the claim is not of a place."""
    if m := re.fullmatch(
        rf"Only the (first|last)(?: (\d+) of \d+)? {NOUN}{ALONG} (?:is|are) wrong.", sentence
    ):
        axis, k = along(m[3], m[4], shape), int(m[2] or 1)
        n = shape[axis]
        return lambda i: i[axis] < k if m[1] == "first" else i[axis] >= n - k
    if m := re.fullmatch(rf"Only {NOUN} (\d+)(?: to (\d+))?{ALONG} (?:is|are) wrong.", sentence):
        axis, low, high = along(m[1], m[4], shape), int(m[2]), int(m[3] or m[2])
        return lambda i: low <= i[axis] <= high
    if m := re.fullmatch(rf"Only {NOUN} ([\d, ]+) and (\d+){ALONG} are wrong.", sentence):
        axis, listed = along(m[1], m[4], shape), [*map(int, m[2].split(", ")), int(m[3])]
        return lambda i: i[axis] in listed
    if m := re.fullmatch(
        rf"Only every (second|third|(\d+)th) {NOUN}{ALONG}, from \w+ (\d+) on, is wrong.", sentence
    ):
        axis, first = along(m[3], m[4], shape), int(m[5])
        step = int(m[2]) if m[2] else {"second": 2, "third": 3}[m[1]]
        return lambda i: i[axis] >= first and (i[axis] - first) % step == 0
    if m := re.fullmatch(
        r"Only the entries (on and )?(above|below) the diagonal are wrong.", sentence
    ):
        sign = 1 if m[2] == "above" else -1
        return lambda i: sign * (i[-1] - i[-2]) >= (0 if m[1] else 1)
    if sentence == "Only the diagonal is wrong.":
        return lambda i: i[-1] == i[-2]
    if m := re.fullmatch(r"Only the entries for which column - row is (.*) are wrong.", sentence):
        numbers = [*map(int, re.findall(r"-?\d+", m[1]))]
        low = -math.inf if m[1].endswith("less") else numbers[0]
        high = math.inf if m[1].endswith("more") else numbers[-1]
        return lambda i: low <= i[-1] - i[-2] <= high
    if m := re.fullmatch(r"Only where the expected value is (.*), it is wrong.", sentence):
        return {
            "negative": lambda i: expected[i] < 0,
            "zero": lambda i: expected[i] == 0,
            "-inf, that is, masked": lambda i: expected[i] == -math.inf,
        }[m[1]]
    return None


def is_changed_so(sentence, actual, expected):
    """Say whether a value is changed as a sentence says; the number in it is rounded."""
    if sentence == "Each wrong value has its sign flipped.":
        return close(actual, -expected)
    if m := re.fullmatch(
        r"Each wrong value is (\S+)(?: \((-?)1/(\d+)\))? times the expected one.", sentence
    ):
        factor = float(m[1])
        assert m[3] is None or math.isclose(factor, float(f"{m[2]}1") / int(m[3]), rel_tol=1e-3)
        return math.isclose(actual, factor * expected, rel_tol=1e-3, abs_tol=1e-6)
    m = re.fullmatch(r"Each wrong value is the expected one (plus|minus) (\S+).", sentence)
    offset = float(m[2]) * (1 if m[1] == "plus" else -1)
    return math.isclose(actual - expected, offset, rel_tol=1e-3, abs_tol=1e-6)


def is_ordered_so(sentence, actual, expected):
    """Say whether the values are the expected ones in the order that a sentence claims."""
    shape = expected.shape
    if m := re.fullmatch(
        r"The values are those of expected.permute\(([\d, ]+)\)(?:.reshape.*)?.", sentence
    ):
        axes = [*map(int, m[1].split(", "))]
        values = [
            expected[tuple(index[axes.index(axis)] for axis in range(len(axes)))]
            for index in indices([shape[axis] for axis in axes])
        ]
        return all(map(close, actual.ravel().tolist(), map(float, values)))
    m = re.fullmatch(
        r"Each value is the one expected (\d+) places? (before|behind) it along axis (\d), (.*).",
        sentence,
    )
    axis, shift, n = int(m[3]), int(m[1]) * (-1 if m[2] == "before" else 1), shape[int(m[3])]
    for index in indices(shape):
        source = index[axis] + shift
        if 0 <= source < n or m[4] == "wrapped round":
            moved = (*index[:axis], source % n, *index[axis + 1 :])
            if not close(float(actual[index]), float(expected[moved])):
                return False
    return True


def check(sentence, actual, expected):
    """Fail unless a sentence is true of every element."""
    place = in_place(sentence, expected.shape, expected)
    wrong = [i for i in indices(expected.shape) if not close(float(actual[i]), float(expected[i]))]
    if place is not None:
        assert wrong == [i for i in indices(expected.shape) if place(i)], sentence
    elif sentence.startswith("Each wrong value"):
        for index in wrong:
            assert is_changed_so(sentence, float(actual[index]), float(expected[index])), sentence
        assert len(wrong) >= (2 if "sign" in sentence else 8)
    else:
        assert is_ordered_so(sentence, actual, expected), sentence


def a_place(rng, shape):
    """Return a sentence, and the indices that it speaks of."""
    axis = rng.randrange(len(shape))
    n = shape[axis]
    if len(shape) == 1:
        one, many, where = "element", "elements", ""
    elif len(shape) == 2:
        one, many, where = [("row", "rows", ""), ("column", "columns", "")][axis]
    else:
        one, many, where = "slice", "slices", f" along axis {axis}"
    k = rng.randrange(2, n - 1)
    claims = [
        (f"Only the last {k} of {n} {many}{where} are wrong.", lambda i: i[axis] >= n - k),
        (f"Only the first {k} of {n} {many}{where} are wrong.", lambda i: i[axis] < k),
        (f"Only the last {one}{where} is wrong.", lambda i: i[axis] == n - 1),
    ]
    if n >= 5:
        claims.append(
            (
                f"Only every second {one}{where}, from {one} 0 on, is wrong.",
                lambda i: i[axis] % 2 == 0,
            )
        )
    if len(shape) > 1:
        claims += [
            (f"Only {one} 1{where} is wrong.", lambda i: i[axis] == 1),
            ("Only the entries above the diagonal are wrong.", lambda i: i[-1] > i[-2]),
            ("Only the entries on and below the diagonal are wrong.", lambda i: i[-1] <= i[-2]),
            ("Only the diagonal is wrong.", lambda i: i[-1] == i[-2]),
            (
                "Only the entries for which column - row is from -1 to 1, a band, are wrong.",
                lambda i: abs(i[-1] - i[-2]) <= 1,
            ),
        ]
    return rng.choice(claims)


def a_change(rng):
    """Return a sentence, or none, and what it does to a value."""
    return rng.choice(
        [
            (None, lambda x: x + rng.uniform(0.5, 2)),
            (None, lambda x: math.nan),
            ("Each wrong value has its sign flipped.", lambda x: -x),
            ("Each wrong value is 3 times the expected one.", lambda x: 3 * x),
            ("Each wrong value is 0.2 (1/5) times the expected one.", lambda x: x / 5),
            ("Each wrong value is the expected one minus 0.25.", lambda x: x - 0.25),
        ]
    )


def random_tensor(rng, lowest=1):
    """Return a tensor whose axes share no size."""
    shape = tuple(rng.sample(range(4, 9), rng.randint(lowest, 3)))
    values = [rng.choice([-1, 1]) * rng.uniform(0.1, 3) for _ in range(math.prod(shape))]
    return np.array(values).reshape(shape)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pattern_is_named_and_what_is_said_is_so(seed):
    rng = random.Random(seed)
    expected = random_tensor(rng)
    (where, inside), (how, change) = a_place(rng, expected.shape), a_change(rng)
    actual = expected.copy()
    hit = [index for index in indices(expected.shape) if inside(index)]
    for index in hit:
        actual[index] = change(float(expected[index]))
    spoken = said(actual, expected)
    assert where in spoken
    if how and len(hit) >= 8:
        assert spoken == [where, how]
    for sentence in spoken:
        check(sentence, actual, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pattern_with_an_exception_is_not_named(seed):
    rng = random.Random(seed)
    expected = random_tensor(rng, lowest=2)
    where, inside = a_place(rng, expected.shape)
    actual = expected.copy()
    odd = rng.choice([*indices(expected.shape)])
    for index in indices(expected.shape):
        if inside(index) != (index == odd):
            actual[index] += rng.uniform(0.5, 2)
    spoken = said(actual, expected)
    assert where not in spoken
    for sentence in spoken:
        check(sentence, actual, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_errors_without_a_pattern_nothing_is_said(seed):
    rng = random.Random(seed)
    expected = random_tensor(rng, lowest=2)
    actual = expected.copy()
    for index in indices(expected.shape):
        if rng.random() < 0.5:
            actual[index] += rng.uniform(0.5, 2)
    assert said(actual, expected) == []


@pytest.mark.parametrize("seed", range(40))
def test_another_order_is_named(seed):
    rng = random.Random(seed)
    expected = random_tensor(rng, lowest=2)
    axis = rng.randrange(expected.ndim)
    shift = rng.choice([-1, 1])
    rolled = np.roll(expected, shift, axis)
    edged = rolled.copy()
    edge = [slice(None)] * expected.ndim
    edge[axis] = 0 if shift > 0 else -1
    edged[tuple(edge)] = 7.5
    way = f"1 place {'before' if shift > 0 else 'behind'} it along axis {axis}"
    axes = rng.choice([*itertools.permutations(range(expected.ndim))][1:])
    permuted = expected.transpose(axes).reshape(expected.shape)
    for actual, sentence in [
        (rolled, f"Each value is the one expected {way}, wrapped round."),
        (
            edged,
            f"Each value is the one expected {way}, the {'first' if shift > 0 else 'last'} aside.",
        ),
        (permuted, f"The values are those of expected.permute{axes}.reshape{expected.shape}."),
    ]:
        spoken = said(actual, expected)
        assert spoken[0] == sentence
        for one in spoken:
            check(one, actual, expected)


@pytest.mark.parametrize("name", ["negative", "zero", "-inf, that is, masked"])
def test_expected_values_that_alone_are_wrong_are_named(name):
    expected = np.array([[-2.0, 0.0, 3.0, -math.inf], [0.0, -1.0, -math.inf, 4.0]] * 2)
    if name == "negative":
        expected[np.isinf(expected)] = 1.5
    chosen = {"negative": expected < 0, "zero": expected == 0}.get(name, np.isinf(expected))
    actual = np.where(chosen, np.arange(16.0).reshape(4, 4) ** 2 + 9, expected)
    (sentence,) = said(actual, expected)
    assert sentence == f"Only where the expected value is {name}, it is wrong."
    check(sentence, actual, expected)


def test_a_constant_needs_eight_elements_and_values_that_differ():
    seven, eight = np.arange(1.0, 8.0), np.arange(1.0, 9.0)
    assert said(2 * seven, seven) == []
    assert said(2 * eight, eight) == ["Each wrong value is 2 times the expected one."]
    assert said(np.full(9, 2.0), np.ones(9)) == []  # as well by a factor as by an offset
    assert said(np.zeros(8), eight) == []


def test_an_infinite_prediction_is_close_to_nothing_finite():
    expected = np.arange(1.0, 10.0)
    expected[3] = -math.inf
    actual = -expected
    assert said(actual, expected) == ["Each wrong value has its sign flipped."]
    actual[3] = 5.0
    assert said(actual, expected) == []
    shifted = np.roll(expected, 1)
    assert said(shifted, expected)[0].startswith("Each value is the one expected 1 place before it")
    shifted[4] = 5.0
    assert said(shifted, expected) == []


def test_errors_hardly_above_the_tolerance_have_no_common_offset():
    expected = torch.linspace(1, 2, 32)
    actual = expected + torch.linspace(0.011, 0.018, 32)
    message = failure(actual, expected, atol=0.01, rtol=0)
    assert "Each wrong value" not in message


def slow_map(actual, expected, most_rows=16, most_columns=32):
    """Return the rows of the map, by looking at one element after the other."""
    one = mismatch(actual, expected)
    longer = [axis for axis, size in enumerate(expected.shape) if size > 1]
    shown, others = longer[-2:], longer[:-2]

    def excess(index):
        if not one.wrong[index]:
            return 0.0
        error = abs(float(actual[index]) - float(expected[index]))
        return (
            math.inf if math.isnan(error) else error / (ATOL + RTOL * abs(float(expected[index])))
        )

    def order(index):
        return (bool(one.wrong[index]) and math.isnan(actual[index]), excess(index))

    by_slice = {}
    for index in indices(expected.shape):
        by_slice.setdefault(tuple(index[axis] for axis in others), []).append(index)
    worst = max(by_slice.values(), key=lambda part: max(map(order, part)))
    height = expected.shape[shown[-2]] if len(shown) == 2 else 1
    width = expected.shape[shown[-1]]
    rows, columns = min(height, most_rows), min(width, most_columns)
    cells = {}
    for index in worst:
        row = index[shown[-2]] * rows // height if len(shown) == 2 else 0
        cells.setdefault((row, index[shown[-1]] * columns // width), []).append(index)
    tops = {cell: max(part, key=order) for cell, part in cells.items()}
    largest = max((excess(i) for i in tops.values() if math.isfinite(excess(i))), default=0.0)

    def mark(index):
        value, size = float(actual[index]), excess(index)
        if size == 0:
            return "."
        if math.isnan(value):
            return "N"
        if value == 0 and expected[index] != 0:
            return "0"
        return "-" if size <= largest / 1000 else "+" if size <= largest / 10 else "#"

    return ["".join(mark(tops[row, column]) for column in range(columns)) for row in range(rows)]


@pytest.mark.parametrize("seed", range(60))
def test_the_map_is_what_a_slow_look_at_each_element_gives(seed):
    rng = random.Random(seed)
    shape = rng.choice(
        [(9,), (100,), (5, 7), (40, 3), (17, 70), (3, 4, 6), (2, 1, 5, 1), (2, 3, 18, 33)]
    )
    expected = np.array([rng.uniform(0.5, 3) for _ in range(math.prod(shape))]).reshape(shape)
    actual = expected.copy()
    changes = [lambda x: x, lambda x: x, lambda x: x + 10 ** rng.uniform(-4, 1), lambda x: 0.0]
    if seed % 3 == 0:
        changes += [lambda x: math.nan, lambda x: math.inf]
    for index in indices(shape):
        actual[index] = rng.choice(changes)(float(expected[index]))
    with np.errstate(all="ignore"):
        _, *rows, _ = error_map(mismatch(actual, expected))
    assert rows == slow_map(actual, expected)
    assert len(rows) <= 16
    assert all(len(row) <= 48 for row in rows)


def failure(actual, expected, **tolerance):
    with pytest.raises(pytest.fail.Exception) as caught:
        assert_matches(actual, expected, "product", **tolerance)
    return str(caught.value)


def test_the_first_line_is_followed_by_sentences_and_a_map():
    expected = torch.arange(1.0, 25).reshape(2, 3, 4)
    actual = expected.clone()
    actual[1, 2] = 0
    actual[1, 0, 1] = torch.nan
    assert failure(actual, expected) == (
        "product: 5 of 24 values are wrong; "
        "at (1, 0, 1) it is nan, not 14 (rtol 1.3e-06, atol 1e-05)\n"
        "\n"
        "Errors of slice [1, :, :], the worst (3 by 4):\n"
        ".N..\n"
        "....\n"
        "0000\n"
        ". right, 0 wrongly zero, N NaN"
    )


def test_a_map_of_one_mark_is_one_line():
    expected = torch.arange(4)
    assert failure(expected + 1, expected).splitlines()[1:] == [
        "",
        "Errors (1 by 4): all are off by up to 1",
    ]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1, 3)])
def test_few_elements_have_no_map(shape):
    assert "\n" not in failure(torch.ones(shape), torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x.T, "The values are those of expected.permute(1, 0)."),
        (lambda x: x[None], "The values are those of expected.reshape(1, 3, 4)."),
        (lambda x: x[:, :1], "Axis 1 alone is wrong: its size is 1, not 4."),
    ],
)
def test_a_wrong_shape_has_a_sentence_and_no_map(change, sentence):
    x = torch.randn(3, 4)
    first, *rest = failure(change(x), x).splitlines()
    assert first.startswith("product: the shape is (")
    assert rest == [sentence]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16]
)
def test_every_dtype_has_a_map(dtype):
    expected = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    actual = expected.clone()
    actual[0, 0] = 0
    message = failure(actual, expected)
    assert "\n0..\n...\n" in message


@pytest.mark.parametrize(
    "actual",
    [
        torch.ones(4, 3, device="meta"),
        torch.ones(4, 3).to_sparse(),
        torch.ones(4, 3, dtype=torch.complex64),
        torch.ones(4, 3, requires_grad=True),
        torch.ones(0, 3),
    ],
    ids=["meta", "sparse", "complex", "asks", "empty"],
)
def test_any_tensor_of_a_wrong_shape_is_a_failure(actual):
    assert failure(actual, torch.zeros(3, 4)).startswith("product: the shape is ")


def test_values_that_are_views_of_complex_ones_have_a_map():
    actual = torch.arange(6.0).reshape(2, 3).to(torch.complex64).mul(1j).conj().imag
    assert "Each wrong value has its sign flipped." in failure(actual, -actual.clone())


def test_where_all_is_right_nothing_is_computed(monkeypatch):
    def refuse(*_):
        raise AssertionError("evidence where there is no failure")

    monkeypatch.setattr("dojo.testing.evidence_of_values", refuse)
    assert_matches(torch.ones(3), torch.ones(3), "product")
