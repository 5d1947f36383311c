import math

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_gradients_reach,
    assert_matches,
    assert_repeatable,
    golden,
    gradients,
    unchanged,
)

# B, Hq, Hkv, T, S, D.
SHAPE = (2, 6, 3, 5, 7, 4)
SHAPES = [
    SHAPE,
    (3, 6, 2, 8, 5, 7),  # more queries than keys
    (1, 8, 2, 9, 9, 16),
    (3, 4, 4, 5, 7, 2),  # a key head for each query head
    (2, 5, 1, 3, 6, 4),  # one key head for all
    (2, 6, 3, 1, 7, 5),  # one query, as in generation
    (2, 4, 2, 6, 1, 3),  # one key
    (1, 1, 1, 1, 1, 1),
]
# Rounding of some five steps, each on numbers of about one: scores, weights, sums and outputs.
DTYPES = [
    (torch.float64, 1e-6),
    (torch.float32, 1e-5),
    (torch.float16, 1e-2),
    (torch.bfloat16, 8e-2),
]


def inputs(batch, heads, kv_heads, queries, keys, size, dtype=torch.float32):
    """Queries, keys and values whose weights are far from uniform."""
    q = 2 * torch.randn(batch, heads, queries, size, dtype=torch.float64)
    k, v = (torch.randn(batch, kv_heads, keys, size, dtype=torch.float64) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def sees(queries, keys, window=None):
    """What each query sees, by the words of the brief."""
    place = torch.arange(queries)[:, None] + keys - queries
    before = place - torch.arange(keys)  # by so many places a key comes before
    return (before >= 0) & (before <= (keys if window is None else window - 1))


def attend(q, k, v, allowed):
    """The formula of the brief, in float64, one head at a time; scores of a few hundred at most."""
    group = q.shape[1] // k.shape[1]
    outputs = []
    for head in range(q.shape[1]):
        one_q, one_k, one_v = (
            t.double() for t in (q[:, head], k[:, head // group], v[:, head // group])
        )
        weights = (one_q @ one_k.mT / math.sqrt(q.shape[-1])).exp() * allowed
        # Far below any sum that is not zero: a query that sees nothing stays zero.
        outputs.append(weights @ one_v / weights.sum(-1, keepdim=True).clamp(min=1e-200))
    return torch.stack(outputs, 1).to(q.dtype)


def formula(q, k, v, window=None):
    return attend(q, k, v, sees(q.shape[2], k.shape[2], window))


def run(impl, q, k, v, *window):
    with unchanged(q=q, k=k, v=v):
        return impl.gqa(q, k, v, *window)


# gqa against the formula and against libraries


def test_matches_the_formula(impl):
    for shape in SHAPES:
        q, k, v = inputs(*shape)
        what = f"gqa for B, Hq, Hkv, T, S, D = {shape}"
        assert_matches(run(impl, q, k, v), formula(q, k, v), what)


def test_window_matches_the_formula(impl):
    for shape in SHAPES:
        for window in (1, 2, 3, 5, 7, 100, 2**40) if shape == SHAPE else (1, 2, 6):
            q, k, v = inputs(*shape)
            what = f"gqa for B, Hq, Hkv, T, S, D = {shape}, window={window}"
            assert_matches(run(impl, q, k, v, window), formula(q, k, v, window), what)
    q, k, v = inputs(*SHAPE)
    assert_matches(impl.gqa(q, k, v, window=2), formula(q, k, v, 2), "gqa(q, k, v, window=2)")
    actual = impl.gqa(window=3, v=v, k=k, q=q)
    assert_matches(actual, formula(q, k, v, 3), "gqa with its arguments by name")


def test_matches_torch(impl):
    for window in (None, 3):
        q, k, v = inputs(*SHAPE)
        mask = sees(5, 7, window)
        expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        what = f"gqa beside scaled_dot_product_attention, window={window}"
        assert_matches(run(impl, q, k, v, window), expected, what)


def test_matches_mistral(impl):
    for case in golden("gqa.json")["gqa"]:
        q, k, v, expected = (torch.tensor(case[name]) for name in ("q", "k", "v", "out"))
        what = f"gqa beside Mistral's, {q.shape[2]} queries, {k.shape[2]} keys, {case['window']=}"
        assert_matches(run(impl, q, k, v, case["window"]), expected, what, atol=3e-5)


def test_dtype_is_kept(impl):
    for dtype, atol in DTYPES:
        for shape in (SHAPE, (2, 6, 2, 8, 5, 7)):
            for window in (None, 3):
                q, k, v = inputs(*shape, dtype=dtype)
                what = f"gqa in {dtype} for B, Hq, Hkv, T, S, D = {shape}, window={window}"
                actual = run(impl, q, k, v, window)
                assert_matches(actual, formula(q, k, v, window), what, rtol=0, atol=atol)


# Groups


def test_query_heads_in_a_row_share_a_key_head(impl):
    # All values of a key head are its number.
    for heads, kv_heads in [(6, 3), (6, 2), (4, 4), (5, 1), (300, 100)]:
        q, k, v = inputs(2, heads, kv_heads, 3, 7, 4)
        v[:] = torch.arange(float(kv_heads))[:, None, None]
        expected = torch.arange(heads).div(heads // kv_heads, rounding_mode="floor").float()
        actual = impl.gqa(q, k, v)[0, :, -1, 0]
        what = f"the value head that each of {heads} query heads reads, {kv_heads} of them"
        assert_matches(actual, expected, what)


def test_a_key_head_matters_to_its_own_group_alone(impl):
    q, k, v = inputs(*SHAPE)
    before = impl.gqa(q, k, v)
    for head in range(3):
        other = k.clone()
        other[:, head] = torch.randn(2, 7, 4)
        moved = (impl.gqa(q, other, v) - before).abs().amax((0, 2, 3)) > 1e-4
        found = moved.nonzero().flatten().tolist()
        wanted = [2 * head, 2 * head + 1]
        assert found == wanted, f"key head {head} matters to query heads {found}, not {wanted}"


def test_scores_are_scaled_by_the_root_of_the_head_size(impl):
    # Each query is its own key, at right angles to the others. With D = 16 and length 4 the scores
    # are 16 / 4 = 4 on the diagonal and 0 elsewhere.
    q = (4 * torch.eye(3, 16)).expand(1, 6, 3, 16)
    k, v = q[:, :2], torch.eye(3, 16).expand(1, 2, 3, 16)
    own = impl.gqa(q, k, v)[0, :, -1, 2]
    expected = torch.full((6,), math.exp(4) / (math.exp(4) + 2))
    assert_matches(own, expected, "the weight of a score of 16 / sqrt(16) next to two of zero")


# What a query sees


def test_each_query_sees_its_place_and_as_many_keys_as_the_window_has(impl):
    # Queries of zeros weigh all that they see alike, and value s is 1 at place s.
    for queries, keys in [(7, 7), (3, 7), (1, 7), (9, 6)]:
        v = torch.eye(keys).expand(2, 2, keys, keys)
        q, k = torch.zeros(2, 4, queries, keys), torch.randn(2, 2, keys, keys)
        for window in (None, 1, 2, 4, 6, 7, 8):
            weights = run(impl, q, k, v, window)[1, 3]
            for query, row in enumerate(weights):
                last = keys - queries + query
                first = 0 if window is None else max(0, last - window + 1)
                wanted = list(range(first, last + 1))
                found = row.nonzero().flatten().tolist()
                assert found == wanted, (
                    f"query {query} of {queries} sees the keys {found} of {keys}, not {wanted}, "
                    f"window={window}"
                )


def test_the_future_and_what_lies_before_the_window_have_no_influence(impl):
    q, k, v = inputs(2, 6, 2, 7, 7, 4)
    for window, first in [(None, 0), (3, 2)]:
        before = impl.gqa(q, k, v, window)
        other_k, other_v = k.clone(), v.clone()
        for x in (other_k, other_v):
            x[:, :, 5:] = 50.0
            x[:, :, :first] = -50.0
        after = impl.gqa(q, other_k, other_v, window)
        what = f"query 4 of 7 after the keys and values it does not see changed, window={window}"
        assert_matches(after[:, :, 4], before[:, :, 4], what)


def test_queries_after_a_cache_see_what_they_would_see_in_a_full_pass(impl):
    q, k, v = inputs(2, 6, 3, 7, 7, 4)
    for window in (None, 1, 2, 3, 6):
        whole = formula(q, k, v, window)
        for new in (2, 4):
            actual = impl.gqa(q[:, :, -new:], k, v, window)
            what = f"the last {new} of 7 queries beside a full pass, window={window}"
            assert_matches(actual, whole[:, :, -new:], what)


def test_token_by_token_gives_what_a_full_pass_does(impl):
    q, k, v = inputs(2, 6, 3, 7, 7, 4)
    for window in (None, 1, 2, 3, 6):
        whole = formula(q, k, v, window)
        for token in range(7):
            # A cache of everything, and one of the window.
            for first in sorted({0, 0 if window is None else max(0, token - window + 1)}):
                seen = slice(first, token + 1)
                actual = impl.gqa(q[:, :, [token]], k[:, :, seen], v[:, :, seen], window)
                what = f"token {token} alone beside keys {first} to {token}, window={window}"
                assert_matches(actual, whole[:, :, [token]], what)


def test_queries_before_the_first_key_give_zeros(impl):
    for dtype, atol in DTYPES:
        for window in (None, 1, 2, 7):
            q, k, v = inputs(3, 6, 2, 8, 5, 7, dtype=dtype)
            actual = run(impl, q, k, v, window)
            zeros = torch.zeros(3, 6, 3, 7, dtype=dtype)
            what = f"the first 3 of 8 queries on 5 keys, {dtype}, window={window}"
            assert_matches(actual[:, :, :3], zeros, what, rtol=0, atol=0)
            expected = v[:, :, 0].repeat_interleave(3, 1)
            what = f"the first query with a single key, {dtype}, window={window}"
            assert_matches(actual[:, :, 3], expected, what, rtol=0, atol=atol)


def test_queries_before_the_first_key_take_no_part_in_the_gradient(impl):
    for window in (None, 2):
        tensors = [t.requires_grad_() for t in inputs(3, 6, 2, 8, 5, 7)]
        grad_out = torch.zeros(3, 6, 8, 7)
        grad_out[:, :, :3] = 1.5
        out = impl.gqa(*tensors, window)
        for name, actual in zip("qkv", gradients(out, tensors, grad_out), strict=True):
            what = f"the gradient of {name} from queries that see nothing, window={window}"
            assert_matches(actual, torch.zeros_like(actual), what, rtol=0, atol=0)


# Ranges and sizes


def test_scores_at_the_edge_of_the_dtype(impl):
    # With 16 features the scores are a quarter of q kᵀ. Key 1 is zero, keys 2 and 4 are the
    # opposite of key 0, and key 3 is half of them.
    for dtype, _ in DTYPES:
        top = 0.9 * torch.finfo(dtype).max / 4
        one = torch.full((16,), math.sqrt(top / 4), dtype=dtype)
        k = torch.tensor([1.0, 0.0, -1.0, -0.5, -1.0]).to(dtype)[:, None] * one
        q, k = one.expand(1, 2, 5, 16), k.expand(1, 1, 5, 16)
        v = torch.arange(10.0, 15.0).to(dtype)[:, None].expand(1, 1, 5, 16)
        for window, values in [
            (None, [10, 10, 10, 10, 10]),
            (1, [10, 11, 12, 13, 14]),
            (2, [10, 10, 11, 13, 13]),
            (3, [10, 10, 10, 11, 13]),
        ]:
            expected = torch.tensor(values).to(dtype)[:, None].expand(1, 2, 5, 16)
            what = f"gqa in {dtype} with scores up to {top:.3g}, window={window}"
            assert_matches(run(impl, q, k, v, window), expected, what, rtol=1e-2)
    # Scores of -1e9 and less, all that the last query sees; the best key lies before its window.
    q = torch.tensor([2e5, 0, 0, 0]).expand(1, 2, 3, 4)
    k = torch.tensor([[0.0, 0, 0, 0], [-1e5, 0, 0, 0], [-1e5, 0, 0, 0]]).expand(1, 1, 3, 4)
    v = torch.randn(1, 1, 3, 4)
    actual = run(impl, q, k, v, 2)[:, :, -1]
    expected = v[:, :, 1:].mean(2).expand(1, 2, 4)
    assert_matches(actual, expected, "the mean of two keys in the window with scores of -1e10")


def test_many_keys_and_queries(impl):
    for shape, window in [
        ((1, 4, 2, 70, 100, 3), None),
        ((1, 4, 2, 130, 100, 3), 40),
        ((1, 2, 1, 300, 300, 2), 257),
        ((1, 2, 1, 3, 1500, 5), None),
        ((1, 2, 1, 3, 1500, 5), 1100),
        ((300, 2, 1, 2, 3, 2), 2),
        ((1, 2, 1, 2, 40_000, 2), None),
        ((1, 2, 1, 2, 40_000, 2), 33_000),
    ]:
        q, k, v = inputs(*shape, dtype=torch.float64)
        what = f"gqa for B, Hq, Hkv, T, S, D = {shape}, window={window}"
        assert_matches(run(impl, q, k, v, window), formula(q, k, v, window), what, atol=1e-6)
    # Sums that a narrow dtype would round at every step.
    for dtype, tolerance in [(torch.float16, 1e-2), (torch.bfloat16, 4e-2)]:
        for keys, window in [(5000, None), (5000, 4000), (70_000, None)]:
            q, k = torch.zeros(1, 2, 1, 2, dtype=dtype), torch.ones(1, 1, keys, 2, dtype=dtype)
            v = torch.full((1, 1, keys, 2), 3.0, dtype=dtype)
            what = f"the mean of {keys} values of 3 in {dtype}, window={window}"
            assert_matches(run(impl, q, k, v, window), torch.full_like(q, 3), what, rtol=tolerance)


def test_axes_of_one_size_are_not_confused(impl):
    for shape in [(4, 4, 4, 4, 4, 4), (4, 4, 2, 4, 4, 4), (2, 2, 1, 5, 5, 2), (3, 6, 3, 3, 6, 6)]:
        for window in (None, 2):
            q, k, v = inputs(*shape)
            what = f"gqa for B, Hq, Hkv, T, S, D = {shape}, window={window}"
            assert_matches(run(impl, q, k, v, window), formula(q, k, v, window), what)
    x = inputs(2, 3, 3, 5, 5, 4)[0]
    for window in (None, 2):
        what = f"gqa of one tensor as q, k and v, window={window}"
        assert_matches(run(impl, x, x, x, window), formula(x, x, x, window), what)


# State, layouts, modes, gradients


def test_nothing_stays_from_an_earlier_call(impl):
    for shape in (SHAPE, (2, 3, 3, 4, 4, 5), (2, 3, 3, 1, 1, 5)):
        for window in (None, 1):
            assert_repeatable(
                lambda q, k, v: impl.gqa(q, k, v, window),  # noqa: B023
                lambda: inputs(*shape),  # noqa: B023
                lambda q, k, v: formula(q, k, v, window),  # noqa: B023
                f"gqa for B, Hq, Hkv, T, S, D = {shape}, window={window}",
            )
    q, k, v = inputs(*SHAPE)
    for window in (2, None, 3, 2, None):
        what = f"gqa after other windows, window={window}"
        assert_matches(impl.gqa(q, k, v, window), formula(q, k, v, window), what)
    for shape in ((2, 6, 2, 5, 7, 4), (2, 6, 3, 5, 6, 4), (2, 6, 3, 4, 7, 4), SHAPE):
        q, k, v = inputs(*shape)
        what = f"gqa after other sizes, B, Hq, Hkv, T, S, D = {shape}"
        assert_matches(impl.gqa(q, k, v, 3), formula(q, k, v, 3), what)
    q, k, v = inputs(*SHAPE)
    once, again = (impl.gqa(q, k, v, 3) for _ in range(2))
    assert_matches(again, once, "gqa of the same tensors once more", rtol=0, atol=0)


def test_any_layout(impl):
    for window in (None, 3):
        arguments = (*inputs(*SHAPE), window)
        expected = formula(*arguments)
        assert_any_layout(impl.gqa, arguments, expected, f"gqa, window={window},")
    # Heads that lie beside each other in a wider tensor, as a fused projection leaves them.
    fused = torch.randn(2, 7, 4 + 2 + 2, 5)
    q, k, v = (part.transpose(1, 2) for part in fused.split([4, 2, 2], dim=2))
    what = "gqa of parts of one tensor (B, T, heads, D)"
    assert_matches(run(impl, q, k, v, 3), formula(q, k, v, 3), what)
    q, k, v = inputs(*SHAPE)
    k, v = k[:, :1].expand(2, 3, 7, 4), v[:1].expand(2, 3, 7, 4)
    assert_matches(run(impl, q, k, v, 3), formula(q, k, v, 3), "gqa of expanded keys and values")


def test_any_mode(impl):
    for window in (None, 3):
        arguments = (*inputs(*SHAPE), window)
        assert_any_mode(impl.gqa, arguments, formula(*arguments), f"gqa, window={window},")


def test_gradients(impl):
    for shape in (*SHAPES[:5], (2, 3, 3, 4, 4, 5)):
        for window in (None, 3):
            tensors = [t.requires_grad_() for t in inputs(*shape, dtype=torch.float64)]
            theirs = formula(*tensors, window)
            grad_out = torch.randn_like(theirs)
            actual = gradients(impl.gqa(*tensors, window), tensors, grad_out)
            expected = gradients(theirs, tensors, grad_out)
            for name, ours, wanted in zip("qkv", actual, expected, strict=True):
                what = f"the gradient of {name}, B, Hq, Hkv, T, S, D = {shape}, window={window}"
                assert_matches(ours, wanted, what, atol=1e-6)


def test_gradients_reach_whoever_asks(impl):
    for asking in ("q", "k", "v", "kv"):
        for window in (None, 3):
            tensors = dict(zip("qkv", inputs(*SHAPE, dtype=torch.float64), strict=True))
            assert_gradients_reach(
                lambda q, k, v: impl.gqa(q, k, v, window),  # noqa: B023
                lambda q, k, v: formula(q, k, v, window),  # noqa: B023
                tensors,
                list(asking),
                f"gqa, window={window}",
            )


# The layer

# B, T, S, E, C, H, key heads.
LAYER = (2, 5, 7, 12, 10, 6, 3)
LAYERS = [
    LAYER,
    (3, 8, 6, 12, 5, 6, 2),
    (2, 1, 7, 12, 9, 4, 4),
    (3, 4, 1, 10, 6, 5, 1),
    (2, 5, 6, 7, 3, 1, 1),
    (2, 5, 7, 12, 12, 6, 3),  # x and context alike
    (4, 4, 4, 4, 4, 4, 2),
]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def layer_of(impl, sizes=LAYER, dtype=torch.float32):
    """A layer with weights and biases that matter."""
    _, _, _, embed_dim, context_dim, heads, kv_heads = sizes
    layer = impl.CrossAttention(embed_dim, context_dim, heads, kv_heads).to(dtype)
    with torch.no_grad():
        for name in PROJECTIONS:
            projection = getattr(layer, name)
            projection.weight.normal_().div_(math.sqrt(projection.in_features))
            projection.bias.normal_()
        layer.q_proj.weight.mul_(2)
    return layer


def tokens(sizes=LAYER, dtype=torch.float32):
    batch, queries, keys, embed_dim, context_dim, _, _ = sizes
    x = torch.randn(batch, queries, embed_dim, dtype=torch.float64)
    context = torch.randn(batch, keys, context_dim, dtype=torch.float64)
    return x.to(dtype), context.to(dtype)


def real_tokens(batch, keys):
    """A mask of every kind of row in turn: padding at the end, at the start, and in between."""
    mask = torch.ones(batch, keys, dtype=torch.bool)
    mask[0::3, keys - keys // 3 :] = False
    mask[1::3, : keys // 2] = False
    mask[2::3, 1::2] = False
    return mask


def mask_with_an_empty_row(batch, keys):
    mask = real_tokens(batch, keys)
    mask[-1] = False
    return mask


def layer_formula(layer, x, context, mask=None, heads=6):
    """The brief's layer in float64, of the weights that the layer has now."""

    def projected(name, tensor):
        projection = getattr(layer, name)
        return tensor.double() @ projection.weight.double().T + projection.bias.double()

    size = x.shape[-1] // heads
    q, k, v = (
        torch.stack(projected(name, tensor).split(size, dim=-1), 1)
        for name, tensor in (("q_proj", x), ("k_proj", context), ("v_proj", context))
    )
    allowed = torch.ones(1, 1, 1) if mask is None else mask[:, None]
    out = torch.cat(attend(q, k, v, allowed).unbind(1), dim=-1)
    return projected("out_proj", out).to(x.dtype)


def run_layer(layer, x, context, *mask):
    given = {"x": x, "context": context}
    if mask and mask[0] is not None:
        given["context_mask"] = mask[0]
    with unchanged(**given):
        return layer(x, context, *mask)


def test_layer_matches_the_formula(impl):
    for sizes in LAYERS:
        layer = layer_of(impl, sizes)
        x, context = tokens(sizes)
        for mask in (None, real_tokens(sizes[0], sizes[2])):
            expected = layer_formula(layer, x, context, mask, sizes[5])
            what = f"the layer for B, T, S, E, C, H, key heads = {sizes}, masked={mask is not None}"
            assert_matches(run_layer(layer, x, context, mask), expected, what, atol=2e-5)
    layer, (x, context), mask = layer_of(impl), tokens(), real_tokens(2, 7)
    assert_matches(
        layer(context_mask=mask, context=context, x=x),
        layer_formula(layer, x, context, mask),
        "the layer with its arguments by name",
        atol=2e-5,
    )
    what = "layer(x, context)"
    assert_matches(layer(x, context), layer_formula(layer, x, context), what, atol=2e-5)


def test_layer_matches_torch(impl):
    # PyTorch's layer has a key head for each query head: those of a group get the same weights.
    layer, (x, context), mask = layer_of(impl), tokens(), real_tokens(2, 7)
    theirs = nn.MultiheadAttention(12, 6, kdim=10, vdim=10, batch_first=True)
    with torch.no_grad():
        spread = {
            name: [
                part.unflatten(0, (3, 2)).repeat_interleave(2, 0).flatten(0, 1)
                for part in (projection.weight, projection.bias)
            ]
            for name, projection in (("k", layer.k_proj), ("v", layer.v_proj))
        }
        theirs.q_proj_weight.copy_(layer.q_proj.weight)
        theirs.k_proj_weight.copy_(spread["k"][0])
        theirs.v_proj_weight.copy_(spread["v"][0])
        theirs.in_proj_bias.copy_(torch.cat([layer.q_proj.bias, spread["k"][1], spread["v"][1]]))
        theirs.out_proj.load_state_dict(layer.out_proj.state_dict())
    # One mask a head, for `key_padding_mask` imports sympy: half a second.
    blocked = (~mask).repeat_interleave(6, 0)[:, None].expand(12, 5, 7)
    expected = theirs(x, context, context, attn_mask=blocked, need_weights=False)[0]
    what = "the layer beside nn.MultiheadAttention"
    assert_matches(run_layer(layer, x, context, mask), expected, what, atol=2e-5)


def test_layer_matches_t5gemma(impl):
    case = golden("gqa.json")["cross_attention"]
    layer = impl.CrossAttention(**case["sizes"])
    layer.load_state_dict({name: torch.tensor(x) for name, x in case["state_dict"].items()})
    x, context, mask, expected = (
        torch.tensor(case[name]) for name in ("x", "context", "context_mask", "out")
    )
    what = "the layer beside T5Gemma's cross-attention"
    assert_matches(run_layer(layer, x, context, mask), expected, what, atol=3e-5)


def test_layer_has_four_projections_with_biases(impl):
    layer = impl.CrossAttention(embed_dim=12, context_dim=10, num_heads=6, num_kv_heads=3)
    assert isinstance(layer, nn.Module), "CrossAttention is not an nn.Module"
    shapes = dict(zip(PROJECTIONS, [(12, 12), (6, 10), (6, 10), (12, 12)], strict=True))
    for name, shape in shapes.items():
        projection = getattr(layer, name)
        assert isinstance(projection, nn.Linear), f"{name} is {type(projection).__name__}"
        found = tuple(projection.weight.shape)
        assert found == shape, f"{name}.weight has the shape {found}, not {shape}"
    expected = {f"{name}.{kind}" for name in PROJECTIONS for kind in ("weight", "bias")}
    assert {name for name, _ in layer.named_parameters()} == expected
    assert set(layer.state_dict()) == expected


def test_layer_in_every_dtype(impl):
    for dtype, atol in DTYPES:
        layer = layer_of(impl, dtype=dtype)
        x, context = tokens(dtype=dtype)
        for mask in (None, real_tokens(2, 7), mask_with_an_empty_row(2, 7)):
            expected = layer_formula(layer, x, context, mask)
            actual = run_layer(layer, x, context, mask)
            what = f"the layer in {dtype}, {'not ' if mask is None else ''}masked"
            # Values of two or three go through three rounded projections.
            assert_matches(actual, expected, what, rtol=4 * atol, atol=4 * atol)


def test_keys_and_values_come_from_the_context(impl):
    sizes = (2, 6, 6, 12, 12, 6, 3)
    layer = layer_of(impl, sizes)
    x, context = tokens(sizes)
    before = layer(x, context)
    other = layer(x, context + 1)
    assert (other - before).abs().amax() > 1e-3, "the output stays as it was for another context"
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    what = "the output after the tokens of the context changed places"
    assert_matches(layer(x, context[:, order]), before, what)
    what = "the outputs after the tokens of x changed places"
    assert_matches(layer(x[:, order], context), before[:, order], what)


def test_padding_has_no_influence(impl):
    # As many tokens as there are in the context, and as there are rows.
    for sizes in (LAYER, (6, 6, 6, 12, 12, 6, 3)):
        layer = layer_of(impl, sizes)
        x, context = tokens(sizes)
        mask = real_tokens(sizes[0], sizes[2])
        before = layer(x, context, mask)
        other = context.clone()
        other[~mask] = 50.0
        what = "the output after tokens of the context that are not real changed"
        assert_matches(layer(x, other, mask), before, what)
        for row in range(sizes[0]):
            real = context[row, mask[row]][None]
            what = f"row {row} of a padded batch beside the same row without padding"
            assert_matches(before[row], layer(x[row, None], real)[0], what, atol=2e-5)


def test_a_row_without_a_real_token_gives_the_bias(impl):
    for dtype, _ in DTYPES:
        for batch, rows in [(3, [1]), (3, [0, 2]), (1, [0]), (2, [0, 1])]:
            layer = layer_of(impl, dtype=dtype)
            x, context = tokens((batch, *LAYER[1:]), dtype=dtype)
            mask = real_tokens(batch, 7)
            mask[rows] = False
            actual = run_layer(layer, x, context, mask)
            bias = layer.out_proj.bias.detach().expand(len(rows), 5, 12)
            what = f"the output in {dtype} of rows {rows} of {batch}, which have no real token,"
            assert_matches(actual[rows], bias, what, rtol=0, atol=0)
            assert not actual.isnan().any(), f"{what} is right, and that of others NaN"


def test_a_row_without_a_real_token_takes_no_part_in_the_gradient(impl):
    layer = layer_of(impl)
    x, context = (t.requires_grad_() for t in tokens((3, *LAYER[1:])))
    mask = real_tokens(3, 7)
    mask[1] = False
    out = layer(x, context, mask)
    weights = [layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight, layer.v_proj.bias]
    grad_out = torch.zeros_like(out)
    grad_out[1] = 1.5
    names = ["x", "context", "q_proj.weight", "k_proj.weight", "v_proj.weight", "v_proj.bias"]
    for name, actual in zip(names, gradients(out, [x, context, *weights], grad_out), strict=True):
        what = f"the gradient of {name} from a row without a real token"
        assert_matches(actual, torch.zeros_like(actual), what, rtol=0, atol=0)


def test_layer_gradients(impl):
    for sizes in (LAYER, (3, 8, 6, 12, 5, 6, 2), (2, 5, 7, 12, 12, 4, 4)):
        layer = layer_of(impl, sizes, torch.float64)
        parameters = dict(layer.named_parameters())
        for mask in (None, real_tokens(*sizes[0:3:2]), mask_with_an_empty_row(*sizes[0:3:2])):
            for training in (True, False) if sizes == LAYER else (False,):
                layer.train(training)
                x, context = (t.requires_grad_() for t in tokens(sizes, torch.float64))
                theirs = layer_formula(layer, x, context, mask, sizes[5])
                leaves = [x, context, *parameters.values()]
                grad_out = torch.randn_like(theirs)
                out = layer(x, context, mask)
                assert out.requires_grad, f"the layer's output has no gradient, {training=}"
                actual = gradients(out, leaves, grad_out)
                expected = gradients(theirs, leaves, grad_out)
                for name, ours, wanted in zip(
                    ["x", "context", *parameters], actual, expected, strict=True
                ):
                    what = f"the layer's gradient of {name}, masked={mask is not None}, {training=}"
                    assert_matches(ours, wanted, what, atol=1e-6)


def test_layer_gradients_reach_whoever_asks(impl):
    layer = layer_of(impl, dtype=torch.float64).requires_grad_(False)
    mask = mask_with_an_empty_row(2, 7)
    for asking in (["x"], ["context"], ["x", "context"]):
        for given in (None, mask):
            assert_gradients_reach(
                lambda x, context: layer(x, context, given),  # noqa: B023
                lambda x, context: layer_formula(layer, x, context, given),  # noqa: B023
                dict(zip(("x", "context"), tokens(dtype=torch.float64), strict=True)),
                asking,
                f"the layer, masked={given is not None}",
            )


def test_layer_keeps_nothing_from_earlier_calls(impl):
    layer, other = layer_of(impl), layer_of(impl)
    fixed = tokens()

    def check(what, masks=(None,)):
        for mask in masks:
            for x, context in (fixed, tokens(), fixed):
                actual = layer(x, context, mask)
                which = f"the layer {what}, masked={mask is not None}"
                assert_matches(actual, layer_formula(layer, x, context, mask), which, atol=3e-5)

    masks = (None, real_tokens(2, 7), mask_with_an_empty_row(2, 7), None)
    for training in (True, False):
        layer.train(training)
        check(f"after other calls, {training=}", masks)
    for training in (True, False):
        layer.train(training)
        with torch.set_grad_enabled(training):
            for name in PROJECTIONS:
                with torch.no_grad():
                    for parameter in getattr(layer, name).parameters():
                        parameter.mul_(-0.9)
                check(f"after {name} was changed in place, {training=}")
            other(*tokens())
            check("after another one was called", masks)
            layer.load_state_dict(other.state_dict())
            check("after load_state_dict")
            layer.k_proj = nn.Linear(10, 6)
            check("with another k_proj in its place")
            fixed[1].add_(1)
            check("after the context was changed in place")


def test_layer_is_repeatable(impl):
    layer = layer_of(impl)
    for training in (True, False):
        layer.train(training)
        for make in (lambda: None, lambda: torch.rand(2, 7) < 0.6):
            assert_repeatable(
                layer,
                lambda: (*tokens(), make()),  # noqa: B023
                lambda *arguments: layer_formula(layer, *arguments),
                f"the layer, {training=}",
                atol=2e-5,
            )
    x, context, mask = *tokens(), mask_with_an_empty_row(2, 7)
    once, again = (layer.train()(x, context, mask) for _ in range(2))
    assert_matches(again, once, "the layer on the same tokens once more", rtol=0, atol=0)
    assert_matches(layer.eval()(x, context, mask), once, "the layer in eval mode")


def test_layer_takes_any_layout_and_mode(impl):
    layer = layer_of(impl)
    for mask in (None, real_tokens(2, 7), mask_with_an_empty_row(2, 7)):
        arguments = (*tokens(), mask)
        expected = layer_formula(layer, *arguments)
        what = f"the layer, masked={mask is not None}"
        assert_any_layout(layer, arguments, expected, what, atol=2e-5)
        assert_any_mode(layer, arguments, expected, what, atol=2e-5)
    x, context = tokens()
    for row in (torch.arange(7) < 4, torch.zeros(7, dtype=torch.bool)):
        mask = row.expand(2, 7)
        expected = layer_formula(layer, x, context, mask)
        what = "the layer under one row of a mask, expanded"
        assert_matches(run_layer(layer, x, context, mask), expected, what, atol=2e-5)


def test_one_sequence_as_both(impl):
    sizes = (2, 5, 5, 12, 12, 6, 3)
    layer = layer_of(impl, sizes)
    x = tokens(sizes)[0]
    for mask in (None, real_tokens(2, 5)):
        what = f"the layer of one tensor as x and context, masked={mask is not None}"
        expected = layer_formula(layer, x, x, mask)
        assert_matches(run_layer(layer, x, x, mask), expected, what, atol=2e-5)


def test_layer_on_many_tokens(impl):
    for sizes in ((1, 3, 40_000, 6, 4, 2, 1), (1, 300, 270, 6, 4, 2, 1), (300, 2, 3, 6, 4, 2, 1)):
        layer = layer_of(impl, sizes, torch.float64)
        x, context = tokens(sizes, torch.float64)
        mask = torch.rand(sizes[0], sizes[2]) < 0.7
        for given in (None, mask):
            what = f"the layer for B, T, S, E, C, H, key heads = {sizes}"
            expected = layer_formula(layer, x, context, given, 2)
            assert_matches(run_layer(layer, x, context, given), expected, what, atol=1e-6)
