import pytest
import torch

from dojo.testing import (
    assert_all_match,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    layouts,
    unchanged,
)

# How near to a half a number of steps may be for the brief to let it go to either side: float32
# arithmetic in three operations on numbers below 256 is wrong by less than 0.00005.
HAIR = 1e-4
# M, K and N differ, and each is 1 once; the last two are square, for sums along the wrong axis.
SIZES = [(1, 7, 3), (5, 1, 2), (3, 9, 1), (17, 33, 8), (2, 300, 3), (4, 7, 4), (6, 6, 6)]
# Zero points of a, b and c.
ZERO_POINTS = [(0, 0, 0), (5, -7, 3), (-128, 11, -20), (-3, 127, 0), (-9, -9, -9), (6, 6, 6)]


def codes(*shape):
    """Return random int8 codes over the whole range."""
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def int8(values):
    return torch.tensor(values, dtype=torch.int8)


def assert_codes(actual, steps, zero_point, behaviour, lowest=-128):
    """Compare codes with those of `steps`, exact in float64; near a half, either of two will do."""
    below, expected, above = (
        ((steps + shift).round() + zero_point).clamp(lowest, 127).to(torch.int8)
        for shift in (-HAIR, 0, HAIR)
    )
    if isinstance(actual, torch.Tensor) and actual.shape == expected.shape:
        fits = (actual >= below) & (actual <= above)
        expected = torch.where(fits, actual.to(torch.int8), expected)
    assert_matches(actual, expected, behaviour)


def exact_sums(a, b, zp_a, zp_b):
    """Return the sums over K in float64, where integers are exact up to 2 to the 53rd."""
    return ((a.long() - zp_a) @ (b.long() - zp_b)).double()


def int8_layouts(q):
    """Yield the codes in memory layouts that break code which assumes a contiguous one."""
    yield "contiguous", q.clone()
    yield "transposed", q.T.contiguous().T
    wide = torch.full((q.shape[0], 2 * q.shape[1] + 1), 77, dtype=torch.int8)
    sliced = wide[:, 1::2]
    sliced.copy_(q)
    yield "every other column of a wider matrix", sliced


# quantize


@pytest.mark.parametrize("shape", [(9,), (4, 7), (2, 3, 5)])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.05, 0), (0.013, -41), (0.3, 90)])
def test_quantize_matches_the_formula(impl, shape, scale, zero_point):
    x = torch.randn(shape) * 60 * scale
    with unchanged(x=x):
        actual = impl.quantize(x, scale, zero_point)
    behaviour = f"quantize, scale {scale}, zero point {zero_point}"
    assert_codes(actual, x.double() / scale, zero_point, behaviour)


def test_quantize_rounds_to_the_nearest(impl):
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, -0.25, -0.75, -1.25, -1.75]) * 0.5
    expected = int8([0, 1, 1, 2, 0, -1, -1, -2])
    assert_matches(impl.quantize(x, 0.5, 0), expected, "quantize of quarters and three quarters")


def test_quantize_rounds_halves_to_even(impl):
    x = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5]) * 0.25
    expected = int8([0, 2, 2, 4, 0, -2, -2, -4])
    assert_matches(impl.quantize(x, 0.25, 0), expected, "quantize of halves, zero point 0")


def test_quantize_adds_the_zero_point_to_rounded_steps(impl):
    # With an odd zero point the even neighbour of a half is another one before it is added.
    x = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5]) * 0.25
    expected = int8([3, 5, 5, 7, 3, 1, 1, -1])
    assert_matches(impl.quantize(x, 0.25, 3), expected, "quantize of halves, zero point 3")


def test_quantize_reaches_both_ends(impl):
    x = torch.tensor([-128.0, -127.0, 126.0, 127.0]) * 2
    assert_matches(
        impl.quantize(x, 2.0, 0), int8([-128, -127, 126, 127]), "quantize at the ends of the range"
    )


def test_quantize_saturates(impl):
    x = torch.tensor([127.75, 128.0, 200.0, 1000.0, -128.75, -129.0, -200.0, -1000.0]) * 0.5
    expected = int8([127] * 4 + [-128] * 4)
    assert_matches(impl.quantize(x, 0.5, 0), expected, "quantize just outside the range")
    x = torch.tensor([100.0, 100.0, -100.0]) * 0.5
    assert_matches(
        impl.quantize(x, 0.5, 50), int8([127, 127, -50]), "quantize, zero point 50 carries it out"
    )


@pytest.mark.parametrize("zero_point", [0, 3, 127, -128])
def test_quantize_of_every_half_step(impl, zero_point):
    steps = torch.arange(-600, 601) / 2
    expected = (steps.double().round() + zero_point).clamp(-128, 127).to(torch.int8)
    behaviour = f"quantize of half steps from -300 to 300, zero point {zero_point}"
    assert_matches(impl.quantize(steps * 0.25, 0.25, zero_point), expected, behaviour)
    b = torch.arange(-128, 128).to(torch.int8)[None]
    for factor in (1, 2, 3, 5):
        expected = ((factor * b.double() / 2).round() + zero_point).clamp(-128, 127).to(torch.int8)
        actual = impl.int8_matmul(int8([[factor]]), b, 0.5, 1.0, 1.0, 0, 0, zero_point)
        behaviour = f"halves of {factor} times each code, zero point {zero_point} for c"
        assert_matches(actual, expected, behaviour)


@pytest.mark.parametrize("zero_point", [5, -5, 127, -128])
def test_quantize_saturates_far_values(impl, zero_point):
    x = torch.tensor([3e9, 1e20, 1e30, torch.inf, -3e9, -1e20, -1e30, -torch.inf])
    expected = int8([127] * 4 + [-128] * 4)
    behaviour = f"quantize of values beyond every integer type, zero point {zero_point}"
    assert_matches(impl.quantize(x, 0.5, zero_point), expected, behaviour)


def test_quantize_takes_any_layout(impl):
    for layout, x in layouts(torch.randn(5, 3, 8)):
        actual = impl.quantize(x, 0.02, 3)
        assert_codes(actual, x.double() / 0.02, 3, f"quantize of a tensor that is {layout}")


# dequantize


@pytest.mark.parametrize("zero_point", [0, 100, 127, -9, -128])
def test_dequantize_every_code(impl, zero_point):
    q = torch.arange(-128, 128).to(torch.int8).reshape(16, 16)
    with unchanged(q=q):
        actual = impl.dequantize(q, 0.037, zero_point)
    expected = ((q.double() - zero_point) * 0.037).float()
    assert_matches(actual, expected, f"dequantize of every code, zero point {zero_point}")


def test_dequantize_near_the_zero_point(impl):
    q = int8([[3, 4, 5], [6, 2, 13]])
    expected = torch.tensor([[-0.5, -0.25, 0.0], [0.25, -0.75, 2.0]])
    assert_matches(impl.dequantize(q, 0.25, 5), expected, "dequantize, scale 0.25, zero point 5")


def test_dequantize_takes_any_layout(impl):
    for layout, q in int8_layouts(codes(5, 8)):
        expected = ((q.double() + 20) * 0.7).float()
        assert_matches(impl.dequantize(q, 0.7, -20), expected, f"dequantize of codes {layout}")


def test_a_round_trip_is_off_by_half_a_step_at_most(impl):
    x = (torch.rand(300) - 0.5) * 4  # within the range: 2 / 0.02 = 100 steps from 15
    back = impl.dequantize(impl.quantize(x, 0.02, 15), 0.02, 15)
    worst = (back - x).abs().max().item()
    assert worst <= 0.01 * (1 + 1e-3), (
        f"numbers that go to int8 and back at scale 0.02 should move by 0.01 at most; "
        f"one moved by {worst:.4g}"
    )


# quantize_per_channel

WEIGHTS_AND_AXES = [
    ((4, 7), 0),
    ((4, 7), 1),
    ((3, 5, 2), 0),
    ((3, 5, 2), 1),
    ((6, 4, 3, 2), 0),
    ((6, 4, 3, 2), 2),
    ((1, 5), 0),
    ((5, 1), 0),
    ((1, 5), 1),
    ((5, 1), 1),
    ((3, 1, 4), 1),
    ((4, 4), 0),
    ((4, 4), 1),
    *(((3, 3, 3, 3), axis) for axis in range(4)),
    ((3, 1000), 0),
    ((1000, 3), 1),
]


def weights(shape, axis):
    """Return weights whose channels along `axis` differ in size by orders of magnitude."""
    sizes = 10.0 ** (2 * torch.rand(shape[axis]) - 1)
    return torch.randn(shape) * sizes.reshape([-1 if d == axis else 1 for d in range(len(shape))])


def check_per_channel(q, scales, w, axis, behaviour):
    """Compare with each channel's largest magnitude, one channel at a time."""
    channels = w.double().movedim(axis, 0).flatten(1)
    largest = channels.abs().amax(1)
    assert_matches(scales, (largest / 127).float(), f"the scales of {behaviour}", atol=0)
    assert q.shape == w.shape, (
        f"the codes of {behaviour}: the shape is {tuple(q.shape)}, not {tuple(w.shape)}"
    )
    steps = channels * 127 / largest[:, None]
    assert_codes(q.movedim(axis, 0).flatten(1), steps, 0, f"the codes of {behaviour}", lowest=-127)


@pytest.mark.parametrize(("shape", "axis"), WEIGHTS_AND_AXES)
def test_per_channel_matches_one_channel_at_a_time(impl, shape, axis):
    w = weights(shape, axis)
    with unchanged(w=w):
        q, scales = impl.quantize_per_channel(w, axis)
    check_per_channel(q, scales, w, axis, f"a {shape} weight along axis {axis}")


@pytest.mark.parametrize(("shape", "axis"), [((4, 7), -1), ((4, 7), -2), ((3, 5, 2), -2)])
def test_per_channel_counts_axes_from_the_end(impl, shape, axis):
    w = weights(shape, axis % len(shape))
    q, scales = impl.quantize_per_channel(w, axis=axis)
    check_per_channel(q, scales, w, axis, f"a {shape} weight along axis {axis}")


def test_per_channel_is_symmetric(impl):
    # The largest magnitude of a channel is 127 steps, whichever sign it has.
    w = torch.tensor([[127.0, -64.0, 3.0], [32.0, 5.0, -254.0]])
    expected = int8([[127, -64, 3], [16, 2, -127]])
    q, scales = impl.quantize_per_channel(w, 0)
    assert_matches(
        scales, torch.tensor([1.0, 2.0]), "scales of channels up to 127 and down to -254"
    )
    assert_matches(q, expected, "codes of channels to 127 and to -254")


def test_per_channel_of_zeros(impl):
    w = torch.tensor([[0.0, 127.0], [0.0, -64.0], [0.0, 1.0]])
    q, scales = impl.quantize_per_channel(w, 1)
    assert_matches(scales, torch.tensor([1.0, 1.0]), "the scales, the first channel all zeros")
    expected = int8([[0, 127], [0, -64], [0, 1]])
    assert_matches(q, expected, "the codes, the first channel all zeros")


@pytest.mark.parametrize("size", [1e-6, 1e-12, 1e-25])
def test_per_channel_of_tiny_weights(impl, size):
    w = torch.stack([torch.randn(6) * size, torch.randn(6)])
    q, scales = impl.quantize_per_channel(w, 0)
    check_per_channel(q, scales, w, 0, f"channels near {size:g} and near 1")


def test_per_channel_takes_any_layout(impl):
    for layout, w in layouts(weights((5, 3, 8), 1)):
        q, scales = impl.quantize_per_channel(w, 1)
        check_per_channel(q, scales, w, 1, f"a weight that is {layout}")


# int8_matmul. Where scales are not the point they are 1/2, 1/4 and 1/8: a step of c is then one
# unit of the integer sum.
UNIT = {"scale_a": 0.5, "scale_b": 0.25, "scale_c": 0.125}


@pytest.mark.parametrize("zero_points", ZERO_POINTS)
@pytest.mark.parametrize("sizes", SIZES)
def test_matmul_matches_exact_integers(impl, sizes, zero_points):
    m, k, n = sizes
    zp_a, zp_b, zp_c = zero_points
    a, b = codes(m, k), codes(k, n)
    sums = exact_sums(a, b, zp_a, zp_b)
    # Most results fit, a few saturate.
    scale_c = 0.013 * 0.21 * max(sums.abs().max().item(), 1.0) / 150
    with unchanged(a=a, b=b):
        actual = impl.int8_matmul(a, b, 0.013, 0.21, scale_c, zp_a, zp_b, zp_c)
    steps = sums * (0.013 * 0.21 / scale_c)
    behaviour = f"({m}, {k}) by ({k}, {n}) codes, zero points {zp_a}, {zp_b} and {zp_c}"
    assert_codes(actual, steps, zp_c, behaviour)


def test_matmul_takes_its_arguments_by_name(impl):
    a, b = codes(3, 6), codes(6, 4)
    actual = impl.int8_matmul(
        a=a, b=b, scale_a=0.02, scale_b=0.3, scale_c=2.5, zp_a=4, zp_b=-2, zp_c=7
    )
    steps = exact_sums(a, b, 4, -2) * (0.02 * 0.3 / 2.5)
    assert_codes(actual, steps, 7, "int8_matmul with every argument by name")


def test_matmul_uses_each_scale(impl):
    a, b = int8([[2, 3]]), int8([[4, 1], [6, 2]])  # sums 26 and 8
    for scales, expected in [
        ((0.5, 1.0, 1.0), [[13, 4]]),
        ((1.0, 0.25, 1.0), [[6, 2]]),
        ((1.0, 1.0, 0.5), [[52, 16]]),
        ((2.0, 0.5, 4.0), [[6, 2]]),
    ]:
        actual = impl.int8_matmul(a, b, *scales, 0, 0, 0)
        assert_matches(actual, int8(expected), f"sums of 26 and 8 with scales {scales}")


def test_matmul_sums_beyond_int8(impl):
    a, b = int8([[10, 10, 10, 10]]), int8([[10, 5], [10, 5], [10, 5], [10, 5]])
    actual = impl.int8_matmul(a, b, 0.5, 0.5, 1.0, 0, 0, 0)
    assert_matches(actual, int8([[100, 50]]), "a quarter of the sums 400 and 200")


def test_matmul_sums_beyond_int16(impl):
    a, b = int8([[100] * 9]), int8([[100, -90]] * 9)
    actual = impl.int8_matmul(a, b, 0.03125, 0.03125, 1.0, 0, 0, 0)
    assert_matches(actual, int8([[88, -79]]), "a 1024th of the sums 90,000 and -81,000")


@pytest.mark.parametrize(("zp_a", "zp_b"), [(0, 0), (-78, 37)])
def test_matmul_is_exact_where_large_sums_cancel(impl, zp_a, zp_b):
    # Halfway the sums stand near 400 million, where a float32 counts in steps of 32; at the end
    # the second half, mirrored at b's zero point, has taken all of it away, and what is left is
    # the last column of a. With zero points the sums of the codes alone are as large to the end.
    half, m, n = 49_999, 3, 4
    a, b = (torch.randint(64, 128, shape, dtype=torch.int8) for shape in [(m, half), (half, n)])
    order = torch.randperm(half)
    last_a, last_b = [[1 + zp_a], [-50 + zp_a], [9 + zp_a]], [[n + zp_b for n in (1, 2, -2, 0)]]
    a = torch.cat([a, a[:, order], int8(last_a)], 1)
    b = torch.cat([b, (2 * zp_b - b[order].int()).to(torch.int8), int8(last_b)])
    actual = impl.int8_matmul(a, b, **UNIT, zp_a=zp_a, zp_b=zp_b, zp_c=0)
    expected = int8([[1, 2, -2, 0], [-50, -100, 100, 0], [9, 18, -18, 0]])
    behaviour = "sums over 99,999 products that pass 400 million and cancel"
    assert_matches(actual, expected, f"{behaviour}, zero points {zp_a} and {zp_b}")


@pytest.mark.parametrize(("zp_a", "zp_b"), [(127, -128), (-128, 127)])
def test_matmul_sums_beyond_int32(impl, zp_a, zp_b):
    k = 100_000
    a, b = int8([[-128], [127], [100]]), int8([[127, -128]])
    actual = impl.int8_matmul(a.repeat(1, k), b.repeat(k, 1), 0.5, 0.25, 2.0**23, zp_a, zp_b, 4)
    # The largest sum, 255 squared times 100,000, is 6.5e9; a step of c is 2 to the 26th.
    steps = k * exact_sums(a, b, zp_a, zp_b) / 2.0**26
    behaviour = f"sums over 100,000 extreme codes, zero points {zp_a} and {zp_b}"
    assert_codes(actual, steps, 4, behaviour)


def test_matmul_of_the_lowest_codes(impl):
    a, b = torch.full((2, 5), -128, dtype=torch.int8), torch.full((5, 3), -128, dtype=torch.int8)
    actual = impl.int8_matmul(a, b, 2.0**-5, 2.0**-5, 1.0, 0, 0, 0)
    expected = torch.full((2, 3), 80, dtype=torch.int8)
    assert_matches(actual, expected, "a 1024th of five times (-128) squared")


def test_matmul_zero_point_of_a(impl):
    a, b = int8([[1, 2, 0], [4, 3, 5]]), int8([[1, 0, 2, -1], [0, 3, 1, 2], [2, 1, 0, 1]])
    actual = impl.int8_matmul(a, b, **UNIT, zp_a=3, zp_b=0, zp_c=0)
    expected = int8([[-8, -6, -5, -3], [5, 2, 2, 1]])
    assert_matches(actual, expected, "small codes, zero point 3 for a alone")


def test_matmul_zero_point_of_b(impl):
    a, b = int8([[1, 2, 0], [4, 3, 5]]), int8([[1, 0, 2, -1], [0, 3, 1, 2], [2, 1, 0, 1]])
    actual = impl.int8_matmul(a, b, **UNIT, zp_a=0, zp_b=2, zp_c=0)
    expected = int8([[-5, 0, -2, -3], [-10, -10, -13, -17]])
    assert_matches(actual, expected, "small codes, zero point 2 for b alone")


def test_matmul_zero_points_together(impl):
    # Codes at their zero point stand for 0.0, and so does their product with anything.
    a = int8([[3, 3], [3, 4]])
    b = int8([[5, 7, 4], [5, 5, 6]])
    actual = impl.int8_matmul(a, b, **UNIT, zp_a=3, zp_b=5, zp_c=0)
    expected = int8([[0, 0, 0], [0, 0, 1]])
    assert_matches(actual, expected, "codes at their zero points, 3 for a and 5 for b")


def test_matmul_zero_point_of_c(impl):
    a, b = int8([[1, 2], [-3, 1], [0, 2]]), int8([[4], [5]])
    actual = impl.int8_matmul(a, b, **UNIT, zp_a=0, zp_b=0, zp_c=-9)
    assert_matches(actual, int8([[5], [-16], [1]]), "sums of 14, -7 and 10, zero point -9 for c")


def test_matmul_rounds_halves_to_even(impl):
    # Sums 2, 6, 10, -2, -6 are 0.5, 1.5, 2.5, -0.5, -1.5 steps of c.
    a, b = int8([[1], [3], [5], [-1], [-3]]), int8([[2]])
    for zp_c, expected in [(0, [0, 2, 2, 0, -2]), (7, [7, 9, 9, 7, 5])]:
        actual = impl.int8_matmul(a, b, 0.5, 0.5, 1.0, 0, 0, zp_c)
        assert_matches(
            actual, int8(expected)[:, None], f"results of halves, zero point {zp_c} for c"
        )


def test_matmul_rounds_to_the_nearest(impl):
    # Sums 1, 3, 5, 7 and their negatives are quarters and three quarters.
    a, b = int8([[1], [3], [5], [7], [-1], [-3], [-5], [-7]]), int8([[1]])
    actual = impl.int8_matmul(a, b, 0.5, 0.5, 1.0, 0, 0, 0)
    expected = int8([0, 1, 1, 2, 0, -1, -1, -2])[:, None]
    assert_matches(actual, expected, "results of quarters and three quarters")


def test_matmul_saturates(impl):
    a, b = int8([[100], [-100], [60]]), int8([[2, 3]])
    actual = impl.int8_matmul(a, b, **UNIT, zp_a=0, zp_b=0, zp_c=0)
    expected = int8([[127, 127], [-128, -128], [120, 127]])
    assert_matches(actual, expected, "results outside the range")


def test_matmul_takes_any_layout(impl):
    a, b = codes(5, 6), codes(6, 3)
    steps = exact_sums(a, b, 4, -2) / 2.0**9
    for layout_a, one in int8_layouts(a):
        for layout_b, other in int8_layouts(b):
            actual = impl.int8_matmul(one, other, 0.25, 0.5, 64.0, 4, -2, 1)
            assert_codes(actual, steps, 1, f"a that is {layout_a} by b that is {layout_b}")


def test_matmul_takes_expanded_codes(impl):
    for which, a in [("row", codes(1, 6)), ("column", codes(5, 1))]:
        b = codes(6, 3)
        expected = exact_sums(a.expand(5, 6), b, 4, -2) / 2.0**9
        actual = impl.int8_matmul(a.expand(5, 6), b, 0.25, 0.5, 64.0, 4, -2, 1)
        assert_codes(actual, expected, 1, f"an a whose {which}s are one")
    for which, b in [("row", codes(1, 3)), ("column", codes(6, 1))]:
        a = codes(5, 6)
        expected = exact_sums(a, b.expand(6, 3), 4, -2) / 2.0**9
        actual = impl.int8_matmul(a, b.expand(6, 3), 0.25, 0.5, 64.0, 4, -2, 1)
        assert_codes(actual, expected, 1, f"a b whose {which}s are one")


# All functions: whatever is called before, in any mode, and at the edges. Scales are powers of
# two, so that codes are exact.


def quantize_case():
    return torch.randn(4, 7) * 20, 0.25, -3


def quantized(x, scale, zero_point):
    return ((x.double() / scale).round() + zero_point).clamp(-128, 127).to(torch.int8)


def dequantize_case():
    return codes(4, 7), 0.25, -3


def dequantized(q, scale, zero_point):
    return ((q.double() - zero_point) * scale).float()


def per_channel_case():
    # The largest magnitude of each row is 127 times a power of two, in another place each time.
    w = torch.randint(-126, 127, (4, 7)).float()
    w[torch.arange(4), torch.randint(0, 7, (4,))] = -127.0
    return w * 2.0 ** torch.randint(-3, 3, (4, 1)), 0


def per_channel(w, axis):
    scales = w.abs().amax(1) / 127
    return (w / scales[:, None]).round().to(torch.int8), scales


def matmul_case():
    return codes(4, 6), codes(6, 3), 0.25, 0.5, 64.0, 4, -2, 1


def multiplied(a, b, scale_a, scale_b, scale_c, zp_a, zp_b, zp_c):
    steps = exact_sums(a, b, zp_a, zp_b) * (scale_a * scale_b / scale_c)
    return (steps.round() + zp_c).clamp(-128, 127).to(torch.int8)


CASES = [
    ("quantize", quantize_case, quantized),
    ("dequantize", dequantize_case, dequantized),
    ("quantize_per_channel", per_channel_case, per_channel),
    ("int8_matmul", matmul_case, multiplied),
]


@pytest.mark.parametrize(("name", "case", "expected"), CASES)
def test_nothing_stays_from_an_earlier_call(impl, name, case, expected):
    assert_repeatable(getattr(impl, name), case, expected, name)


@pytest.mark.parametrize(("name", "case", "expected"), CASES)
def test_the_same_under_any_mode(impl, name, case, expected):
    arguments = case()
    assert_any_mode(getattr(impl, name), arguments, expected(*arguments), name)


@pytest.mark.parametrize(("name", "case", "expected"), CASES)
def test_any_layout_of_each_argument(impl, name, case, expected):
    arguments = case()
    function = getattr(impl, name)
    wanted = expected(*arguments)
    if arguments[0].dtype == torch.float32:
        assert_any_layout(function, arguments, wanted, name)
        return
    for layout, q in int8_layouts(arguments[0]):
        actual = function(q, *arguments[1:])
        assert_all_match(actual, wanted, f"{name} of codes that are {layout}")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (70_001,)])
def test_any_shape(impl, shape):
    x = torch.randn(shape) * 20
    assert_matches(impl.quantize(x, 0.25, 5), quantized(x, 0.25, 5), f"quantize of shape {shape}")
    q = codes(*shape)
    expected = dequantized(q, 0.25, 5)
    assert_matches(impl.dequantize(q, 0.25, 5), expected, f"dequantize of shape {shape}")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_at_the_ends_of_their_range(impl, scale):
    steps = torch.tensor([0.0, 1.0, -2.0, 99.0, -127.0, 300.0, -300.0])
    x = (steps.double() * scale).float()
    behaviour = f"quantize of whole steps, scale {scale}"
    assert_matches(impl.quantize(x, scale, 3), quantized(steps, 1, 3), behaviour)
    q = int8([3, 4, 1, 127, -128])
    expected = dequantized(q, scale, 3)
    behaviour = f"dequantize, scale {scale}"
    assert_matches(impl.dequantize(q, scale, 3), expected, behaviour, atol=0)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ((1e30, 1e30, 1e-30), [5, 127, -128]),  # products beyond float32
        ((1e-30, 1e-30, 1e30), [5, 5, 5]),
        ((1e30, 1e30, 1e30), [5, 127, -128]),
        ((1e-30, 1e30, 1.0), [5, 7, 2]),
        ((1e30, 1e-30, 1.0), [5, 7, 2]),
        ((1e-30, 1.0, 1e-30), [5, 7, 2]),
        ((1e-30, 1e-30, 1e-30), [5, 5, 5]),
    ],
)
def test_matmul_scales_at_the_ends_of_their_range(impl, scales, expected):
    a, b = int8([[0], [2], [-3]]), int8([[1]])
    actual = impl.int8_matmul(a, b, *scales, 0, 0, 5)
    behaviour = f"sums of 0, 2 and -3 with scales {scales}, zero point 5 for c"
    assert_matches(actual, int8(expected)[:, None], behaviour)


@pytest.mark.parametrize(("zp_a", "zp_b"), [(0, 0), (-1, -7)])
@pytest.mark.parametrize("sign", [1, -1])
def test_matmul_keeps_every_digit_of_a_large_sum(impl, sign, zp_a, zp_b):
    # The sum is 2 ** 25 + 1, which no float32 holds: a hair more than half a step.
    count, rest = divmod(2**25 + 1, 120 * 110)
    a = int8([[sign * code + zp_a for code in [120] * count + [120, 1]]])
    b = int8([[code + zp_b] for code in [110] * count + [rest // 120, rest % 120]])
    actual = impl.int8_matmul(a, b, 2.0**-13, 2.0**-13, 1.0, zp_a, zp_b, 0)
    behaviour = f"a sum of {sign * (2**25 + 1)} at 2 ** -26, zero points {zp_a} and {zp_b}"
    assert_matches(actual, int8([[sign]]), behaviour)


@pytest.mark.parametrize("zero_point", [-127, 127])
def test_matmul_keeps_every_digit_of_far_codes(impl, zero_point):
    # A product of 1, then 520 of 254 squared and one of 6,112: in all 2 ** 25 + 1. The one is lost
    # in any float32 that holds more than 260 of them.
    sign = -1 if zero_point > 0 else 1
    a = int8([[zero_point + sign * n for n in [1] + [254] * 520 + [191]]])
    b = int8([[zero_point + sign * n] for n in [1] + [254] * 520 + [32]])
    actual = impl.int8_matmul(a, b, 2.0**-13, 2.0**-13, 1.0, zero_point, zero_point, 0)
    behaviour = f"a sum of {2**25 + 1} at 2 ** -26, zero points {zero_point}"
    assert_matches(actual, int8([[1]]), behaviour)


def test_a_transpose_that_starts_at_the_same_address(impl):
    a, b = codes(6, 6), codes(6, 6)
    for one, other in ((a, b), (a, b.T), (a.T, b), (a.T, b.T)):
        arguments = one, other, 0.25, 0.5, 64.0, 4, -2, 1
        behaviour = "int8_matmul of the same memory, transposed"
        assert_matches(impl.int8_matmul(*arguments), multiplied(*arguments), behaviour)
    w = weights((5, 5), 0)
    for name, tensor, axis in (("w", w, 0), ("w transposed", w.T, 0), ("w again", w, 1)):
        q, scales = impl.quantize_per_channel(tensor, axis)
        check_per_channel(q, scales, tensor, axis, f"{name} along axis {axis}")
    x = torch.randn(5, 5) * 20
    for tensor in (x, x.T):
        behaviour = "quantize of the same memory, transposed"
        assert_matches(impl.quantize(tensor, 0.25, 3), quantized(tensor, 0.25, 3), behaviour)
        q = a if tensor is x else a.T
        behaviour = "dequantize of the same memory, transposed"
        assert_matches(impl.dequantize(q, 0.25, 3), dequantized(q, 0.25, 3), behaviour)


def test_per_channel_of_weights_at_the_edge_of_float32(impl):
    w = torch.tensor([[3e38, -1e38, 0.0], [1e-30, -0.5e-30, 0.0], [-3.4e38, 3.4e38, 1.0]])
    q, scales = impl.quantize_per_channel(w, 0)
    check_per_channel(q, scales, w, 0, "channels near 3e38 and 1e-30")


def test_per_channel_returns_a_tuple(impl):
    result = impl.quantize_per_channel(torch.ones(2, 3), 0)
    assert isinstance(result, tuple), f"quantize_per_channel gives {type(result).__name__}"
