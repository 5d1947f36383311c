import math

import pytest
import torch
import torch.nn.functional as F

from dojo.kernels import DEVICE, interpreted, memory_traffic, run, speed
from dojo.testing import (
    ATTENTION,
    PRODUCTS,
    SOFTMAX,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    layouts,
)

# What the brief promises, as parts of the largest |v|. Rounding a weight or a result to the 11 bits
# of a float16 takes 2 to the -12th of it each, and the expected value is rounded likewise.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3}
DTYPES = [torch.float32, torch.float16]
# B, H, T, S, D: no two sizes above one are equal, but for T = S in one.
SHAPES = [
    (2, 3, 5, 7, 4),
    (1, 2, 8, 5, 6),
    (1, 1, 9, 9, 16),
    (2, 1, 1, 6, 33),
    (1, 1, 4, 1, 3),
    (1, 1, 1, 1, 1),
]
BANNED = (*ATTENTION, *SOFTMAX, *PRODUCTS, "exp", "exp2")


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)


def inputs(batch, heads, queries, keys, size, dtype=torch.float32):
    """Return queries, keys and values whose weights are far from uniform."""
    q = (2 * torch.randn(batch, heads, queries, size, dtype=torch.float64)).to(dtype).to(DEVICE)
    return q, *(normal(batch, heads, keys, size, dtype=dtype) for _ in range(2))


def ints(*shape, low, high, dtype=torch.float32):
    return torch.randint(low, high + 1, shape).to(dtype).to(DEVICE)


def formula(q, k, v, causal=False):
    """Return the formula of the brief, worked out in float64."""
    queries, keys = q.shape[2], k.shape[2]
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[3])
    if causal:
        order = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        scores = scores.masked_fill(~order, -torch.inf)
    # A row of nothing but -inf is NaN, and has no weights.
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v.double()


def check(impl, q, k, v, behaviour, causal=False, tolerance=None):
    with forbid(*BANNED):
        actual = run(impl.attention, q, k, v, causal=causal)
    assert_attention(actual, q, k, v, behaviour, causal, tolerance)


def assert_attention(actual, q, k, v, behaviour, causal=False, tolerance=None):
    largest = v.abs().max().item() if v.numel() else 0.0
    sizes = (*q.shape[:3], k.shape[2], q.shape[3])
    name = str(q.dtype).removeprefix("torch.")
    assert_matches(
        actual,
        formula(q, k, v, causal).to(q.dtype),
        f"{'causal ' if causal else ''}attention, {behaviour}, B, H, T, S, D = {sizes}, {name}",
        rtol=0,
        atol=(tolerance or TOLERANCES[q.dtype]) * largest,
    )


# All keys


@pytest.mark.parametrize(
    ("shapes", "dtype"), [(SHAPES, torch.float32), (SHAPES[1::2], torch.float16)]
)
def test_matches_the_formula(impl, shapes, dtype):
    for shape in shapes:
        check(impl, *inputs(*shape, dtype=dtype), "random inputs")


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_keys_than_a_block(impl, dtype):
    for shape in [(1, 1, 3, 64, 8), (1, 1, 5, 131, 20)]:
        check(impl, *inputs(*shape, dtype=dtype), "many keys")


def test_more_queries_than_a_tile(impl):
    # The last has a size whose block is larger than the smallest tile. Tiles are larger on a GPU.
    many, some = (131, 70) if DEVICE == "cuda" else (48, 35)
    for shape in [(1, 1, many, 3, 5), (1, 2, 17, 40, 16), (1, 1, some, 21, 24)]:
        check(impl, *inputs(*shape), "many queries")


# A few sizes a test, since a compiler takes a second over each.
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ([2, 17, 64], torch.float32),
        ([129, 256], torch.float32),
        ([31, 80, 256], torch.float16),
    ],
)
def test_sizes_of_a_head(impl, sizes, dtype):
    for size in sizes:
        check(impl, *inputs(1, 1, 4, 20, size, dtype=dtype), f"heads of size {size}")


def test_takes_its_arguments_by_name_or_position(impl):
    q, k, v = inputs(1, 1, 6, 9, 4)
    assert_attention(run(impl.attention, q=q, k=k, v=v), q, k, v, "q, k and v by name")
    assert_attention(run(impl.attention, q, k, v, True), q, k, v, "all by position", causal=True)


def test_empty(impl):
    for shape in [(0, 2, 3, 4, 5), (2, 0, 3, 4, 5), (2, 3, 0, 4, 5), (0, 2, 0, 0, 5)]:
        for causal in (False, True):
            check(impl, *inputs(*shape), "an empty tensor", causal)


def test_no_keys_give_zeros(impl):
    for dtype in DTYPES:
        for causal in (False, True):
            check(impl, *inputs(1, 1, 3, 0, 4, dtype=dtype), "no keys at all", causal)


# Weights


def test_equal_values_come_back(impl):
    # Attention is an average, and the average of ones is one.
    for keys in [5, 32, 33, 100]:
        q, k, v = inputs(1, 1, 3, keys, 8)
        check(impl, q, k, torch.ones_like(v), "values that are all one")


def test_the_last_key_counts(impl):
    # The score of the last key, 8 · 16 / sqrt(8) = 45, is far above all others.
    for keys in [1, 33, 130]:
        q, k, v = inputs(1, 1, 3, keys, 8)
        q, k = 4 * torch.ones_like(q), 0.3 * k
        k[:, :, -1] = 4
        check(impl, q, k, v, "the last key far ahead")
        check(impl, q[:, :, :1], k, v, "one query, the last key far ahead", causal=True)


def test_scores_are_scaled_by_the_root_of_the_size_of_a_head(impl):
    # Each query is its own key, at right angles to the others: scores are 12 / sqrt(D), and 0.
    for size in [5, 70]:
        q = math.sqrt(12) * torch.eye(5, size, device=DEVICE).reshape(1, 1, 5, size)
        v = torch.eye(5, size, device=DEVICE).reshape(1, 1, 5, size)
        check(impl, q, q.clone(), v, f"scores of 12 / sqrt({size}) and zero")


def test_scores_that_rise(impl):
    # From end to end by 60: with each block of keys come larger scores than any before.
    for dtype in DTYPES:
        q, k, v = inputs(1, 1, 3, 100, 4, dtype=dtype)
        k[..., 0] = torch.linspace(-30, 30, 100, device=DEVICE)
        q[..., 0] = 2
        check(impl, q, k, v, "scores that rise from key to key")


def test_scores_that_fall(impl):
    # From 4,000 down to -4,000: further than any power of two in float32 reaches.
    q, k, v = inputs(1, 1, 3, 100, 4)
    k[..., 0] = torch.linspace(4000, -4000, 100, device=DEVICE)
    q[..., 0] = 2
    check(impl, q, k, v, "scores that fall from key to key", tolerance=2e-3)


# Exact scores of ten thousand and more: float32 has steps of 0.001 there.
@pytest.mark.parametrize("level", [100, -100])
def test_large_scores(impl, level):
    q, k, v = inputs(1, 1, 5, 75, 4)
    q[..., 0], q[..., 1:] = 256, ints(1, 1, 5, 3, low=-2, high=2)
    k[..., 0], k[..., 1:] = level, ints(1, 1, 75, 3, low=-2, high=2)
    check(impl, q, k, v, f"scores near {128 * level:,}", tolerance=1e-2)
    for causal in (False, True):
        # One product each, which any way of scaling rounds alike for all keys.
        q, k, v = inputs(1, 1, 5, 40, 4)
        q[..., 0], q[..., 1:], k[..., 0] = 200, 0, level
        behaviour = f"scores of {100 * level:,}, all equal"
        check(impl, q, k, v, behaviour, causal, tolerance=1e-2)


def test_scores_whose_products_are_beyond_float32(impl):
    # q kᵀ is up to 6e38, and a score an eighth of it. The first key is far ahead of all others.
    for first, others in [(3e19, 0.0), (-1e19, -3e19)]:
        for causal in (False, True):
            q, k, v = inputs(1, 1, 20, 40, 64)
            q.zero_()
            q[..., 0], k[..., 0] = 2e19, others
            k[:, :, 0, 0] = first
            behaviour = f"scores of {others / 4 * 1e19:g}, the first {first / 4 * 1e19:g}"
            check(impl, q, k, v, behaviour, causal)


def test_float16_of_many_keys(impl):
    # 2,080 keys of weight one and value zero; then 2,000 of weight 0.0067, which are 13 together
    # and would be lost one by one in a sum of float16.
    q, k, v = (torch.zeros(1, 1, n, 1, dtype=torch.float16) for n in (2, 4080, 4080))
    q[:], k[:, :, 2080:], v[:, :, 2080:] = 1, -5, 1
    check(impl, *(x.to(DEVICE) for x in (q, k, v)), "many keys, later ones of little weight")


def test_float16_scores_of_large_products(impl):
    # Sums of products that are integers, exact in float32, near 3,100 and beyond 100,000: float16
    # has steps of two at the first and ends before the second.
    for level, tolerance in [(7, 4e-3), (40, 1e-2)]:
        q, k, v = inputs(1, 1, 4, 50, 64, dtype=torch.float16)
        for x in (q, k):
            x[:] = level
            x[..., :3] += ints(*x.shape[:3], 3, low=-1, high=1, dtype=x.dtype)
        check(impl, q, k, v, f"dot products near {64 * level**2:,}", tolerance=tolerance)


def test_float16_scores_of_products_that_cancel(impl):
    # Two scores of 8 a / sqrt(2), near 500, from numbers a that lie a few steps of a float16 apart.
    q, _, v = inputs(1, 1, 30, 2, 2, dtype=torch.float16)
    steps = ints(1, 1, 30, 1, low=1100, high=1900)
    q[:] = torch.cat([steps, steps + ints(1, 1, 30, 1, low=-3, high=3)], 3) / 16
    k = 8 * torch.eye(2, dtype=q.dtype, device=DEVICE).reshape(1, 1, 2, 2)
    check(impl, q, k, v, "scores near 500 that hardly differ")


def test_float16_values_near_the_largest(impl):
    # Sums of the values, before they are divided, lie far beyond 65,504.
    q, k, v = inputs(1, 1, 3, 100, 8, dtype=torch.float16)
    check(impl, q / 8, k, 1000 * v + 30_000, "values near 30,000")


# Causal: the last query sees all keys


@pytest.mark.parametrize(
    ("shapes", "dtype"), [(SHAPES[1:], torch.float32), (SHAPES[2::2], torch.float16)]
)
def test_causal_matches_the_formula(impl, shapes, dtype):
    for shape in shapes:
        check(impl, *inputs(*shape, dtype=dtype), "random inputs", causal=True)


def test_causal_over_many_tiles_and_blocks(impl):
    # Whole tiles, of queries that see nothing, come first where queries are many.
    many = 520 if DEVICE == "cuda" else 120
    shapes = [(32, 32, 8), (19, 100, 5), (34, 33, 24), (many, 36, 4)]
    for queries, keys, size in shapes:
        check(impl, *inputs(1, 1, queries, keys, size), "many queries and keys", causal=True)


def test_causal_hides_the_future(impl):
    for queries, keys in [(35, 35), (6, 50)]:
        q, k, v = inputs(1, 1, queries, keys, 4)
        before = run(impl.attention, q, k, v, causal=True)
        for first in [keys - queries + 1, keys - 3] if queries < 10 else [1, 18]:
            later, changed = k.clone(), v.clone()
            later[:, :, first:], changed[:, :, first:] = normal(2, 1, 1, keys - first, 4)
            after = run(impl.attention, q, later, changed, causal=True)
            seen = first - (keys - queries)  # queries that end before the first of those keys
            behaviour = (
                f"causal attention of {queries} queries on {keys} keys stays the same for those "
                f"that do not see key {first} when that and all later keys change"
            )
            assert_matches(after[:, :, :seen], before[:, :, :seen], behaviour)


def test_queries_after_a_cache_see_all_of_it(impl):
    q, k, v = inputs(1, 1, 70, 70, 4)
    whole = formula(q, k, v, causal=True).float()
    for new in [1, 20]:
        actual = run(impl.attention, q[:, :, -new:], k, v, causal=True)
        behaviour = f"causal attention of the last {new} of 70 queries, beside those in a full pass"
        assert_matches(actual, whole[:, :, -new:], behaviour, rtol=0, atol=5e-5)


def test_queries_before_the_first_key_give_zeros(impl):
    # The first query after them sees one key, and gets its value.
    for queries, keys, dtype in [
        (8, 3, torch.float16),
        (30, 7, torch.float32),
        (41, 34, torch.float32),
    ]:
        q, k, v = inputs(1, 1, queries, keys, 4, dtype=dtype)
        actual = run(impl.attention, q, k, v, causal=True)
        none = queries - keys
        behaviour = f"causal attention of {queries} queries on {keys} keys in {dtype}"
        zeros = torch.zeros_like(q[:, :, :none])
        assert_matches(actual[:, :, :none], zeros, f"{behaviour}, the first {none}", atol=0)
        assert_matches(actual[:, :, none], v[:, :, 0], f"{behaviour}, the one after {none}")


# Memory


def test_each_tensor_in_a_layout_of_its_own(impl):
    q, k, v = inputs(2, 2, 5, 7, 4)
    names, ways = zip(*layouts(q), strict=True)
    for i, layout in enumerate(names):
        others = [list(layouts(x))[(i + turn) % 3][1] for turn, x in ((1, k), (2, v))]
        check(impl, ways[i], *others, f"queries that are {layout}, keys and values otherwise")


def test_any_memory_layout(impl):
    # Projections make (B, T, H, D) of a model's tokens, often all three in one tensor.
    q, k, v = normal(2, 7, 3, 2, 4, dtype=torch.float16).permute(2, 0, 3, 1, 4)
    check(impl, q, k, v, "slices of one (B, T, 3, H, D) tensor", causal=True)
    k, v = (normal(2, 1, 9, 4).expand(2, 2, 9, 4) for _ in range(2))
    check(impl, q.float(), k, v, "keys and values that all heads share")
    q = normal(2, 1, 1, 4).expand(2, 2, 7, 4)
    v = normal(1, 2, 1, 4).expand(2, 2, 9, 4)
    check(impl, q, k, v, "one query and one value, expanded")


def test_calls_in_any_order_mode_and_layout(impl):
    def attention(q, k, v, causal):
        return impl.attention(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), causal)

    def oracle(*args):
        return formula(*args).to(args[0].dtype)

    def arguments():
        return [x.cpu() for x in inputs(1, 1, 3, 20, 5)] + [True]

    what = "causal attention"
    assert_repeatable(attention, arguments, oracle, what, rtol=0, atol=5e-5)
    args = arguments()
    assert_any_mode(attention, args, oracle(*args), what, rtol=0, atol=5e-5)
    assert_any_layout(attention, args, oracle(*args), what, rtol=0, atol=5e-5)
    for x in args[:3]:
        attention(*args)
        x.neg_()
        behaviour = f"{what}, after a change of a tensor in place"
        assert_matches(attention(*args), oracle(*args), behaviour, rtol=0, atol=5e-5)


# What a call costs, as Triton's interpreter counts it.

COUNTED = [(256, 256), (250, 60)]  # queries and keys; the first 190 of 250 queries see none


def count_all(impl):
    """Return, of each case and of all keys and causal: lanes, the largest tensor, and TF32."""
    found = []
    for queries, keys in COUNTED:
        for causal in (False, True):
            q, k, v = (torch.randn(1, 1, n, 4) for n in (queries, keys, keys))
            with memory_traffic() as traffic:
                impl.attention(q, k, v, causal)
            found.append((traffic.lanes, traffic.allocated, traffic.tf32))
    return found


def test_costs(impl):
    found = interpreted(count_all, impl)
    for (queries, keys), whole, causal in zip(COUNTED, found[::2], found[1::2], strict=True):
        what = f"of {queries} queries on {keys} keys"
        assert causal[0] <= 0.9 * whole[0], (
            f"a causal call {what} should leave out keys that no query of a tile sees; its loads "
            f"and stores have {causal[0] / whole[0]:.2f} times the elements of one that sees all"
        )
        for _, largest, tf32 in (whole, causal):
            assert largest < queries * keys, (
                f"attention {what} makes a tensor of {largest:,} elements, as many as scores"
            )
            assert not tf32, f"attention {what} multiplies float32 in TF32"


# On a GPU. What is not there is NaN.

FAR = 1 << 31  # the first offset that 32 bits do not hold


def nothing(elements):
    return torch.full((elements,), float("nan"), dtype=torch.float16, device=DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize("axis", ["batches", "heads", "tokens"])
def test_offsets_past_two_to_the_31(impl, axis):
    # The tensors start in the middle of 8.6 GB, so that an offset that wraps around stays inside.
    room = 1 << 20
    buffer = nothing(2 * FAR + 4 * room)
    tensors = []
    for i, tokens in enumerate([3, 129, 129]):
        shape = {"batches": 2, "heads": 3, "tokens": tokens, "size": 64}
        strides = {"batches": 1 << 16, "heads": 1 << 14, "tokens": 1 << 6, "size": 1}
        shape["batches"] += axis == "batches"  # or a single stride would fill 32 bits
        strides[axis] = FAR // (shape[axis] - 1)
        x = buffer.as_strided(tuple(shape.values()), tuple(strides.values()), FAR + i * room)
        x.copy_(normal(*x.shape, dtype=x.dtype))
        tensors.append(x)
    behaviour = f"{axis} of which the last lies 2 to the 31st elements after the first"
    assert_attention(impl.attention(*tensors), *tensors, behaviour)


@pytest.mark.gpu
def test_results_past_two_to_the_31_elements(impl):
    # Torch keeps these 17 GB for what is made next, so that the result lies behind other tensors,
    # and an offset that wraps around ends in those.
    torch.cuda.empty_cache()
    torch.empty(4 * FAR, dtype=torch.float16, device=DEVICE)
    before = nothing(FAR + (1 << 20))
    queries = FAR // (4 * 128) + 1000
    q = torch.randn(5, 1, queries, 128, dtype=torch.float16, device=DEVICE)
    k, v = (normal(5, 1, 20, 128, dtype=torch.float16) for _ in range(2))
    actual = impl.attention(q, k, v)
    assert before.isnan().all(), "nothing is written outside the result"
    assert actual.shape == q.shape, f"the shape is {tuple(actual.shape)}, not {tuple(q.shape)}"
    for batch in (0, 4):
        one = slice(batch, batch + 1)
        for part in (slice(0, 500), slice(queries - 500, queries)):
            behaviour = f"queries {part.start:,} on of batch {batch} of 5, {queries:,} queries each"
            tensors = (q[one, :, part], k[one], v[one])
            assert_attention(actual[one, :, part], *tensors, behaviour)


@pytest.mark.gpu
def test_more_heads_than_a_grid_has_rows(impl):
    q, k, v = inputs(33_000, 2, 3, 5, 16, dtype=torch.float16)
    actual = impl.attention(q, k, v)
    assert_attention(actual, q, k, v, "66,000 heads")


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_long_sequences(impl, causal):
    q, k, v = inputs(1, 2, 20_000, 20_001, 64, dtype=torch.float16)
    impl.attention(q, k, v, causal)  # compiles and tunes
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    actual = impl.attention(q, k, v, causal)
    used = torch.cuda.max_memory_allocated() - before
    assert used < 1 << 28, f"two heads of 20,000 queries on 20,001 keys took {used:,} bytes"
    for part in (slice(0, 100), slice(9_950, 10_050), slice(19_900, 20_000)):
        keys = slice(0, part.stop + 1 if causal else None)
        behaviour = f"queries {part.start} to {part.stop} of 20,000"
        tensors = (q[:, :, part], k[:, :, keys], v[:, :, keys])
        assert_attention(actual[:, :, part], *tensors, behaviour, causal)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_speed(impl, causal):
    # A kernel without tensor cores, or one that writes the scores to memory, stays below 0.2.
    q, k, v = (normal(4, 16, 4096, 128, dtype=torch.float16) for _ in range(3))
    ratio = speed(
        lambda: impl.attention(q, k, v, causal),
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
    )
    assert ratio >= 0.4, (
        f"{'causal ' if causal else ''}attention of 4 x 16 heads, 4,096 queries and keys, D = 128, "
        f"in float16 reaches {ratio:.2f} of the speed of scaled_dot_product_attention"
    )
