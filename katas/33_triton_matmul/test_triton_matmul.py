import contextlib
from functools import partial

import pytest
import torch

from dojo.kernels import DEVICE, guarded, room, run, speed, tf32_as_on_a_gpu
from dojo.testing import (
    PRODUCTS,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    layouts,
)

# Sizes that differ in every case: each of M, K and N is one once, then powers of two, tiles of a
# common size, and sizes just over those. One result is a single number.
SIZES = {
    torch.float32: [(1, 9, 1), (6, 1, 3), (16, 32, 64), (17, 33, 65)],
    torch.float16: [(1, 37, 5), (3, 35, 1), (17, 33, 65)],
}
# rtol and atol of sums over some hundred products of numbers near one. float32 rounds each of them,
# in an order that is left open; float16 rounds once more, and two units in its last place are 2e-3.
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float16: (2e-3, 2e-3)}


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)


def integers(low, high, *shape):
    return torch.randint(low, high, shape).to(DEVICE)


def product(a, b):
    """Return torch's own product, worked out in float64 and rounded once."""
    return (a.double() @ b.double()).to(a.dtype)


def check(impl, a, b, which="", rtol=None, atol=None):
    actual = run(impl.matmul, a, b)
    default_rtol, default_atol = TOLERANCES[a.dtype]
    name = f"the product of {tuple(a.shape)} and {tuple(b.shape)} in {str(a.dtype)[6:]}{which}"
    rtol, atol = default_rtol if rtol is None else rtol, default_atol if atol is None else atol
    assert_matches(actual, product(a, b), name, rtol=rtol, atol=atol)


def expanded(x, axis):
    """Return a matrix of one row (axis 0) or column (axis 1) of x, again and again in no memory."""
    return x.narrow(axis, 0, 1).expand(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_size(impl, dtype):
    for m, k, n in SIZES[dtype]:
        check(impl, randn(m, k, dtype=dtype), randn(k, n, dtype=dtype))


def test_takes_its_arguments_by_name(impl):
    a, b = randn(5, 9), randn(9, 3)
    actual = run(impl.matmul, b=b, a=a)
    assert_matches(actual, product(a, b), "matmul(b=b, a=a)", atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_tile_is_computed(impl, dtype):
    # Tiles both ways, the last of each cut off: rows of them that no group of 8 divides, and fewer
    # than a group has; columns, too. A GPU's tiles are larger, and others for each dtype.
    sizes = [(1163, 1049), (123, 2311)]
    if DEVICE == "cpu":
        sizes = [(600, 70)] if dtype == torch.float32 else [(30, 131), (70, 600)]
    for m, n in sizes:
        check(impl, randn(m, 5, dtype=dtype), randn(5, n, dtype=dtype))


def test_nothing_is_written_outside(impl):
    # Tiles stick out below and to the right; K is a multiple of any tile's.
    check(impl, randn(21, 128), randn(128, 7))
    check(impl, randn(5, 128), randn(128, 70))


def test_any_length_of_the_sum(impl):
    # Less than a tile along K; one less than, exactly, and one more than whole tiles of 16 to 128.
    for k in [15, 127, 128, 129]:
        check(impl, randn(7, k), randn(k, 11))
    # Integers, so that the sum is exact whatever its order.
    a, b = integers(-3, 4, 2, 2055).float(), integers(-3, 4, 2055, 3).float()
    check(impl, a, b, ", small integers", rtol=0, atol=0)


def test_transposed_a(impl):
    # K is longer than a tile, so the tiles of a follow each other by its stride along K.
    check(impl, randn(300, 9).T, randn(300, 5), ", a transposed")


def test_transposed_b(impl):
    check(impl, randn(9, 300).half(), randn(5, 300, dtype=torch.float16).T, ", b transposed")


def test_any_memory_layout(impl):
    as_a, as_b = list(layouts(randn(19, 140).cpu())), list(layouts(randn(140, 23).cpu()))
    # Each layout of a meets another one of b.
    pairs = zip(as_a, as_b[1:] + as_b[:1], strict=True)
    for (layout_a, one), (layout_b, other) in pairs:
        which = f", a that is {layout_a} and b that is {layout_b}"
        check(impl, one.to(DEVICE), other.to(DEVICE), which)


def test_a_part_of_a_matrix(impl):
    a, b = randn(31, 190)[3:14, 20:163], randn(180, 40)[17:160, 5:18]
    check(impl, a, b, ", both parts of larger matrices")
    check(impl, b.T, a.T, ", both transposed parts of larger matrices")


def test_any_layout_where_an_axis_has_one_element(impl):
    for m, k, n in [(5, 1, 4), (1, 7, 3), (6, 3, 1)]:
        a, b = randn(m, k).cpu(), randn(k, n).cpu()
        name = f"the product of {(m, k)} and {(k, n)}"
        assert_any_layout(partial(run, impl.matmul), [a, b], product(a, b), name, atol=1e-4)


def test_a_matrix_by_itself(impl):
    a = randn(37, 37)
    with guarded() as memory:
        placed = memory.place(a)
        square, gram = impl.matmul(placed, placed), impl.matmul(placed, placed.T)
    assert_matches(square, product(a, a), "the product of a matrix and itself", atol=1e-4)
    what = "the product of a matrix and its own transpose"
    assert_matches(gram, product(a, a.T), what, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_calls_do_not_disturb_each_other(impl, dtype):
    rtol, atol = TOLERANCES[dtype]
    for m, k, n in [(5, 9, 3), (4, 0, 6)]:
        name = f"the product of {(m, k)} and {(k, n)} in {dtype}"

        def inputs(m=m, k=k, n=n):
            return randn(m, k, dtype=dtype), randn(k, n, dtype=dtype)

        with guarded():
            assert_repeatable(impl.matmul, inputs, product, name, rtol=rtol, atol=atol)
            a, b = inputs()
            assert_any_mode(impl.matmul, [a, b], product(a, b), name, rtol=rtol, atol=atol)


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter does")
def test_there_are_programs_for_every_tile(impl):
    for m, n in [(2**20 + 30, 3), (3, 2**20 + 30)]:
        # One number in a larger tensor: what a wrong kernel reads beyond it does no harm.
        one = torch.empty(2**16)[:1].view(1, 1)
        a, b = one.expand(m, 1), one.expand(1, n)
        most = room(partial(impl.matmul, a, b), m * n)
        assert most >= m * n, (
            f"the product of {(m, 1)} and {(1, n)} has {m * n:,} elements: "
            f"the programs that are launched can write {most:,} at most"
        )


@pytest.mark.parametrize("axis", [0, 1])
def test_expanded(impl, axis):
    a, b = randn(7, 140), randn(140, 5)
    across = ["rows", "columns"][axis]
    check(impl, expanded(a, axis), b, f", all {across} of a one in memory")
    check(impl, a, expanded(b, axis), f", all {across} of b one in memory")


def test_partial_sums_that_float16_rounds(impl):
    # Halfway through, the sums stand near 13,500, where float16 holds every 8th integer only. The
    # second half takes all of it away again, so that an exact sum ends at the last product.
    half, m, n = 150, 5, 7
    a, b = integers(8, 12, m, half), integers(8, 12, half, n)
    last_a, last_b = integers(-9, 9, m, 1), integers(-9, 9, 1, n)
    a, b = torch.cat([a, a, last_a], 1), torch.cat([b, -b, last_b])
    for dtype in [torch.float16, torch.float32]:
        which = ", integers whose sums pass 10,000 halfway and cancel"
        check(impl, a.to(dtype), b.to(dtype), which, rtol=0, atol=0)


def test_partial_sums_beyond_float16(impl):
    # The largest float16 is 65,504; halfway through the sum these stand near 2 million.
    half, m, n = 100, 3, 6
    a, b = integers(100, 200, m, half), integers(100, 200, half, n)
    a, b = torch.cat([a, a], 1).half(), torch.cat([b, -b]).half()
    a[:, -1] -= 1  # so that the sums end at the last row of b, not at zero
    check(impl, a, b, ", integers whose sums pass 1,000,000 halfway and cancel", rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_and_small_numbers(impl, dtype):
    size = 1e15 if dtype == torch.float32 else 50.0
    a, b = size * randn(5, 70, dtype=dtype), randn(70, 9, dtype=dtype) / size
    check(impl, a, b, f", a near {size:g} and b near {1 / size:g}")


def test_float32_is_not_rounded_to_tf32(impl):
    # Each column of b holds a single one, so that the result is a with its columns moved: TF32
    # would keep 11 of the 24 bits of each number.
    a = randn(35, 50)
    b = torch.eye(50, device=DEVICE)[:, torch.randperm(50, device=DEVICE)]
    with contextlib.nullcontext() if DEVICE == "cuda" else tf32_as_on_a_gpu():
        check(impl, a, b, ", b a permutation", rtol=1e-6, atol=0)
        check(impl, b, randn(50, 20), ", a a permutation", rtol=1e-6, atol=0)


def test_float16_results_beyond_its_range_are_infinite(impl):
    a = torch.tensor([[300.0], [-300.0], [3.0]], dtype=torch.float16)
    b = torch.tensor([[250.0, 1.0]], dtype=torch.float16)
    check(impl, a, b, ", some beyond 65,504")


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, torch.inf), (torch.float16, torch.nan)]
)
def test_what_is_not_finite_stays_in_its_row_or_column(impl, dtype, value):
    # K leaves the last tile partly empty, and what lies in memory behind a row is the next one.
    a, b = randn(9, 45, dtype=dtype).abs(), randn(45, 13, dtype=dtype).abs()
    a[4] = value
    check(impl, a, b, f", row 4 of a all {value}")
    a[4], b[:, 6] = 1, value
    check(impl, a, b, f", column 6 of b all {value}")
    a[4, 44] = value
    a[5, :3] = -value
    check(impl, a.T.contiguous().T, b, f", {value} at ends of rows of a, too, a transposed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_products_give_zeros(impl, dtype):
    m, n = (5, 70) if dtype == torch.float32 else (70, 5)
    check(impl, randn(m, 0, dtype=dtype), randn(0, n, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_empty_result(impl, dtype):
    for m, k, n in [(0, 4, 7), (7, 4, 0), (0, 4, 0), (0, 0, 3), (0, 0, 0)]:
        check(impl, randn(m, k, dtype=dtype), randn(k, n, dtype=dtype))


def test_sizes_that_do_not_fit(impl):
    # Sizes that broadcast, that fit the other way round, and two whose result is empty.
    for shape, other in [
        ((31, 57), (43, 69)),
        ((31, 1), (43, 69)),
        ((31, 43), (1, 69)),
        ((31, 57), (43, 31)),
        ((0, 57), (43, 69)),
        ((31, 57), (43, 0)),
    ]:
        try:
            run(impl.matmul, randn(*shape), randn(*other))
        except ValueError as error:
            message = str(error)
        else:
            pytest.fail(f"a ValueError is raised for {shape} by {other}: none was", pytrace=False)
        missing = [size for size in (*shape, *other) if str(size) not in message]
        assert not missing, (
            f"the error for {shape} by {other} has both shapes: its message is {message!r}"
        )


def test_the_product_is_not_torchs(impl):
    a, b = randn(6, 40), randn(40, 7)
    with forbid(*PRODUCTS):
        actual = run(impl.matmul, a, b)
    assert_matches(actual, product(a, b), "the product of (6, 40) and (40, 7)", atol=1e-4)


@pytest.mark.gpu
def test_inputs_that_span_more_than_2_to_the_31_elements(impl):
    # The matrix stands in the middle of a buffer, where offsets that wrap around read zeros.
    middle, rows, far = 2**31, 129, 2**24 + 24
    buffer = torch.zeros(2 * middle + 2**26, dtype=torch.float16, device=DEVICE)
    for m, k, stride in [(rows, 40, (far, 1)), (3, rows, (1, far)), (5, 66, (1, 2 * far))]:
        wide = buffer.as_strided((m, k), stride, middle)
        values = randn(m, k, dtype=torch.float16)
        wide.copy_(values)
        b = randn(k, 20, dtype=torch.float16)
        which = f", ({m}, {k}) of strides {stride}"
        rtol, atol = TOLERANCES[torch.float16]
        expected = product(values, b)
        actual = impl.matmul(wide, b)
        assert_matches(actual, expected, f"the product with a{which}", rtol=rtol, atol=atol)
        actual = impl.matmul(b.T, wide.T)
        assert_matches(actual, expected.T, f"the product with b{which}", rtol=rtol, atol=atol)
        wide.zero_()


@pytest.mark.gpu
@pytest.mark.parametrize("transposed", [False, True])
def test_speed(impl, transposed):
    a, b = (randn(4096, 4096, dtype=torch.float16) for _ in range(2))
    b = b.T if transposed else b
    ratio = speed(lambda: impl.matmul(a, b), lambda: torch.matmul(a, b))
    layout = ", b transposed" if transposed else ""
    assert ratio >= 0.6, (
        f"4096 x 4096 float16 matrices{layout} should be multiplied at 0.6 of the speed of "
        f"torch.matmul at least; it is {ratio:.2f}"
    )


# The last one: offsets that wrap around here are an illegal access, after which CUDA is unusable.
@pytest.mark.gpu
def test_a_result_of_more_than_2_to_the_31_elements(impl):
    m, k, n = 65_537, 16, 32_771
    a, b = randn(m, k, dtype=torch.float16), randn(k, n, dtype=torch.float16)
    actual = impl.matmul(a, b)
    rtol, atol = TOLERANCES[torch.float16]
    for first in [0, m // 2, m - 40]:
        rows = slice(first, first + 40)
        name = f"rows {first} to {first + 40} of a ({m}, {n}) product"
        assert_matches(actual[rows], product(a[rows], b), name, rtol=rtol, atol=atol)
