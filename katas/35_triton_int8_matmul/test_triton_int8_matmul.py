import pytest
import torch

from dojo.kernels import DEVICE, run, speed
from dojo.testing import PRODUCTS, assert_any_mode, assert_matches, assert_repeatable, forbid

# How near to a half a number of steps may be for the brief to let it go to either side: float32
# arithmetic in three operations on numbers below 256 is wrong by less than 0.00005.
HAIR = 1e-4
# Zero points of a, b and c, and sizes M, K and N to meet them with: each is 1 once, and the last
# result has one more row and one more column than the smallest tile.
ZERO_POINTS = [(0, 0, 0), (5, -7, 3), (-128, 11, -20), (-3, 127, 0)]
SIZES = [(5, 1, 2), (1, 7, 3), (2, 64, 1), (17, 20, 33)]
# Where scales are not the point: a step of c is one unit of the integer sum.
UNIT = {"scale_a": 0.5, "scale_b": 0.25, "scale_c": 0.125}


def codes(*shape, lowest=-128, highest=127):
    """Return random int8 codes, over the whole range unless told otherwise."""
    return torch.randint(lowest, highest + 1, shape, dtype=torch.int8, device=DEVICE)


def int8(values):
    return torch.tensor(values, dtype=torch.int8, device=DEVICE)


def exact_sums(a, b, zp_a, zp_b):
    """Return the sums over K in float64, where integers are exact up to 2 to the 53rd."""
    return (a.double() - zp_a) @ (b.double() - zp_b)


def assert_codes(actual, steps, zero_point, behaviour):
    """Compare codes with those of `steps`, exact in float64; near a half, either of two will do."""
    below, expected, above = (
        ((steps + shift).round() + zero_point).clamp(-128, 127).to(torch.int8)
        for shift in (-HAIR, 0, HAIR)
    )
    if isinstance(actual, torch.Tensor) and actual.shape == expected.shape:
        fits = (actual >= below) & (actual <= above)
        expected = torch.where(fits, actual.to(torch.int8), expected)
    assert_matches(actual, expected, behaviour)


def check(impl, a, b, zero_points, behaviour):
    """Compare with exact integers at scales that let most results fit and saturate a few."""
    zp_a, zp_b, zp_c = zero_points
    sums = exact_sums(a, b, zp_a, zp_b)
    scale_c = 0.013 * 0.21 * max(sums.abs().max().item(), 1.0) / 150
    actual = run(impl.int8_matmul, a, b, 0.013, 0.21, scale_c, zp_a, zp_b, zp_c)
    assert_codes(actual, sums * (0.013 * 0.21 / scale_c), zp_c, behaviour)


def layouts(q):
    """Yield codes in memory layouts that break code which assumes a contiguous one."""
    yield "transposed", q.T.contiguous().T
    large = codes(3 * q.shape[0] + 2, 2 * q.shape[1] + 1)
    large[2::3, 1::2] = q
    yield "every third row and every other column of a larger matrix", large[2::3, 1::2]
    yield "one row, expanded", q[:1].expand_as(q)
    yield "one column, expanded", q[:, :1].expand_as(q)


@pytest.mark.parametrize(("zero_points", "size"), list(zip(ZERO_POINTS, SIZES, strict=True)))
def test_matches_exact_integers(impl, zero_points, size):
    m, k, n = size
    what = f"({m}, {k}) by ({k}, {n}) codes, zero points {zero_points}"
    check(impl, codes(m, k), codes(k, n), zero_points, what)


def test_more_rows_and_columns_than_a_tile_has(impl):
    # Tiles both ways, the last of each cut off, and more rows of them than a group of 8. A GPU's
    # tiles are larger.
    for m, n in [(130, 60)] if DEVICE == "cpu" else [(145, 37), (3, 330)]:
        zero_points = (0, 0, 2) if DEVICE == "cpu" else (9, -4, 2)
        what = f"({m}, 20) by (20, {n}) codes, zero points {zero_points}"
        check(impl, codes(m, 20), codes(20, n), zero_points, what)


def test_any_inner_length(impl):
    # Small codes, so that one product too many or too few is worth some steps of 16. Those of b are
    # about their zero point, so that long sums stay near zero. Lengths are one less and one more
    # than whole blocks of 256 codes or fewer, and two more than blocks of up to 2,048.
    for k in (255, 257, 2_050):
        a, b = codes(2, k, lowest=-4, highest=4), codes(k, 3, lowest=-6, highest=2)
        actual = run(impl.int8_matmul, a, b, 0.5, 0.25, 2.0, 3, -2, 1)
        steps = exact_sums(a, b, 3, -2) / 16
        assert_codes(actual, steps, 1, f"(2, {k}) by ({k}, 3) small codes, zero points 3 and -2")


def test_inner_length_zero(impl):
    a, b = codes(3, 0), codes(0, 2)
    actual = run(impl.int8_matmul, a, b, 0.02, 0.3, 2.5, 4, -2, -9)
    expected = torch.full((3, 2), -9, dtype=torch.int8)
    assert_matches(actual, expected, "(3, 0) by (0, 2) codes, zero point -9 for c")


def test_no_rows_or_no_columns(impl):
    for m, n in [(0, 3), (2, 0), (0, 0)]:
        actual = run(impl.int8_matmul, codes(m, 5), codes(5, n), 0.02, 0.3, 2.5, 4, -2, 7)
        expected = torch.empty((m, n), dtype=torch.int8)
        assert_matches(actual, expected, f"({m}, 5) by (5, {n}) codes")


def test_any_strides(impl):
    a, b = codes(5, 6), codes(6, 3)
    as_a, as_b = list(layouts(a)), list(layouts(b))
    # Each layout of a meets another one of b.
    pairs = zip(as_a, as_b[1:] + as_b[:1], strict=True)
    for (layout_a, one), (layout_b, other) in pairs:
        actual = run(impl.int8_matmul, one, other, 0.25, 0.5, 64.0, 4, -2, 1)
        steps = exact_sums(one, other, 4, -2) / 2.0**9
        assert_codes(actual, steps, 1, f"a that is {layout_a} by b that is {layout_b}")


def test_takes_its_arguments_by_name(impl):
    a, b = codes(3, 6), codes(6, 4)
    actual = run(
        impl.int8_matmul,
        a=a,
        b=b,
        scale_a=0.02,
        scale_b=0.3,
        scale_c=2.5,
        zp_a=4,
        zp_b=-2,
        zp_c=7,
    )
    steps = exact_sums(a, b, 4, -2) * (0.02 * 0.3 / 2.5)
    assert_codes(actual, steps, 7, "int8_matmul with every argument by name")


def test_the_work_is_done_by_kernels(impl):
    a, b = codes(3, 6), codes(6, 4)
    with forbid(*PRODUCTS, "round", "clamp", "clip"):
        run(impl.int8_matmul, a, b, 0.02, 0.3, 2.5, 4, -2, 7)


def test_uses_each_scale(impl):
    a, b = int8([[24, 32]]), int8([[4, 1], [6, 2]])
    actual = run(impl.int8_matmul, a, b, 0.25, 2.0, 4.0, 0, 0, 0)
    what = "sums of 288 and 88 with scales 0.25, 2 and 4, which come to an eighth"
    assert_matches(actual, int8([[36, 11]]), what)


# Sums: how large they may be, and what that asks of the type that holds them.


def test_sums_beyond_int8(impl):
    a, b = int8([[10, 10, 10, 10]]), int8([[10, 5], [10, 5], [10, 5], [10, 5]])
    actual = run(impl.int8_matmul, a, b, 0.5, 0.5, 1.0, 0, 0, 0)
    assert_matches(actual, int8([[100, 50]]), "a quarter of the sums 400 and 200")


def test_sums_beyond_int16_and_float16(impl):
    a, b = int8([[100] * 9]), int8([[100, -90]] * 9)
    actual = run(impl.int8_matmul, a, b, 0.03125, 0.03125, 1.0, 0, 0, 0)
    assert_matches(actual, int8([[88, -79]]), "a 1024th of the sums 90,000 and -81,000")


def test_of_the_lowest_codes(impl):
    a, b = codes(2, 5, highest=-128), codes(5, 3, highest=-128)
    actual = run(impl.int8_matmul, a, b, 2.0**-5, 2.0**-5, 1.0, 0, 0, 0)
    expected = torch.full((2, 3), 80, dtype=torch.int8)
    assert_matches(actual, expected, "a 1024th of five times (-128) squared")


def test_exact_where_large_sums_cancel(impl):
    # Halfway the sums stand near 26 million, where a float32 counts in steps of 2; at the end the
    # second half has taken all of it away, and what is left is the product of the last codes.
    half, m, n = 2_000, 7, 10
    a, b = codes(m, half, lowest=100), codes(half, n, lowest=100)
    order = torch.randperm(half, device=DEVICE)
    last_a, last_b = codes(m, 1, lowest=-11, highest=11), codes(1, n, lowest=-11, highest=11)
    a = torch.cat([a, a[:, order], last_a], 1)
    b = torch.cat([b, -b[order], last_b])
    actual = run(impl.int8_matmul, a, b, 0.5, 0.25, 0.25, 0, 0, 0)
    expected = (last_a.double() * last_b / 2).round().to(torch.int8)
    assert_matches(actual, expected, "sums over 4,001 products that pass 25 million and cancel")


def test_exact_beside_a_half(impl):
    # Sums of 2 to the 24th and thrice that, one more and one less; a step of c is 2 to the 25th.
    a = torch.cat([codes(3, 3_072, highest=-128), int8([[1], [0], [-1]])], 1)
    b = torch.cat([codes(3_072, 2, highest=-128), int8([[1, 1]])])
    b[1_024:, 0] = int8([0] * 2_048 + [1])
    actual = run(impl.int8_matmul, a, b, 0.5, 0.25, 2.0**22, 0, 0, 0)
    expected = int8([[1, 2], [0, 2], [0, 1]])
    assert_matches(actual, expected, "sums at 0.5 and 1.5 steps, and one unit above and below")


def check_lowest_sum(impl, k):
    """Check the lowest sum there is over k products; it is 110 steps of c below zero."""
    a, b = int8([[-128]]).expand(1, k), int8([[127]]).expand(k, 1)
    lowest = -(255**2) * k
    step = -lowest / 110
    actual = run(impl.int8_matmul, a, b, 0.5, 0.25, step / 8, 127, -128, 101)
    steps = torch.tensor([[lowest / step]], dtype=torch.float64, device=DEVICE)
    assert_codes(actual, steps, 101, f"a sum of {lowest:,} over {k:,} products")


def test_sums_beyond_int32(impl):
    check_lowest_sum(impl, 33_100)


# Zero points.


def test_zero_point_of_a(impl):
    a, b = int8([[1, 2, 0], [4, 3, 5]]), int8([[1, 0, 2, -1], [0, 3, 1, 2], [2, 1, 0, 1]])
    actual = run(impl.int8_matmul, a, b, **UNIT, zp_a=3, zp_b=0, zp_c=0)
    expected = int8([[-8, -6, -5, -3], [5, 2, 2, 1]])
    assert_matches(actual, expected, "small codes, zero point 3 for a alone")


def test_zero_point_of_b(impl):
    a, b = int8([[1, 2, 0], [4, 3, 5]]), int8([[1, 0, 2, -1], [0, 3, 1, 2], [2, 1, 0, 1]])
    actual = run(impl.int8_matmul, a, b, **UNIT, zp_a=0, zp_b=2, zp_c=0)
    expected = int8([[-5, 0, -2, -3], [-10, -10, -13, -17]])
    assert_matches(actual, expected, "small codes, zero point 2 for b alone")


def test_zero_points_together(impl):
    # Codes at their zero point stand for 0.0, and so does their product with anything.
    a, b = codes(2, 1_024, lowest=3, highest=3), codes(1_024, 3, lowest=5, highest=5)
    a[1, 700], b[0, 1], b[700, 2] = 11, 9, 17
    actual = run(impl.int8_matmul, a, b, 0.5, 0.25, 4.0, 3, 5, 0)
    expected = int8([[0, 0, 0], [0, 0, 3]])
    assert_matches(actual, expected, "1,024 codes at their zero points, 3 for a and 5 for b")


def test_zero_point_of_c(impl):
    a, b = int8([[1, 2], [-3, 1], [0, 2]]), int8([[4], [5]])
    actual = run(impl.int8_matmul, a, b, **UNIT, zp_a=0, zp_b=0, zp_c=-9)
    assert_matches(actual, int8([[5], [-16], [1]]), "sums of 14, -7 and 10, zero point -9 for c")


# From sums to codes.


def test_rounds_halves_to_even(impl):
    # Sums 2, 6, 10, -2, -6 are 0.5, 1.5, 2.5, -0.5, -1.5 steps of c.
    a, b = int8([[1], [3], [5], [-1], [-3]]), int8([[2]])
    for zp_c, expected in [(0, [0, 2, 2, 0, -2]), (7, [7, 9, 9, 7, 5])]:
        actual = run(impl.int8_matmul, a, b, 0.5, 0.5, 1.0, 0, 0, zp_c)
        what = f"results of halves, zero point {zp_c} for c"
        assert_matches(actual, int8(expected)[:, None], what)


def test_rounds_to_the_nearest(impl):
    a, b = int8([[1], [3], [5], [7], [9], [11], [13], [15]]), int8([[1, -1]])
    expected = int8([0, 0, 1, 1, 1, 1, 2, 2])[:, None]
    actual = run(impl.int8_matmul, a, b, 0.5, 0.25, 1.0, 0, 0, 0)
    what = "results of 1/8, 3/8 and so on to 15/8, and their negatives"
    assert_matches(actual, torch.cat([expected, -expected], 1), what)


def test_saturates(impl):
    a, b = int8([[100], [-100], [60]]), int8([[2, 3]])
    actual = run(impl.int8_matmul, a, b, **UNIT, zp_a=0, zp_b=0, zp_c=0)
    expected = int8([[127, 127], [-128, -128], [120, 127]])
    assert_matches(actual, expected, "results of 200, 300, -200, -300, 120 and 180")


def test_saturates_far_values(impl):
    a, b = int8([[100], [-100], [0]]), int8([[2, 3]])
    expected = int8([[127, 127], [-128, -128], [0, 0]])
    for scale, zp_c in [(1e8, 5), (1e30, -5)]:
        actual = run(impl.int8_matmul, a, b, scale, 1.0, 1.0, 0, 0, zp_c)
        expected[2] = zp_c
        what = f"results near {200 * scale:g}, their negatives and 0, zero point {zp_c} for c"
        assert_matches(actual, expected, what)


def test_zero_point_of_c_brings_results_back_into_range(impl):
    a, b = int8([[50], [-50]]), int8([[3]])
    for zp_c, expected in [(-50, [100, -128]), (60, [127, -90])]:
        actual = run(impl.int8_matmul, a, b, **UNIT, zp_a=0, zp_b=0, zp_c=zp_c)
        what = f"150 and -150 steps, zero point {zp_c} for c"
        assert_matches(actual, int8(expected)[:, None], what)


def test_scales_whose_products_are_beyond_float32(impl):
    # The product of two scales, and its quotient by the third, pass 3e38; zero times that is zero.
    a, b = int8([[1, -1], [2, 1], [1, 2]]), int8([[3], [3]])
    expected = int8([[-7], [127], [127]])
    for scales in [(1e30, 1e30, 1e-30), (1e30, 1e30, 1e30), (1e30, 1.0, 1e-30), (1e20, 1e20, 1.0)]:
        actual = run(impl.int8_matmul, a, b, *scales, 0, 0, -7)
        what = f"sums of 0, 9 and 9 with scales {scales}, zero point -7 for c"
        assert_matches(actual, expected, what)
    actual = run(impl.int8_matmul, a, b, 1e-30, 1e-30, 1e30, 0, 0, -7)
    what = "sums of 0, 9 and 9 with scales 1e-30, 1e-30 and 1e30, zero point -7 for c"
    assert_matches(actual, int8([[-7], [-7], [-7]]), what)


# What must hold of every function.


def any_case():
    return [codes(3, 5), codes(5, 2), 0.5, 0.25, 16.0, 4, -3, 7]


def multiplied(a, b, scale_a, scale_b, scale_c, zp_a, zp_b, zp_c):
    """Return the codes at scales that are powers of two."""
    steps = exact_sums(a, b, zp_a, zp_b) * (scale_a * scale_b / scale_c)
    return (steps.round() + zp_c).clamp(-128, 127).to(torch.int8)


def test_nothing_stays_from_an_earlier_call(impl):
    assert_repeatable(impl.int8_matmul, any_case, multiplied, "int8_matmul")
    a, b, *rest = any_case()
    expected = multiplied(a, b, *rest)
    impl.int8_matmul(a, b, 1.0, 2.0, 4.0, -5, 6, -8)
    actual = impl.int8_matmul(a, b, *rest)
    what = "int8_matmul of the same tensors with other scales and zero points than before"
    assert_matches(actual, expected, what)


def test_under_any_mode(impl):
    arguments = any_case()
    assert_any_mode(impl.int8_matmul, arguments, multiplied(*arguments), "int8_matmul")


def test_one_tensor_for_both(impl):
    a = codes(4, 4)
    actual = run(impl.int8_matmul, a, a, 0.5, 0.25, 16.0, 4, -3, 7)
    expected = multiplied(a, a, 0.5, 0.25, 16.0, 4, -3, 7)
    assert_matches(actual, expected, "int8_matmul of a tensor with itself")


# What only a GPU shows.


@pytest.mark.gpu
def test_large_matrices(impl):
    # Many tiles that load and multiply at the same time, five times over.
    m, k, n = 1_000, 2_080, 1_500
    a, b = codes(m, k), codes(k, n)
    for other in (b, b.T.contiguous().T, codes(k + 1, n + 3)[1:, 3:], b, b):
        what = f"({m}, {k}) by ({k}, {n}) codes with strides {other.stride()}"
        check(impl, a, other, (-20, 9, 4), what)


@pytest.mark.gpu
def test_sums_over_100_000_products(impl):
    check_lowest_sum(impl, 100_000)


@pytest.mark.gpu
def test_more_than_2_to_the_31st_codes_in_a(impl):
    # 2 to the 31st zeros stand before a: an offset that has wrapped around reads them.
    m, k, n = 22_000, 100_000, 24
    buffer = torch.zeros(2**31 + m * k, dtype=torch.int8, device=DEVICE)
    a, b = buffer[2**31 :].view(m, k), codes(k, n)
    a.random_(-128, 128)
    actual = impl.int8_matmul(a, b, 0.5, 0.25, 4096.0, 3, -2, 1)
    for rows in (slice(0, 3), slice(m // 2, m // 2 + 3), slice(m - 3, m)):
        steps = exact_sums(a[rows], b, 3, -2) / 2.0**15
        what = f"rows {rows.start} to {rows.stop - 1} of ({m}, {k}) by ({k}, {n}) codes"
        assert_codes(actual[rows], steps, 1, what)


@pytest.mark.gpu
def test_speed(impl):
    m, k, n = 4_096, 4_096, 4_096
    a, b = codes(m, k), codes(n, k).T  # as the weight of a linear layer lies in memory
    zp_a, zp_b, zp_c = 5, -7, 3

    def in_torch(a, b):
        acc = torch._int_mm(a, b).double() + k * zp_a * zp_b
        acc = acc - zp_b * a.sum(1, dtype=torch.int32)[:, None]
        acc = acc - zp_a * b.sum(0, dtype=torch.int32)
        return ((acc * (0.02 * 0.03 / 3.0)).round() + zp_c).clamp(-128, 127).to(torch.int8)

    compiled = torch.compile(in_torch)
    ratio = speed(
        lambda: impl.int8_matmul(a, b, 0.02, 0.03, 3.0, zp_a, zp_b, zp_c),
        lambda: in_torch(a, b),
        lambda: compiled(a, b),
    )
    assert ratio >= 0.5, (
        f"({m}, {k}) by ({k}, {n}) codes: {ratio:.2f} times as fast as torch._int_mm "
        "and the rest in torch; at least 0.5 is asked for"
    )


@pytest.mark.gpu
def test_more_than_2_to_the_31st_codes_in_the_result(impl):
    # The last test: a write to an offset that has wrapped around ends all work on the device.
    m, k, n = 46_500, 16, 46_400
    a, b = codes(m, k), codes(k, n)
    actual = impl.int8_matmul(a, b, 0.5, 0.25, 128.0, 3, -2, 1)
    for rows in (slice(0, 3), slice(m // 2, m // 2 + 3), slice(m - 3, m)):
        steps = exact_sums(a[rows], b, 3, -2) / 1024
        what = f"rows {rows.start} to {rows.stop - 1} of ({m}, {k}) by ({k}, {n}) codes"
        assert_codes(actual[rows], steps, 1, what)
