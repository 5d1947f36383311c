import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dojo.testing import (
    ATTENTION,
    HandDown,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    gradients,
    layouts,
    refuses,
    unchanged,
)

FUNCTIONS = ["attention_functional", "attention"]
# B, H, T, S, D: no two sizes above one are equal, but for T = S in one.
SHAPES = [
    (2, 3, 5, 7, 4),  # fewer queries than keys
    (3, 2, 8, 5, 6),  # more queries than keys
    (1, 2, 9, 9, 64),
    (3, 2, 1, 6, 5),  # one query, as in generation
    (2, 3, 6, 1, 4),  # one key
    (1, 1, 1, 1, 1),
]
# B, H, T, S, D of the tests on one shape, and what broadcasts to its (B, H, T, S).
SHAPE = (2, 3, 5, 7, 4)
MASKS = [(5, 7), (5, 1), (3, 5, 7), (2, 1, 1, 7), (2, 3, 5, 7)]
# Rounding of some five steps, each on numbers of about one: scores, weights, sums and outputs.
DTYPES = [
    (torch.float64, 1e-6),
    (torch.float32, 1e-5),
    (torch.float16, 1e-2),
    (torch.bfloat16, 8e-2),
]
# B, T, E, H
LAYERS = [(2, 5, 12, 3), (3, 7, 6, 6), (1, 4, 10, 2), (3, 1, 8, 2), (2, 5, 7, 1)]


def inputs(batch, heads, queries, keys, size, dtype=torch.float32):
    """Queries, keys and values whose weights are far from uniform."""
    q = 2 * torch.randn(batch, heads, queries, size, dtype=torch.float64)
    k, v = (torch.randn(batch, heads, keys, size, dtype=torch.float64) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def random_mask(shape):
    """A mask that blocks a third of the keys, and may leave rows with none."""
    return torch.rand(shape) < 2 / 3


def causal_mask(queries, keys):
    return torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries


def formula(q, k, v, allowed=True):
    """The formula of the brief, in float64; scores of a few hundred at most."""
    exp = (q.double() @ k.double().mT / math.sqrt(q.shape[-1])).exp() * allowed
    # Far below any sum that is not zero: a row that may attend to nothing stays zero.
    return exp @ v.double() / exp.sum(-1, keepdim=True).clamp(min=1e-200)


def run(impl, name, q, k, v, **options):
    """Call the function; the one from scratch may not call the operator, and neither may change
    what it is given."""
    given = {"q": q, "k": k, "v": v}
    if options.get("mask") is not None:
        given["mask"] = options["mask"]
    with unchanged(**given), forbid(*ATTENTION if name == "attention" else ()):
        return getattr(impl, name)(q, k, v, **options)


# Both functions against the formula


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_matches_the_formula(impl, name, shape):
    q, k, v = inputs(*shape)
    actual = run(impl, name, q, k, v)
    assert_matches(actual, formula(q, k, v).float(), f"{name} for B, H, T, S, D = {shape}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mask_matches_the_formula(impl, name):
    for shape in MASKS:
        q, k, v = inputs(*SHAPE)
        mask = random_mask(shape)
        actual = run(impl, name, q, k, v, mask=mask)
        expected = formula(q, k, v, mask).float()
        assert_matches(actual, expected, f"{name} under a mask of shape {shape}")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_causal_matches_the_formula(impl, name, shape):
    q, k, v = inputs(*shape)
    actual = run(impl, name, q, k, v, causal=True)
    expected = formula(q, k, v, causal_mask(*shape[2:4])).float()
    assert_matches(actual, expected, f"causal {name} for B, H, T, S, D = {shape}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mask_and_causal_together_match_the_formula(impl, name):
    for shape in MASKS:
        q, k, v = inputs(*SHAPE)
        mask = random_mask(shape)
        actual = run(impl, name, q, k, v, mask=mask, causal=True)
        expected = formula(q, k, v, mask & causal_mask(*SHAPE[2:4])).float()
        assert_matches(actual, expected, f"causal {name} under a mask of shape {shape}")


def test_attention_matches_torch(impl):
    q, k, v = inputs(*SHAPE)
    mask = random_mask((2, 1, 5, 7))
    actual = run(impl, "attention", q, k, v, mask=mask)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert_matches(actual, expected, "attention beside scaled_dot_product_attention")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_by_position(impl, name):
    q, k, v = inputs(*SHAPE)
    mask = random_mask((5, 7))
    actual = getattr(impl, name)(q, k, v, mask, True)
    expected = formula(q, k, v, mask & causal_mask(5, 7)).float()
    assert_matches(actual, expected, f"{name}(q, k, v, mask, True)")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_memory_layout(impl, name):
    q, k, v = inputs(*SHAPE)
    mask = random_mask((2, 3, 5, 7))
    expected = formula(q, k, v, mask).float()
    ways = zip(layouts(q), layouts(k), layouts(v), layouts(mask.float()), strict=True)
    for (layout, q), (_, k), (_, v), (_, m) in ways:
        actual = run(impl, name, q, k, v, mask=m.bool())
        assert_matches(actual, expected, f"{name} of tensors that are {layout}")
    # One row of keys to allow, seen as a mask for every head and query.
    row = random_mask((2, 1, 1, 7)).expand(2, 3, 5, 7)
    actual = run(impl, name, q, k, v, mask=row)
    assert_matches(actual, formula(q, k, v, row).float(), f"{name} under an expanded mask")


@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtype_is_kept(impl, name, dtype, atol):
    q, k, v = inputs(*SHAPE, dtype=dtype)
    mask = random_mask((2, 1, 5, 7))
    mask[0, 0, 2] = False
    actual = run(impl, name, q, k, v, mask=mask)
    expected = formula(q, k, v, mask).to(dtype)
    assert_matches(actual, expected, f"{name} in {dtype}", rtol=0, atol=atol)


# What holds of both functions, with or without a mask and causality


def chosen(masked, causal):
    """The arguments of a call, and a description of it."""
    mask = random_mask((2, 1, 5, 7)) if masked else None
    return (*inputs(*SHAPE), mask, causal), f"masked={masked}, causal={causal}"


def expected_of(q, k, v, mask=None, causal=False):
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool) if mask is None else mask
    if causal:
        allowed = allowed & causal_mask(q.shape[2], k.shape[2])
    return formula(q, k, v, allowed).to(q.dtype)


OPTIONS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(("masked", "causal"), OPTIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_stays_from_an_earlier_call(impl, name, masked, causal):
    what = f"{name}, {chosen(masked, causal)[1]}"
    function = getattr(impl, name)
    assert_repeatable(function, lambda: chosen(masked, causal)[0], expected_of, what)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_stay_from_no_earlier_call(impl, name):
    for masked, causal in [*OPTIONS, *reversed(OPTIONS)]:
        arguments, what = chosen(masked, causal)
        actual = getattr(impl, name)(*arguments)
        assert_matches(actual, expected_of(*arguments), f"{name} after other options, {what}")


@pytest.mark.parametrize(("masked", "causal"), OPTIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_layout_of_each_argument(impl, name, masked, causal):
    arguments, what = chosen(masked, causal)
    function = getattr(impl, name)
    expected = expected_of(*arguments)
    if masked:  # the layouts are made for numbers
        arguments = (*arguments[:3], arguments[3].float(), causal)

    def call(q, k, v, mask, causal):
        return function(q, k, v, None if mask is None else mask.bool(), causal)

    assert_any_layout(call, arguments, expected, f"{name}, {what}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_under_any_mode(impl, name):
    for masked, causal in OPTIONS:
        arguments, what = chosen(masked, causal)
        assert_any_mode(getattr(impl, name), arguments, expected_of(*arguments), f"{name}, {what}")


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 70, 100, 5),
        (1, 2, 130, 100, 4),
        (1, 2, 3, 1500, 5),
        (2, 40, 3, 2, 4),
        (40, 1, 2, 3, 130),
    ],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_many_keys(impl, name, shape):
    q, k, v = inputs(*shape)
    for mask, causal in [(None, False), (None, True), (random_mask(shape[2:4]), True)]:
        actual = run(impl, name, q, k, v, mask=mask, causal=causal)
        what = f"{name} for B, H, T, S, D = {shape}, masked={mask is not None}, causal={causal}"
        assert_matches(actual, expected_of(q, k, v, mask, causal), what)


# B, H, T, S, D and a mask's shape, whose axes could be taken for others.
BROADCAST = [
    ((3, 3, 5, 7, 4), (3, 5, 7)),  # as many heads as examples: the axis is that of heads
    ((3, 3, 5, 7, 4), (3, 1, 7)),
    ((3, 3, 5, 7, 4), (3, 1, 5, 7)),
    ((5, 2, 5, 7, 4), (5, 7)),  # as many queries as examples: the axis is that of queries
    ((5, 5, 5, 7, 4), (5, 1)),
    ((7, 2, 5, 7, 4), (1, 7)),
    ((2, 3, 5, 7, 4), (1, 3, 1, 1)),
    ((2, 3, 5, 7, 4), (2, 1, 1, 1)),
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mask_broadcasts_from_its_last_axis(impl, name):
    for sizes, shape in BROADCAST:
        q, k, v = inputs(*sizes)
        mask = (torch.arange(math.prod(shape)) % 3 != 1).reshape(shape)
        actual = run(impl, name, q, k, v, mask=mask)
        behaviour = f"{name} under a mask of shape {shape} for B, H, T, S, D = {sizes}"
        assert_matches(actual, expected_of(q, k, v, mask), behaviour)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_tensor_for_queries_keys_and_values(impl, name):
    x, _, _ = inputs(2, 3, 5, 5, 4)
    for causal in (False, True):
        actual = run(impl, name, x, x, x, causal=causal)
        behaviour = f"{name} of one tensor as q, k and v, causal={causal}"
        assert_matches(actual, expected_of(x, x, x, None, causal), behaviour)


@pytest.mark.parametrize("dtype", [dtype for dtype, _ in DTYPES])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_scores_at_the_edge_of_the_dtype(impl, name, dtype):
    for ratio in (1, 2**-6, 2**6):
        # With 16 features the scores are a quarter of q kᵀ. Keys 0 and 2 are opposite, key 1 is
        # zero, key 3 is half of key 2 and key 4 is key 2 again.
        top = 0.9 * torch.finfo(dtype).max / (1 if name == "attention" else 4)
        q = torch.full((1, 1, 1, 16), math.sqrt(top / 4), dtype=dtype)
        k = torch.tensor([1.0, 0.0, -1.0, -0.5, -1.0]).to(dtype)[:, None] * (q / ratio)
        q *= ratio
        v = torch.arange(10.0, 15.0).to(dtype)[:, None].expand(1, 1, 5, 16)
        for seen, value in [
            ([0, 1, 2, 3, 4], 10),
            ([1, 2, 3], 11),
            ([2, 3], 13),
            ([2], 12),
            ([2, 4], 13),
        ]:
            mask = torch.zeros(1, 5, dtype=torch.bool)
            mask[0, seen] = True
            actual = run(impl, name, q, k, v, mask=mask)
            behaviour = f"{name} in {dtype} with scores up to {top:.3g}, keys {seen} to see"
            behaviour += f", q {ratio**2:g} times as large as k"
            assert_matches(actual, torch.full_like(q, value), behaviour, rtol=1e-2)
        actual = run(impl, name, q, k, v)
        behaviour = f"{name} in {dtype} with scores up to {top:.3g}"
        assert_matches(actual, torch.full_like(q, 10), behaviour, rtol=1e-2)


# The weights


def test_scores_are_scaled_by_the_root_of_the_head_size(impl):
    # Each query is its own key, at right angles to the others. With D = 16 and length 4 the scores
    # are 16 / 4 = 4 on the diagonal and 0 elsewhere.
    q = 4 * torch.eye(3, 16).reshape(1, 1, 3, 16)
    v = torch.eye(3, 16).reshape(1, 1, 3, 16)
    own = impl.attention(q, q, v).diagonal(dim1=-2, dim2=-1)
    expected = torch.full((1, 1, 3), math.exp(4) / (math.exp(4) + 2))
    assert_matches(own, expected, "the weight of a score of 16 / sqrt(16) next to two of zero")


def test_weights_of_each_query_sum_to_one(impl):
    q, k, _ = inputs(*SHAPE)
    ones = torch.ones_like(k)
    actual = impl.attention(q, k, ones)
    assert_matches(actual, torch.ones_like(q), "the output where every value is one")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_large_scores(impl, name):
    # Scores up to some 10,000: each query sees its best key alone.
    q, k, v = inputs(*SHAPE)
    q, k = 100 * q, 100 * k
    best = (q.double() @ k.double().mT).argmax(-1)
    expected = v.gather(2, best[..., None].expand(-1, -1, -1, v.shape[-1]))
    margin = (q.double() @ k.double().mT).topk(2).values.diff().abs()[..., 0] > 200
    actual = run(impl, name, q, k, v)
    assert not actual.isnan().any(), f"{name} of scores of some 10,000 gives NaN"
    assert_matches(actual[margin], expected[margin], f"{name} where one key is far the best")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_blocked_key_gets_no_weight_however_low_the_other_scores(impl, name):
    # Scores of -5e9, all equal, and one of zero that is blocked.
    q = torch.tensor([1e5, 0, 0, 0]).reshape(1, 1, 1, 4)
    k = torch.tensor([[-1e5, 0, 0, 0], [0, 0, 0, 0], [-1e5, 0, 0, 0]]).reshape(1, 1, 3, 4)
    v = torch.randn(1, 1, 3, 4)
    mask = torch.tensor([[True, False, True]])
    actual = run(impl, name, q, k, v, mask=mask)
    expected = v[:, :, ::2].mean(2, keepdim=True)
    assert_matches(actual, expected, f"{name} of two allowed keys with scores of -5e9")


# Masks and causality


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_masked_key_has_no_influence(impl, name):
    # Even queries see even keys and odd ones odd keys.
    q, k, v = inputs(*SHAPE)
    mask = (torch.arange(5)[:, None] + torch.arange(7)) % 2 == 0
    before = run(impl, name, q, k, v, mask=mask)
    k[:, :, 1::2], v[:, :, 1::2] = torch.randn(2, 2, 3, 3, 4)
    after = run(impl, name, q, k, v, mask=mask)
    even, odd = (slice(None), slice(None), slice(0, None, 2)), (..., slice(1, None, 2), slice(None))
    assert not after.isnan().any(), f"{name} under a mask gives NaN, though no row is empty"
    assert_matches(after[even], before[even], f"{name} of queries that may not see what changed")
    assert (after[odd] - before[odd]).abs().max() > 1e-3, (
        f"{name} gives queries the same output after the keys and values they may see changed"
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_causal_hides_the_future(impl, name):
    q, k, v = inputs(2, 3, 5, 5, 4)
    before = run(impl, name, q, k, v, causal=True)
    k[:, :, 3:], v[:, :, 3:] = torch.randn(2, 2, 3, 2, 4)
    after = run(impl, name, q, k, v, causal=True)
    assert_matches(after[:, :, :3], before[:, :, :3], f"{name} after later keys changed")


def test_queries_after_a_cache_see_all_of_it(impl):
    q, k, v = inputs(2, 3, 7, 7, 4)
    whole = impl.attention_functional(q, k, v, causal=True)
    for new in [1, 3]:
        actual = impl.attention_functional(q[:, :, -new:], k, v, causal=True)
        behaviour = f"the last {new} of 7 queries, given all keys, beside the same in a full pass"
        assert_matches(actual, whole[:, :, -new:], behaviour)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_queries_before_the_first_key_give_zeros(impl, name):
    q, k, v = inputs(3, 2, 8, 5, 6)
    actual = run(impl, name, q, k, v, causal=True)
    expected = torch.zeros(3, 2, 3, 6)
    assert_matches(actual[:, :, :3], expected, f"causal {name}, the first 3 of 8 queries on 5 keys")
    expected = v[:, :, 0]
    assert_matches(actual[:, :, 3], expected, f"causal {name}, the first query with a single key")


def test_a_mask_does_not_lift_causality(impl):
    q, k, v = inputs(2, 3, 5, 5, 4)
    every = torch.ones(5, 5, dtype=torch.bool)
    before = impl.attention_functional(q, k, v, mask=every, causal=True)
    v[:, :, 3:] += 1
    after = impl.attention_functional(q, k, v, mask=every, causal=True)
    behaviour = "with causal and a mask that allows all, the outputs after later values changed"
    assert_matches(after[:, :, :3], before[:, :, :3], behaviour)


# Rows that may attend to nothing


def mask_with_an_empty_row():
    """One query that may see nothing, and one key that nobody may see; the other way round in the
    second of the batch."""
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    mask[0, 0, 2] = False
    mask[0, 0, :, 4] = False
    mask[1] = ~mask[0]
    return mask


@pytest.mark.parametrize("dtype", [dtype for dtype, _ in DTYPES])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_row_with_nothing_to_attend_to_gives_zeros(impl, name, dtype):
    q, k, v = inputs(*SHAPE, dtype=dtype)
    mask = mask_with_an_empty_row()
    actual = run(impl, name, q, k, v, mask=mask)
    behaviour = f"{name} in {dtype} of a query that may attend to nothing"
    assert_matches(actual[0, :, 2], torch.zeros_like(actual[0, :, 2]), behaviour, rtol=0, atol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mask_that_blocks_all_gives_zeros(impl, name):
    q, k, v = inputs(*SHAPE)
    actual = run(impl, name, q, k, v, mask=torch.zeros(1, 1, dtype=torch.bool))
    assert_matches(actual, torch.zeros_like(q), f"{name} where nothing may be seen", rtol=0, atol=0)


def test_an_empty_row_takes_no_part_in_the_gradient(impl):
    tensors = [t.requires_grad_() for t in inputs(*SHAPE)]
    mask = mask_with_an_empty_row()
    grad_out = torch.zeros(2, 3, 5, 4)
    grad_out[0, :, 2] = 1.5
    out = impl.attention(*tensors, mask=mask)
    for name, actual in zip("qkv", gradients(out, tensors, grad_out), strict=True):
        behaviour = f"the gradient of {name} from the output of a row that may attend to nothing"
        assert_matches(actual, torch.zeros_like(actual), behaviour, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [dtype for dtype, _ in DTYPES])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_that_only_mask_and_causal_together_leave_empty(impl, name, dtype):
    # Query i sees keys 0 to i by causality, and the mask leaves query 1 keys 3 and 4 alone.
    q, k, v = inputs(2, 3, 5, 5, 4, dtype=dtype)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[1, :3] = False
    actual = run(impl, name, q, k, v, mask=mask, causal=True)
    behaviour = f"causal {name} in {dtype} of a query whose mask allows later keys alone"
    assert_matches(actual[:, :, 1], torch.zeros_like(q[:, :, 1]), behaviour, rtol=0, atol=0)
    assert not actual.isnan().any(), f"{behaviour}: the other queries give NaN"


def test_a_row_that_is_empty_by_mask_and_causal_takes_no_part_in_the_gradient(impl):
    tensors = [t.requires_grad_() for t in inputs(2, 3, 7, 5, 4, dtype=torch.float64)]
    mask = torch.ones(7, 5, dtype=torch.bool)
    mask[3, :2] = False  # queries 0 and 1 see nothing either, there being two keys fewer
    grad_out = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    actual = gradients(impl.attention(*tensors, mask, True), tensors, grad_out)
    expected = gradients(formula(*tensors, mask & causal_mask(7, 5)), tensors, grad_out)
    for name, ours, theirs in zip("qkv", actual, expected, strict=True):
        behaviour = f"the gradient of {name} where mask and causal together leave rows empty"
        assert_matches(ours, theirs, behaviour, atol=1e-6)


# Gradients


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradients_of_attention(impl, shape, causal):
    tensors = [t.requires_grad_() for t in inputs(*shape, dtype=torch.float64)]
    mask = random_mask((shape[0], 1, *shape[2:4]))
    grad_out = torch.randn(*shape[:3], shape[4], dtype=torch.float64)
    allowed = mask & causal_mask(*shape[2:4]) if causal else mask
    actual = gradients(impl.attention(*tensors, mask=mask, causal=causal), tensors, grad_out)
    expected = gradients(formula(*tensors, allowed), tensors, grad_out)
    for name, ours, theirs in zip("qkv", actual, expected, strict=True):
        behaviour = f"the gradient of {name}, masked, causal={causal}, B, H, T, S, D = {shape}"
        assert_matches(ours, theirs, behaviour, atol=1e-6)


def test_gradients_of_the_functional_version(impl):
    tensors = [t.requires_grad_() for t in inputs(*SHAPE, dtype=torch.float64)]
    grad_out = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    actual = gradients(impl.attention_functional(*tensors, causal=True), tensors, grad_out)
    expected = gradients(formula(*tensors, causal_mask(5, 7)), tensors, grad_out)
    for name, ours, theirs in zip("qkv", actual, expected, strict=True):
        behaviour = f"the gradient of {name} through attention_functional"
        assert_matches(ours, theirs, behaviour, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_without_a_mask(impl, name, causal):
    for which in ("qkv", "q", "k", "v"):
        tensors = inputs(*SHAPE, dtype=torch.float64)
        leaves = [t.requires_grad_() for n, t in zip("qkv", tensors, strict=True) if n in which]
        grad_out = torch.randn(2, 3, 5, 4, dtype=torch.float64)
        options = {"causal": True} if causal else {}
        out = getattr(impl, name)(*tensors, **options)
        getattr(impl, name)(*inputs(*SHAPE, dtype=torch.float64), **options)  # may not disturb it
        actual = gradients(out, leaves, grad_out)
        expected = gradients(
            formula(*tensors, causal_mask(5, 7) if causal else True), leaves, grad_out
        )
        for leaf, ours, theirs in zip(which, actual, expected, strict=True):
            behaviour = (
                f"the gradient of {leaf} through {name} when {which} need one, causal={causal}"
            )
            assert_matches(ours, theirs, behaviour, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_one_tensor_in_several_places(impl, name, causal):
    x, y, _ = (t.requires_grad_() for t in inputs(2, 3, 5, 5, 4, dtype=torch.float64))
    grad_out = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    allowed = causal_mask(5, 5) if causal else True
    for what, places in [
        ("q, k and v", (x, x, x)),
        ("q and k", (x, x, y)),
        ("k and v", (y, x, x)),
        ("q and v", (x, y, x)),
    ]:
        (actual,) = gradients(getattr(impl, name)(*places, causal=causal), [x], grad_out)
        (expected,) = gradients(formula(*places, allowed), [x], grad_out)
        behaviour = f"the gradient of one tensor as {what} of {name}, causal={causal}"
        assert_matches(actual, expected, behaviour, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_upstream_gradient_is_left_alone(impl, name):
    for causal in (False, True):
        tensors, grad_out = [t.requires_grad_() for t in inputs(*SHAPE)], torch.randn(2, 3, 5, 4)
        out = getattr(impl, name)(*tensors, causal=causal)
        with unchanged(grad_out=grad_out):
            HandDown.apply(out, grad_out).backward()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_in_memory_of_their_own(impl, name):
    # A query with a single key takes its value as it is.
    for sizes in [(1, 1, 1, 1, 1), (2, 3, 1, 1, 4), (2, 3, 5, 1, 4), (2, 3, 1, 7, 4)]:
        for causal in (False, True):
            q, k, v = inputs(*sizes)
            out = getattr(impl, name)(q, k, v, causal=causal)
            before = out.clone()
            for tensor in (q, k, v):
                tensor.fill_(7.0)
            behaviour = f"the result of {name} for B, H, T, S, D = {sizes}, causal={causal}"
            assert_matches(out, before, f"{behaviour}, once the inputs have been written over")


SIZES_OF_VALUES = [
    (torch.float64, 1e300),
    (torch.float64, 1e-300),
    (torch.float32, 1e30),
    (torch.float32, 1e-30),
    (torch.float16, 1e4),
    (torch.bfloat16, 1e30),
    (torch.bfloat16, 1e-30),
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_of_any_size(impl, name):
    for dtype, size in SIZES_OF_VALUES:
        # Two keys with weights of 1/4 and 3/4; 2 is exact in every dtype.
        q = torch.tensor([2.0, 0, 0, 0], dtype=dtype).reshape(1, 1, 1, 4)
        k = torch.zeros(1, 1, 2, 4, dtype=dtype)
        k[..., 1, 0] = math.log(3)
        v = (size * torch.tensor([[1.0, -2, 3, 0], [2.0, 1, 1, 4]]).double()).to(dtype)[None, None]
        expected = (
            (v.double() * torch.tensor([[0.25], [0.75]]).double()).sum(2, keepdim=True).to(dtype)
        )
        actual = run(impl, name, q, k, v)
        tolerance = {torch.bfloat16: 0.04, torch.float16: 5e-3}.get(dtype, 1e-5)
        behaviour = f"{name} in {dtype} of values around {size:g}"
        assert_matches(actual, expected, behaviour, rtol=tolerance, atol=tolerance * size)


def test_the_same_call_twice_gives_the_same(impl):
    q, k, v = inputs(*SHAPE)
    for name in FUNCTIONS:
        once, again = (run(impl, name, q, k, v) for _ in range(2))
        assert_matches(again, once, f"{name} of the same tensors once more")


# The layer


def layer_and_torchs(impl, embed_dim, num_heads, dtype=torch.float32):
    """A layer and PyTorch's own with the same weights."""
    layer = impl.MultiHeadAttention(embed_dim, num_heads).to(dtype)
    theirs = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True, dtype=dtype)
    with torch.no_grad():
        theirs.in_proj_weight.normal_().div_(math.sqrt(embed_dim))
        theirs.in_proj_bias.normal_()
        theirs.out_proj.bias.normal_()
        projections = [layer.q_proj, layer.k_proj, layer.v_proj]
        weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
        for ours, weight, bias in zip(projections, weights, biases, strict=True):
            ours.weight.copy_(weight)
            ours.bias.copy_(bias)
        layer.out_proj.load_state_dict(theirs.out_proj.state_dict())
    return layer, theirs


def torchs_output(theirs, x, causal):
    length = x.shape[1]
    blocked = ~causal_mask(length, length) if causal else None
    return theirs(x, x, x, attn_mask=blocked, need_weights=False)[0]


def run_layer(layer, x, **options):
    with unchanged(x=x), forbid("multi_head_attention_forward", "_native_multi_head_attention"):
        return layer(x, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", LAYERS)
def test_layer_matches_torch(impl, sizes, causal):
    batch, length, embed_dim, num_heads = sizes
    layer, theirs = layer_and_torchs(impl, embed_dim, num_heads)
    x = torch.randn(batch, length, embed_dim)
    actual = run_layer(layer, x, causal=causal)
    expected = torchs_output(theirs, x, causal)
    assert_matches(actual, expected, f"the layer for B, T, E, H = {sizes}, causal={causal}")


def test_layer_is_not_causal_by_default(impl):
    layer, theirs = layer_and_torchs(impl, 12, 3)
    x = torch.randn(2, 5, 12)
    assert_matches(run_layer(layer, x), torchs_output(theirs, x, False), "layer(x)")
    assert_matches(layer(x, True), torchs_output(theirs, x, True), "layer(x, True)")


def test_layer_moves_its_outputs_along_with_its_tokens(impl):
    layer, _ = layer_and_torchs(impl, 12, 3)
    x = torch.randn(2, 5, 12)
    order = torch.tensor([3, 0, 4, 1, 2])
    expected = layer(x)[:, order]
    assert_matches(layer(x[:, order]), expected, "the outputs after the tokens changed places")


def test_causal_layer_hides_the_future(impl):
    layer, _ = layer_and_torchs(impl, 12, 3)
    x = torch.randn(2, 5, 12)
    before = layer(x, causal=True)
    x[:, 3:] = torch.randn(2, 2, 12)
    after = layer(x, causal=True)
    assert_matches(
        after[:, :3], before[:, :3], "the layer's first outputs after later tokens changed"
    )


def test_layer_takes_any_memory_layout(impl):
    layer, theirs = layer_and_torchs(impl, 12, 3)
    x = torch.randn(2, 5, 12)
    expected = torchs_output(theirs, x, True)
    for layout, tokens in layouts(x):
        actual = run_layer(layer, tokens, causal=True)
        assert_matches(actual, expected, f"the layer on tokens that are {layout}")


@pytest.mark.parametrize("causal", [False, True])
def test_layer_gradients_match_torch(impl, causal):
    layer, theirs = layer_and_torchs(impl, 12, 3, dtype=torch.float64)
    x = torch.randn(2, 5, 12, dtype=torch.float64).requires_grad_()
    grad_out = torch.randn(2, 5, 12, dtype=torch.float64)
    projections = [layer.q_proj, layer.k_proj, layer.v_proj]
    ours = [x, *(p.weight for p in projections), layer.out_proj.weight]
    actual = gradients(layer(x, causal=causal), ours, grad_out)
    wanted = [x, theirs.in_proj_weight, theirs.out_proj.weight]
    dx, d_in, d_out = gradients(torchs_output(theirs, x, causal), wanted, grad_out)
    names = ["x", "q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight"]
    for name, got, expected in zip(names, actual, [dx, *d_in.chunk(3), d_out], strict=True):
        assert_matches(got, expected, f"the layer's gradient of {name}, causal={causal}", atol=1e-6)


def test_layer_in_bfloat16(impl):
    layer, _ = layer_and_torchs(impl, 12, 3, dtype=torch.bfloat16)
    exact, theirs = layer_and_torchs(impl, 12, 3, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    with torch.no_grad():
        names = ["q_proj", "k_proj", "v_proj"]
        theirs.in_proj_weight.copy_(torch.cat([getattr(layer, n).weight for n in names]))
        theirs.in_proj_bias.copy_(torch.cat([getattr(layer, n).bias for n in names]))
        theirs.out_proj.load_state_dict(layer.out_proj.state_dict())
    x = torch.randn(2, 5, 12).bfloat16()
    expected = torchs_output(theirs, x.double(), True).bfloat16()
    # Values of two or three go through three rounded layers.
    assert_matches(layer(x, causal=True), expected, "the layer in bfloat16", rtol=3e-2, atol=0.1)


def test_layer_is_the_same_in_both_modes(impl):
    layer, _ = layer_and_torchs(impl, 12, 3)
    x = torch.randn(2, 5, 12)
    for causal in [False, True]:
        training = layer.train()(x, causal=causal)
        behaviour = f"the layer in eval mode beside training mode, causal={causal}"
        assert_matches(layer.eval()(x, causal=causal), training, behaviour)


def torchs_with_the_weights_of(layer, embed_dim, num_heads):
    """PyTorch's own layer with copies of the weights that a layer has now."""
    dtype = layer.q_proj.weight.dtype
    theirs = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True, dtype=dtype)
    projections = [layer.q_proj, layer.k_proj, layer.v_proj]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    theirs.out_proj.load_state_dict(layer.out_proj.state_dict())
    return theirs


@pytest.mark.parametrize(("training", "grad"), [(True, True), (False, True), (False, False)])
def test_layer_keeps_nothing_from_earlier_calls(impl, training, grad):
    layer, _ = layer_and_torchs(impl, 12, 3)
    other, _ = layer_and_torchs(impl, 12, 3)
    layer.train(training)
    other.train(training)

    same = torch.randn(2, 5, 12)

    def check(what, layer=layer):
        theirs = torchs_with_the_weights_of(layer, 12, 3)
        dtype = layer.q_proj.weight.dtype
        same_x, other_x = same.to(dtype), torch.randn(2, 5, 12, dtype=dtype)
        # The last call of one check is the first of the next.
        for causal, x in [
            (False, same_x),
            (True, same_x),
            (True, other_x),
            (False, same_x),
        ]:
            with torch.set_grad_enabled(grad):
                expected = torchs_output(theirs, x, causal)
                actual = run_layer(layer, x, **({"causal": True} if causal else {}))
            assert_matches(actual, expected, f"the layer {what}, causal={causal}, {training=}")

    check("after calls with and without causal")
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    check("copied by deepcopy, once the weights of the copy have been changed", twin)
    check("after a copy of it was changed")
    check("after double()", twin.double())
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        with torch.no_grad():
            for parameter in getattr(layer, projection).parameters():
                parameter.mul_(-1.5)
        check(f"after {projection} was changed in place")
    other(torch.randn(2, 5, 12))
    check("after another one was called")
    layer.load_state_dict(other.state_dict())
    check("after load_state_dict")
    layer.k_proj = nn.Linear(12, 12)
    check("with another k_proj in its place")
    layer.train(not training)
    layer.train(training)
    check("after its mode was changed and changed back")


@pytest.mark.parametrize("training", [True, False])
def test_layer_is_repeatable(impl, training):
    layer, theirs = layer_and_torchs(impl, 12, 3)
    layer.train(training)
    assert_repeatable(
        layer,
        lambda: (torch.randn(2, 5, 12), True),
        lambda x, causal: torchs_output(theirs, x, causal),
        f"the layer, training={training}",
    )
    x = torch.randn(2, 5, 12)
    for causal in (False, True):
        expected = torchs_output(theirs, x, causal)
        assert_any_mode(layer, (x, causal), expected, f"the layer, causal={causal}")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_layer_gradients_in_either_mode(impl, training, causal):
    layer, theirs = layer_and_torchs(impl, 12, 3, dtype=torch.float64)
    layer.train(training)
    x = torch.randn(2, 5, 12, dtype=torch.float64).requires_grad_()
    grad_out = torch.randn(2, 5, 12, dtype=torch.float64)
    names = [f"{n}_proj.{kind}" for kind in ("weight", "bias") for n in ("q", "k", "v", "out")]
    parameters = dict(layer.named_parameters())
    out = layer(x, causal)
    assert out.requires_grad, f"the layer's output has no gradient, training={training}"
    actual = gradients(out, [x, *(parameters[name] for name in names)], grad_out)
    wanted = [x, theirs.in_proj_weight, theirs.out_proj.weight]
    wanted += [theirs.in_proj_bias, theirs.out_proj.bias]
    dx, *parts = gradients(torchs_output(theirs, x, causal), wanted, grad_out)
    expected = [dx, *parts[0].chunk(3), parts[1], *parts[2].chunk(3), parts[3]]
    for name, ours, theirs_ in zip(["x", *names], actual, expected, strict=True):
        behaviour = f"the layer's gradient of {name}, causal={causal}, training={training}"
        assert_matches(ours, theirs_, behaviour, atol=1e-6)


def test_layer_on_more_and_fewer_tokens_in_turn(impl):
    layer, theirs = layer_and_torchs(impl, 12, 3)
    for batch, length in [(2, 5), (3, 9), (1, 4), (2, 1), (1, 12), (4, 5)]:
        x = torch.randn(batch, length, 12)
        for causal in (True, False):
            behaviour = f"the layer on {length} tokens after calls on others, causal={causal}"
            actual = run_layer(layer, x, causal=causal)
            assert_matches(actual, torchs_output(theirs, x, causal), behaviour)


@pytest.mark.parametrize("causal", [False, True])
def test_layer_on_many_tokens(impl, causal):
    layer, theirs = layer_and_torchs(impl, 6, 2)
    for length in (100, 1100):
        x = torch.randn(1, length, 6)
        behaviour = f"the layer on {length} tokens, causal={causal}"
        assert_matches(
            run_layer(layer, x, causal=causal), torchs_output(theirs, x, causal), behaviour
        )


def test_layer_has_four_projections_with_biases(impl):
    layer = impl.MultiHeadAttention(embed_dim=12, num_heads=3)
    assert isinstance(layer, nn.Module), "MultiHeadAttention is not an nn.Module"
    names = ["q_proj", "k_proj", "v_proj", "out_proj"]
    for name in names:
        projection = getattr(layer, name)
        assert isinstance(projection, nn.Linear), f"{name} is {type(projection).__name__}"
        assert projection.weight.shape == (12, 12), f"{name}.weight: {projection.weight.shape}"
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert {name for name, _ in layer.named_parameters()} == expected


@pytest.mark.parametrize(("embed_dim", "num_heads"), [(22, 4), (5, 10)])
def test_heads_that_do_not_divide_the_features_are_refused(impl, embed_dim, num_heads):
    what = f"{embed_dim} features in {num_heads} heads"
    with refuses(what, rf"\b{embed_dim}\b", str(num_heads)):
        impl.MultiHeadAttention(embed_dim, num_heads)
