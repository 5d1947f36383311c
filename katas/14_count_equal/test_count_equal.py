import warnings

import pytest
import torch

from dojo.testing import assert_matches, layouts, unchanged

# No two axes are equal but in the empty one.
SHAPES = [(4, 7), (7, 4), (1, 6), (6, 1), (1, 1), (23, 31), (5, 0), (0, 5), (0, 0)]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# No count is negative, so neither of these is a count.
POISON, NEIGHBOUR = -999, -777


def entries(*shape, dtype=torch.int64):
    """Small whole numbers, of which about one in four is 2."""
    return torch.randint(0, 4, shape).to(dtype)


def recount(x, k):
    """The counts row by row, by Python's own numbers."""
    return torch.tensor([sum(entry == k for entry in row) for row in x.tolist()], dtype=torch.int64)


def quietly(function, *args, **kwargs):
    # torch warns where it gives `out` another shape; the comparison that follows says it better.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(*args, **kwargs)


def counted(impl, x, k):
    """What count_equal leaves in the memory of a poisoned tensor."""
    memory = torch.tensor([POISON])
    quietly(impl.count_equal, x, k, memory[0])
    return memory[0]


def counted_rows(impl, x, k):
    """What count_rows leaves in the memory of a poisoned tensor."""
    out = torch.full((x.shape[0],), POISON)
    memory = out[:]
    quietly(impl.count_rows, x, k, out)
    return memory


def check(impl, x, k, which, expected=None):
    """Compare both functions with a recount, or with the counts of the rows given."""
    wanted = recount(x, k) if expected is None else torch.tensor(expected)
    with unchanged(x=x):
        total, rows = counted(impl, x, k), counted_rows(impl, x, k)
    assert_matches(total, wanted.sum(), f"count_equal of {which}")
    assert_matches(rows, wanted, f"count_rows of {which}")


@pytest.mark.parametrize("shape", SHAPES)
def test_count_equal_matches_a_recount(impl, shape):
    x = entries(*shape)
    expected = recount(x, 2).sum()
    assert_matches(counted(impl, x, 2), expected, f"out after count_equal of 2 in a {shape} tensor")


@pytest.mark.parametrize("shape", SHAPES)
def test_count_rows_matches_a_recount(impl, shape):
    x = entries(*shape)
    expected = recount(x, 2)
    actual = counted_rows(impl, x, 2)
    assert_matches(actual, expected, f"out after count_rows of 2 in a {shape} tensor")


def test_count_equal_by_hand(impl):
    x = torch.tensor([[5, 3, 5, 1], [5, 5, 5, 5], [0, 2, 7, 9]])
    out = torch.tensor(POISON)
    quietly(impl.count_equal, x=x, k=5, out=out)
    assert_matches(out, torch.tensor(6), "out after count_equal of 5, which is there six times")


def test_count_rows_by_hand(impl):
    x = torch.tensor([[5, 3, 5, 1], [5, 5, 5, 5], [0, 2, 7, 9]])
    out = torch.full((3,), POISON)
    impl.count_rows(x=x, k=5, out=out)
    assert_matches(out, torch.tensor([2, 4, 0]), "out after count_rows of 5 in three rows")


def test_count_equal_may_be_called_again(impl):
    x, out = entries(4, 7), torch.tensor(POISON)
    for k in [0, 1, 2, 9]:
        quietly(impl.count_equal, x, k, out)
        assert_matches(out, recount(x, k).sum(), f"out after a further count_equal, of {k}")


def test_count_rows_may_be_called_again(impl):
    x, out = entries(4, 7), torch.full((4,), POISON)
    for k in [0, 1, 2, 9]:
        impl.count_rows(x, k, out)
        assert_matches(out, recount(x, k), f"out after a further count_rows, of {k}")


def test_none_is_returned(impl):
    x = entries(4, 7)
    for name, out in [("count_equal", torch.tensor(0)), ("count_rows", torch.zeros(4).long())]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = getattr(impl, name)(x, 2, out)
        assert result is None, f"{name} should return None and returns {type(result).__name__}"


def test_count_equal_into_one_element_of_a_tensor(impl):
    x, base = entries(4, 7), torch.full((6,), NEIGHBOUR)
    base[2] = POISON
    out = base[2]
    address = out.data_ptr()
    quietly(impl.count_equal, x, 2, out)
    expected = torch.full((6,), NEIGHBOUR)
    expected[2] = recount(x, 2).sum()
    assert_matches(base, expected, "the tensor whose element 2 is the out of count_equal")
    assert out.data_ptr() == address, "after count_equal, out is elsewhere in memory"


def test_count_rows_into_a_contiguous_part(impl):
    x, base = entries(4, 7), torch.full((9,), NEIGHBOUR)
    base[3:7] = POISON
    impl.count_rows(x, 2, base[3:7])
    expected = torch.full((9,), NEIGHBOUR)
    expected[3:7] = recount(x, 2)
    assert_matches(base, expected, "the tensor whose elements 3 to 6 are the out of count_rows")


def test_count_rows_into_every_other_element(impl):
    x, base = entries(4, 7), torch.full((9,), NEIGHBOUR)
    base[1::2] = POISON
    out = base[1::2]
    address = out.data_ptr()
    impl.count_rows(x, 2, out)
    expected = torch.full((9,), NEIGHBOUR)
    expected[1::2] = recount(x, 2)
    assert_matches(base, expected, "the tensor of which every other element is count_rows' out")
    assert (out.data_ptr(), out.stride()) == (address, (2,)), "after count_rows, out has moved"


def test_count_rows_into_a_column(impl):
    x, base = entries(4, 7), torch.full((4, 3), NEIGHBOUR)
    base[:, 1] = POISON
    impl.count_rows(x, 2, base[:, 1])
    expected = torch.full((4, 3), NEIGHBOUR)
    expected[:, 1] = recount(x, 2)
    assert_matches(base, expected, "the tensor whose column 1 is the out of count_rows")


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_every_dtype(impl, dtype):
    check(impl, entries(4, 7, dtype=dtype), 2, f"2 in {dtype}")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_ends_of_an_integer_range(impl, dtype):
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    x = torch.tensor([[low, high, 0, high - 1], [high, high, low + 1, low]], dtype=dtype)
    check(impl, x, high, f"the largest {dtype}", [1, 2])
    check(impl, x, low, f"the smallest {dtype}", [1 + (low == 0), 1])


def test_negative_numbers(impl):
    x = torch.tensor([[-3, 3, -3], [-2, -3, 0]], dtype=torch.int32)
    check(impl, x, -3, "-3 in int32", [2, 1])
    check(impl, x.float(), -3, "-3 in float32", [2, 1])


def test_fractions(impl):
    x = torch.tensor([[0.5, 0.25, 0.5, 0.0], [0.75, 1.0, 0.5, -0.5]])
    check(impl, x, 0.5, "0.5 in float32", [2, 1])


def test_count_equal_of_large_integers(impl):
    # float32 rounds 2^24 + 1 to 2^24, and float64 2^53 + 1 to 2^53.
    for k in [2**24, 2**53]:
        x = torch.tensor([[k, k + 1, k - 1, k], [k + 1, k + 2, k, 0]])
        assert_matches(counted(impl, x, k), torch.tensor(3), f"count_equal of {k:,} in int64")


def test_count_rows_of_large_integers(impl):
    for k in [2**24, 2**53]:
        x = torch.tensor([[k, k + 1, k - 1, k], [k + 1, k + 2, k, 0]])
        expected = torch.tensor([2, 1])
        assert_matches(counted_rows(impl, x, k), expected, f"count_rows of {k:,} in int64")


def test_count_equal_of_close_doubles(impl):
    x = torch.tensor([[1.0, 1 + 2**-52, 1 - 2**-53], [1.0, 1 + 1e-9, 1.0]], dtype=torch.float64)
    actual = counted(impl, x, 1.0)
    assert_matches(actual, torch.tensor(3), "count_equal of 1 among float64 entries next to 1")


def test_count_rows_of_close_floats(impl):
    # Neighbours of 1 in float32, and numbers that a tolerance of 1e-8 would take for 0.
    x = torch.tensor([[1.0, 1 + 2**-23, 1 - 2**-24], [1.0, 1 + 1e-5, 1.0], [0.0, 1e-9, -1e-30]])
    expected = torch.tensor([1, 2, 0])
    assert_matches(counted_rows(impl, x, 1.0), expected, "count_rows of 1 among entries next to 1")
    expected = torch.tensor([0, 0, 1])
    assert_matches(counted_rows(impl, x, 0.0), expected, "count_rows of 0 among entries next to 0")
    x = x.double()
    x[1, 1] = 1 + 2**-52
    expected = torch.tensor([1, 2, 0])
    assert_matches(counted_rows(impl, x, 1.0), expected, "count_rows of 1 in float64")


def test_count_equal_of_numbers_close_to_zero(impl):
    x = torch.tensor([[0.0, 1e-9, -1e-30], [1e-38, 0.0, 0.0]])
    assert_matches(counted(impl, x, 0.0), torch.tensor(3), "count_equal of 0 among numbers near 0")


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_equals_nothing(impl, dtype):
    x = torch.tensor([[torch.nan, 0.0, torch.nan, 1.0], [torch.nan] * 4], dtype=dtype)
    check(impl, x, torch.nan, f"NaN in {dtype}", [0, 0])
    check(impl, x, 0.0, f"0 next to NaN in {dtype}", [1, 0])
    check(impl, x, 1.0, f"1 next to NaN in {dtype}", [1, 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_both_zeros_are_equal(impl, dtype):
    x = torch.tensor([[0.0, -0.0, 1.0], [-0.0, -1.0, -0.0]], dtype=dtype)
    check(impl, x, 0.0, f"0.0 in {dtype}", [2, 2])
    check(impl, x, -0.0, f"-0.0 in {dtype}", [2, 2])
    check(impl, x, 0, f"the int 0 in {dtype}", [2, 2])


def test_count_equal_of_infinities(impl):
    x = torch.tensor([[torch.inf, -torch.inf, 3e38, torch.inf], [-torch.inf, torch.nan, 0.0, 1.0]])
    for k in [torch.inf, -torch.inf]:
        assert_matches(counted(impl, x, k), torch.tensor(2), f"count_equal of {k}")


def test_count_rows_of_infinities(impl):
    x = torch.tensor([[torch.inf, -torch.inf, 3e38, torch.inf], [-torch.inf, torch.nan, 0.0, 1.0]])
    assert_matches(counted_rows(impl, x, torch.inf), torch.tensor([2, 0]), "count_rows of inf")
    assert_matches(counted_rows(impl, x, -torch.inf), torch.tensor([1, 1]), "count_rows of -inf")


@pytest.mark.parametrize("k", [2, 2.0])
def test_any_memory_layout(impl, k):
    for layout, x in layouts(entries(5, 8, dtype=torch.float32)):
        check(impl, x, k, f"{k} in a tensor that is {layout}")
    check(impl, entries(8).expand(5, 8), 2, "2 in a tensor whose rows are one")
    check(impl, entries(5, 1).expand(5, 8), 2, "2 in a tensor whose columns are one")
    check(impl, entries(8, 5).T, 2, "2 in a transposed tensor of integers")


# Around what eight and sixteen bits hold, and what bfloat16 and float16 count to.
ROW_LENGTHS = [127, 128, 255, 256, 257, 300, 2049, 32_768, 65_537]


def test_count_equal_of_many(impl):
    for length in ROW_LENGTHS:
        x = torch.ones(1, 1, dtype=torch.uint8).expand(1, length)
        actual = counted(impl, x, 1)
        assert_matches(actual, torch.tensor(length), f"count_equal of {length:,} equal bytes")


def test_count_rows_of_many(impl):
    for length in ROW_LENGTHS:
        x = torch.tensor([[1], [0], [1]], dtype=torch.uint8).expand(3, length)
        expected = torch.tensor([length, 0, length])
        actual = counted_rows(impl, x, 1)
        assert_matches(actual, expected, f"count_rows of rows of {length:,} equal bytes")


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_long_rows_of_every_dtype(impl, dtype):
    # Odd, past 2^16 and past what float16 holds; the last entry is another.
    x = torch.ones(3, 1, dtype=dtype).repeat(1, 66_002)
    x[:, -1] = 0
    x[1] = 0
    check(impl, x, 1, f"1 in rows of 66,002 entries in {dtype}", [66_001, 0, 66_001])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_tens_of_thousands_of_rows(impl, dtype):
    # The marks lie on either side of 2^15 and of 2^16.
    marks = [0, 32_767, 32_770, 65_535, 65_538, 66_000]
    x = torch.zeros(66_001, 1, dtype=dtype)
    x[marks] = 1
    expected = torch.zeros(66_001, dtype=torch.int64)
    expected[marks] = 1
    actual = counted_rows(impl, x, 1)
    assert_matches(actual, expected, f"count_rows of 1 in 66,001 rows in {dtype}")
    assert_matches(counted(impl, x, 1), torch.tensor(6), f"count_equal of 1 in them in {dtype}")


# One byte, expanded. The counts are odd and above 2^24, so that no float32 is one of them.


def test_count_equal_of_millions(impl):
    x = torch.ones(1, 1, dtype=torch.uint8).expand(4097, 4099)
    actual = counted(impl, x, 1)
    error = actual - 4097 * 4099
    assert_matches(error, torch.tensor(0), "the error of count_equal of 16,793,603 equal bytes")


def test_count_rows_of_millions(impl):
    x = torch.ones(1, 1, dtype=torch.uint8).expand(1, 2**24 + 1)
    actual = counted_rows(impl, x, 1)
    error = actual - (2**24 + 1)
    assert_matches(error, torch.tensor([0]), "the error of count_rows of a row of 16,777,217 bytes")


def test_tensors_changed_in_place(impl):
    x, total, rows = entries(4, 7), torch.tensor(POISON), torch.full((4,), POISON)
    for _ in range(4):
        x.copy_(torch.randint(0, 4, x.shape))
        quietly(impl.count_equal, x, 2, total)
        quietly(impl.count_rows, x, 2, rows)
        expected = recount(x, 2)
        assert_matches(total, expected.sum(), "count_equal of the same tensor, changed in place")
        assert_matches(rows, expected, "count_rows of the same tensor, changed in place")


def test_two_outs_at_once(impl):
    x, y, first, second = entries(4, 7), entries(4, 7), *torch.full((2, 4), POISON)
    impl.count_rows(x, 2, first)
    impl.count_rows(y, 2, second)
    assert_matches(first, recount(x, 2), "the first of two outs of count_rows, in one tensor")
    assert_matches(second, recount(y, 2), "the second of two outs of count_rows, in one tensor")


@pytest.mark.parametrize("shape", [(1_500, 3), (5_003, 2), (3, 1_500), (2, 5_003), (9_001, 1)])
def test_sizes_beyond_a_block(impl, shape):
    x = entries(*shape)
    check(impl, x, 2, f"2 in a {shape} tensor")
    marked = torch.zeros(shape)
    marked[-1, -1] = 2.0
    check(impl, marked, 2.0, f"2.0 at the end of a {shape} tensor")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_modes(impl, mode):
    with mode():
        check(impl, entries(4, 7), 2, f"2 under {mode.__name__}")
        check(impl, entries(4, 7, dtype=torch.float32), 2.0, f"2.0 under {mode.__name__}")


@pytest.mark.parametrize("default", [torch.float16, torch.float64])
def test_where_another_dtype_is_the_default(impl, default):
    before = torch.get_default_dtype()
    x = torch.tensor([[2.0**100, 0.1, 2.0**-140], [0.1, 0.1, 1.0]], dtype=torch.float64)
    try:
        torch.set_default_dtype(default)
        for k, expected in [(2.0**100, [1, 0]), (0.1, [1, 2]), (2.0**-140, [1, 0])]:
            check(impl, x, k, f"{k} in float64 where {default} is the default", expected)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("k", [0.1, 1 / 3, 2.0**1023, 1e-320, -1e-310, 2.0**53 + 2, 2**62])
def test_numbers_that_only_float64_holds(impl, k):
    x = torch.tensor([[k, 0.0, torch.inf], [k, k, -k]], dtype=torch.float64)
    check(impl, x, k, f"{k!r} in float64", [1, 2])
    x = x.nextafter(torch.tensor(torch.inf, dtype=torch.float64))
    check(impl, x, k, f"{k!r} among float64 entries next to it", [0, 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_ends_of_a_floating_point_range(impl, dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([[info.max, info.tiny, torch.inf], [-info.max, info.max, 0.0]], dtype=dtype)
    check(impl, x, info.max, f"the largest {dtype}", [1, 1])
    check(impl, x, info.min, f"the smallest {dtype}", [0, 1])
    check(impl, x, info.tiny, f"the smallest normal {dtype}", [1, 0])
    check(impl, x, torch.inf, f"infinity next to the largest {dtype}", [1, 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_int_among_fractions(impl, dtype):
    # No fraction equals an int, whichever way it would be rounded.
    x = torch.tensor([[2.0, 2.5, 1.5, -0.5, 2.25], [3.0, 0.5, 0.0, 2.0, 2.0]], dtype=dtype)
    for k, expected in [(2, [1, 2]), (0, [0, 1]), (-0.5, [1, 0]), (1, [0, 0])]:
        check(impl, x, k, f"{k} among fractions in {dtype}", expected)
