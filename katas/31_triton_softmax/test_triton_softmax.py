from functools import partial

import pytest
import torch

from dojo.kernels import DEVICE, guarded, need_gpu_memory, room, run, speed
from dojo.testing import (
    SOFTMAX,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
)

# What the brief promises. A float16 has 11 bits, so that two units in its last place are up to
# 2 to the -9th of a value, and two steps of 6e-8 below the smallest normal one.
TOLERANCES = {torch.float32: (1e-5, 1e-7), torch.float16: (2e-3, 1.2e-7)}
DTYPES = [torch.float32, torch.float16]
INF = float("inf")


def scores(*shape, dtype=torch.float32):
    """Return scores spread widely enough that no row is near uniform."""
    return (3 * torch.randn(shape, dtype=torch.float64)).to(dtype).to(DEVICE)


def exact(x):
    """Return torch's own result, worked out in float64 and rounded once."""
    return torch.softmax(x.double(), -1).to(x.dtype)


def assert_softmax(actual, x, behaviour):
    rtol, atol = TOLERANCES[x.dtype]
    name = str(x.dtype).removeprefix("torch.")
    behaviour = f"softmax of {behaviour}, shape {tuple(x.shape)}, {name}"
    assert_matches(actual, exact(x), behaviour, rtol=rtol, atol=atol)
    some = int((actual[x == -INF] > 0).sum())
    assert some == 0, f"{behaviour}: {some} scores of -inf have a probability above zero"


def check(impl, x, behaviour):
    assert_softmax(run(impl.softmax, x), x, behaviour)


# Rows of a few thousand scores at most. No two axes are equal.


@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [(torch.float32, [(6, 8), (3, 1024)]), (torch.float16, [(3, 16), (7, 128)])],
)
def test_widths_of_a_power_of_two(impl, dtype, shapes):
    for shape in shapes:
        check(impl, scores(*shape, dtype=dtype), "rows as wide as a power of two")


@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [(torch.float32, [(4, 7), (2, 3001)]), (torch.float16, [(2, 100), (3, 781)])],
)
def test_odd_widths(impl, dtype, shapes):
    for shape in shapes:
        check(impl, scores(*shape, dtype=dtype), "rows of an odd width")


@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [(torch.float32, [(3, 17), (2, 4097)]), (torch.float16, [(4, 3), (5, 129)])],
)
def test_widths_just_over_a_power_of_two(impl, dtype, shapes):
    for shape in shapes:
        check(impl, scores(*shape, dtype=dtype), "rows one wider than a power of two")


def test_one_row_or_one_column(impl):
    for shape in [(1, 1), (9, 1), (1, 2500)]:
        check(impl, scores(*shape), "one row or one column")


def test_many_rows(impl):
    check(impl, scores(200, 6), "many rows")


def test_empty(impl):
    for shape in [(0, 5), (4, 0), (0, 20_000)]:
        check(impl, scores(*shape), "an empty tensor")


def test_takes_its_argument_by_name(impl):
    x = scores(4, 7)
    assert_softmax(run(impl.softmax, x=x), x, "x passed by name")


def test_rows_apart_in_memory(impl):
    wide = scores(11, 40)
    check(impl, wide[:, 3:26], "columns 3 to 25 of wider rows")
    check(impl, wide[::2, :23], "every other row, its first columns")


def test_any_memory_layout(impl):
    for x in (scores(5, 23), scores(5, 1, dtype=torch.float16)):
        rtol, atol = TOLERANCES[x.dtype]
        what = f"softmax of shape {tuple(x.shape)}"
        call = partial(run, impl.softmax)
        assert_any_layout(call, [x.cpu()], exact(x), what, rtol=rtol, atol=atol)
    check(impl, scores(19).expand(6, 19), "one row expanded to six")
    check(impl, scores(6, 1).expand(6, 19), "one column expanded to nineteen")


def test_large_scores(impl):
    check(impl, scores(4, 7) + 1e4, "scores near 10,000")
    check(impl, (scores(4, 7) + 6e4).half(), "scores near 60,000")
    check(impl, scores(4, 1000) * 1e37, "scores near 1e37")


def test_scores_far_below_zero(impl):
    check(impl, scores(4, 7) - 1e4, "scores near -10,000")
    check(impl, scores(1, 2001) - 1e6, "scores near -1,000,000")
    lowest = torch.finfo(torch.float32).min
    check(impl, torch.full((3, 5), lowest, device=DEVICE), "the lowest scores there are")


def test_rows_far_apart(impl):
    # exp of one row's scores is zero, or infinite, next to those of another.
    levels = torch.tensor([-1e4, 0.0, 1e4, -3e4, 500.0], device=DEVICE)[:, None]
    check(impl, scores(5, 9) + levels, "rows at -10,000, 0, 10,000, -30,000 and 500")


def test_scores_far_apart_in_a_row(impl):
    x = torch.tensor([[0, -200, -1e4], [300, 0, 299], [-3e38, 3e38, -3e38]], device=DEVICE)
    check(impl, torch.cat([x, x], 1), "scores up to 6e38 apart")
    x = torch.tensor([[65_504, -65_504, 65_472], [9.99, 0.0123, -0.77]], device=DEVICE)
    check(impl, x.half(), "float16 scores up to 131,008 apart")


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_infinity_gets_probability_zero(impl, dtype):
    x = scores(7, 23, dtype=dtype)
    x[0, :9] = x[1, 9:] = x[2, ::2] = x[4, :-1] = x[6, 11] = -INF
    x[3] = x[5] = -INF
    check(impl, x, "rows with some scores of -inf, and of nothing else between them")


def test_nan_and_infinity(impl):
    for rows, width in [(3, 7), (2, 16_384), (2, 20_001)]:
        x = scores(rows, width)
        x[0, -1] = float("nan")
        x[-1, 3] = INF
        check(impl, x, "a row that ends with NaN, and last one with +inf in it")
    for dtype in DTYPES:
        x = torch.tensor([[INF], [2.5], [-INF], [torch.nan]], dtype=dtype, device=DEVICE)
        check(impl, x, "rows of one score, which is +inf, 2.5, -inf and NaN")


# Rows wider than a block.


@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [(torch.float32, [(2, 16_385), (1, 65_001)]), (torch.float16, [(2, 32_768)])],
)
def test_wide_rows(impl, dtype, shapes):
    for shape in shapes:
        check(impl, scores(*shape, dtype=dtype), "wide rows")


def test_a_row_of_more_than_a_million(impl):
    # Wider than the largest block that Triton has, 2 to the 20th.
    check(impl, scores(1, 2**20 + 3), "a row of more than a million scores")


def test_wide_rows_whose_scores_rise(impl):
    trend = torch.linspace(-20, 20, 50_001, device=DEVICE)
    check(impl, scores(1, 50_001) + trend, "a wide row whose scores rise from end to end")


def test_wide_rows_whose_scores_fall(impl):
    trend = torch.linspace(20, -20, 31_000, device=DEVICE)
    check(impl, scores(1, 31_000) + trend, "a wide row whose scores fall from end to end")


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows_of_equal_scores(impl, dtype):
    x = torch.tensor([[-7.0], [300.0]], dtype=dtype, device=DEVICE)
    # The largest float16 is 65,504, less than the sum of 70,000 ones.
    x = x.repeat(1, 20_011) if dtype == torch.float32 else x[:1].repeat(1, 70_000)
    check(impl, x, "wide rows of equal scores")


def test_wide_rows_in_any_memory_layout(impl):
    check(impl, scores(16_400, 3)[:, :2].T, "wide rows that are transposed, two of three")
    check(impl, scores(3, 20_000)[::2, 500:18_001], "every other row, columns 500 to 18,000")
    check(impl, scores(17_001).expand(2, 17_001), "one wide row expanded to two")


def test_wide_rows_far_apart(impl):
    check(impl, scores(1, 30_001) + 1e6, "a wide row with scores near 1,000,000")
    levels = torch.tensor([[-1e4], [1e4]], device=DEVICE)
    check(impl, scores(2, 20_011) + levels, "wide rows at -10,000 and 10,000")


def test_wide_rows_far_below_zero(impl):
    check(impl, scores(1, 30_001) - 1e6, "a wide row with scores near -1,000,000")
    check(impl, scores(1, 30_001) * 1e30 - 1e34, "a wide row with scores near -1e34")
    lowest = torch.finfo(torch.float32).min
    check(impl, torch.full((1, 20_000), lowest, device=DEVICE), "the lowest scores there are")


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows_that_begin_with_minus_infinity(impl, dtype):
    if dtype == torch.float32:
        x = scores(2, 20_000, dtype=dtype)
        x[0, :17_000] = x[1, :-1] = -INF
        check(impl, x, "wide rows whose first 17,000 scores or more are -inf")
    else:
        x = scores(1, 60_000, dtype=dtype)
        x[:, :50_000] = -INF
        check(impl, x, "a wide row whose first 50,000 scores are -inf")


def test_minus_infinity_in_wide_rows(impl):
    x = scores(4, 20_000)
    x[0, 1:] = x[1] = x[2, ::2] = x[3, 10_000:19_990] = -INF
    check(impl, x, "wide rows with some scores of -inf, and one of nothing else")


def test_torch_does_not_do_the_arithmetic(impl):
    for shape in [(4, 7), (1, 20_000)]:
        with guarded() as memory:
            x = memory.place(scores(*shape))
            with forbid(*SOFTMAX, "logsumexp", "exp", "exp2", "sum", "max", "amax"):
                impl.softmax(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_calls_do_not_disturb_each_other(impl, dtype):
    rtol, atol = TOLERANCES[dtype]
    what = f"softmax of {dtype}"

    def inputs():
        return [scores(3, 7, dtype=dtype)]

    with guarded():
        assert_repeatable(impl.softmax, inputs, exact, what, rtol=rtol, atol=atol)
        (x,) = inputs()
        assert_any_mode(impl.softmax, [x], exact(x), what, rtol=rtol, atol=atol)


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter does")
def test_there_are_programs_for_every_row(impl):
    # More than 65,535 programs of one row would write, also of a row that no block holds.
    # Wide enough that what a kernel keeps of each row does not count.
    for x in [torch.zeros(2**18, 40)[: 2**17 + 30], torch.zeros(2**16, 1)[:30].expand(30, 20_000)]:
        most = room(partial(impl.softmax, x), x.numel())
        assert most >= x.numel(), (
            f"softmax of shape {tuple(x.shape)} writes {x.numel():,} elements: "
            f"the programs that are launched can write {most:,} at most"
        )


# What only a GPU shows.


@pytest.mark.gpu
def test_inputs_past_2_to_the_31st_element(impl):
    need_gpu_memory(12)
    # x begins in the middle: an offset that wraps to a negative one still falls inside.
    middle = 2**31
    buffer = torch.zeros(middle + 5 * 2**29, dtype=torch.float16, device=DEVICE)
    for behaviour, shape, strides in [
        ("rows that are 2^30 elements apart", (3, 4099), (2**30, 1)),
        ("wide rows that are 2^30 elements apart", (3, 20_011), (2**30, 1)),
        ("columns that are 2^19 elements apart", (5, 4099), (1, 2**19)),
        ("columns of wide rows, 2^17 elements apart", (5, 20_011), (1, 2**17)),
    ]:
        x = buffer.as_strided(shape, strides, middle)
        x.copy_(scores(*shape, dtype=torch.float16))
        assert_softmax(impl.softmax(x), x.clone(), behaviour)


@pytest.mark.gpu
def test_outputs_past_2_to_the_31st_element(impl):
    need_gpu_memory(12)
    for n_rows, n_cols in [(2**19 + 2**10, 4099), (2**17 + 2**10, 16_400)]:
        row = scores(1, n_cols, dtype=torch.float16)
        out = impl.softmax(row.expand(n_rows, n_cols))
        assert out.shape == (n_rows, n_cols)
        assert_softmax(out[:1], row, f"the first of {n_rows:,} equal rows")
        # A few rows at a time: a comparison of all at once needs as much memory again.
        wrong = sum(int((part != out[0]).any(1).sum()) for part in out.split(2**15))
        assert wrong == 0, (
            f"softmax of {n_rows:,} equal rows of {n_cols:,} scores: {wrong:,} rows of the "
            "result differ from the first"
        )


@pytest.mark.gpu
def test_millions_of_rows(impl):
    for shape in [(2**22 + 3, 5), (70_001, 300)]:
        check(impl, scores(*shape, dtype=torch.float16), "very many rows")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_speed(impl, dtype):
    x = scores(8192, 4096, dtype=dtype)
    compiled = torch.compile(lambda x: torch.softmax(x, -1))
    ratio = speed(lambda: impl.softmax(x), lambda: torch.softmax(x, -1), lambda: compiled(x))
    # One pass over memory is as fast as torch's; a second one takes half as long again.
    assert ratio >= 0.7, (
        f"softmax of (8192, 4096) {dtype} is {ratio:.2f} times as fast as the faster of "
        "torch.softmax and torch.compile of it; at least 0.7 is asked"
    )
