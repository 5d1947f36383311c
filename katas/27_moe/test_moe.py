import math
from fractions import Fraction

import torch
from torch import nn

from dojo.testing import (
    assert_all_match,
    assert_any_layout,
    assert_any_mode,
    assert_gradients_reach,
    assert_matches,
    assert_repeatable,
    golden,
    gradients,
    unchanged,
)

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Weights are float32 in every dtype; in half precision an expert rounds three times.
DTYPES = [
    (torch.float64, 1e-5),
    (torch.float32, 2e-5),
    (torch.float16, 1e-2),
    (torch.bfloat16, 8e-2),
]


def ranking(row, k):
    """The ids of the k largest numbers of a list, the largest first and equals by id."""
    return sorted(range(len(row)), key=lambda expert: (-row[expert], expert))[:k]


def route_formula(logits, k):
    """The brief's weights and ids: ranked in float32 by Python, weighted in float64."""
    rows = [ranking(row, k) for row in logits.detach().float().tolist()]
    experts = torch.tensor(rows, dtype=torch.int64).reshape(len(logits), k)
    return logits.float().double().gather(1, experts).softmax(-1).float(), experts


def loss_formula(logits, experts, num_experts, mask=None):
    """The brief's loss in float64."""
    if mask is not None:
        logits, experts = logits[mask], experts[mask]
    if len(logits) == 0:
        return 0 * logits.sum().float()
    fraction = nn.functional.one_hot(experts.flatten(), num_experts).double().mean(0)
    probability = logits.double().softmax(-1).mean(0)
    return num_experts * (fraction * probability).sum().float()


def random_logits(tokens, experts, dtype=torch.float32):
    """Logits whose rows differ in level and spread, without ties in float32."""
    spread = 1 + 2 * torch.rand(tokens, 1, dtype=torch.float64)
    logits = 2 * torch.randn(tokens, 1, dtype=torch.float64)
    return (logits + spread * torch.randn(tokens, experts, dtype=torch.float64)).to(dtype)


def random_choices(tokens, experts, k):
    """Ids, distinct in a row, some experts more often than others."""
    return (torch.rand(tokens, experts) * torch.arange(1.0, experts + 1)).argsort(1)[:, :k].clone()


def run_route(impl, logits, k):
    with unchanged(logits=logits):
        result = impl.route(logits, k)
    assert isinstance(result, tuple), f"route returns {type(result).__name__}, not a tuple"
    return result


def run_loss(impl, logits, experts, *rest):
    given = {"logits": logits, "experts": experts}
    if len(rest) > 1 and rest[1] is not None:
        given["mask"] = rest[1]
    with unchanged(**given):
        return impl.load_balance_loss(logits, experts, *rest)


# route

# N, E, k.
ROUTES = [
    (7, 6, 2),
    (5, 8, 3),
    (9, 4, 1),
    (6, 5, 5),
    (1, 3, 2),
    (4, 1, 1),
    (1, 1, 1),
    (0, 6, 2),
    (3, 300, 280),
    (300, 7, 4),
]


def test_weights_are_the_softmax_over_the_chosen_alone(impl):
    logits = torch.tensor([[0.3, 0.1, 0.6], [0.1, 0.7, 0.2], [0.05, 0.15, 0.8]]).log() + 1.5
    for k, weights, experts in [
        (1, [[1.0], [1.0], [1.0]], [[2], [1], [2]]),
        (2, [[2 / 3, 1 / 3], [7 / 9, 2 / 9], [16 / 19, 3 / 19]], [[2, 0], [1, 2], [2, 1]]),
        (
            3,
            [[0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.8, 0.15, 0.05]],
            [[2, 0, 1], [1, 2, 0], [2, 1, 0]],
        ),
    ]:
        actual = run_route(impl, logits, k)
        expected = torch.tensor(weights), torch.tensor(experts)
        what = f"the weights and ids of the best {k} of three experts"
        assert_all_match(actual, expected, what, atol=1e-6)
        total = actual[0].sum(1)
        assert_matches(total, torch.ones(3), f"the sum of the weights of {k} of three experts")


def test_route_matches_the_formula(impl):
    for tokens, experts, k in ROUTES:
        logits = random_logits(tokens, experts)
        what = f"route for N, E, k = {(tokens, experts, k)}"
        actual = run_route(impl, logits, k)
        assert_all_match(actual, route_formula(logits, k), what, rtol=1e-5, atol=1e-7)
    logits = random_logits(5, 7)
    expected = route_formula(logits, 3)
    assert_all_match(impl.route(k=3, logits=logits), expected, "route with its arguments by name")


def test_weights_have_the_precision_of_float32(impl):
    for dtype in FLOATS:
        for tokens, experts, k in [(40, 9, 4), (3, 3, 3), (5, 6, 1), (0, 4, 2)]:
            logits = random_logits(tokens, experts, dtype)
            what = f"route of {dtype} logits for N, E, k = {(tokens, experts, k)}"
            actual = run_route(impl, logits, k)
            assert_all_match(actual, route_formula(logits, k), what, rtol=1e-5, atol=1e-7)


def test_of_equal_logits_the_lowest_id_comes_first(impl):
    rows = [
        [0.0] * 8,
        [1.0, 2.0, 2.0, 1.0, 2.0, 1.0, 0.0, 2.0],
        [-1.0, -1.0, -3.0, -1.0, -1.0, 5.0, 5.0, -3.0],
        [0.0, -0.0, 0.0, -0.0, -1.0, 0.0, -0.0, 0.0],
    ]
    for dtype in FLOATS:
        logits = torch.tensor(rows).to(dtype)
        for k in (1, 2, 3, 5, 8):
            what = f"the best {k} of eight experts with equal logits, {dtype},"
            assert_all_match(run_route(impl, logits, k), route_formula(logits, k), what)
        for experts in (17, 70, 300):
            for k in (2, experts // 2 + 1):
                logits = torch.randint(-2, 3, (3, experts)).to(dtype)
                what = f"the best {k} of {experts} experts with equal logits, {dtype},"
                assert_all_match(run_route(impl, logits, k), route_formula(logits, k), what)
    logits = torch.tensor([[1.0, 1 + 1e-12, 0.5, 1 + 2e-12]], dtype=torch.float64)
    actual = run_route(impl, logits, 3)[1].tolist()
    assert actual == [[0, 1, 3]], f"logits equal in float32 rank {actual}, not [[0, 1, 3]]"


def test_logits_at_the_edge_of_the_dtype(impl):
    for dtype in FLOATS:
        top = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).max
        logits = torch.tensor([[-0.9, 0.9, 0.5, 0.9], [-0.9, -0.9, -0.95, -0.99]]) * top
        logits = logits.to(dtype)
        tiny = torch.finfo(dtype).tiny
        logits = torch.cat([logits, torch.tensor([[0, 4 * tiny, -tiny, 2 * tiny]]).to(dtype)])
        expected = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1 / 3] * 3])
        weights, experts = run_route(impl, logits, 3)
        what = f"the weights of {dtype} logits up to {top:.3g} and down to {tiny:.3g}"
        assert_matches(weights, expected, what, rtol=2e-3)
        wanted = [[1, 3, 2], [0, 1, 2], [1, 3, 0]]
        if dtype != torch.float64:  # in float32 the last row is all zeros
            assert experts.tolist() == wanted, f"the experts of {dtype} logits at the edge"


def test_route_matches_mixtral(impl):
    case = golden("moe.json")
    logits, weights, experts = (torch.tensor(case[n]) for n in ("logits", "weights", "experts"))
    actual = run_route(impl, logits, case["sizes"]["k"])
    assert_all_match(actual, (weights, experts), "route beside Mixtral's router")


def test_gradients_reach_the_logits_through_the_weights(impl):
    for tokens, experts, k in [(7, 6, 2), (5, 8, 3), (6, 5, 5)]:
        logits = random_logits(tokens, experts)
        weights = impl.route(logits.clone().requires_grad_(), k)[0]
        assert weights.requires_grad, f"the weights have no gradient, k={k}"
        assert_gradients_reach(
            lambda logits: impl.route(logits, k)[0],  # noqa: B023
            lambda logits: route_formula(logits, k)[0],  # noqa: B023
            {"logits": logits},
            ["logits"],
            f"route for N, E, k = {(tokens, experts, k)}",
        )


def test_route_is_repeatable_in_any_layout_and_mode(impl):
    for tokens, experts, k in [(7, 6, 2), (6, 5, 5), (5, 4, 1), (5, 1, 1), (1, 4, 3)]:
        what = f"route for N, E, k = {(tokens, experts, k)}"
        assert_repeatable(
            impl.route,
            lambda: (random_logits(tokens, experts), k),  # noqa: B023
            route_formula,
            what,
        )
        for dtype in (torch.float32, torch.bfloat16):
            arguments = random_logits(tokens, experts, dtype), k
            expected = route_formula(*arguments)
            assert_any_layout(impl.route, arguments, expected, f"{what}, {dtype},")
            assert_any_mode(impl.route, arguments, expected, f"{what}, {dtype},")
    logits = random_logits(6, 5)
    for k in (2, 4, 1, 2):
        what = f"route of the same logits for another k, {k}"
        assert_all_match(run_route(impl, logits, k), route_formula(logits, k), what)
    row = random_logits(1, 5).expand(4, 5)
    assert_all_match(run_route(impl, row, 2), route_formula(row, 2), "route of expanded logits")


# load_balance_loss

# N, E, k.
LOSSES = [(7, 6, 2), (5, 8, 3), (9, 4, 1), (6, 5, 5), (1, 3, 2), (4, 1, 1), (300, 290, 3)]


def test_the_loss_by_hand(impl):
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.3, 0.6]]).log() - 2
    # P = 0.3, 0.275, 0.425.
    for experts, expected in [
        ([[0], [0]], 3 * 0.3),
        ([[0], [2]], 3 * (0.5 * 0.3 + 0.5 * 0.425)),
        ([[1], [2]], 3 * (0.5 * 0.275 + 0.5 * 0.425)),
        ([[0, 1], [2, 1]], 3 * (0.25 * 0.3 + 0.5 * 0.275 + 0.25 * 0.425)),
        ([[2, 0], [0, 2]], 3 * (0.5 * 0.3 + 0.5 * 0.425)),
        ([[2, 0, 1], [1, 2, 0]], 1.0),
    ]:
        actual = run_loss(impl, logits, torch.tensor(experts), 3)
        what = f"the loss of choices {experts} under mean probabilities 0.3, 0.275, 0.425"
        assert_matches(actual, torch.tensor(expected), what)
    for mask, expected in [([True, False], 3 * 0.375), ([False, True], 3 * 0.45)]:
        experts = torch.tensor([[0, 1], [1, 2]])
        actual = run_loss(impl, logits, experts, 3, torch.tensor(mask))
        what = f"the loss of two tokens that chose [0, 1] and [1, 2], where {mask} is real"
        assert_matches(actual, torch.tensor(expected), what)


def test_the_loss_is_one_where_experts_are_chosen_alike(impl):
    for experts, k in [(6, 1), (6, 2), (5, 3), (4, 4)]:
        turns = (torch.arange(experts)[:, None] + torch.arange(k)) % experts
        logits = random_logits(experts, experts)
        actual = run_loss(impl, logits, turns, experts)
        what = f"the loss where each of {experts} experts is chosen {k} times"
        assert_matches(actual, torch.tensor(1.0), what)
    # All to one: E times its probability, for any k where the others are chosen alike.
    logits = torch.zeros(8, 4)
    actual = run_loss(impl, logits, torch.tensor([[3, 1]] * 8), 4)
    assert_matches(actual, torch.tensor(1.0), "the loss of even probabilities")


def test_every_choice_counts_alike(impl):
    logits = random_logits(8, 5)
    experts = random_choices(8, 5, 3)
    expected = loss_formula(logits, experts, 5)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        actual = run_loss(impl, logits, experts[:, order].contiguous(), 5)
        assert_matches(actual, expected, "the loss of the same choices in another order")
    logits = torch.tensor([[0.0, 1.0, 3.0]]).expand(6, 3)
    one, other = torch.tensor([[0, 2]] * 6), torch.tensor([[2, 0]] * 6)
    expected = 3 * 0.5 * logits[0].softmax(0)[[0, 2]].sum()
    for experts in (one, other):
        actual = run_loss(impl, logits, experts, 3)
        assert_matches(actual, expected, f"the loss where all tokens chose {experts[0].tolist()}")


def test_loss_matches_the_formula(impl):
    for tokens, experts, k in LOSSES:
        logits, choices = random_logits(tokens, experts), random_choices(tokens, experts, k)
        for mask in (None, torch.arange(tokens) % 3 != 1, torch.arange(tokens) == tokens - 1):
            what = f"the loss for N, E, k = {(tokens, experts, k)}, masked={mask is not None}"
            expected = loss_formula(logits, choices, experts, mask)
            assert_matches(run_loss(impl, logits, choices, experts, mask), expected, what)
    logits, choices, mask = random_logits(7, 6), random_choices(7, 6, 2), torch.arange(7) > 2
    expected = loss_formula(logits, choices, 6, mask)
    actual = impl.load_balance_loss(mask=mask, num_experts=6, experts=choices, logits=logits)
    assert_matches(actual, expected, "load_balance_loss with its arguments by name")
    actual = impl.load_balance_loss(logits, choices, 6)
    expected = loss_formula(logits, choices, 6)
    assert_matches(actual, expected, "load_balance_loss without a mask")
    actual = impl.load_balance_loss(logits, choices, 6, mask=torch.ones(7, dtype=torch.bool))
    assert_matches(actual, expected, "load_balance_loss where all tokens are real")


def test_loss_in_every_dtype_and_for_many_tokens(impl):
    for dtype in FLOATS:
        for tokens, experts, k in [(7, 6, 2), (3000, 3, 2), (30, 260, 7)]:
            logits = random_logits(tokens, experts, dtype)
            choices = random_choices(tokens, experts, k)
            for mask in (None, torch.rand(tokens) < 0.8):
                expected = loss_formula(logits, choices, experts, mask)
                what = f"the loss of {dtype} logits for N, E, k = {(tokens, experts, k)}"
                actual = run_loss(impl, logits, choices, experts, mask)
                assert_matches(actual, expected, what, rtol=1e-4)
        top = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).max
        logits = (torch.tensor([[-0.9, 0.9, 0.5], [0.9, -0.9, 0.9]]) * top).to(dtype)
        actual = run_loss(impl, logits, torch.tensor([[1, 2], [2, 0]]), 3)
        expected = torch.tensor(3 * (0.25 * 0.25 + 0.25 * 0.5 + 0.5 * 0.25))
        assert_matches(actual, expected, f"the loss of {dtype} logits up to {top:.3g}")
    logits, choices = torch.tensor([[0.5, 0.0]]).expand(3000, 2), torch.zeros(3000, 1).long()
    expected = 2 * torch.tensor([0.5, 0.0]).softmax(0)[0]
    what = "the loss of 3,000 tokens that chose one expert"
    assert_matches(run_loss(impl, logits, choices, 2), expected, what, rtol=1e-4)


def test_padding_has_no_influence_on_the_loss(impl):
    for tokens, experts, k in [(9, 6, 2), (8, 5, 1), (8, 3, 3)]:
        logits, choices = random_logits(tokens, experts), random_choices(tokens, experts, k)
        for mask in (
            torch.arange(tokens) < 5,
            torch.arange(tokens) > 3,
            torch.arange(tokens) % 2 == 0,
            torch.arange(tokens) == 4,
        ):
            what = f"for N, E, k = {(tokens, experts, k)}, {int(mask.sum())} real,"
            alone = loss_formula(logits[mask], choices[mask], experts)
            actual = run_loss(impl, logits, choices, experts, mask)
            assert_matches(actual, alone, f"the loss {what} beside that of real tokens alone")
            other, others = logits.clone(), choices.clone()
            other[~mask] = torch.linspace(50, -50, experts)
            others[~mask] = torch.arange(k)
            actual = run_loss(impl, other, others, experts, mask)
            assert_matches(actual, alone, f"the loss {what} after tokens that are not changed")


def test_the_loss_has_a_gradient_through_the_probabilities(impl):
    for dtype, atol in ((torch.float64, 1e-6), (torch.float32, 1e-6)):
        for tokens, experts, k in [(7, 6, 2), (5, 4, 1)]:
            logits = random_logits(tokens, experts, dtype).requires_grad_()
            choices = random_choices(tokens, experts, k)
            for mask in (None, torch.arange(tokens) % 3 != 1):
                loss = impl.load_balance_loss(logits, choices, experts, mask)
                assert loss.requires_grad, f"the loss has no gradient, masked={mask is not None}"
                (actual,) = gradients(loss, [logits], torch.tensor(1.7))
                theirs = loss_formula(logits, choices, experts, mask)
                (expected,) = gradients(theirs, [logits], torch.tensor(1.7))
                what = f"the gradient of the loss in {dtype}, masked={mask is not None}"
                assert_matches(actual, expected, what, rtol=1e-4, atol=atol)


def test_no_real_token_costs_nothing(impl):
    for dtype in FLOATS:
        for tokens, mask in [
            (5, torch.zeros(5, dtype=torch.bool)),
            (1, torch.zeros(1, dtype=torch.bool)),
            (0, torch.zeros(0, dtype=torch.bool)),
            (0, None),
        ]:
            logits = random_logits(tokens, 4, dtype).requires_grad_()
            loss = run_loss(impl, logits, random_choices(tokens, 4, 2), 4, mask)
            what = f"for {tokens} {dtype} tokens of which none is real, masked={mask is not None}"
            assert_matches(loss, torch.tensor(0.0), f"the loss {what}")
            assert loss.requires_grad, f"the loss {what} gives no gradient to the logits"
            (actual,) = gradients(loss, [logits], torch.tensor(1.7))
            assert_matches(actual, torch.zeros_like(logits), f"the gradient {what}")


def test_loss_is_repeatable_in_any_layout_and_mode(impl):
    for tokens, experts, k in [(7, 6, 2), (5, 4, 1), (6, 5, 5)]:
        for masked in (False, True):

            def inputs(tokens=tokens, experts=experts, k=k, masked=masked):
                mask = torch.randperm(tokens) < 4 if masked else None
                return (
                    random_logits(tokens, experts),
                    random_choices(tokens, experts, k),
                    experts,
                    mask,
                )

            what = f"the loss for N, E, k = {(tokens, experts, k)}, masked={masked},"
            assert_repeatable(impl.load_balance_loss, inputs, loss_formula, what)
            arguments = inputs()
            expected = loss_formula(*arguments)
            assert_any_layout(impl.load_balance_loss, arguments, expected, what)
            assert_any_mode(impl.load_balance_loss, arguments, expected, what)
            half = arguments[0].bfloat16(), *arguments[1:]
            assert_any_mode(impl.load_balance_loss, half, loss_formula(*half), f"{what} bfloat16,")
    logits, choices = random_logits(1, 4).expand(5, 4), torch.tensor([[2, 1]]).expand(5, 2)
    mask = torch.ones(1, dtype=torch.bool).expand(5)
    expected = loss_formula(logits, choices, 4)
    actual = run_loss(impl, logits, choices, 4, mask)
    assert_matches(actual, expected, "the loss of one token, five times")


# The layer, wired so that it can be read: x holds the logits, and out the weights that were kept.


def wired(impl, experts, k, *factor, dtype=torch.float32):
    """A layer of width E + 1: logit e is feature e, and expert e answers 1 in feature e."""
    layer = impl.MoE(experts + 1, 3, experts, k, *factor).to(dtype)
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(experts, experts + 1))
        for number, expert in enumerate(layer.experts):
            expert[2].weight.zero_()
            expert[2].bias.copy_(torch.eye(experts + 1)[number])
    return layer


def wanting(*orders, experts):
    """Tokens that rank their experts so; those not named come last. A logit apart is 0.5."""
    x = torch.full((len(orders), experts + 1), -4.0)
    for row, order in zip(x, orders, strict=True):
        row[list(order)] = -0.5 * torch.arange(float(len(order)))
    return x


def keepers(out):
    """Return for each token the experts whose part is in the output of a wired layer."""
    return [row.nonzero().flatten().tolist() for row in out.detach()[:, :-1]]


def check_keepers(layer, x, expected, what):
    with unchanged(x=x):
        out, _ = layer(x)
    found = keepers(out.reshape(-1, x.shape[-1]))
    for token, (one, wanted) in enumerate(zip(found, expected, strict=True)):
        assert one == sorted(wanted), (
            f"{what}: token {token} gets the parts of experts {one}, not {sorted(wanted)}"
        )


def weights_of(orders, kept, experts):
    """What a wired layer should give: half a logit apart, the weights that experts keep."""
    out = torch.zeros(len(orders), experts + 1)
    for row, order, keep in zip(out, orders, kept, strict=True):
        parts = [math.exp(-0.5 * rank) for rank in range(len(order))]
        for expert, part in zip(order, parts, strict=True):
            row[expert] = part / sum(parts) * (expert in keep)
    return out


def test_a_token_gets_the_sum_of_its_parts(impl):
    for orders in ([(2, 0), (0, 3), (1, 2)], [(3,), (0,), (0,)], [(1, 3, 0, 2), (2, 1, 0, 3)]):
        layer = wired(impl, 4, len(orders[0]))
        x = wanting(*orders, experts=4)
        with unchanged(x=x):
            out, _ = layer(x)
        expected = weights_of(orders, orders, 4)
        what = f"the weighted parts of the experts that the tokens chose, {orders},"
        assert_matches(out, expected, what)


# N, E, k, factor, capacity.
CAPACITIES = [
    (12, 4, 2, 1, 6),
    (12, 4, 2, 1.0, 6),
    (12, 4, 2, 0.5, 3),
    (12, 4, 2, 1.25, 8),
    (13, 4, 3, 0.25, 3),
    (16, 8, 2, 1.25, 5),
    (7, 3, 2, 1, 5),
    (7, 3, 2, 0.3, 2),
    (9, 5, 1, 1.1, 2),
    (6, 5, 2, 1, 3),
    (5, 4, 2, 1.5, 4),
    (5, 3, 2, 2, 5),
    (5, 4, 2, 10**12, 5),
    (5, 4, 3, 0.001, 1),
    (6, 2, 2, 0.5, 3),
    (4, 1, 1, 0.75, 3),
]


def test_an_expert_keeps_as_many_tokens_as_its_capacity(impl):
    for tokens, experts, k, factor, capacity in CAPACITIES:
        orders = [tuple(range(k))] * tokens
        x = wanting(*orders, experts=experts)
        what = f"N, E, k, factor = {(tokens, experts, k, factor)}, all wanting experts 0 to {k - 1}"
        kept = [order if token < capacity else () for token, order in enumerate(orders)]
        check_keepers(wired(impl, experts, k, factor), x, kept, what)
    orders = [(3, 0)] * 12
    x = wanting(*orders, experts=4)
    for factor in ((), (None,)):
        what = f"12 tokens that want the same two of 4 experts, factor {factor}"
        check_keepers(wired(impl, 4, 2, *factor), x, orders, what)


def test_an_even_router_drops_nothing_at_a_factor_of_one(impl):
    for experts, k, rounds in [(4, 2, 3), (6, 3, 2), (5, 1, 4), (3, 3, 2)]:
        orders = [
            tuple((token + rank) % experts for rank in range(k))
            for token in range(experts * rounds)
        ]
        x = wanting(*orders, experts=experts)
        what = f"{len(orders)} tokens that choose {k} of {experts} experts in turn"
        check_keepers(wired(impl, experts, k, 1), x, orders, what)


def test_a_single_token_is_never_dropped(impl):
    for dtype, factor in [*((dtype, 0.1) for dtype in FLOATS), (torch.float32, 1)]:
        layer = wired(impl, 8, 2, factor, dtype=dtype)
        x = wanting((5, 3), experts=8).to(dtype)
        expected = weights_of([(5, 3)], [(5, 3)], 8).to(dtype)
        for shape in ((9,), (1, 9), (1, 1, 9)):
            out, _ = layer(x.reshape(shape))
            what = f"the output for one {dtype} token of shape {shape}, factor {factor}"
            assert_matches(out, expected.reshape(shape), what)


def test_capacity_counts_all_tokens_of_the_call(impl):
    orders = [(0, 1), (0, 2), (1, 0), (0, 3)] * 6
    x = wanting(*orders, experts=4)
    layer = wired(impl, 4, 2, 0.75)  # 9 places
    kept, load = [], [0] * 4
    for order in orders:
        kept.append([expert for expert in order if load[expert] < 9])
        for expert in order:
            load[expert] += 1
    for shape in [(24,), (3, 8), (8, 3), (24, 1), (1, 24), (2, 3, 4)]:
        what = f"24 tokens in the shape {shape}, places for 9"
        check_keepers(layer, x.reshape(*shape, 5), kept, what)


def test_places_go_by_the_order_of_tokens_whatever_the_rank(impl):
    # One place an expert.
    for orders, kept in [
        ([(1, 0), (0, 2)], [(0, 1), (2,)]),
        ([(1, 0), (0, 1)], [(0, 1), ()]),
        ([(3, 2), (2, 0)], [(2, 3), (0,)]),
        ([(0, 1), (2, 0)], [(0, 1), (2,)]),
    ]:
        x = wanting(*orders, experts=4)
        check_keepers(wired(impl, 4, 2, 1), x, kept, f"two tokens that want {orders}, one place")
    # Two places: 3 * 4 * 0.625 / 4 is 1.875.
    orders = [(0, 1, 2), (3, 2, 1), (2, 1, 0), (1, 0, 3)]
    kept = [(0, 1, 2), (1, 2, 3), (0,), (3,)]
    check_keepers(wired(impl, 4, 3, 0.625), wanting(*orders, experts=4), kept, "two places each")


def test_what_one_expert_drops_others_keep_at_the_same_weight(impl):
    orders = [(0, 1), (0, 2), (0, 3), (1, 0), (3, 0), (2, 1)]
    kept = [(0, 1), (0, 2), (3,), (1,), (3,), (2,)]  # ceil(2 * 6 * 0.5 / 4) = 2 places
    for dtype in FLOATS:
        layer = wired(impl, 4, 2, 0.5, dtype=dtype)
        x = wanting(*orders, experts=4).to(dtype)
        out, _ = layer(x)
        expected = weights_of(orders, kept, 4).to(dtype)
        assert_matches(out, expected, f"tokens that want {orders}, two places each, {dtype}")
    # All want the same two: the later ones are dropped by both.
    out, _ = wired(impl, 4, 2, 0.5)(wanting(*[(2, 1)] * 8, experts=4))
    assert_matches(out[2:], torch.zeros(6, 5), "tokens that all their experts dropped", atol=0)


def test_places_are_counted_exactly(impl):
    # More than the narrow dtypes can count one by one.
    x = wanting((0, 1), (1, 0), experts=4).repeat(1300, 1)
    for dtype in (torch.float16, torch.bfloat16):
        layer = wired(impl, 4, 2, 1.75, dtype=dtype)  # 2275 places
        out, _ = layer(x.to(dtype))
        for expert in (0, 1):
            kept = out[:, expert].nonzero().flatten()
            assert len(kept) == 2275, f"expert {expert} keeps {len(kept)}, not 2275, in {dtype}"
            assert kept[-1] == 2274, f"expert {expert} keeps token {int(kept[-1])} in {dtype}"


def test_equal_logits_in_the_layer(impl):
    for dtype in (torch.float32, torch.bfloat16):
        for experts, k in [(8, 3), (3, 1), (20, 17)]:
            layer = wired(impl, experts, k, dtype=dtype)
            x = torch.zeros(3, experts + 1, dtype=dtype)
            what = f"{k} of {experts} experts with logits of zero, {dtype}"
            check_keepers(layer, x, [range(k)] * 3, what)


def test_parts_are_added_in_float32(impl):
    for dtype in (torch.float16, torch.bfloat16):
        layer = impl.MoE(11, 3, 26, 23).to(dtype)
        answer = torch.randn(11).to(dtype)
        with torch.no_grad():
            for expert in layer.experts:
                expert[2].weight.zero_()
                expert[2].bias.copy_(answer)
        out, _ = layer(torch.randn(20, 11).to(dtype))
        expected = answer.expand(20, 11)
        what = f"23 experts that give the same answer in {dtype}"
        assert_matches(out, expected, what, rtol=0, atol=0)
        # Opposite answers: what is left is the difference of the weights.
        layer = wired(impl, 2, 2, dtype=dtype)
        with torch.no_grad():
            for number, expert in enumerate(layer.experts):
                expert[2].bias.fill_(3 * (-1) ** number)
        x = torch.zeros(12, 3).to(dtype)
        x[:, 0] = torch.arange(1, 13) / 64
        out, _ = layer(x)
        expected = (3 * torch.tanh(x[:, :1].double() / 2)).to(dtype).expand(12, 3)
        what = f"opposite answers at nearly the same weights, {dtype}"
        assert_matches(out, expected, what, rtol=2 * torch.finfo(dtype).eps)
    top = 0.99 * torch.finfo(torch.float16).max
    layer = wired(impl, 3, 2, dtype=torch.float16)
    with torch.no_grad():
        for expert in layer.experts:
            expert[2].bias.fill_(top)
    out, _ = layer(torch.randn(5, 4).half())
    expected = torch.full((5, 4), top).half()
    assert_matches(out, expected, "answers at the edge of float16")


def test_aux_is_the_loss_over_all_choices_of_the_call(impl):
    orders = [(0, 1), (0, 2), (0, 1), (0, 1), (0, 3), (1, 0)]
    x = 6 * wanting(*orders, experts=4)
    experts = torch.tensor(orders)
    expected = loss_formula(x[:, :4], experts, 4)
    for dtype, factor, shape in [
        (torch.float32, None, (6,)),
        (torch.float32, 1, (2, 3)),
        (torch.float64, 0.4, (6,)),
        (torch.float16, 0.4, (3, 2)),
        (torch.bfloat16, 0.4, (6,)),
    ]:
        layer = wired(impl, 4, 2, factor, dtype=dtype)
        result = layer(x.to(dtype).reshape(*shape, 5))
        assert isinstance(result, tuple), "the layer returns no tuple"
        assert len(result) == 2, f"the layer returns {len(result)} results, not 2"
        what = f"aux of tokens that want {orders}, factor {factor}, {dtype}, {shape}"
        assert_matches(result[1], expected, what)


# The layer, with random weights

# dim, hidden, experts, k.
LAYER = (5, 7, 6, 2)
LAYERS = [
    LAYER,
    (3, 4, 8, 3),
    (4, 6, 5, 1),
    (5, 2, 3, 3),  # each token goes to all
    (6, 3, 1, 1),
    (1, 1, 4, 2),
    (2, 3, 12, 9),
    (4, 4, 4, 2),
]
# No quotient of these numbers of tokens, factors and experts is close to an integer, but for some
# that are integers.
TOKENS = 13


def layer_of(impl, sizes=LAYER, factor=None, dtype=torch.float32):
    """A layer with weights and biases that matter."""
    layer = impl.MoE(*sizes) if factor is None else impl.MoE(*sizes, factor)
    layer.to(dtype)
    with torch.no_grad():
        layer.router.weight.normal_()
        if sizes[0] == 1:  # weights near each other would leave all tokens near a tie
            layer.router.weight[:, 0] = 0.8 * torch.randperm(sizes[2]) - 1.5
        for expert in layer.experts:
            for linear in (expert[0], expert[2]):
                linear.weight.normal_().div_(math.sqrt(linear.in_features))
                linear.bias.normal_()
    return layer


def tokens_of(layer, k, *shape):
    """Random tokens, (*shape, dim), whose choice does not hang on the rounding of a logit."""
    weight = layer.router.weight.detach()
    wanted, found = math.prod(shape), []
    while sum(map(len, found)) < wanted or not found:
        x = torch.randn(4 * wanted + 1, weight.shape[1], dtype=torch.float64).to(weight.dtype)
        ranked = (x.double() @ weight.double().T).sort(-1, descending=True).values
        gaps = -ranked.diff(dim=-1)[:, k - 1 : k]
        found.append(x[(gaps > 0.1).all(-1)])
    return torch.cat(found)[:wanted].reshape(*shape, weight.shape[1])


def capacity_of(tokens, experts, k, factor):
    if factor is None:
        return tokens
    exact = Fraction(k * tokens) * Fraction(factor) / experts
    near = abs(exact - round(exact))
    assert near == 0 or near > 1e-6, "this test breaks the promise of the brief"
    return math.ceil(exact)


def layer_formula(layer, x, k, factor=None):
    """The brief's layer in float64: all experts on all tokens, by the weights as they are now."""
    flat, router = x.double().reshape(-1, x.shape[-1]), layer.router.weight.double()
    logits, experts = flat @ router.T, len(router)
    chosen = logits.topk(k).indices
    capacity = capacity_of(len(flat), experts, k, factor)
    picked = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, chosen, True)
    kept = picked & (picked.cumsum(0) <= capacity)
    weights = logits.masked_fill(~picked, -torch.inf).softmax(-1)
    first, first_bias, second, second_bias = (
        torch.stack([getattr(expert[place], kind) for expert in layer.experts]).double()
        for place in (0, 2)
        for kind in ("weight", "bias")
    )
    hidden = torch.einsum("nd,ehd->enh", flat, first) + first_bias[:, None]
    parts = torch.einsum("enh,edh->end", hidden * hidden.sigmoid(), second) + second_bias[:, None]
    out = torch.einsum("ne,end->nd", weights * kept, parts)
    return out.to(x.dtype).reshape(x.shape), loss_formula(logits, chosen, experts)


def run_layer(layer, x):
    with unchanged(x=x):
        return layer(x)


def test_layer_matches_the_formula(impl):
    for sizes in LAYERS:
        for factor in (None, 0.7, 1.3) if sizes == LAYER else (0.7,):
            layer = layer_of(impl, sizes, factor)
            x = tokens_of(layer, sizes[3], TOKENS)
            expected = layer_formula(layer, x, sizes[3], factor)
            what = f"the layer for dim, hidden, E, k, factor = {(*sizes, factor)}"
            assert_all_match(run_layer(layer, x), expected, what, rtol=1e-5, atol=2e-5)
    layer = impl.MoE(capacity_factor=0.7, k=2, num_experts=6, hidden=7, dim=5)
    x = tokens_of(layer, 2, TOKENS)
    expected = layer_formula(layer, x, 2, 0.7)
    what = "the layer with its arguments by name"
    assert_all_match(layer(x=x), expected, what, rtol=1e-5, atol=2e-5)


def test_layer_matches_mixtral(impl):
    case = golden("moe.json")
    layer = impl.MoE(**case["sizes"])
    layer.load_state_dict({name: torch.tensor(x) for name, x in case["state_dict"].items()})
    x, out, aux = (torch.tensor(case[name]) for name in ("x", "out", "aux"))
    actual = run_layer(layer, x)
    assert_all_match(actual, (out, aux), "the layer beside Mixtral's", rtol=1e-5, atol=3e-5)
    logits, experts = torch.tensor(case["logits"]), torch.tensor(case["experts"])
    actual = run_loss(impl, logits, experts, len(layer.experts), torch.tensor(case["mask"]))
    what = "the loss of a padded batch beside Mixtral's"
    assert_matches(actual, torch.tensor(case["masked_loss"]), what, rtol=1e-5)


def test_layer_has_a_router_and_experts(impl):
    layer = impl.MoE(5, 7, 6, 2)
    assert isinstance(layer, nn.Module), "MoE is not an nn.Module"
    assert isinstance(layer.router, nn.Linear), "the router is no nn.Linear"
    assert isinstance(layer.experts, nn.ModuleList), "the experts are no nn.ModuleList"
    assert len(layer.experts) == 6, f"there are {len(layer.experts)} experts, not 6"
    expected = {"router.weight": (6, 5)}
    for number, expert in enumerate(layer.experts):
        kinds = [type(module) for module in expert]
        assert isinstance(expert, nn.Sequential), f"expert {number} is no nn.Sequential"
        assert kinds == [nn.Linear, nn.SiLU, nn.Linear], f"expert {number} is made of {kinds}"
        expected[f"experts.{number}.0.weight"] = (7, 5)
        expected[f"experts.{number}.0.bias"] = (7,)
        expected[f"experts.{number}.2.weight"] = (5, 7)
        expected[f"experts.{number}.2.bias"] = (5,)
    found = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert found == expected, "the state dict has other names or shapes than the brief's"
    assert {name for name, _ in layer.named_buffers()} == set(), "the layer has buffers"


def test_each_expert_has_parameters_of_its_own(impl):
    layer = impl.MoE(5, 7, 6, 2)
    count = sum(parameter.numel() for parameter in layer.parameters())
    wanted = 6 * 5 + 6 * (5 * 7 + 7 + 7 * 5 + 5)
    assert count == wanted, f"the layer has {count} parameters, not {wanted}"
    for which in ("0.weight", "0.bias", "2.weight", "2.bias"):
        values = [layer.state_dict()[f"experts.{number}.{which}"] for number in range(6)]
        for number, one in enumerate(values):
            for other in values[:number]:
                assert not one.equal(other), f"two experts start with the same {which}"
    one, other = impl.MoE(5, 7, 6, 2), impl.MoE(5, 7, 6, 2)
    assert not one.router.weight.equal(other.router.weight), "two layers start with one router"


def rows_of(x):
    return sorted(map(tuple, x.detach().tolist()))


def test_each_expert_runs_once_on_the_tokens_that_chose_it(impl):
    for sizes, factor, shape in [
        (LAYER, None, (TOKENS,)),
        (LAYER, 0.7, (TOKENS,)),
        ((3, 4, 8, 3), 0.4, (2, 7)),
        ((5, 2, 3, 3), None, (4, 2)),
        ((4, 6, 14, 2), None, (3,)),
        (LAYER, None, ()),
    ]:
        k, layer = sizes[3], layer_of(impl, sizes, factor)
        x = tokens_of(layer, k, *shape)
        flat = x.reshape(-1, sizes[0])
        capacity = capacity_of(len(flat), sizes[2], k, factor)
        chosen = (flat.double() @ layer.router.weight.double().T).topk(k).indices
        calls = [[] for _ in layer.experts]
        for expert, seen in zip(layer.experts, calls, strict=True):
            expert.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        layer(x)
        for number, seen in enumerate(calls):
            who = f"expert {number} for E, k, factor = {(*sizes[2:], factor)}"
            assert len(seen) <= 1, f"{who} runs {len(seen)} times in one call"
            wanted = flat[(chosen == number).any(1)][:capacity]
            if len(wanted) == 0 and not seen:
                continue
            assert seen, f"{who} does not run, and {len(wanted)} tokens chose it"
            found = tuple(seen[0].shape)
            assert found == tuple(wanted.shape), (
                f"{who} is given a tensor {found}, not the {len(wanted)} tokens it keeps"
            )
            assert rows_of(seen[0]) == rows_of(wanted), f"{who} is given tokens of others"


def test_layer_takes_any_number_of_axes(impl):
    for factor in (None, 0.7):
        layer = layer_of(impl, factor=factor)
        for shape in [(), (1,), (TOKENS, 1), (2, 7), (2, 3, 1, 4)]:
            x = tokens_of(layer, 2, *shape)
            expected = layer_formula(layer, x, 2, factor)
            what = f"the layer on x of shape {tuple(x.shape)}, factor {factor}"
            assert_all_match(run_layer(layer, x), expected, what, rtol=1e-5, atol=2e-5)


def test_layer_without_a_token(impl):
    for dtype, factor in [*((dtype, 0.7) for dtype in FLOATS), (torch.float32, None)]:
        layer = layer_of(impl, factor=factor, dtype=dtype)
        for shape in [(0, 5), (2, 0, 5), (0, 3, 5)]:
            expected = torch.zeros(shape, dtype=dtype), torch.tensor(0.0)
            what = f"the layer on {dtype} of shape {shape}, factor {factor}"
            assert_all_match(run_layer(layer, torch.zeros(shape, dtype=dtype)), expected, what)


def test_layer_in_every_dtype(impl):
    for dtype, atol in DTYPES:
        for sizes, factor in ((LAYER, 0.7), ((5, 2, 3, 3), None)):
            layer = layer_of(impl, sizes, factor, dtype)
            x = tokens_of(layer, sizes[3], 2, 9)
            expected = layer_formula(layer, x, sizes[3], factor)
            actual = run_layer(layer, x)
            what = f"the layer in {dtype} for E, k, factor = {(*sizes[2:], factor)}"
            assert_matches(actual[0], expected[0], what, rtol=atol, atol=atol)
            assert_matches(actual[1], expected[1], f"aux of {what}", rtol=2 * atol)


def test_layer_gradients(impl):
    for sizes in (LAYER, (5, 2, 3, 3), (4, 3, 5, 1)):
        for factor in (None, 0.7):
            layer = layer_of(impl, sizes, factor, torch.float64)
            for training in (True, False) if sizes == LAYER else (True,):
                layer.train(training)
                parameters = dict(layer.named_parameters())
                x = tokens_of(layer, sizes[3], TOKENS).requires_grad_()
                actual, expected = layer(x), layer_formula(layer, x, sizes[3], factor)
                scales = torch.randn_like(expected[0]), torch.tensor(1.7)
                for part, ours, theirs, scale in zip(
                    ("out", "aux"), actual, expected, scales, strict=True
                ):
                    assert ours.requires_grad, f"{part} has no gradient, {training=}"
                    names = ["x", *(parameters if part == "out" else ["router.weight"])]
                    leaves = [x if name == "x" else parameters[name] for name in names]
                    grads = [
                        torch.autograd.grad(
                            (one * scale).sum(), leaves, allow_unused=True, retain_graph=True
                        )
                        for one in (ours, theirs)
                    ]
                    for name, got, wanted in zip(names, *grads, strict=True):
                        # An expert without tokens may have no gradient.
                        got = torch.zeros_like(wanted) if got is None else got
                        what = f"the gradient of {name} from {part}, E, k, factor = "
                        what = f"{what}{(*sizes[2:], factor)}, {training=}"
                        assert_matches(got, wanted, what, rtol=1e-4, atol=1e-5)


def test_gradients_reach_whoever_asks(impl):
    for factor in (None, 0.7):
        layer = layer_of(impl, factor=factor).requires_grad_(False)
        for part in (0, 1):
            assert_gradients_reach(
                lambda x: layer(x)[part],  # noqa: B023
                lambda x: layer_formula(layer, x, 2, factor)[part],  # noqa: B023
                {"x": tokens_of(layer, 2, 2, 4)},
                ["x"],
                f"the layer's {('out', 'aux')[part]}, factor {factor}",
            )
    layer.router.requires_grad_()
    x = tokens_of(layer, 2, TOKENS)
    scale = torch.randn(TOKENS, 5)
    (actual,) = gradients(layer(x)[0], [layer.router.weight], scale)
    (expected,) = gradients(layer_formula(layer, x, 2, 0.7)[0], [layer.router.weight], scale)
    assert_matches(actual, expected, "the gradient of the router, the only one to ask", atol=1e-4)


def test_an_expert_without_tokens_gets_no_gradient(impl):
    layer = wired(impl, 4, 2, 1)
    out, aux = layer(wanting((0, 2), (0, 2), (2, 0), experts=4))
    (out.square().sum() + aux).backward()
    for number in (1, 3):
        for name, parameter in layer.experts[number].named_parameters():
            grad = parameter.grad
            message = f"{name} of expert {number}, which has no token, gets a gradient"
            assert grad is None or not grad.any(), message
    for number in (0, 2):
        grad = layer.experts[number][2].bias.grad
        assert grad is not None, f"expert {number} has tokens and gets no gradient"
        assert grad.any(), f"expert {number} has tokens and gets a gradient of zeros"


def test_layer_keeps_nothing_from_earlier_calls(impl):
    for factor, training in [(None, True), (0.7, False)]:
        layer, other = (layer_of(impl, factor=factor).train(training) for _ in range(2))

        def check(what, layer=layer, factor=factor, training=training):
            for shape in ((TOKENS,), (2, 3)):
                x = tokens_of(layer, 2, *shape)
                expected = layer_formula(layer, x, 2, factor)
                which = f"the layer {what}, factor {factor}, {training=}"
                assert_all_match(run_layer(layer, x), expected, which, rtol=1e-5, atol=3e-5)

        with torch.set_grad_enabled(training):
            check("after other calls")
            for name in ("router.weight", "experts.5.0.weight"):
                with torch.no_grad():
                    layer.get_parameter(name).mul_(-0.9)
                check(f"after {name} was changed in place")
            other(tokens_of(other, 2, TOKENS))
            layer.load_state_dict(other.state_dict())
            check("after load_state_dict")
            layer.experts[3] = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 5))
            check("with another expert in the place of one")
            layer.router = nn.Linear(5, 6, bias=False)
            check("with another router in its place")


def test_layer_is_repeatable(impl):
    for factor, training, shapes in [(None, True, [(TOKENS,)]), (0.7, False, [(2, 3), ()])]:
        layer = layer_of(impl, factor=factor).train(training)
        for shape in shapes:
            assert_repeatable(
                layer,
                lambda: (tokens_of(layer, 2, *shape),),  # noqa: B023
                lambda x: layer_formula(layer, x, 2, factor),  # noqa: B023
                f"the layer on tokens of shape {shape}, factor {factor}, {training=}",
                rtol=1e-5,
                atol=2e-5,
            )
        x = tokens_of(layer, 2, TOKENS)
        once, again = layer.train()(x), layer(x)
        what = f"the layer on the same tokens once more, factor {factor}"
        assert_all_match(again, once, what, rtol=0, atol=0)
        assert_all_match(layer.eval()(x), once, f"the layer in eval mode, factor {factor}")


def test_layer_takes_any_layout_and_mode(impl):
    for factor, (dtype, atol), shapes in [
        (None, DTYPES[3], [(TOKENS,)]),
        (0.7, DTYPES[1], [(2, 3, 2), ()]),
    ]:
        layer = layer_of(impl, factor=factor, dtype=dtype)
        for shape in shapes:
            x = tokens_of(layer, 2, *shape)
            expected = layer_formula(layer, x, 2, factor)
            what = f"the layer on {dtype} tokens of shape {shape}, factor {factor},"
            for check in (assert_any_layout, assert_any_mode):
                check(layer, [x], expected, what, rtol=atol, atol=atol)
    layer = layer_of(impl, factor=0.7)
    x = tokens_of(layer, 2, 1).expand(TOKENS, 5)
    expected = layer_formula(layer, x, 2, 0.7)
    what = "the layer on one token, expanded"
    assert_all_match(run_layer(layer, x), expected, what, rtol=1e-5, atol=2e-5)
    x = tokens_of(layer, 2, 3, TOKENS).transpose(0, 1)
    expected = layer_formula(layer, x, 2, 0.7)
    what = "the layer on a batch whose first axes are swapped"
    assert_all_match(run_layer(layer, x), expected, what, rtol=1e-5, atol=2e-5)


def test_layer_on_many_tokens(impl):
    for sizes, factor, shape in [
        ((3, 2, 5, 2), None, (300, 3)),
        ((4, 2, 40, 3), 0.75, (90,)),
        ((2, 1, 2, 1), 0.75, (3000,)),
    ]:
        layer = layer_of(impl, sizes, factor)
        x = tokens_of(layer, sizes[3], *shape)
        expected = layer_formula(layer, x, sizes[3], factor)
        what = f"the layer for dim, hidden, E, k, factor = {(*sizes, factor)} on {shape} tokens"
        assert_all_match(run_layer(layer, x), expected, what, rtol=1e-4, atol=1e-4)
