import math

import pytest
import torch
import torch.nn.functional as F

from dojo.testing import (
    ATTENTION,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    forbid_autograd,
    gradients,
    layouts,
    unchanged,
)

NAMES = ["dq", "dk", "dv"]
# B, H, T, S, D, E. Axes differ in size, so that a swapped one cannot hide; then each axis at one,
# and the square case, where it could.
SHAPES = [
    (2, 3, 5, 7, 4, 6),
    (3, 2, 7, 4, 6, 5),
    (2, 3, 1, 6, 5, 4),
    (3, 2, 4, 1, 5, 6),
    (2, 3, 5, 4, 1, 6),
    (3, 2, 4, 5, 6, 1),
    (1, 1, 17, 33, 9, 11),
    (2, 3, 5, 5, 4, 4),
]
CAUSAL_SHAPES = [
    (2, 3, 5, 5, 4, 4),
    (3, 2, 4, 7, 6, 5),
    (2, 1, 3, 4, 5, 6),
    (2, 3, 1, 6, 5, 4),
    (1, 1, 17, 33, 9, 11),
]
# More queries than keys: the first two, four and three see nothing.
MORE_QUERIES = [(2, 3, 6, 4, 5, 7), (3, 2, 7, 3, 4, 5), (2, 3, 4, 1, 5, 6)]


def tensors(b, h, t, s, d, e, dtype=torch.float64):
    """Return grad_out, q, k and v; scores are spread widely enough that weights differ."""
    shapes = [(b, h, t, e), (b, h, t, d), (b, h, s, d), (b, h, s, e)]
    grad_out, q, k, v = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return [x.to(dtype) for x in (grad_out, 1.5 * q, 1.5 * k, v)]


def visible(t, s):
    """Return which keys each query sees with `causal`, (T, S), as the brief has it."""
    return torch.arange(s) <= torch.arange(t)[:, None] + s - t


def oracle(grad_out, q, k, v, causal=False):
    """Return autograd's gradients through PyTorch's attention, in float64.

    Queries that see nothing are left out of it, so that their gradients are zero.
    """
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    first, mask = 0, None
    if causal:
        t, s = q.shape[-2], k.shape[-2]
        first = max(t - s, 0)
        mask = visible(t, s)[first:]
    q64, k64, v64 = leaves
    out = F.scaled_dot_product_attention(q64[..., first:, :], k64, v64, attn_mask=mask)
    return gradients(out, leaves, grad_out[..., first:, :].double())


def assert_all_match(actual, expected, behaviour, **tolerance):
    for name, one, other in zip(NAMES, actual, expected, strict=True):
        assert_matches(one, other, f"{name} {behaviour}", **tolerance)


def described(shape):
    return "for B, H, T, S, D, E = {}, {}, {}, {}, {}, {}".format(*shape)


# A case by hand, and what must hold whatever the formula.


def test_worked_example(impl):
    # 1 / sqrt(4) is 1/2, the scores are log 3 and 0, the weights 3/4 and 1/4.
    q = torch.tensor([[[[2.0, 0.0, 0.0, 0.0]]]], dtype=torch.float64)
    k = torch.tensor([[[[math.log(3), 0.0, 0.0, 0.0], [0.0, 0.0, 8.0, 0.0]]]]).double()
    v = torch.tensor([[[[1.0], [5.0]]]], dtype=torch.float64)
    grad_out = torch.tensor([[[[1.0]]]], dtype=torch.float64)
    dq, dk, dv = impl.attention_backward(grad_out, q, k, v)
    assert_matches(dv[0, 0, :, 0], torch.tensor([0.75, 0.25]).double(), "dv of two keys")
    # The output is 2; the gradients of the scores are 3/4 (1 - 2) and 1/4 (5 - 2).
    expected = torch.tensor([-3 / 8 * math.log(3), 0.0, 3.0, 0.0], dtype=torch.float64)
    assert_matches(dq[0, 0, 0], expected, "dq of one query and two keys")
    expected = torch.tensor([[-0.75, 0.0, 0.0, 0.0], [0.75, 0.0, 0.0, 0.0]]).double()
    assert_matches(dk[0, 0], expected, "dk of one query and two keys")


def test_dv_adds_up_to_the_upstream_gradient(impl):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    _, _, dv = impl.attention_backward(grad_out, q, k, v)
    behaviour = "the weights of a query sum to one, so dv summed over keys, beside grad_out summed"
    assert_matches(dv.sum(-2), grad_out.sum(-2), behaviour)


def test_moving_all_keys_alike_changes_no_output(impl):
    # It adds one number to all scores of a query, which leaves the weights as they were.
    _, dk, _ = impl.attention_backward(*tensors(2, 3, 5, 7, 4, 6))
    behaviour = "a shift of all keys by the same vector changes no output, so dk summed over keys"
    assert_matches(dk.sum(-2), torch.zeros(2, 3, 4).double(), behaviour)


def test_equal_values_leave_queries_and_keys_alone(impl):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    v = v[..., :1, :].expand_as(v)
    dq, dk, _ = impl.attention_backward(grad_out, q, k, v)
    behaviour = "when all values of a head are equal, so that the weights do not matter"
    assert_matches(dq, torch.zeros_like(q), f"dq {behaviour}")
    assert_matches(dk, torch.zeros_like(k), f"dk {behaviour}")


@pytest.mark.parametrize("causal", [False, True])
def test_queries_and_keys_pull_equally(impl, causal):
    # A query twice as long and a key twice as long do the same to a score.
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    dq, dk, _ = impl.attention_backward(grad_out, q, k, v, causal)
    behaviour = (
        "scores double with q as they do with k, so the sum of k * dk, beside that of q * dq"
    )
    assert_matches((k * dk).sum((-2, -1)), (q * dq).sum((-2, -1)), behaviour)


def test_features_that_are_zero(impl):
    # Four times the features, all new ones zero, and queries twice as long: the same scores.
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    before = impl.attention_backward(grad_out, q, k, v)
    zeros = torch.zeros(2, 3, 1, 12, dtype=q.dtype)
    wide_q = torch.cat([2 * q, zeros.expand(2, 3, 5, 12)], -1)
    wide_k = torch.cat([k, zeros.expand(2, 3, 7, 12)], -1)
    dq, dk, dv = impl.attention_backward(grad_out, wide_q, wide_k, v)
    behaviour = (
        "when D is 16 in place of 4, new features are zero and q is doubled: scores are equal"
    )
    assert_matches(dq[..., :4], before[0] / 2, f"dq {behaviour}")
    assert_matches(dk[..., :4], before[1], f"dk {behaviour}")
    assert_matches(dv, before[2], f"dv {behaviour}")


def test_values_may_be_wider(impl):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    dq, dk, dv = impl.attention_backward(grad_out, q, k, v)
    wide_v = torch.cat([v, torch.zeros_like(v)], -1)
    wide_grad = torch.cat([grad_out, torch.zeros_like(grad_out)], -1)
    wide = impl.attention_backward(wide_grad, q, k, wide_v)
    expected = dq, dk, torch.cat([dv, torch.zeros_like(dv)], -1)
    assert_all_match(wide, expected, "when E is 12 in place of 6 and the new columns are zero")


def test_one_key(impl):
    grad_out, q, k, v = tensors(2, 3, 5, 1, 4, 6)
    dq, dk, dv = impl.attention_backward(grad_out, q, k, v)
    assert_matches(dv, grad_out.sum(-2, keepdim=True), "dv of the only key, whose weight is one")
    assert_matches(dq, torch.zeros_like(q), "dq when there is but one key")
    assert_matches(dk, torch.zeros_like(k), "dk of the only key")


def test_queries_do_not_mix(impl):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    together, _, _ = impl.attention_backward(grad_out, q, k, v)
    for row in (0, 3):
        one = slice(row, row + 1)
        alone, _, _ = impl.attention_backward(grad_out[..., one, :], q[..., one, :], k, v)
        assert_matches(together[..., one, :], alone, f"dq of query {row} among others and alone")


def test_heads_do_not_mix(impl):
    inputs = tensors(2, 3, 5, 7, 4, 6)
    together = impl.attention_backward(*inputs)
    alone = impl.attention_backward(*(x[1:, 2:] for x in inputs))
    behaviour = "of one head among others and alone"
    assert_all_match([x[1:, 2:] for x in together], alone, behaviour)


# Beside autograd.


@pytest.mark.parametrize("shape", SHAPES)
def test_dq_matches_autograd(impl, shape):
    inputs = tensors(*shape)
    dq, _, _ = impl.attention_backward(*inputs)
    assert_matches(dq, oracle(*inputs)[0], f"dq {described(shape)}")


@pytest.mark.parametrize("shape", SHAPES)
def test_dk_matches_autograd(impl, shape):
    inputs = tensors(*shape)
    _, dk, _ = impl.attention_backward(*inputs)
    assert_matches(dk, oracle(*inputs)[1], f"dk {described(shape)}")


@pytest.mark.parametrize("shape", SHAPES)
def test_dv_matches_autograd(impl, shape):
    inputs = tensors(*shape)
    _, _, dv = impl.attention_backward(*inputs)
    assert_matches(dv, oracle(*inputs)[2], f"dv {described(shape)}")


@pytest.mark.parametrize("shape", CAUSAL_SHAPES)
def test_causal_matches_autograd(impl, shape):
    inputs = tensors(*shape)
    actual = impl.attention_backward(*inputs, causal=True)
    assert_all_match(actual, oracle(*inputs, causal=True), f"with causal, {described(shape)}")


@pytest.mark.parametrize("shape", MORE_QUERIES)
def test_queries_that_see_nothing(impl, shape):
    inputs = tensors(*shape)
    actual = impl.attention_backward(*inputs, causal=True)
    blind = shape[2] - shape[3]
    for row in range(blind):
        behaviour = f"dq of query {row}, which sees none of the keys, {described(shape)}"
        assert_matches(actual[0][..., row, :], torch.zeros_like(inputs[1][..., row, :]), behaviour)
    behaviour = f"where the first {blind} queries see no key, {described(shape)}"
    assert_all_match(actual, oracle(*inputs, causal=True), behaviour)


def test_causal_is_off_unless_asked_for(impl):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    expected = oracle(grad_out, q, k, v)
    actual = impl.attention_backward(grad_out=grad_out, q=q, k=k, v=v)
    assert_all_match(actual, expected, "without causal")
    actual = impl.attention_backward(grad_out, q, k, v, False)
    assert_all_match(actual, expected, "with causal=False")
    expected = oracle(grad_out, q, k, v, causal=True)
    assert_all_match(impl.attention_backward(grad_out, q, k, v, True), expected, "with causal=True")


# Beside slopes, from neither PyTorch's attention nor its autograd.


def slow_loss(grad_out, q, k, v, causal):
    """Return the sum of grad_out * output for one head of nested lists, written out here."""
    total = 0.0
    for i, query in enumerate(q):
        seen = [j for j in range(len(k)) if not causal or j <= i + len(k) - len(q)]
        dots = [sum(a * b for a, b in zip(query, k[j], strict=True)) for j in seen]
        exps = [math.exp(dot / math.sqrt(len(query))) for dot in dots]
        for j, exp in zip(seen, exps, strict=True):
            product = sum(a * b for a, b in zip(grad_out[i], v[j], strict=True))
            total += exp / sum(exps) * product
    return total


@pytest.mark.parametrize(("causal", "t", "s"), [(False, 2, 3), (True, 2, 3), (True, 4, 2)])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_gradients_are_slopes(impl, index, causal, t, s):
    inputs = tensors(1, 1, t, s, 2, 3)
    actual = impl.attention_backward(*inputs, causal=causal)[index]
    expected = torch.zeros_like(inputs[1 + index])
    for place in range(expected.numel()):
        losses = []
        for step in (1e-5, -1e-5):
            moved = [x.clone() for x in inputs]
            moved[1 + index].view(-1)[place] += step
            losses.append(slow_loss(*(x[0, 0].tolist() for x in moved), causal))
        expected.view(-1)[place] = (losses[0] - losses[1]) / 2e-5
    name = NAMES[index]
    behaviour = f"{name}, beside what the output does when {name[1]} moves by 0.00001"
    behaviour += f" ({t} queries, {s} keys{', causal' * causal})"
    # A central difference is as exact as the square of its step and the rounding over the step.
    assert_matches(actual, expected, behaviour, rtol=1e-6, atol=1e-7)


# The causal mask.


@pytest.mark.parametrize(("t", "s"), [(5, 5), (3, 7), (6, 4)])
def test_no_gradient_reaches_later_keys(impl, t, s):
    grad_out, q, k, v = tensors(2, 1, t, s, 4, 6)
    row = t - 2  # sees all but the last key
    only = torch.zeros_like(grad_out)
    only[..., row, :] = grad_out[..., row, :]
    _, dk, dv = impl.attention_backward(only, q, k, v, causal=True)
    behaviour = f"of the last key when only query {row} has an upstream gradient (T={t}, S={s})"
    assert_matches(dk[..., -1, :], torch.zeros_like(k[..., -1, :]), f"dk {behaviour}")
    assert_matches(dv[..., -1, :], torch.zeros_like(v[..., -1, :]), f"dv {behaviour}")


@pytest.mark.parametrize(("t", "s"), [(1, 6), (3, 7), (6, 4)])
def test_last_query_sees_every_key(impl, t, s):
    grad_out, q, k, v = tensors(2, 1, t, s, 4, 5)
    only = torch.zeros_like(grad_out)
    only[..., -1, :] = grad_out[..., -1, :]
    actual = impl.attention_backward(only, q, k, v, causal=True)
    behaviour = f"when only the last query has an upstream gradient, causal, T={t} and S={s}"
    # That query sees all keys, and the others do not matter: the same as without the mask.
    assert_all_match(actual, oracle(only, q, k, v), behaviour)


def test_a_sequence_in_two_chunks(impl):
    grad_out, q, k, v = tensors(2, 3, 7, 7, 4, 5)
    actual = impl.attention_backward(grad_out, q, k, v, causal=True)
    # The first three queries see the first three keys at most; the other four come after them.
    first = oracle(*(x[..., :3, :] for x in (grad_out, q, k, v)), causal=True)
    assert_matches(actual[0][..., :3, :], first[0], "dq of the first 3 of 7 tokens")
    chunk = impl.attention_backward(grad_out[..., 3:, :], q[..., 3:, :], k, v, causal=True)
    behaviour = "of the last 4 of 7 queries, given alone with all 7 keys"
    assert_matches(
        chunk[0], oracle(grad_out, q, k, v, causal=True)[0][..., 3:, :], f"dq {behaviour}"
    )
    for index in (1, 2):
        whole = chunk[index].clone()
        whole[..., :3, :] += first[index]
        behaviour = f"{NAMES[index]} of 7 tokens at once, beside the sum over two chunks of queries"
        assert_matches(actual[index], whole, behaviour)


# Numbers, layouts and inputs.


@pytest.mark.parametrize("causal", [False, True])
def test_scores_far_apart(impl, causal):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    q, k = 40 * q, 40 * k
    actual = impl.attention_backward(grad_out, q, k, v, causal)
    expected = oracle(grad_out, q, k, v, causal)
    # Scores are thousands, exact to about 1e-12, and q and k are about a hundred.
    assert_all_match(actual, expected, "when scores are thousands apart", rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", [2e4, -2e4])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_far_from_zero(impl, causal, level):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    q[..., 0], k[..., 0] = 1.0, level  # adds level / 2 to each score
    actual = impl.attention_backward(grad_out, q, k, v, causal)
    expected = oracle(grad_out, q, k, v, causal)
    behaviour = f"when all scores are near {level / 2:g}"
    assert_all_match(actual, expected, behaviour, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_dtype_is_kept(impl, causal, dtype):
    inputs = tensors(2, 1, 9, 7, 5, 6, dtype=dtype)
    actual = impl.attention_backward(*inputs, causal=causal)
    expected = [x.to(dtype) for x in oracle(*inputs, causal=causal)]
    # float32: scores of about ten are exact to 1e-6, and so are weights, relative to themselves;
    # sums of up to nine products below about ten follow.
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {}
    assert_all_match(actual, expected, f"in {dtype}", **tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("index", "name"), [(0, "grad_out"), (1, "q"), (2, "k"), (3, "v")])
def test_any_memory_layout(impl, index, name, causal):
    inputs = tensors(2, 3, 5, 7, 4, 6)
    expected = impl.attention_backward(*(x.clone() for x in inputs), causal=causal)
    for layout, strided in layouts(inputs[index]):
        given = [*inputs[:index], strided, *inputs[index + 1 :]]
        actual = impl.attention_backward(*given, causal=causal)
        assert_all_match(actual, expected, f"when {name} is {layout}, beside a contiguous one")


def test_expanded_upstream_gradients(impl):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    for like, expanded in [
        ("the same for all queries", grad_out[..., :1, :].expand_as(grad_out)),
        ("the same for all heads", grad_out[:, :1].expand_as(grad_out)),
        ("one number, as from out.sum()", grad_out[0, 0, 0, 0].expand_as(grad_out)),
    ]:
        with unchanged(grad_out=expanded):
            actual = impl.attention_backward(expanded, q, k, v)
        expected = impl.attention_backward(expanded.contiguous(), q, k, v)
        behaviour = f"when the upstream gradient is {like}, expanded, beside a contiguous one"
        assert_all_match(actual, expected, behaviour)


def test_expanded_keys_and_values(impl):
    grad_out, q, k, v = tensors(2, 3, 5, 7, 4, 6)
    k, v = k[:, :1].expand(2, 3, 7, 4), v[:1].expand(2, 3, 7, 6)
    actual = impl.attention_backward(grad_out, q, k, v, causal=True)
    expected = impl.attention_backward(grad_out, q, k.contiguous(), v.contiguous(), causal=True)
    behaviour = "when heads share their keys and examples their values, expanded, beside copies"
    assert_all_match(actual, expected, behaviour)


@pytest.mark.parametrize("causal", [False, True])
def test_inputs_are_left_alone(impl, causal):
    grad_out, q, k, v = tensors(2, 3, 6, 4, 5, 7)
    with unchanged(grad_out=grad_out, q=q, k=k, v=v):
        impl.attention_backward(grad_out, q, k, v, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_works_by_hand_without_autograd(impl, causal):
    inputs = tensors(2, 3, 5, 7, 4, 6)
    with torch.inference_mode(), forbid(*ATTENTION), forbid_autograd():
        actual = impl.attention_backward(*inputs, causal=causal)
    expected = oracle(*inputs, causal=causal)
    assert_all_match(actual, expected, "under torch.inference_mode()")


# Whatever is called before, and wherever.


def expected_of(*inputs):
    """Return the oracle's gradients in the dtypes that the brief asks for."""
    return tuple(x.to(inputs[0].dtype) for x in oracle(*inputs))


@pytest.mark.parametrize(("t", "s"), [(5, 7), (7, 5), (1, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_stays_from_an_earlier_call(impl, causal, t, s):
    assert_repeatable(
        impl.attention_backward,
        lambda: (*tensors(2, 3, t, s, 4, 6), causal),
        expected_of,
        f"the gradients for T={t}, S={s}, causal={causal}",
    )
    for again in (not causal, causal):
        inputs = tensors(2, 3, t, s, 4, 6)
        behaviour = f"for T={t}, S={s}, causal={again}, after a call with causal={not again}"
        actual = impl.attention_backward(*inputs, again)
        assert_all_match(actual, oracle(*inputs, again), behaviour)


@pytest.mark.parametrize("causal", [False, True])
def test_any_layout_of_each_argument(impl, causal):
    inputs = (*tensors(2, 3, 5, 7, 4, 6), causal)
    behaviour = f"the gradients, causal={causal},"
    assert_any_layout(impl.attention_backward, inputs, expected_of(*inputs), behaviour)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_the_same_under_any_mode(impl, causal, dtype):
    inputs = (*tensors(2, 3, 6, 4, 5, 7, dtype=dtype), causal)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {}
    behaviour = f"the gradients in {dtype}, causal={causal},"
    assert_any_mode(impl.attention_backward, inputs, expected_of(*inputs), behaviour, **tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_inputs_that_require_gradients(impl, causal):
    inputs = tensors(2, 3, 5, 7, 4, 6)
    expected = oracle(*inputs, causal)
    leaves = [x.requires_grad_() for x in inputs]
    behaviour = f"of inputs that require gradients, causal={causal}"
    assert_all_match(impl.attention_backward(*leaves, causal), expected, behaviour)
    assert all(x.grad is None for x in leaves), "the gradients of the inputs were filled in"


@pytest.mark.parametrize("causal", [False, True])
def test_one_tensor_for_all_inputs(impl, causal):
    x, _, _, _ = tensors(2, 3, 5, 5, 4, 4)
    with unchanged(x=x):
        actual = impl.attention_backward(x, x, x, x, causal)
    behaviour = f"of one tensor as grad_out, q, k and v, causal={causal}"
    assert_all_match(actual, oracle(x, x, x, x, causal), behaviour)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 70, 100, 5, 4),
        (1, 2, 130, 100, 4, 3),
        (1, 2, 3, 1500, 5, 4),
        (1, 2, 1500, 3, 4, 5),
        (3, 2, 5, 7, 200, 130),
        (2, 40, 3, 2, 4, 5),
        (40, 1, 2, 3, 4, 5),
    ],
)
def test_beyond_the_size_of_a_block(impl, shape, causal):
    inputs = tensors(*shape)
    inputs[1] *= shape[4] ** -0.5  # keeps scores of many features near one
    actual = impl.attention_backward(*inputs, causal)
    assert_all_match(actual, oracle(*inputs, causal), f"{described(shape)}, causal={causal}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sign", "best"), [(1, 0), (-1, 2)])
def test_scores_at_the_edge_of_the_dtype(impl, dtype, sign, best):
    # With 16 features the scores are a quarter of q kᵀ, which does not fit the dtype. Key 0 is
    # along the queries, key 2 opposite, key 1 zero and key 3 half of key 2.
    length = math.sqrt(0.9 * torch.finfo(dtype).max / 4)
    row = torch.full((1, 1, 1, 16), length, dtype=dtype)
    q, k = sign * row.repeat(1, 1, 3, 1), torch.tensor([1.0, 0, -1, -0.5])[:, None].to(dtype) * row
    grad_out, _, _, v = tensors(1, 1, 3, 4, 16, 5, dtype=dtype)
    # All queries see the best key alone.
    dq, dk, dv = impl.attention_backward(grad_out, q, k, v)
    behaviour = f"in {dtype} where scores are close to the largest number, and key {best} is best"
    expected = torch.zeros_like(v)
    expected[..., best, :] = grad_out.sum(-2)
    assert_matches(dv, expected, f"dv {behaviour}")
    # Gradients of scores are zero but for rounding, and it is multiplied by q and k.
    rounding = 100 * torch.finfo(dtype).eps * length
    assert_matches(dq, torch.zeros_like(q), f"dq {behaviour}", atol=rounding)
    assert_matches(dk, torch.zeros_like(k), f"dk {behaviour}", atol=rounding)
    # Query 0 sees keys 0 and 1, query 1 key 2 as well, query 2 all.
    _, _, dv = impl.attention_backward(grad_out, q, k, v, causal=True)
    expected = torch.zeros_like(v)
    for query, key in enumerate([0, 0, 0] if sign > 0 else [1, 2, 2]):
        expected[..., key, :] += grad_out[..., query, :]
    assert_matches(dv, expected, f"dv with causal, {behaviour}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [2**-20, 2**-6, 2**6, 2**20])
def test_scores_at_the_edge_from_numbers_far_apart(impl, dtype, ratio):
    # Keys 0 and 1 are opposite; one of q and k is larger than the other by the square of the ratio.
    length = math.sqrt(0.9 * torch.finfo(dtype).max / 4)
    row = torch.full((1, 1, 1, 16), length, dtype=dtype)
    q, k = ratio * row.repeat(1, 1, 3, 1), torch.cat([row, -row], -2) / ratio
    grad_out, _, _, v = tensors(1, 1, 3, 2, 16, 5, dtype=dtype)
    _, _, dv = impl.attention_backward(grad_out, q, k, v)
    expected = torch.zeros_like(v)
    expected[..., 0, :] = grad_out.sum(-2)
    behaviour = f"dv in {dtype} where scores are close to the largest number, q {ratio:g} times"
    assert_matches(dv, expected, f"{behaviour} and k 1/{ratio:g} times their root")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hidden_keys_stay_hidden_however_low_the_scores(impl, dtype):
    # Every score that a query sees is near the lowest number there is, the hidden ones are zero.
    length = math.sqrt(0.9 * torch.finfo(dtype).max / 4)
    row = torch.full((1, 1, 1, 16), length, dtype=dtype)
    k = torch.cat([-row, torch.zeros_like(row)], -2)
    grad_out, _, _, v = tensors(1, 1, 2, 2, 16, 5, dtype=dtype)
    q = torch.cat([row, torch.zeros_like(row)], -2)
    _, _, dv = impl.attention_backward(grad_out, q, k, v, causal=True)
    # Query 0 takes key 0 alone; query 1 has two scores of zero.
    half = grad_out[..., 1, :] / 2
    expected = torch.stack([grad_out[..., 0, :] + half, half], -2)
    assert_matches(dv, expected, f"dv in {dtype} of keys whose scores are the lowest there are")
