import functools

import pytest
import torch
from torch.overrides import TorchFunctionMode

from dojo.kernels import DEVICE, interpreted, memory_traffic, run, speed
from dojo.testing import (
    SOFTMAX,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    layouts,
)

# What the brief allows. A float16 has 11 bits, so two units in its last place are up to 2 to the
# -9th of a value, or two steps of 6e-8 below the smallest normal one.
TOLERANCES = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-8},
    torch.float16: {"rtol": 2e-3, "atol": 1.2e-7},
}
DTYPES = list(TOLERANCES)
INF = float("inf")


def scores(*shape, dtype=torch.float32):
    """Scores spread widely enough that no row is near uniform."""
    return (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)


def assert_softmax(actual, x, behaviour):
    expected = torch.softmax(x.double(), -1).to(x.dtype)
    behaviour = f"softmax of {behaviour}, shape {tuple(x.shape)}, {x.dtype}"
    assert_matches(actual, expected, behaviour, **TOLERANCES[x.dtype])


def check(impl, x, behaviour):
    assert_softmax(run(impl.softmax, x), x, behaviour)


# Right results.


# One, odd, powers of two and just over them. No two axes are equal.
@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [
        (torch.float32, [(3, 1), (4, 7), (2, 128), (3, 1025)]),
        (torch.float16, [(1, 6), (6, 8), (3, 33), (5, 781), (2, 4097)]),
    ],
)
def test_rows_of_any_width(impl, dtype, shapes):
    for shape in shapes:
        check(impl, scores(*shape, dtype=dtype), "rows of one width")


@pytest.mark.parametrize(
    ("dtype", "shape"), [(torch.float32, (131, 40)), (torch.float16, (150, 3))]
)
def test_many_rows(impl, dtype, shape):
    check(impl, scores(*shape, dtype=dtype), "many rows")


@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [(torch.float32, [(2, 16_385)]), (torch.float16, [(2, 16_384), (1, 50_001)])],
)
def test_rows_wider_than_a_tile(impl, dtype, shapes):
    for shape in shapes:
        check(impl, scores(*shape, dtype=dtype), "wide rows")


def test_strided_x(impl):
    for layout, x in list(layouts(scores(7, 5)))[1:]:
        check(impl, x, f"a tensor that is {layout}")
    for x in [
        scores(7).expand(4, 7),
        scores(4, 1).expand(4, 7),
        scores(17, 401)[:, 1::2],
        scores(131, 40).T,
        scores(600, 3).T,
        scores(1, 34_000)[:, ::2],
        scores(1, 600).expand(3, 600),
    ]:
        check(impl, x, f"a tensor with strides {x.stride()}")


def test_scores_far_apart(impl):
    levels = torch.tensor([[-1e4], [-100.0], [0.0], [1e4]])
    check(impl, scores(4, 9) + levels, "rows at -10,000, -100, 0 and 10,000")
    wide = scores(2, 17_000)
    wide[0, 16_500] = wide[1, 3] = 1e3
    wide[1] -= 1e4
    check(impl, wide, "wide rows near 0 and -10,000 with one score 1,000 above, late and early")
    check(impl, torch.tensor([[-6e4, 6e4, 0.0], [6e4, 6e4, 6e4]]).half(), "scores of ±60,000")


def test_scores_of_minus_infinity(impl):
    x = scores(4, 7)
    x[0, 2] = x[1, 0] = x[3, 6] = -INF
    x[2] = -INF
    check(impl, x, "scores of -inf, and a row of nothing else")
    wide = scores(3, 20_000)
    wide[0, :17_000] = wide[1, 3_000:] = wide[2] = -INF
    check(impl, wide, "wide rows that begin or end with -inf, and one of nothing else")
    x = scores(150, 40).T
    x[:30, :130] = -INF
    check(impl, x, "a transposed tensor whose first rows begin with -inf")


def test_empty_x(impl):
    for shape in [(0, 5), (5, 0), (0, 0)]:
        for dtype in DTYPES:
            check(impl, torch.empty(shape, dtype=dtype), "an empty tensor")


def test_scores_at_the_edge_of_the_dtype(impl):
    for dtype in DTYPES:
        edge = torch.finfo(dtype).max
        rows = [[edge, -edge, 0.0], [-edge] * 3, [edge, edge, edge / 2]]
        check(impl, torch.tensor(rows, dtype=dtype), f"scores of {edge:.6g} and its negative")
        wide = torch.full((2, 17_000), -edge, dtype=dtype)
        wide[1, 16_999] = edge
        check(impl, wide, f"wide rows of {-edge:.6g}, one with {edge:.6g} at its end")


def test_float16_of_many_equal_scores(impl):
    # Their sum is beyond 65,504, the largest float16; that of a row of 9,000 is rounded by one.
    for columns in (9_000, 70_000):
        x = torch.full((1, columns), 3.0, dtype=torch.float16)
        check(impl, x, f"{columns:,} equal scores")


def oracle(x):
    return torch.softmax(x.double(), -1).to(x.dtype)


def test_calls_in_any_order_and_mode(impl):
    def softmax(x):
        return impl.softmax(x.to(DEVICE))

    tolerance = TOLERANCES[torch.float32]
    for shape in [(3, 5), (1, 17_000)]:
        what = f"softmax of shape {shape}"
        assert_repeatable(softmax, lambda shape=shape: [scores(*shape)], oracle, what, **tolerance)
        x = scores(*shape)
        assert_any_mode(softmax, [x], oracle(x), what, **tolerance)
        assert_any_layout(softmax, [x], oracle(x), what, **tolerance)
        softmax(x)
        x.neg_()
        assert_matches(softmax(x), oracle(x), f"{what}, whose x has just changed", **tolerance)


def test_torch_does_not_do_the_arithmetic(impl):
    for shape in [(4, 7), (1, 20_000)]:
        with forbid(*SOFTMAX, "logsumexp", "exp", "exp2", "sum", "max", "amax"):
            run(impl.softmax, x=scores(*shape))


# What they cost, as Triton's interpreter counts it.

X = {
    "rows of 5": lambda: scores(420, 5),
    "float16 rows of 9": lambda: scores(300, 9, dtype=torch.float16),
    "rows of 100": lambda: scores(60, 100),
    "rows of 53": lambda: scores(37, 53),
    "float16 rows of 53": lambda: scores(37, 53, dtype=torch.float16),
    "transposed rows of 37": lambda: scores(37, 53).T,
    "transposed rows of 500": lambda: scores(500, 6).T,
    "transposed rows of 17,000": lambda: scores(17_000, 2).T,
    "rows of 1,500": lambda: scores(6, 1500),
    "rows of 16,384": lambda: scores(2, 16_384),
    "float16 rows of 16,384": lambda: scores(1, 16_384, dtype=torch.float16),
    "float16 rows of 20,000": lambda: scores(1, 20_000, dtype=torch.float16),
    "rows of 40,000": lambda: scores(1, 40_000),
    "rows of 200,000": lambda: scores(1, 200_000),
}


class Torch(TorchFunctionMode):
    """Notes what torch itself makes or reads, of the size of `x`."""

    def __init__(self, x):
        super().__init__()
        self.size = x.numel()
        self.known = {x.untyped_storage().data_ptr()}
        self.done = []

    def large(self, value):
        return isinstance(value, torch.Tensor) and 2 * value.numel() >= self.size

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__setitem__" and self.large(args[0]):
            self.done.append(f"it writes into a {described(args[0])}")
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage().data_ptr()
            if "empty" not in name and storage not in self.known:
                if self.large(result):
                    self.done.append(f"it makes a {described(result)} and fills it")
                elif any(map(self.large, args)):
                    self.done.append(f"it reads a {described(next(filter(self.large, args)))}")
            elif name in WRITES and self.large(result):
                self.done.append(f"it writes into a {described(result)}")
            if self.large(result):
                self.known.add(storage)
        return result


WRITES = {"copy_", "fill_", "zero_", "exp_", "sub_", "div_", "mul_", "add_", "masked_fill_"}


def described(x):
    return f"{str(x.dtype).removeprefix('torch.')} tensor of shape {tuple(x.shape)}"


@functools.cache
def count(impl, name):
    """Run `softmax` of an entry of `X` under the interpreter; return what it does to memory."""
    x = X[name]()
    with memory_traffic() as traffic, Torch(x) as torch_itself:
        impl.softmax(x)
    return {
        "shape": tuple(x.shape),
        "loads": traffic.loaded / x.numel(),
        "stores": traffic.stored / x.numel(),
        "sectors": traffic.touched / traffic.asked,
        "lanes": traffic.lanes / (traffic.loaded + traffic.stored),
        "widest": traffic.widest,
        "programs": traffic.programs,
        "float64": traffic.float64,
        "torch": torch_itself.done,
    }


def count_all(impl):
    return {name: count(impl, name) for name in X}


@functools.cache
def all_counts(impl):
    return interpreted(count_all, impl)


def counts(impl, name):
    """Return the counts of one entry of `X`; where there is a GPU, one process counts all."""
    return count(impl, name) if DEVICE == "cpu" else all_counts(impl)[name]


def check_torch(impl, name):
    found = counts(impl, name)
    done = found["torch"]
    assert not done, (
        f"softmax of {name}, shape {tuple(found['shape'])}: torch should allocate the result and "
        f"leave the rest to the kernels; {' and '.join(done)}"
    )


def test_torch_leaves_contiguous_x_to_the_kernels(impl):
    check_torch(impl, "rows of 53")
    check_torch(impl, "rows of 40,000")


def test_torch_leaves_half_precision_to_the_kernels(impl):
    check_torch(impl, "float16 rows of 53")
    check_torch(impl, "float16 rows of 20,000")


def test_torch_leaves_transposed_x_to_the_kernels(impl):
    for width in ("37", "500", "17,000"):
        check_torch(impl, f"transposed rows of {width}")


@pytest.mark.parametrize("name", ["rows of 1,500", "rows of 16,384", "float16 rows of 16,384"])
def test_rows_up_to_16384_are_read_once(impl, name):
    loads = counts(impl, name)["loads"]
    assert loads <= 1.05, f"each score in {name} should be loaded once, not {loads:.3g} times"


@pytest.mark.parametrize("name", ["float16 rows of 20,000", "rows of 40,000", "rows of 200,000"])
def test_wider_rows_are_read_twice(impl, name):
    loads = counts(impl, name)["loads"]
    assert loads <= 2.05, (
        f"each score in {name} should be loaded at most twice, not {loads:.3g} times"
    )


@pytest.mark.parametrize(
    "name", ["rows of 5", "rows of 100", "float16 rows of 20,000", "rows of 200,000"]
)
def test_results_are_written_once(impl, name):
    stores = counts(impl, name)["stores"]
    assert stores <= 1.05, f"each result in {name} should be stored once, not {stores:.3g} times"


@pytest.mark.parametrize(
    "name", ["rows of 5", "float16 rows of 9", "rows of 100", "rows of 1,500", "rows of 16,384"]
)
def test_rows_in_one_tile_are_coalesced(impl, name):
    check_sectors(impl, name)


def test_wide_rows_are_coalesced(impl):
    check_sectors(impl, "rows of 200,000")


def check_sectors(impl, name):
    sectors = counts(impl, name)["sectors"]
    assert sectors <= 1.5, (
        f"loads and stores of {name} should touch 32-byte sectors of 1.5 times the bytes they ask "
        f"for at most; these touch {sectors:.2f} times as many"
    )


@pytest.mark.parametrize("name", ["rows of 5", "rows of 100", "rows of 1,500", "rows of 200,000"])
def test_few_lanes_are_idle(impl, name):
    lanes = counts(impl, name)["lanes"]
    assert lanes <= 4, (
        f"tiles for {name} should have 4 lanes at most for each element they load or store; "
        f"they have {lanes:.3g}"
    )


@pytest.mark.parametrize("name", ["rows of 16,384", "rows of 40,000", "rows of 200,000"])
def test_tiles_fit_registers(impl, name):
    widest = counts(impl, name)["widest"]
    assert widest <= 32_768, (
        f"a tile should have at most 32,768 elements; one for {name} has {widest:,}"
    )


def test_short_rows_share_programs(impl):
    for name in ("rows of 5", "float16 rows of 9", "rows of 100"):
        found = counts(impl, name)
        rows, columns = found["shape"]
        most = rows * columns // 256
        assert found["programs"] <= most, (
            f"{rows} {name} should be done by programs of 256 elements or more on average, so by "
            f"{most} at most; there are {found['programs']}"
        )


@pytest.mark.parametrize(
    "name", ["rows of 53", "float16 rows of 53", "float16 rows of 20,000", "rows of 40,000"]
)
def test_arithmetic_is_no_wider_than_float32(impl, name):
    assert not counts(impl, name)["float64"], f"softmax of {name} computes in float64"


# What only a GPU shows.


def check_bandwidth(impl, x, least, behaviour):
    """Compare with a copy, which reads and writes each element once."""
    ratio = speed(lambda: impl.softmax(x), lambda: x.clone())
    assert ratio >= least, (
        f"softmax of {behaviour}, shape {tuple(x.shape)}, {x.dtype}, should run at {least} of the "
        f"speed of x.clone() or more; it runs at {ratio:.2f}"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_bandwidth_of_rows_of_4096(impl, dtype):
    x = torch.randn(16_384, 4096, dtype=dtype, device=DEVICE)
    check_bandwidth(impl, x, 0.6, "rows of 4,096")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_bandwidth_of_rows_of_16384(impl, dtype):
    x = torch.randn(4096, 16_384, dtype=dtype, device=DEVICE)
    check_bandwidth(impl, x, 0.6, "rows of 16,384")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_bandwidth_of_rows_of_131072(impl, dtype):
    x = torch.randn(1024, 131_072, dtype=dtype, device=DEVICE)
    check_bandwidth(impl, x, 0.4, "rows of 131,072")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_bandwidth_of_rows_of_48(impl, dtype):
    x = torch.randn(2**20, 48, dtype=dtype, device=DEVICE)
    check_bandwidth(impl, x, 0.35, "rows of 48")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_bandwidth_of_a_transposed_x(impl, dtype):
    x = torch.randn(2048, 65_536, dtype=dtype, device=DEVICE).T
    check_bandwidth(impl, x, 0.35, "a transposed tensor")


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(impl):
    # An offset that wraps at 2**31 reaches back into `memory`, and harms nothing else.
    memory = torch.zeros(2**32 + 2**20, dtype=torch.float16, device=DEVICE)
    for shape, strides in [
        ((3, 4099), (2**30, 1)),
        ((3, 20_011), (2**30, 1)),
        ((5, 4099), (1, 2**19)),
        ((5, 20_011), (1, 2**16 + 2**15)),
    ]:
        x = memory.as_strided(shape, strides, 2**31)
        x.copy_(scores(*shape, dtype=torch.float16))
        assert_softmax(impl.softmax(x), x.cpu(), f"a tensor with strides {strides}")
    del memory, x
    rows, columns = 2**17 + 2**10, 16_384
    row = scores(1, columns, dtype=torch.float16)
    out = impl.softmax(row.to(DEVICE).expand(rows, columns))
    for index in (0, rows - 1):
        assert_softmax(
            out[index : index + 1], row, f"equal rows, {rows:,} of them: number {index:,}"
        )
