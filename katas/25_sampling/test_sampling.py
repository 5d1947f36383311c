import math
from functools import partial

import torch

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    golden,
    layouts,
    unchanged,
)

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NOTHING = (1.0, None, None, None)
# Sums and ratios of probabilities stay further than this from top_p and min_p.
MARGIN = 3e-4


def random_logits(*shape, dtype=torch.float32):
    """Return logits whose rows differ in level and spread."""
    spread = 1 + 2 * torch.rand(*shape[:-1], 1)
    return (3 * torch.randn(*shape[:-1], 1) + spread * torch.randn(shape)).to(dtype)


def log(*rows):
    """Return the logits of rows of probabilities, each at a level of its own."""
    return torch.tensor(rows).log() + torch.arange(1.0, len(rows) + 1)[:, None]


def ranking(row):
    """Return the ids of a row of logits, the likeliest first and equals by id."""
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def row_oracle(row, temperature, top_k, top_p, min_p):
    """Return a row's probabilities by plain arithmetic, and how near a threshold any came."""
    order = ranking(row)
    if temperature == 0:
        return [float(token == order[0]) for token in range(len(row))], math.inf
    best, near = row[order[0]], math.inf
    weights = [math.exp((row[token] - best) / temperature) for token in order]
    weights = weights[: len(weights) if top_k is None else top_k]
    if top_p is not None and top_p != 1:
        total, sums = math.fsum(weights), [0.0]
        for weight in weights:
            sums.append(sums[-1] + weight / total)
        near = min(abs(part - top_p) for part in sums[1:])
        needed = next(count for count, part in enumerate(sums) if part >= top_p or part == sums[-1])
        weights = weights[: max(1, needed)]
    if min_p is not None:
        near = min([near, *(abs(weight - min_p) for weight in weights[1:])])
        weights = [weight for weight in weights if weight >= min_p]
    probs = [0.0] * len(row)
    for token, weight in zip(order, weights, strict=False):
        probs[token] = weight / math.fsum(weights)
    return probs, near


def oracle(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Return the probabilities, float32, and how near a threshold any number came."""
    rows = [row_oracle(row, temperature, top_k, top_p, min_p) for row in logits.double().tolist()]
    return torch.tensor([probs for probs, _ in rows]), min(near for _, near in rows)


def clear(draw, *options):
    """Return the first drawn logits that bring no sum or ratio near a threshold."""
    while oracle(logits := draw(), *options)[1] < MARGIN:
        pass
    return logits


def assert_probs(actual, expected, behaviour, rtol=2e-4):
    """Compare probabilities, and before that which of them are zero."""
    assert_matches(actual, expected, behaviour, rtol=rtol, atol=1e-6)
    for row, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        kept, right = (set(x.nonzero().flatten().tolist()) for x in (got, wanted))
        assert kept == right, f"{behaviour}: row {row} keeps {sorted(kept)}, not {sorted(right)}"


def check(impl, logits, options, behaviour, expected=None):
    """Call next_token_probs and compare it with the oracle, or with what is given."""
    with unchanged(logits=logits):
        actual = impl.next_token_probs(logits, *options)
    if expected is None:
        expected, _ = oracle(logits, *options)
    assert_probs(actual, torch.as_tensor(expected), behaviour)


def named(options):
    """Return the options that are not at their default, as text."""
    names = ("temperature", "top_k", "top_p", "min_p")
    given = zip(names, options, NOTHING, strict=True)
    return ", ".join(f"{name} {value:g}" for name, value, no in given if value != no) or "no option"


# The distribution.


def test_probs_match_transformers(impl):
    content = golden("sampling.json")
    logits = torch.tensor(content["logits"])
    for case in content["filters"]:
        options = {name: value for name, value in case.items() if name != "probs"}
        with unchanged(logits=logits):
            actual = impl.next_token_probs(logits, **options)
        behaviour = f"the distribution under {named(options.values())}"
        assert_probs(actual, torch.tensor(case["probs"]), behaviour)


def test_defaults_give_the_softmax(impl):
    for dtype in FLOATS:
        for shape in ((1, 1), (5, 1), (1, 7), (6, 11)):
            logits = random_logits(*shape, dtype=dtype)
            actual = impl.next_token_probs(logits)
            expected = logits.double().softmax(-1).float()
            assert_probs(actual, expected, f"the softmax of {dtype} logits of shape {shape}")


def test_temperature_divides_the_logits(impl):
    logits = random_logits(4, 7)
    for temperature in (0.2, 0.7, 1.6, 2, 30):
        actual = impl.next_token_probs(logits, temperature)
        expected = (logits.double() / temperature).softmax(-1).float()
        assert_probs(actual, expected, f"the distribution at temperature {temperature}")


def test_temperature_zero_takes_the_best(impl):
    for dtype in FLOATS:
        logits = torch.tensor(
            [[1.0, 4.0, 2.0, 4.0, 4.0], [-3.0, -5.0, -2.5, -2.75, -8.0], [7.0] * 5]
        ).to(dtype)
        expected = torch.eye(5)[[1, 2, 0]]
        every = [(3, None, None), (None, 0.6, None), (None, None, 0.3), (2, 0.9, 0.1)]
        for temperature in (0, 0.0):
            for filters in [(None, None, None), *every]:
                options = (temperature, *filters)
                check(impl, logits, options, f"{dtype} under {named(options)}", expected)
    logits = torch.zeros(2, 5000)
    logits[0, 4321] = logits[0, 4322] = 1.0
    actual = impl.next_token_probs(logits, 0.0).argmax(-1)
    assert actual.tolist() == [4321, 0], "temperature 0 among 5,000 tokens takes the first best one"


def test_top_k_keeps_k_tokens(impl):
    logits = random_logits(4, 9)
    for top_k in (1, 2, 5, 8, 9, 10, 1000):
        check(impl, logits, (1.0, top_k, None, None), f"9 tokens under top_k {top_k}")


def test_top_k_takes_the_lowest_id_of_equals(impl):
    logits = torch.tensor([[2.0, 1.0, 2.0, 0.0, 2.0, 1.0], [0.0] * 6, [0.0, 0.0, 1, 0.0, 0.0, 0.0]])
    kept = {
        1: ([0], [0], [2]),
        2: ([0, 2], [0, 1], [2, 0]),
        3: ([0, 2, 4], [0, 1, 2], [2, 0, 1]),
        4: ([0, 2, 4, 1], [0, 1, 2, 3], [2, 0, 1, 3]),
    }
    for dtype in FLOATS:
        for top_k, rows in kept.items():
            expected = torch.zeros(3, 6)
            for row, ids in enumerate(rows):
                expected[row, ids] = logits[row, ids].softmax(-1)
            behaviour = f"equal {dtype} logits under top_k {top_k}"
            check(impl, logits.to(dtype), (1.0, top_k, None, None), behaviour, expected)
    many = torch.zeros(2, 3000)
    many[1, ::2] = 1.0
    actual = impl.next_token_probs(many, top_k=700)
    kept = [row.nonzero().flatten().tolist() for row in actual]
    right = [list(range(700)), list(range(0, 1400, 2))]
    assert kept == right, "among thousands of equal logits top_k keeps those of the lowest ids"


def test_top_p_by_hand(impl):
    logits = log([0.15, 0.5, 0.05, 0.3], [0.05, 0.3, 0.5, 0.15])
    order = [[1, 3, 0, 2], [2, 1, 3, 0]]
    ones = [(top_p, 1) for top_p in (0, 0.0, 0.01, 0.4, 0.499)]
    more = [(0.501, 2), (0.79, 2), (0.81, 3), (0.94, 3), (0.96, 4), (1, 4), (1.0, 4)]
    for top_p, size in ones + more:
        expected = torch.zeros(2, 4)
        for row, ids in enumerate(order):
            kept = torch.tensor([0.5, 0.3, 0.15, 0.05])[:size]
            expected[row, ids[:size]] = kept / kept.sum()
        behaviour = f"probabilities 0.5, 0.3, 0.15, 0.05 under top_p {top_p}"
        check(impl, logits, (1.0, None, top_p, None), behaviour, expected)


def test_top_p_takes_the_lowest_id_of_equals(impl):
    for dtype in FLOATS:
        logits = torch.full((2, 8), 3.0, dtype=dtype)
        logits[1, 5] = 4.0
        # Each of eight has 0.125; in the other row 5 has 0.2797 and the rest 0.1029 each.
        for top_p, first, second in ((0.3, 3, 1), (0.55, 5, 3), (0.7, 6, 5)):
            expected = torch.zeros(2, 8)
            expected[0, :first] = 1 / first
            kept = [5, 0, 1, 2, 3, 4][: second + 1]
            expected[1, kept] = logits[1, kept].float().softmax(-1)
            behaviour = f"equal {dtype} logits under top_p {top_p}"
            check(impl, logits, (1.0, None, top_p, None), behaviour, expected)


def test_min_p_by_hand(impl):
    logits = log([0.1, 0.4, 0.04, 0.26, 0.2], [0.2, 0.1, 0.26, 0.04, 0.4])
    for min_p, lowest in ((0, 0), (0.09, 0), (0.11, 0.1), (0.24, 0.1), (0.3, 0.2), (0.6, 0.26)):
        probs = logits.softmax(-1)
        expected = torch.where(probs > lowest - 0.01, probs, 0.0)
        expected /= expected.sum(-1, keepdim=True)
        behaviour = f"a likeliest token of 0.4 under min_p {min_p}"
        check(impl, logits, (1.0, None, None, min_p), behaviour, expected)
    logits = torch.tensor([[2.0, 5.0, 5.0, 4.0], [1.0, -1.0, 0.0, 0.5]])
    expected = torch.tensor([[0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]])
    for one in (1, 1.0):
        check(impl, logits, (1.0, None, None, one), "two likeliest under min_p 1", expected)


def test_filters_that_keep_everything(impl):
    # In float32 the likeliest token's probability is 1 and the others add nothing to it.
    logits = torch.tensor([[-20.0, -30.0, 0.0, -25.0], [0.0, -40.0, -60.0, -18.0]])
    expected = logits.double().softmax(-1).float()
    options = ((1, 1.0, None), (1, None, 0.0), (1.0, 1, 0), (2.0, 1.0, None), (1.0, 1.0, 0.0))
    for temperature, top_p, min_p in options:
        actual = impl.next_token_probs(logits, temperature, None, top_p, min_p)
        wanted = expected if temperature == 1 else (logits.double() / 2).softmax(-1).float()
        behaviour = f"unlikely tokens under {named((temperature, None, top_p, min_p))}"
        assert_matches(actual, wanted, behaviour, rtol=1e-3, atol=0)


def test_each_filter_sees_what_is_left(impl):
    half = [0.5, 0.5, 0.0, 0.0]
    cases = [
        # Of 0.4 and 0.3, the first is 0.571 of what is left: enough for 0.5.
        ([0.4, 0.3, 0.2, 0.1], (1.0, 2, 0.5, None), [1.0, 0.0, 0.0, 0.0]),
        # 0.4 and 0.3 reach 0.55; with 0.2 and 0.1 gone beforehand 0.4 would.
        ([0.4, 0.3, 0.2, 0.1], (1.0, None, 0.55, 0.6), [4 / 7, 3 / 7, 0.0, 0.0]),
        # Squared, 0.4 is 0.533 of the sum, and as a root 0.326.
        ([0.4, 0.3, 0.2, 0.1], (0.5, None, 0.5, None), [1.0, 0.0, 0.0, 0.0]),
        ([0.36, 0.36, 0.18, 0.1], (2, None, 0.5, None), half),
        # As a root 0.1 is half of the likeliest, and squared 0.0625.
        ([0.4, 0.4, 0.1, 0.1], (2, None, None, 0.4), [1 / 3, 1 / 3, 1 / 6, 1 / 6]),
        ([0.4, 0.4, 0.1, 0.1], (0.5, None, None, 0.1), half),
    ]
    for probs, options, expected in cases:
        other = [0.97, 0.01, 0.01, 0.01]
        logits = log(other, probs)
        wanted, _ = oracle(logits, *options)
        wanted[1] = torch.tensor(expected)
        check(impl, logits, options, f"{probs} under {named(options)}", wanted)


def test_filters_together(impl):
    for temperature in (0.6, 1.7):
        for top_k in (None, 4, 7):
            for top_p in (None, 0.35, 0.8):
                for min_p in (None, 0.08, 0.4):
                    options = (temperature, top_k, top_p, min_p)
                    logits = clear(partial(random_logits, 3, 11), *options)
                    check(impl, logits, options, f"the distribution under {named(options)}")


def test_filters_in_each_dtype(impl):
    options = (0.7, 6, 0.85, 0.05)
    for dtype in FLOATS:
        logits = clear(partial(random_logits, 4, 9, dtype=dtype), *options)
        check(impl, logits, options, f"{dtype} logits under {named(options)}")


def test_rows_do_not_mix(impl):
    # One row far above the others, one nearly certain, one nearly level.
    logits = log([0.96, 0.01, 0.01, 0.01, 0.01], [0.26, 0.25, 0.2, 0.15, 0.14])
    logits = torch.cat([logits, logits.flip(1) + 60, logits[1:] - 60])
    for options in ((1.0, None, 0.66, None), (1.0, None, None, 0.55), (0.9, 4, 0.7, 0.1)):
        together = impl.next_token_probs(logits, *options)
        for row in range(5):
            alone = impl.next_token_probs(logits[row : row + 1], *options)
            behaviour = f"row {row} beside others under {named(options)}"
            assert_probs(together[row : row + 1], alone, behaviour)
        check(impl, logits, options, f"rows of other levels under {named(options)}")


def test_logits_of_any_size(impl):
    inf = math.inf
    cases = [
        (torch.float16, [4e4, -6e4, 4e4, 3e4], 0.25, [0.5, 0.0, 0.5, 0.0]),
        (torch.float16, [-6e4, -6e4, -6.4e4, -6e4], 0.5, [1 / 3, 1 / 3, 0.0, 1 / 3]),
        (torch.float32, [1e30, 1e30, -1e30, 0.0], 0.01, [0.5, 0.5, 0.0, 0.0]),
        (torch.float32, [-1e4, -1e4, -1e4, -2e4], 1.0, [1 / 3, 1 / 3, 1 / 3, 0.0]),
        (torch.bfloat16, [-3e38, 3e38, -inf, 3e38], 1.0, [0.0, 0.5, 0.0, 0.5]),
        (torch.float64, [-inf, 1e3, -inf, -inf], 2.0, [0.0, 1.0, 0.0, 0.0]),
        (torch.float32, [-inf, 5.0, -inf, 5.0], 0.5, [0.0, 0.5, 0.0, 0.5]),
        (torch.float32, [1e-4, 0.0, -inf, 2e-4], 1e-4, [0.244728, 0.090031, 0.0, 0.665241]),
    ]
    for dtype, row, temperature, probs in cases:
        logits, expected = torch.tensor([row], dtype=dtype), torch.tensor([probs])
        for filters in ((None, None, None), (3, None, None), (4, 0.999, 1e-3), (7, 1.0, None)):
            options = (temperature, *filters)
            check(impl, logits, options, f"{dtype} logits {row} under {named(options)}", expected)
        expected = torch.eye(4)[[max(range(4), key=lambda token: (row[token], -token))]]
        check(impl, logits, (0, *filters), f"{dtype} logits {row} at temperature 0", expected)


def test_many_tokens(impl):
    for dtype, rows, size in (*((dtype, 2, 3_000) for dtype in FLOATS), (FLOATS[0], 1, 70_000)):
        logits = (0.7 * torch.randn(rows, size)).to(dtype)
        what = f"({rows}, {size}) {dtype} logits"
        probs = logits.double().softmax(-1)
        actual = impl.next_token_probs(logits)
        assert_matches(actual, probs.float(), what, rtol=1e-3, atol=0)
        order = torch.sort(logits, dim=-1, descending=True, stable=True).indices
        for top_k in (300, size - 40) if size == 3_000 else (size - 40,):
            kept = impl.next_token_probs(logits, top_k=top_k) > 0
            right = torch.zeros_like(kept).scatter(-1, order[:, :top_k], True)
            assert torch.equal(kept, right), f"top_k {top_k} of {what} keeps other tokens"
        for top_p in (0.3, 0.55, 0.9) if size == 3_000 else (0.9,):
            kept = impl.next_token_probs(logits, top_p=top_p) > 0
            first = torch.arange(size) < kept.sum(-1, keepdim=True)
            message = f"top_p {top_p} of {what} keeps other tokens than the first ones"
            assert torch.equal(kept.gather(-1, order), first), message
            for row, mass in enumerate(torch.where(kept, probs, 0.0).sum(-1).tolist()):
                share = probs[row][kept[row]].min().item()
                message = f"top_p {top_p} of {what} keeps a probability of {mass:.5f}"
                assert top_p - 1e-4 < mass < top_p + share + 1e-4, message


def test_many_rows(impl):
    logits = torch.randn(33_000, 3)
    expected = logits.double().softmax(-1).float()
    actual = impl.next_token_probs(logits)
    assert_matches(actual, expected, "33,000 rows of 3 tokens", rtol=1e-4)
    logits = logits[:1_000]
    actual = impl.next_token_probs(logits, top_k=1, top_p=0.5, min_p=0.5)
    expected = torch.eye(3)[logits.argmax(-1)]
    assert_matches(actual, expected, "1,000 rows of 3 tokens under every filter", rtol=1e-4)


# The repetition penalty.


def penalty_oracle(logits, ids, penalty):
    """Return the logits with each row's tokens penalised once, by plain arithmetic."""
    rows = logits.double().tolist()
    for row, tokens in zip(rows, ids.tolist(), strict=True):
        for token in set(tokens):
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    return torch.tensor(rows, dtype=torch.float64).to(logits.dtype)


def check_penalty(impl, logits, ids, penalty, behaviour, expected=None):
    """Call repetition_penalty and compare it with the oracle, or with what is given."""
    with unchanged(logits=logits, ids=ids):
        actual = impl.repetition_penalty(logits, ids, penalty)
    if expected is None:
        expected = penalty_oracle(logits, ids, penalty)
    rtol = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-6}.get(logits.dtype, 1e-14)
    assert_matches(actual, expected, behaviour, rtol=rtol, atol=0)


def test_penalty_matches_transformers(impl):
    content = golden("sampling.json")
    logits, ids = torch.tensor(content["logits"]), torch.tensor(content["ids"])
    for case in content["penalties"]:
        actual = impl.repetition_penalty(logits, ids, case["penalty"])
        behaviour = f"the logits under a penalty of {case['penalty']}"
        assert_matches(actual, torch.tensor(case["logits"]), behaviour, rtol=1e-5)


def test_penalty_by_hand(impl):
    logits = torch.tensor([[3.0, -3.0, 0.0, 1.5, -math.inf], [-1.0, 2.0, -4.0, 8.0, 0.5]])
    ids = torch.tensor([[1, 0, 1, 1, 4, 2], [3, 3, 0, 0, 3, 3]])
    expected = torch.tensor([[1.5, -6.0, 0.0, 1.5, -math.inf], [-2.0, 2.0, -4.0, 4.0, 0.5]])
    for dtype in FLOATS:
        for penalty in (2, 2.0):
            behaviour = f"{dtype} logits under a penalty of {penalty}"
            check_penalty(impl, logits.to(dtype), ids, penalty, behaviour, expected.to(dtype))
    expected = torch.tensor([[6.0, -1.5, 0.0, 1.5, -math.inf], [-0.5, 2.0, -4.0, 16.0, 0.5]])
    check_penalty(impl, logits, ids, 0.5, "logits under a penalty of 0.5", expected)
    check_penalty(impl, logits, ids, 1, "logits under a penalty of 1", logits)
    check_penalty(impl, logits, ids[:, :0], 2.0, "logits under a penalty without ids", logits)


def test_penalty_of_any_shape(impl):
    for dtype in FLOATS:
        for rows, tokens, length in ((1, 1, 1), (1, 6, 9), (5, 1, 3), (4, 7, 5)):
            logits = random_logits(rows, tokens, dtype=dtype)
            ids = torch.randint(tokens, (rows, length))
            for penalty in (1.3, 7, 0.4):
                behaviour = f"({rows}, {tokens}) {dtype} logits under a penalty of {penalty}"
                check_penalty(impl, logits, ids, penalty, behaviour)
    logits, ids = random_logits(1, 33_000), torch.randint(33_000, (1, 3_000))
    check_penalty(impl, logits, ids, 1.7, "33,000 logits under a penalty for 3,000 ids")
    ids = torch.full((1, 3_000), 32_999)
    check_penalty(impl, logits, ids, 1.7, "a penalty for one id, 3,000 times")


def test_penalty_is_no_part_of_the_other_rows(impl):
    logits = random_logits(3, 6)
    ids = torch.tensor([[0, 1], [2, 3], [4, 5]])
    together = impl.repetition_penalty(logits, ids, 3.0)
    for row in range(3):
        alone = impl.repetition_penalty(logits[row : row + 1], ids[row : row + 1], 3.0)
        behaviour = f"the penalty of row {row} beside others and alone"
        assert_matches(together[row : row + 1], alone, behaviour)


# The loop. The model of these tests goes by the sum and the number of all ids so far.

TOKENS, EOS, PAD = 7, 5, 6


def next_id(row):
    """Return the token that the model of these tests puts behind a row."""
    return (3 * sum(row) + 5 * len(row) + row[0]) % TOKENS


def model(ids):
    """Return logits (B, V) whose largest is that of the next token."""
    chosen = torch.tensor([next_id(row) for row in ids.tolist()])
    return torch.eye(TOKENS)[chosen] * 3 - 1


def best(logits):
    return logits.argmax(dim=-1)


def loop_oracle(prompt, max_new_tokens, eos_id=EOS, pad_id=PAD):
    """Return what the model's greedy generation gives, each row by itself and then filled up."""
    rows = prompt.tolist()
    new = []
    for row in rows:
        tokens = []
        while len(tokens) < max_new_tokens and eos_id not in tokens:
            tokens.append(next_id(row + tokens))
        new.append(tokens)
    length = max(map(len, new))
    filled = [tokens + [pad_id] * (length - len(tokens)) for tokens in new]
    return torch.tensor([row + tokens for row, tokens in zip(rows, filled, strict=True)])


def script(*rounds):
    """Return a step and a choose that play these rounds of ids, and lists of what they got."""
    seen, asked = [], []

    def step(ids):
        seen.append(ids)
        return torch.full((len(ids), TOKENS), float(len(seen)))

    def choose(logits):
        asked.append(logits)
        assert len(asked) <= len(rounds), "choose is called again after every row has ended"
        return torch.tensor(rounds[len(asked) - 1])

    return step, choose, seen, asked


def play(impl, rounds, prompt=None, limit=10, eos_id=EOS, pad_id=PAD):
    """Return what is generated behind the prompt when `choose` plays the rounds, and the calls."""
    prompt = torch.ones(len(rounds[0]), 2, dtype=torch.int64) if prompt is None else prompt
    step, choose, seen, asked = script(*rounds)
    with unchanged(prompt=prompt):
        out = impl.generate(step, prompt, limit, eos_id, pad_id, choose)
    assert isinstance(out, torch.Tensor), f"generate returns {type(out).__name__}, not a tensor"
    assert out.dtype == torch.int64, f"generate returns {out.dtype}"
    assert torch.equal(out[:, : prompt.shape[1]], prompt), "the result starts with the prompt"
    return out[:, prompt.shape[1] :].tolist(), seen, asked, out


def test_rows_end_one_by_one(impl):
    rounds = [[1, 2, 3], [EOS, 4, 0], [0, 1, 2], [3, 3, EOS], [EOS, 2, 4], [2, EOS, 1]]
    out, seen, asked, _ = play(impl, rounds)
    assert out[0] == [1, EOS, *[PAD] * 4], f"a row that ends in round 2 of 6 holds {out[0]}"
    assert out[1] == [2, 4, 1, 3, 2, EOS], f"a row that ends in round 6 of 6 holds {out[1]}"
    assert out[2] == [3, 0, 2, EOS, PAD, PAD], f"a row that ends in round 4 of 6 holds {out[2]}"
    calls = (len(seen), len(asked))
    assert calls == (6, 6), f"step and choose are called {calls} times in 6 rounds"


def test_rows_that_end_together(impl):
    out, seen, asked, _ = play(impl, [[1, 2], [EOS, EOS]])
    assert out == [[1, EOS], [2, EOS]], f"two rows that end together hold {out}"
    assert len(seen) == len(asked) == 2, "once all rows have ended nothing more is called"
    out, seen, asked, _ = play(impl, [[EOS]])
    assert out == [[EOS]], f"a row that ends at once holds {out}"
    assert len(seen) == len(asked) == 1, "once the only row has ended nothing more is called"


def test_the_limit_of_new_tokens(impl):
    rounds = [[1, 2, 3], [EOS, 4, 0], [1, 1, 2], [3, 3, EOS], [0, EOS, 4]]
    wanted = [[1, EOS, PAD, PAD, PAD], [2, 4, 1, 3, EOS], [3, 0, 2, EOS, PAD]]
    for limit in (0, 1, 2, 3, 4, 5, 6, 1000):
        out, seen, asked, whole = play(impl, rounds, limit=limit)
        right = [row[:limit] for row in wanted]
        assert out == right, f"with at most {limit} new tokens {out} is generated, not {right}"
        calls = (len(seen), len(asked))
        expected = (min(limit, 5),) * 2
        assert calls == expected, f"for {limit} new tokens step and choose are called {calls} times"
        assert whole.shape == (3, 2 + min(limit, 5)), f"for {limit} the shape is {whole.shape}"


def test_step_gets_all_ids_and_choose_gets_its_logits(impl):
    rounds = [[1, 2, 3], [EOS, 4, 0], [0, 1, 2], [3, 3, EOS], [EOS, EOS, 4]]
    prompt = torch.tensor([[4, 1, 2, 0], [0, 3, 1, 1], [2, 2, 4, 3]])
    _, seen, asked, out = play(impl, rounds, prompt)
    for number, ids in enumerate(seen):
        behaviour = f"the ids that step gets in round {number + 1}"
        assert_matches(ids, out[:, : 4 + number], behaviour)
        wanted = torch.full((3, TOKENS), number + 1.0)
        assert_matches(asked[number], wanted, f"what choose gets in round {number + 1}")


def test_generation_matches_row_by_row(impl):
    for rows, length in ((1, 1), (6, 1), (1, 5), (9, 4), (40, 3)):
        for limit in (1, 25):
            prompt = torch.randint(TOKENS, (rows, length))
            with unchanged(prompt=prompt):
                actual = impl.generate(model, prompt, limit, EOS, PAD, best)
            behaviour = f"{rows} prompts of {length} tokens, {limit} new tokens at most"
            assert_matches(actual, loop_oracle(prompt, limit), behaviour)
    # 0 and 1 are ids as good as any others.
    for eos_id, pad_id in ((0, 1), (1, 0), (3, 3), (0, 0), (2, -1), (4, 1000), (-1, 0)):
        prompt = torch.randint(TOKENS, (8, 3))
        actual = impl.generate(model, prompt, 9, eos_id, pad_id, best)
        expected = loop_oracle(prompt, 9, eos_id, pad_id)
        assert_matches(actual, expected, f"8 prompts with eos_id {eos_id} and pad_id {pad_id}")


def test_what_ends_no_row(impl):
    prompt = torch.tensor([[EOS, 1, EOS], [PAD, EOS, PAD]])
    out, *_ = play(impl, [[1, 2], [EOS, 3], [4, EOS]], prompt)
    assert out == [[1, EOS, PAD], [2, 3, EOS]], f"with EOS in the prompts {out} is generated"
    out, *_ = play(impl, [[PAD, 2], [1, PAD], [PAD, PAD], [EOS, 3], [0, EOS]])
    wanted = [[PAD, 1, PAD, EOS, PAD], [2, PAD, PAD, 3, EOS]]
    assert out == wanted, f"where pad_id is chosen {out} is generated, not {wanted}"
    out, *_ = play(impl, [[1, 2], [EOS, 3], [4, 0], [2, EOS]], pad_id=EOS)
    wanted = [[1, EOS, EOS, EOS], [2, 3, 0, EOS]]
    assert out == wanted, f"where pad_id is eos_id {out} is generated, not {wanted}"


def test_what_is_chosen_for_a_row_that_has_ended(impl):
    rounds = [[EOS, 1], [EOS, 2], [PAD, 3], [EOS, 4], [1, EOS]]
    out, *_ = play(impl, rounds)
    wanted = [[EOS, PAD, PAD, PAD, PAD], [1, 2, 3, 4, EOS]]
    assert out == wanted, f"where an ended row is given EOS again {out} is generated"


def test_what_step_and_choose_return_is_left_alone(impl):
    rounds = torch.tensor([[1, 2], [EOS, 3], [4, 1], [2, 0], [0, EOS]])
    logits, turn = torch.randn(2, TOKENS), iter(range(5))
    prompt = torch.ones(2, 3, dtype=torch.int64)
    with unchanged(logits=logits, chosen=rounds, prompt=prompt):
        out = impl.generate(lambda _: logits, prompt, 9, EOS, PAD, lambda _: rounds[next(turn)])
    wanted = [[1, EOS, PAD, PAD, PAD], [2, 3, 1, 0, EOS]]
    assert out[:, 3:].tolist() == wanted, f"{out[:, 3:].tolist()} is generated, not {wanted}"
    # One buffer for every round's choice.
    buffer, turn = torch.empty(2, dtype=torch.int64), iter(range(5))
    out = impl.generate(
        lambda _: logits, prompt, 9, EOS, PAD, lambda _: buffer.copy_(rounds[next(turn)])
    )
    assert out[:, 3:].tolist() == wanted, f"from one buffer {out[:, 3:].tolist()} is generated"


def test_no_new_tokens_still_make_a_new_tensor(impl):
    prompt = torch.randint(TOKENS, (3, 4))
    out = impl.generate(model, prompt, 0, EOS, PAD, best)
    assert_matches(out, prompt, "the result for no new tokens")
    assert out.untyped_storage().data_ptr() != prompt.untyped_storage().data_ptr(), (
        "the result for no new tokens lies in the memory of the prompt"
    )


def test_drawn_tokens_follow_the_distribution(impl):
    # Two rounds: the second token's distribution goes by the first.
    rows, options = 2_000, (0.8, 4, 0.9, 0.1)
    table = 1.5 * torch.sin(torch.arange(25.0)).view(5, 5)
    probs, _ = oracle(table, *options)

    def draw(logits):
        return torch.multinomial(impl.next_token_probs(logits, *options), 1)[:, 0]

    prompt = torch.full((rows, 1), 3)
    out = impl.generate(lambda ids: table[ids[:, -1]], prompt, 2, -1, -1, draw)
    pairs = torch.bincount(5 * out[:, 1] + out[:, 2], minlength=25).double()
    expected = rows * (probs[3][:, None] * probs).flatten().double()
    likely = expected > 0
    assert not pairs[~likely].any(), "pairs of tokens are drawn that the filters rule out"
    chi_square = ((pairs - expected)[likely] ** 2 / expected[likely]).sum()
    # Of as many degrees of freedom, by Wilson and Hilferty: passed once in a million.
    degrees = int(likely.sum()) - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 4.753 * (2 / (9 * degrees)) ** 0.5) ** 3
    assert chi_square < limit, (
        f"pairs of drawn tokens have a chi-square of {chi_square:.1f}, above {limit:.1f}"
    )


# What must hold of every function.


def test_calls_do_not_disturb_each_other(impl):
    options = (0.7, 6, 0.85, 0.05)
    assert_repeatable(
        partial(impl.next_token_probs, temperature=0.7, top_k=6, top_p=0.85, min_p=0.05),
        lambda: [clear(partial(random_logits, 4, 9), *options)],
        lambda logits: oracle(logits, *options)[0],
        "next_token_probs",
    )
    for keywords in ({}, {"temperature": 0}):
        assert_repeatable(
            partial(impl.next_token_probs, **keywords),
            lambda: [random_logits(4, 9)],
            lambda logits, keywords=keywords: oracle(logits, **keywords)[0],
            f"next_token_probs with {keywords}",
        )
    for penalty, length in ((1.7, 5), (1, 5), (1.7, 0)):
        assert_repeatable(
            partial(impl.repetition_penalty, penalty=penalty),
            lambda length=length: [random_logits(4, 9), torch.randint(9, (4, length))],
            partial(penalty_oracle, penalty=penalty),
            f"repetition_penalty of {penalty} for {length} ids",
        )
    for limit in (0, 6):
        assert_repeatable(
            lambda prompt, limit=limit: impl.generate(model, prompt, limit, EOS, PAD, best),
            lambda: [torch.randint(TOKENS, (5, 3))],
            # Where every row ends early, an earlier result is narrower.
            lambda prompt, limit=limit: loop_oracle(prompt, limit),
            f"generate with {limit} new tokens",
        )


def integer_layouts(x):
    """Yield what layouts x may have, each with its values, and x's first row expanded."""
    yield from ((layout, x, strided) for layout, strided in layouts(x))
    first = x[:1].expand(x.shape)
    yield "expanded from one row", first.clone(), first


def test_any_layout(impl):
    options = (0.7, 6, 0.85, 0.05)
    logits = clear(partial(random_logits, 4, 9), *options)
    call = partial(impl.next_token_probs, temperature=0.7, top_k=6, top_p=0.85, min_p=0.05)
    assert_any_layout(call, [logits], oracle(logits, *options)[0], "next_token_probs")
    for temperature in (0, 1.0):
        call = partial(impl.next_token_probs, temperature=temperature)
        expected, _ = oracle(logits, temperature)
        assert_any_layout(call, [logits], expected, f"next_token_probs at {temperature}")
        assert_matches(
            call(logits[:1].expand(4, 9)),
            expected[:1].repeat(4, 1),
            f"next_token_probs at {temperature} of one row expanded",
        )
    ids = torch.randint(9, (4, 5))
    assert_any_layout(
        lambda logits: impl.repetition_penalty(logits, ids, 1.7),
        [logits],
        penalty_oracle(logits, ids, 1.7),
        "repetition_penalty",
    )
    expanded = logits[:1].expand(4, 9)
    check_penalty(impl, expanded, ids, 1.7, "repetition_penalty of logits expanded from one row")
    for layout, same, strided in integer_layouts(ids):
        expected = penalty_oracle(logits, same, 1.7)
        check_penalty(impl, logits, strided, 1.7, f"repetition_penalty, ids {layout}", expected)
    for layout, same, strided in integer_layouts(torch.randint(TOKENS, (5, 3))):
        with unchanged(prompt=strided):
            actual = impl.generate(model, strided, 6, EOS, PAD, best)
        assert_matches(actual, loop_oracle(same, 6), f"generate behind a prompt that is {layout}")
    rounds = torch.tensor([[1, EOS, 2, 0, 4], [2, 3, 1, 0, EOS]])
    turn = iter(rounds.T)
    prompt = torch.ones(2, 3, dtype=torch.int64)
    out = impl.generate(model, prompt, 9, EOS, PAD, lambda _: next(turn))
    wanted = [[1, EOS, PAD, PAD, PAD], [2, 3, 1, 0, EOS]]
    assert out[:, 3:].tolist() == wanted, "generate with choices that are columns of a tensor"


def test_any_mode(impl):
    options = (0.7, 6, 0.85, 0.05)
    for dtype in (torch.float32, torch.bfloat16):
        logits = clear(partial(random_logits, 4, 9, dtype=dtype), *options)
        call = partial(impl.next_token_probs, temperature=0.7, top_k=6, top_p=0.85, min_p=0.05)
        expected, _ = oracle(logits, *options)
        assert_any_mode(call, [logits], expected, f"next_token_probs of {dtype}")
        for temperature in (0, 1.3):
            call = partial(impl.next_token_probs, temperature=temperature)
            behaviour = f"next_token_probs of {dtype} at temperature {temperature}"
            assert_any_mode(call, [logits], oracle(logits, temperature)[0], behaviour)
        ids = torch.randint(9, (4, 5))
        assert_any_mode(
            partial(impl.repetition_penalty, penalty=1.7),
            [logits, ids],
            penalty_oracle(logits, ids, 1.7),
            f"repetition_penalty of {dtype}",
        )
    prompt = torch.randint(TOKENS, (5, 3))
    assert_any_mode(
        lambda prompt: impl.generate(model, prompt, 6, EOS, PAD, best),
        [prompt],
        loop_oracle(prompt, 6),
        "generate",
    )


def test_one_tensor_in_two_places(impl):
    # As logits for two settings, as ids and as the prompt of two calls.
    logits, ids = random_logits(4, 7), torch.randint(TOKENS, (4, 3))
    with unchanged(logits=logits, ids=ids):
        sharp = impl.next_token_probs(logits, 0.5)
        impl.next_token_probs(logits, 2.0, 3, 0.5, 0.2)
        impl.repetition_penalty(logits, ids, 4.0)
        impl.generate(model, ids, 5, EOS, PAD, best)
    expected = (logits.double() / 0.5).softmax(-1).float()
    assert_probs(sharp, expected, "a result once the same logits have been given again")
