import heapq
import itertools
import math
from collections import Counter
from fractions import Fraction
from functools import partial

import torch

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_repeatable,
    layouts,
    unchanged,
)

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PENALTIES = (1.0, 0, 0.6, 2, -0.7)
# No two sums or scores that a search compares are closer than this.
GAP = 1e-6
# How far from a threshold the nearest numbers of a test are, as a share of it.
NEAR = 4e-9
ALMOST_ONE = math.nextafter(1, 0)


# The models that are searched.


class Model:
    """A model whose log-probabilities go by all ids of a row, with a note of what it was given."""

    def __init__(self, vocab, dtype=torch.float64, states=1009):
        logits = 1.5 * torch.randn(states, vocab, dtype=torch.float64)
        self.table = logits.log_softmax(-1).to(dtype)
        self.weights = [pow(31, place, 1009) for place in range(400)]
        self.calls = []
        self.known = {}  # what a search of it gives; its table stays as it is from the first on

    def __call__(self, ids):
        note(self.calls, ids)
        keys = ((ids + 1) * torch.tensor(self.weights[: ids.shape[1]])).sum(-1)
        return self.table[keys % len(self.table)]

    def row(self, ids):
        """Return the log-probabilities behind a tuple of ids, as floats."""
        key = sum((token + 1) * weight for token, weight in zip(ids, self.weights, strict=False))
        return self.table[key % len(self.table)].tolist()


class Script:
    """A model that goes by the new ids alone, from a dict of probabilities."""

    def __init__(self, start, probs, other):
        self.start, self.probs, self.other = start, probs, other
        self.calls = []

    def __call__(self, ids):
        note(self.calls, ids)
        rows = [self.row(tuple(row)) for row in ids.tolist()]
        return torch.tensor(rows, dtype=torch.float64)

    def row(self, ids):
        probs = self.probs.get(ids[self.start :], self.other)
        return [math.log(prob) if prob else -math.inf for prob in probs]


def note(calls, ids):
    """Check what `step` gets, and note its rows."""
    assert isinstance(ids, torch.Tensor), f"step gets {type(ids).__name__}, not a tensor"
    assert ids.dtype == torch.int64, f"step gets ids of {ids.dtype}"
    assert ids.ndim == 2, f"step gets ids of shape {tuple(ids.shape)}, not (N, length)"
    assert len(ids), "step gets no beam at all"
    calls.append([tuple(row) for row in ids.tolist()])


# The oracles of the search, in plain Python.


def search(model, prompt, beams, limit, eos_id, penalty=1.0):
    """Return the best ids, their score, the live beams of each round, and the smallest gap."""
    question = (tuple(prompt.tolist()), beams, limit, eos_id, penalty)
    if question not in model.known:
        model.known[question] = plain_search(model, *question)
    return model.known[question]


def plain_search(model, prompt, beams, limit, eos_id, penalty):
    live, ended, rounds, gap = {prompt: 0.0}, {}, [], math.inf
    while live:
        rounds.append(sorted(live))
        sums = {}
        for beam, total in live.items():
            row = model.row(beam)
            # No more of one beam can be kept than that, and one that is not.
            for token in heapq.nlargest(beams + 1, range(len(row)), key=row.__getitem__):
                if row[token] > -math.inf:
                    sums[*beam, token] = total + row[token]
        ranked = sorted(sums, key=sums.__getitem__, reverse=True)
        if len(ranked) > beams:
            gap = min(gap, sums[ranked[beams - 1]] - sums[ranked[beams]])
        live = {}
        for ids in ranked[:beams]:
            done = ids[-1] == eos_id or len(rounds) == limit
            (ended if done else live)[ids] = sums[ids]
    ids, score, margin = best_of(ended, len(prompt), penalty)
    return ids, score, rounds, min(gap, margin)


def best_of(ended, start, penalty):
    """Return the ids of the best score, that score, and by how much it is the best."""
    scores = {ids: total / (len(ids) - start) ** penalty for ids, total in ended.items()}
    best, *rest = sorted(scores, key=scores.__getitem__, reverse=True)
    margin = scores[best] - scores[rest[0]] if rest else math.inf
    return list(best), scores[best], margin


def every_result(model, ids, limit, eos_id, total=0.0):
    """Yield all that can be generated behind a tuple of ids, with the sums."""
    for token, value in enumerate(model.row(ids)):
        longer = (*ids, token)
        if limit == 1 or token == eos_id:
            yield longer, total + value
        else:
            yield from every_result(model, longer, limit - 1, eos_id, total + value)


def clear(draw, beams, limit, eos_id, penalties=(1.0,)):
    """Return the first model and prompt that are drawn whose search is no close call."""
    while True:
        model, prompt = draw()
        if all(search(model, prompt, beams, limit, eos_id, x)[3] > GAP for x in penalties):
            return model, prompt


def random_case(vocab, length, **options):
    return Model(vocab, **options), torch.randint(vocab, (length,))


def run(impl, model, prompt, beams, limit, eos_id, **penalty):
    """Return the ids and the score of a search, once their types are checked."""
    model.calls.clear()
    with unchanged(prompt=prompt):
        result = impl.beam_search(model, prompt, beams, limit, eos_id, **penalty)
    assert isinstance(result, tuple), f"beam_search returns {type(result).__name__}, not a tuple"
    assert len(result) == 2, f"beam_search returns {len(result)} values, not ids and a score"
    ids, score = result
    assert isinstance(ids, torch.Tensor), f"the ids are {type(ids).__name__}, not a tensor"
    assert ids.dtype == torch.int64, f"the ids are {ids.dtype}"
    assert ids.ndim == 1, f"the ids have the shape {tuple(ids.shape)}, not (T + new,)"
    assert isinstance(score, float), f"the score is {type(score).__name__}, not a float"
    return ids.tolist(), score


def check(impl, model, prompt, beams, limit, eos_id, behaviour, expected=None, **penalty):
    """Search, and compare with the plain search, or with what is given."""
    wanted, right = expected or search(model, prompt, beams, limit, eos_id, *penalty.values())[:2]
    ids, score = run(impl, model, prompt, beams, limit, eos_id, **penalty)
    start = len(prompt)
    assert ids[:start] == wanted[:start], f"{behaviour}: the ids do not begin with the prompt"
    assert ids == wanted, f"{behaviour}: the new ids are {ids[start:]}, not {wanted[start:]}"
    assert math.isclose(score, right, rel_tol=1e-9, abs_tol=1e-12), (
        f"{behaviour}: the score of {ids[start:]} is {score!r}, not {right!r}"
    )


def scored(prob, length, penalty=1.0):
    return math.log(prob) / length**penalty


# Beam search.


def test_as_many_beams_as_there_are_results(impl):
    for vocab, limit, eos_id in ((3, 4, 2), (4, 3, 0), (2, 5, 1)):
        for penalty in PENALTIES:
            model, prompt = random_case(vocab, 5)
            results = dict(every_result(model, tuple(prompt.tolist()), limit, eos_id))
            ids, score, margin = best_of(results, 5, penalty)
            if margin < GAP:
                continue
            behaviour = f"{vocab**limit} beams, {vocab} tokens, {limit} rounds, penalty {penalty}"
            args = (prompt, vocab**limit, limit, eos_id, behaviour, (ids, score))
            check(impl, model, *args, length_penalty=penalty)


def test_few_beams(impl):
    penalties = itertools.cycle(PENALTIES)
    for beams in (1, 2, 5):
        for limit in (1, 3, 8):
            for penalty in itertools.islice(penalties, 2):
                draw = partial(random_case, 6, 4)
                model, prompt = clear(draw, beams, limit, 1, [penalty])
                behaviour = f"{beams} beams, 6 tokens, {limit} rounds, penalty {penalty}"
                check(impl, model, prompt, beams, limit, 1, behaviour, length_penalty=penalty)


def test_the_penalty_has_a_default(impl):
    for _ in range(3):
        model, prompt = clear(partial(random_case, 5, 3), 4, 6, 2)
        check(impl, model, prompt, 4, 6, 2, "a search without a length_penalty")


# In the cases by hand, 0 is the end, 1 and 2 are a and b; the prompt is b, end, a.
PROMPT = (2, 0, 1)


def by_hand(
    impl, probs, beams, limit, expected, prob, behaviour, penalty=1.0, other=(0.4, 0.3, 0.3)
):
    model = Script(3, probs, other)
    result = ([*PROMPT, *expected], scored(prob, len(expected), penalty))
    prompt = torch.tensor(PROMPT)
    check(impl, model, prompt, beams, limit, 0, behaviour, result, length_penalty=penalty)
    return model.calls


def test_a_second_beam_finds_more(impl):
    probs = {(): (0.05, 0.6, 0.35), (1,): (0.3, 0.4, 0.3), (2,): (0.9, 0.06, 0.04)}
    by_hand(impl, probs, 1, 2, [1, 1], 0.24, "one beam follows the likeliest token")
    by_hand(impl, probs, 2, 2, [2, 0], 0.315, "two beams of which the second has the better end")


def test_an_early_end_may_be_the_best(impl):
    probs = {(): (0.5, 0.45, 0.05), (1,): (0.4, 0.35, 0.25)}
    for beams in (1, 2, 3):
        for limit in (1, 2, 3, 7):
            behaviour = f"{beams} beams, {limit} rounds, an end in round 1 that stays the best"
            by_hand(impl, probs, beams, limit, [0], 0.5, behaviour)
    probs = {(): (0.1, 0.6, 0.3), (1,): (0.9, 0.05, 0.05), (2,): (0.1, 0.6, 0.3)}
    for limit in (2, 3, 6):
        behaviour = f"2 beams, {limit} rounds, an end in round 2 that stays the best"
        by_hand(impl, probs, 2, limit, [1, 0], 0.54, behaviour)
    probs = {(): (0.05, 0.6, 0.35), (1,): (0.3, 0.4, 0.3), (2,): (0.9, 0.06, 0.04)}
    for limit in (3, 4, 7):
        behaviour = f"2 beams, {limit} rounds, an end of the second beam that stays the best"
        by_hand(impl, probs, 2, limit, [2, 0], 0.315, behaviour)


def test_a_late_end_may_be_the_best(impl):
    probs = {(): (0.4, 0.35, 0.25), (1,): (0.5, 0.3, 0.2), (1, 1): (0.1, 0.89, 0.01)}
    probs |= {(1, 1, 1): (0.98, 0.01, 0.01)}
    for beams in (2, 3):
        behaviour = f"{beams} beams, ends in rounds 1 and 2, and a better one in round 4"
        prob = 0.35 * 0.3 * 0.89 * 0.98
        by_hand(impl, probs, beams, 4, [1, 1, 1, 0], prob, behaviour)
        by_hand(impl, probs, beams, 6, [1, 1, 1, 0], prob, behaviour)
    sharp = (0.02, 0.97, 0.01)
    probs = {(): (0.5, 0.3, 0.2), (1,): sharp, (1, 1): sharp, (1, 1, 1): sharp, (1,) * 4: sharp}
    prob = 0.3 * 0.97**4
    behaviour = "2 beams, ends in every round, and an open beam that is better after 5 rounds"
    by_hand(impl, probs, 2, 5, [1] * 5, prob, behaviour)


def test_an_end_in_the_next_round_may_be_the_best(impl):
    # What a live beam can still reach is most at its next token, under a penalty below 0.
    probs = {(): (0.3, 0.6, 0.1), (1,): (0.9, 0.06, 0.04)}
    for penalty in (-0.7, -0.3, 0, 0.5, 1.5):
        for limit in (2, 6, 9):
            behaviour = f"2 beams, {limit} rounds, penalty {penalty}, a better end in round 2"
            by_hand(impl, probs, 2, limit, [1, 0], 0.54, behaviour, penalty)


def test_an_end_makes_room_in_the_next_round(impl):
    probs = {(): (0.5, 0.3, 0.2), (1,): (0.15, 0.45, 0.4), (1, 2): (0.97, 0.02, 0.01)}
    behaviour = "2 beams, of which one has ended before two good ones come"
    by_hand(impl, probs, 2, 3, [1, 2, 0], 0.3 * 0.4 * 0.97, behaviour, 2.0)


def test_an_end_takes_a_place_in_its_round(impl):
    probs = {(): (0.5, 0.3, 0.2), (2,): (0.98, 0.01, 0.01), (1,): (0.4, 0.35, 0.25)}
    behaviour = "2 beams, and a third candidate in round 1 that would do well"
    calls = by_hand(impl, probs, 2, 2, [1, 0], 0.12, behaviour, 3.0)
    assert calls[1] == [(*PROMPT, 1)], f"{behaviour}: step gets {calls[1]} in round 2"


def test_what_is_still_live_at_the_end_competes(impl):
    probs = {(): (0.3, 0.6, 0.1), (1,): (0.1, 0.8, 0.1), (1, 1): (0.05, 0.9, 0.05)}
    for limit, prob in ((1, 0.6), (2, 0.48), (3, 0.432)):
        behaviour = f"3 beams, {limit} rounds, of which none ends well"
        by_hand(impl, probs, 3, limit, [1] * limit, prob, behaviour)
    by_hand(
        impl,
        {(): (0.0, 0.6, 0.4)},
        2,
        3,
        [1, 2, 2],
        0.6 * 0.55**2,
        "no end is possible",
        1.0,
        (0.0, 0.45, 0.55),
    )


def test_the_score_is_that_of_the_ids(impl):
    for length, penalties in ((1, (1.0, 0)), (2, (0.6, 2)), (7, (-0.7, 1))):
        for penalty in penalties:
            model, prompt = clear(partial(random_case, 5, length), 3, 6, 4, [penalty])
            ids, score = run(impl, model, prompt, 3, 6, 4, length_penalty=penalty)
            new = len(ids) - length
            total = sum(model.row(tuple(ids[:end]))[ids[end]] for end in range(length, len(ids)))
            right = total / new**penalty
            assert math.isclose(score, right, rel_tol=1e-9), (
                f"{new} new tokens behind a prompt of {length}, of the sum {total:.6f}, have the "
                f"score {score:.6f} under length_penalty {penalty}, not {right:.6f}"
            )


def test_the_score_does_not_go_by_the_prompt(impl):
    probs = {(): (0.2, 0.5, 0.3), (1,): (0.7, 0.2, 0.1)}
    for prompt in ([1], [2, 1], [0, 0, 2, 1, 1, 2]):
        model = Script(len(prompt), probs, (0.4, 0.35, 0.25))
        result = ([*prompt, 1, 0], scored(0.35, 2, 0.8))
        behaviour = f"a prompt of {len(prompt)} tokens"
        check(impl, model, torch.tensor(prompt), 2, 4, 0, behaviour, result, length_penalty=0.8)


def assert_rounds(calls, rounds, behaviour):
    """Compare what `step` got, in any order, with the live beams of each round."""
    for number, (given, live) in enumerate(zip(calls, rounds, strict=False), 1):
        many, few = Counter(given) - Counter(live), Counter(live) - Counter(given)
        what = f"{behaviour}: step gets {len(given)} beams in round {number}, {len(live)} are live"
        assert not many, f"{what}; {min(many)} is too many"
        assert not few, f"{what}; {min(few)} is missing"
    assert calls, f"{behaviour}: step is never called"
    assert len(calls) <= len(rounds), (
        f"{behaviour}: step is called {len(calls)} times, but {len(rounds)} rounds are the most"
    )


def test_step_gets_the_live_beams(impl):
    for vocab, beams, limit in ((6, 1, 5), (6, 3, 1), (6, 4, 7), (3, 11, 6), (2, 3, 9)):
        model, prompt = clear(partial(random_case, vocab, 5), beams, limit, 1, [0.9])
        rounds = search(model, prompt, beams, limit, 1, 0.9)[2]
        run(impl, model, prompt, beams, limit, 1, length_penalty=0.9)
        behaviour = f"{beams} beams, {vocab} tokens, {limit} rounds"
        assert_rounds(model.calls, rounds, behaviour)


def test_nothing_is_called_once_no_beam_is_live(impl):
    certain = (1.0, 0.0, 0.0)
    probs = {(): (0.1, 0.6, 0.3), (1,): certain, (2,): certain}
    calls = by_hand(impl, probs, 2, 9, [1, 0], 0.6, "two beams that end in round 2")
    assert len(calls) <= 2, f"two beams that end in round 2: step is called {len(calls)} times"
    calls = by_hand(impl, {(): certain}, 4, 9, [0], 1.0, "a certain end")
    assert len(calls) == 1, f"a certain end in round 1: step is called {len(calls)} times"


def test_more_beams_than_candidates(impl):
    for vocab, beams, limit in ((2, 3, 1), (3, 50, 2), (4, 1_000, 3), (5, 6, 4)):
        model, prompt = clear(partial(random_case, vocab, 3), beams, limit, 0)
        check(impl, model, prompt, beams, limit, 0, f"{beams} beams over {vocab} tokens")


def test_impossible_tokens(impl):
    def draw(dtype):
        model, prompt = random_case(6, 3, dtype=dtype)
        out = torch.rand(model.table.shape) < 0.6
        out[:, 4] = torch.rand(len(out)) < 0.8
        out.scatter_(1, torch.randint(4, (len(out), 1)), False)
        model.table.masked_fill_(out, -math.inf)
        return model, prompt

    for dtype in (torch.float64, torch.float16):
        for beams, limit in ((1, 3), (2, 4), (5, 4), (9, 3)):
            model, prompt = clear(partial(draw, dtype), beams, limit, 4)
            rounds = search(model, prompt, beams, limit, 4)[2]
            behaviour = f"{beams} beams, most tokens of log-probability -inf, {dtype}"
            check(impl, model, prompt, beams, limit, 4, behaviour)
            assert_rounds(model.calls, rounds, behaviour)


def test_any_token_may_be_the_end(impl):
    for eos_id in (0, 1, 4):
        for _ in range(3):
            model, prompt = clear(partial(random_case, 5, 4), 3, 6, eos_id)
            prompt[1] = prompt[-1] = eos_id
            if search(model, prompt, 3, 6, eos_id)[3] > GAP:
                check(impl, model, prompt, 3, 6, eos_id, f"{eos_id} ends, also in the prompt")


def test_log_probabilities_of_each_dtype(impl):
    for dtype in FLOATS:
        for beams in (2, 5):
            draw = partial(random_case, 7, 3, dtype=dtype)
            model, prompt = clear(draw, beams, 6, 3, [0.7])
            behaviour = f"{beams} beams, log-probabilities of {dtype}"
            check(impl, model, prompt, beams, 6, 3, behaviour, length_penalty=0.7)


def test_sums_far_below_zero(impl):
    # After 24 rounds a sum is below -480, where bfloat16 has steps of two, and float16 of 0.25.
    for dtype in FLOATS:
        model, prompt = random_case(7, 2, dtype=dtype)
        # One token is clearly the best, so that there are no ties.
        table = -24 - 4 * torch.rand(model.table.shape, dtype=torch.float64)
        best = torch.randint(5, (len(table), 1))
        table.scatter_(1, best, -20 - 3 * torch.rand(len(table), 1, dtype=torch.float64))
        table[:, 5] = -90
        model.table = table.to(dtype)
        behaviour = f"24 rounds of {dtype} log-probabilities near -21"
        check(impl, model, prompt, 1, 24, 5, behaviour)


def test_long_results(impl):
    for dtype, beams, limit in ((torch.float32, 1, 260), (torch.float64, 3, 40)):

        def draw(dtype=dtype):
            model, prompt = random_case(7, 2, dtype=dtype)
            model.table[:, 5] = -30
            return model, prompt

        model, prompt = clear(draw, beams, limit, 5)
        behaviour = f"{beams} beams, {limit} rounds of {dtype} log-probabilities"
        check(impl, model, prompt, beams, limit, 5, behaviour)


def test_unlikely_results(impl):
    for dtype, size in ((torch.float16, 6e4), (torch.float32, 3e38), (torch.bfloat16, 1e38)):

        def draw(dtype=dtype, size=size):
            model, prompt = random_case(4, 2)
            shares = 0.5 + 0.5 * torch.rand(model.table.shape, dtype=torch.float64)
            model.table = (-size * shares).to(dtype)
            return model, prompt

        model, prompt = clear(draw, 3, 5, 2, [0.5])
        behaviour = f"{dtype} log-probabilities near {-size:g}"
        check(impl, model, prompt, 3, 5, 2, behaviour, length_penalty=0.5)


def test_many_tokens_and_many_beams(impl):
    for vocab, beams, limit, states in ((33_000, 2, 2, 3), (3_000, 7, 3, 11), (5, 300, 5, 1009)):
        draw = partial(random_case, vocab, 3, states=states)
        model, prompt = clear(draw, beams, limit, vocab - 1)
        behaviour = f"{beams} beams, {vocab} tokens, {limit} rounds"
        check(impl, model, prompt, beams, limit, vocab - 1, behaviour)


# What must hold of every search.


def as_tensors(search_with, model, beams, limit, eos_id, **penalty):
    """Return a function of a prompt, whose result is a tuple of tensors."""

    def call(prompt):
        ids, score = search_with(model, prompt, beams, limit, eos_id, **penalty)[:2]
        return torch.as_tensor(ids), torch.tensor(score, dtype=torch.float64)

    return call


def test_searches_do_not_disturb_each_other(impl):
    models = [Model(5), Model(5)]

    def prompt(limit):
        while True:
            prompt = torch.randint(5, (4,))
            if all(search(model, prompt, 3, limit, 2)[3] > GAP for model in models):
                return prompt

    for limit in (1, 6):
        for number, model in enumerate(models):
            assert_repeatable(
                as_tensors(impl.beam_search, model, 3, limit, 2),
                lambda limit=limit: [prompt(limit)],
                as_tensors(search, model, 3, limit, 2),
                f"beam_search of model {number} in {limit} rounds",
            )
    same = prompt(6)
    for number, model in enumerate(models):
        check(impl, model, same, 3, 6, 2, f"one prompt, given to model {number} of two")


def test_prompts_of_any_layout_and_mode(impl):
    model, prompt = clear(partial(random_case, 5, 4), 3, 6, 2)
    call = as_tensors(impl.beam_search, model, 3, 6, 2)
    expected = as_tensors(search, model, 3, 6, 2)(prompt)
    assert_any_layout(call, [prompt], expected, "beam_search")
    column = torch.stack([prompt, prompt + 1], dim=1)[:, 0]
    check(impl, model, column, 3, 6, 2, "a prompt that is a column of a wider tensor")
    same = torch.tensor(3).expand(4)
    if search(model, same, 3, 6, 2)[3] > GAP:
        check(impl, model, same, 3, 6, 2, "a prompt that is one token, expanded")
    assert_any_mode(call, [prompt], expected, "beam_search")
    for dtype in (torch.float16, torch.float32):
        model, prompt = clear(partial(random_case, 5, 4, dtype=dtype), 3, 6, 2)
        call = as_tensors(impl.beam_search, model, 3, 6, 2)
        expected = as_tensors(search, model, 3, 6, 2)(prompt)
        assert_any_mode(call, [prompt], expected, f"beam_search, log-probabilities of {dtype}")


class Returned:
    """The model, with what it returns laid out anew, and kept to see whether it is written to."""

    def __init__(self, model, lay_out):
        self.model, self.lay_out = model, lay_out
        self.calls = model.calls
        self.row = model.row
        self.known = model.known
        self.kept = []

    def __call__(self, ids):
        out = self.lay_out(self.model(ids))
        self.kept.append((out, out.clone()))
        return out


def test_what_step_returns(impl):
    model, prompt = clear(partial(random_case, 5, 4), 3, 6, 2)
    for number in range(3):

        def lay_out(out, number=number):
            return list(layouts(out))[number][1]

        step = Returned(model, lay_out)
        name = ("contiguous", "transposed", "a part of a wider tensor")[number]
        check(impl, step, prompt, 3, 6, 2, f"what step returns is {name}")
        for out, before in step.kept:
            assert torch.equal(out, before), "what step returns is written to"
    buffer = torch.empty(3, 5, dtype=torch.float64)
    step = Returned(model, lambda out: buffer[: len(out)].copy_(out))
    check(impl, step, prompt, 3, 6, 2, "step returns the same buffer in each round")


def test_step_returns_one_row_for_all(impl):
    probs = torch.tensor([0.07, 0.4, 0.24, 0.29], dtype=torch.float64)
    log_probs = probs.log()
    prompt = torch.tensor([1, 3])
    with unchanged(log_probs=log_probs, prompt=prompt):
        ids, score = impl.beam_search(lambda ids: log_probs.expand(len(ids), 4), prompt, 3, 5, 2)
    assert ids.tolist() == [1, 3, 1, 1, 1, 1, 1], f"the likeliest token throughout: {ids.tolist()}"
    assert math.isclose(score, math.log(0.4), rel_tol=1e-9), f"its score is {score}, not log(0.4)"


# Speculative decoding.


def accept_oracle(p, q, tokens, u, v):
    """Return the result by exact fractions, and how near any comparison came to equality."""
    p, q = ([list(map(Fraction, row)) for row in x.double().tolist()] for x in (p, q))
    kept, near, weights = [], math.inf, p[-1]
    for i, (x, number) in enumerate(zip(tokens.tolist(), u.double().tolist(), strict=True)):
        ratio = p[i][x] / q[i][x]
        if ratio:
            near = min(near, abs(Fraction(number) / ratio - 1))
        if not number < ratio:
            weights = [max(a - b, Fraction(0)) for a, b in zip(p[i], q[i], strict=True)]
            weights = weights if any(weights) else p[i]
            break
        kept.append(x)
    goal, sums = Fraction(v) * sum(weights), list(itertools.accumulate(weights))
    if goal:
        near = min(near, *(abs(part / goal - 1) for part in sums))
    drawn = next(token for token, part in enumerate(sums) if part > goal)
    return [*kept, drawn], near


def run_accept(impl, p, q, tokens, u, v):
    """Return what `accept` gives, once its type and its values are checked."""
    with unchanged(p=p, q=q, tokens=tokens, u=u):
        out = impl.accept(p, q, tokens, u, v)
    assert type(out) is list, f"accept returns {type(out).__name__}, not a list"
    for token in out:
        assert type(token) is int, f"accept returns a list of {type(token).__name__}, not of ints"
        assert 0 <= token < p.shape[1], f"accept returns the token {token} of {p.shape[1]}"
    assert 0 < len(out) <= len(p), f"accept returns {len(out)} tokens for a draft of {len(tokens)}"
    return out


def check_accept(impl, p, q, tokens, u, v, behaviour, expected=None):
    wanted = accept_oracle(p, q, tokens, u, v)[0] if expected is None else expected
    out = run_accept(impl, p, q, tokens, u, v)
    assert out == wanted, f"{behaviour}: a draft of {tokens.tolist()} gives {out}, not {wanted}"


def distributions(*shape, dtype=torch.float64, spread=1.2):
    return (spread * torch.randn(*shape, dtype=torch.float64)).softmax(-1).to(dtype)


def random_draft(drafted, vocab, dtype=torch.float64):
    """Return p, q, tokens, u and v of which no comparison is close."""
    while True:
        p = distributions(drafted + 1, vocab, dtype=dtype)
        q = distributions(drafted, vocab, dtype=dtype)
        tokens = torch.randint(vocab, (drafted,))
        # Mostly small, so that a draft of any length may pass.
        u = torch.rand(drafted, dtype=torch.float64).pow(2).to(dtype)
        u = torch.where(u < 1, u, 0.5)
        v = torch.rand(()).item()
        if (q > 0).all() and accept_oracle(p, q, tokens, u, v)[1] > GAP:
            return p, q, tokens, u, v


def pieces(ends):
    """Return the middle and the length of each piece between 0, these ends and 1."""
    ends = sorted({0.0, 1.0, *(min(1.0, end) for end in ends)})
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(ends)]


def outputs(impl, p, q, tokens):
    """Yield what comes out for one draft, with the probability, integrated over u and v."""
    chosen = tokens.tolist()
    ratios = [(p[i, x] / q[i, x]).item() for i, x in enumerate(chosen)]
    for cell in itertools.product(*(pieces([ratio]) for ratio in ratios)):
        passed = [u < ratio for (u, _), ratio in zip(cell, ratios, strict=True)]
        count = [*passed, False].index(False)
        rest = p[count] if count == len(chosen) else (p[count] - q[count]).clamp(min=0)
        # The ends of p's own pieces too, for whoever draws from these by mistake.
        sums = [end for w in (rest, p[count]) for end in (w.cumsum(0) / w.sum()).tolist()]
        u = torch.tensor([u for u, _ in cell], dtype=torch.float64)
        share = math.prod(length for _, length in cell)
        for v, length in pieces(sums):
            if length > 1e-12:
                yield tuple(run_accept(impl, p, q, tokens, u, v)), share * length


def test_the_distribution_is_the_targets(impl):
    for drafted, vocab in ((1, 5), (2, 4), (3, 2)):
        ids = range(vocab)
        prefixes = [s for n in range(drafted + 1) for s in itertools.product(ids, repeat=n)]
        target = {prefix: distributions(vocab) for prefix in prefixes}
        draft = {prefix: distributions(vocab) for prefix in prefixes}
        # Some tokens that only one of the two would ever give.
        for number, tables in enumerate((target, draft)):
            if vocab > 2:
                tables[()][number] = 0
                tables[()] /= tables[()].sum()

        def chance(tables, whole, start=0):
            return math.prod(tables[whole[:i]][whole[i]].item() for i in range(start, len(whole)))

        found = Counter()
        for tokens in itertools.product(ids, repeat=drafted):
            prob = chance(draft, tokens)
            if not prob:
                continue
            p = torch.stack([target[tokens[:i]] for i in range(drafted + 1)])
            q = torch.stack([draft[tokens[:i]] for i in range(drafted)])
            for out, share in outputs(impl, p, q, torch.tensor(tokens)):
                for rest in itertools.product(ids, repeat=drafted + 1 - len(out)):
                    whole = out + rest
                    found[whole] += prob * share * chance(target, whole, len(out))
        right = {s: chance(target, s) for s in itertools.product(ids, repeat=drafted + 1)}
        worst = max(right, key=lambda s: abs(found[s] - right[s]))
        assert abs(found[worst] - right[worst]) < 1e-9, (
            f"drafts of {drafted} over {vocab} tokens: {list(worst)} comes out with a probability "
            f"of {found[worst]:.6f}, and the target gives it {right[worst]:.6f}"
        )


# The target and the draft of the cases by hand; the draft is 1, 3, 0.
P = torch.tensor(
    [
        [0.125, 0.25, 0.5, 0.0625, 0.0625],
        [0.375, 0.125, 0.125, 0.3125, 0.0625],
        [0.5, 0.25, 0.125, 0.0625, 0.0625],
        [0.0625, 0.0, 0.1875, 0.25, 0.5],
    ]
)
Q = torch.tensor(
    [
        [0.0625, 0.5, 0.25, 0.125, 0.0625],
        [0.125, 0.0625, 0.125, 0.625, 0.0625],
        [0.75, 0.125, 0.0625, 0.03125, 0.03125],
    ]
)
DRAFT = torch.tensor([1, 3, 0])
# The ratios are 1/2, 1/2 and 2/3. Weights where token 0 is rejected: 1/16, 0, 1/4, 0, 0.
# Where token 1 is: 1/4, 1/16, 0, 0, 0. Where token 2 is: 0, 1/8, 1/16, 1/32, 1/32.


def given(impl, u, v, expected, behaviour):
    for dtype in FLOATS:
        p, q, numbers = (x.to(dtype) for x in (P, Q, torch.tensor(u)))
        check_accept(impl, p, q, DRAFT, numbers, v, f"{behaviour}, {dtype}", expected)


def test_tokens_pass_below_the_ratio(impl):
    given(impl, [0.25, 0.25, 0.5], 0.9, [1, 3, 0, 4], "all pass")
    given(impl, [0.25, 0.25, 0.75], 0.4, [1, 3, 1], "the last does not pass")
    given(impl, [0.25, 0.75, 0.75], 0.5, [1, 0], "the last two do not pass")
    given(impl, [0.75, 0.75, 0.75], 0.5, [2], "none passes")
    given(impl, [0.0, 0.0, 0.0], 0.0, [1, 3, 0, 0], "all numbers are 0")


def test_what_stands_behind_a_rejected_token(impl):
    given(impl, [0.75, 0.25, 0.25], 0.5, [2], "the first alone does not pass")
    given(impl, [0.25, 0.75, 0.25], 0.9, [1, 1], "the second alone does not pass")
    given(impl, [0.75, 0.25, 0.75], 0.1, [0], "the second alone passes")


def test_one_token_more_than_was_drafted(impl):
    for v, drawn in ((0.0, 0), (0.05, 0), (0.07, 2), (0.24, 2), (0.26, 3), (0.49, 3), (0.51, 4)):
        given(impl, [0.25, 0.25, 0.25], v, [1, 3, 0, drawn], f"all pass, v = {v}")


def test_what_comes_in_the_place_of_a_rejected_token(impl):
    for v, drawn in ((0.0, 0), (0.19, 0), (0.21, 2), (0.99, 2)):
        given(impl, [0.75, 0.25, 0.25], v, [drawn], f"the first is rejected, v = {v}")
    for v, drawn in ((0.0, 0), (0.79, 0), (0.81, 1), (0.99, 1)):
        given(impl, [0.25, 0.75, 0.25], v, [1, drawn], f"the second is rejected, v = {v}")
    for v, drawn in ((0.0, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.87, 3), (0.88, 4)):
        given(impl, [0.25, 0.25, 0.75], v, [1, 3, drawn], f"the third is rejected, v = {v}")


def test_just_below_and_above_each_ratio(impl):
    for _ in range(4):
        p, q = distributions(5, 7), distributions(4, 7)
        tokens = torch.stack([(row - other).argmin() for row, other in zip(p, q, strict=False)])
        ratios = p[:-1].gather(1, tokens[:, None])[:, 0] / q.gather(1, tokens[:, None])[:, 0]
        for place, ratio in enumerate(ratios.tolist()):
            for number in (ratio * (1 - NEAR), ratio * (1 + NEAR)):
                u = 0.5 * ratios
                u[place] = number
                behaviour = f"u = {number:.10f} at a ratio of {ratio:.10f}"
                check_accept(impl, p, q, tokens, u, 0.3, behaviour)


def test_just_below_and_above_each_running_sum(impl):
    for _ in range(2):
        p, q = distributions(3, 7), distributions(2, 7)
        tokens = torch.stack([(row - other).argmin() for row, other in zip(p, q, strict=False)])
        for u in ([0.999, 0.0], [0.0, 0.999], [0.0, 0.0]):
            u = torch.tensor(u, dtype=torch.float64)
            weights = p[2] if not u.any() else (p[:2] - q).clamp(min=0)[int(u.argmax())]
            sums = weights.cumsum(0) / weights.sum()
            for part in sorted({x for x in sums.tolist() if 0 < x < 1 - 1e-6}):
                for v in (part * (1 - NEAR), part * (1 + NEAR)):
                    behaviour = f"v = {v:.10f} at a running sum of {part:.10f}"
                    check_accept(impl, p, q, tokens, u, v, behaviour)


# Of two rows of the target and one of the draft; the draft is 0 or 2.
SPARSE = torch.tensor([[0.0, 0.0, 0.75, 0.25, 0.0], [0.0, 0.5, 0.0, 0.5, 0.0]])
SPARSE_DRAFT = torch.tensor([[0.5, 0.0, 0.25, 0.25, 0.0]])


def test_a_token_that_the_target_never_gives(impl):
    for dtype in FLOATS:
        p, q = SPARSE.to(dtype), SPARSE_DRAFT.to(dtype)
        for number in (0.0, 1e-6, 0.9):
            u = torch.tensor([number], dtype=dtype)
            behaviour = f"the target never gives the token, u = {number}, {dtype}"
            check_accept(impl, p, q, torch.tensor([0]), u, 0.4, behaviour, [2])


def test_weights_of_zero(impl):
    for dtype in FLOATS:
        p, q = SPARSE.to(dtype), SPARSE_DRAFT.to(dtype)
        for v, drawn in ((0.0, 1), (1e-12, 1), (0.3, 1), (0.5, 3), (ALMOST_ONE, 3)):
            u = torch.tensor([0.2], dtype=dtype)
            behaviour = f"weights of 0, 1/2, 0, 1/2, 0 at v = {v}, {dtype}"
            check_accept(impl, p, q, torch.tensor([2]), u, v, behaviour, [2, drawn])
            u, behaviour = torch.tensor([0.7], dtype=dtype), f"a single weight, v = {v}, {dtype}"
            check_accept(impl, p, q, torch.tensor([0]), u, v, behaviour, [2])


def test_numbers_near_one(impl):
    for dtype in FLOATS:
        high = 1 - torch.finfo(dtype).eps / 2
        for vocab in (1, 2, 9, 400):
            for _ in range(2):
                p, q = distributions(3, vocab, dtype=dtype), distributions(2, vocab, dtype=dtype)
                p[:, -1] = 0 if vocab > 1 else 1
                tokens = p[:2].argmax(1)
                q[torch.arange(2), tokens] = p[torch.arange(2), tokens] / 2
                for u in ([0.0, 0.0], [0.0, high], [high, high]):
                    out = run_accept(impl, p, q, tokens, torch.tensor(u, dtype=dtype), ALMOST_ONE)
                    kept = tokens.tolist()
                    assert out[:2] == kept, f"tokens of a ratio of 2, u = {u}: {out}, not {kept}"
                    assert len(out) == 3, f"tokens of a ratio of 2, u = {u}: {len(out)} come out"
                    assert p[2, out[2]] > 0, (
                        f"of {vocab} tokens, {dtype}, the last is drawn at v = {ALMOST_ONE}, "
                        f"though its probability is 0"
                    )


def test_rows_that_do_not_sum_to_one(impl):
    # By one unit in the last place: q is nowhere below p, and yet the token may be rejected.
    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        p = torch.tensor([[0.25, 0.75, 0.0], [0.125, 0.375, 0.5]], dtype=dtype)
        q = torch.tensor([[0.25, 0.75 + eps, 0.0]], dtype=dtype)
        if dtype == torch.float64:
            q[0, 1] = 0.75 + 1e-8
        u = torch.tensor([1 - 5e-9 if dtype == torch.float64 else 1 - eps / 2], dtype=dtype)
        for v, drawn in ((0.0, 0), (0.2, 0), (0.3, 1), (0.9, 1)):
            behaviour = f"{dtype} rows of which nothing is left, v = {v}"
            check_accept(impl, p, q, torch.tensor([1]), u, v, behaviour, [drawn])
    # What is left may be little, and is drawn from all the same.
    for dtype, little, number in (
        (torch.float32, 2**-24, 1 - 2**-24),
        (torch.float64, 1e-8, 1 - 5e-9),
    ):
        q = torch.tensor([[0.25, 0.75, 0.0]], dtype=dtype)
        p = torch.tensor([[0.25 + little, 0.75 - little, 0.0], [0.5, 0.5, 0.0]], dtype=dtype)
        u = torch.tensor([number], dtype=dtype)
        for v in (0.0, 0.6, 0.9):
            behaviour = f"{dtype} rows that differ by {little:.1e}, v = {v}"
            check_accept(impl, p, q, torch.tensor([1]), u, v, behaviour, [0])
    # The sum of all weights counts, also where it is not 1.
    p = torch.tensor([[0.4, 0.35, 0.24]]).half()
    for v in (0.41, 0.74, 0.76, 0.9996, ALMOST_ONE):
        no = torch.zeros(0)
        check_accept(impl, p, p[:0], no.long(), no, v, f"weights of 0.4, 0.35 and 0.24, v = {v}")


def test_no_draft(impl):
    p = torch.tensor([[0.25, 0.0, 0.5, 0.25]])
    for dtype in FLOATS:
        nothing = torch.zeros(0, dtype=dtype)
        for v, drawn in ((0.0, 0), (0.24, 0), (0.26, 2), (0.74, 2), (0.76, 3), (0.999, 3)):
            args = (p.to(dtype), nothing.view(0, 4), nothing.long(), nothing, v)
            check_accept(impl, *args, f"a draft of no tokens, {dtype}, v = {v}", [drawn])


def test_drafts_of_any_size(impl):
    for dtype in FLOATS:
        for drafted, vocab in ((1, 1), (3, 1), (1, 2), (2, 9), (6, 4), (9, 12)):
            for _ in range(1 if vocab > 9 else 2):
                draft = random_draft(drafted, vocab, dtype)
                check_accept(impl, *draft, f"{drafted} tokens of {vocab}, {dtype}")


def test_dtypes_may_differ(impl):
    for kinds in ((0, 1, 2), (2, 0, 1), (1, 3, 0), (3, 2, 1)):
        while True:
            p, q, tokens, u, v = random_draft(3, 6)
            p, q, u = (x.to(FLOATS[kind]) for x, kind in zip((p, q, u), kinds, strict=True))
            if accept_oracle(p, q, tokens, u, v)[1] > GAP:
                break
        names = ", ".join(str(FLOATS[kind]) for kind in kinds)
        check_accept(impl, p, q, tokens, u, v, f"p, q and u of {names}")
    tokens = torch.tensor([0])
    for dtype in FLOATS:
        q, u = torch.tensor([[0.375, 0.625]]).to(dtype), torch.tensor([0.3]).to(dtype)
        for factor, expected in ((1 - 2 * NEAR, [1]), (1 + 2 * NEAR, [0, 0])):
            part = 0.375 * u.item() * factor
            p = torch.tensor([[part, 1 - part], [0.5, 0.5]], dtype=torch.float64)
            behaviour = f"p of torch.float64, q and u of {dtype}, u near the ratio"
            check_accept(impl, p, q, tokens, u, 0.2, behaviour, expected)


def test_a_draft_that_is_the_target(impl):
    for dtype in FLOATS:
        p = distributions(5, 6, dtype=dtype)
        high = 1 - torch.finfo(dtype).eps / 2
        tokens = torch.randint(6, (4,))
        for u in (0.0, 0.5, high):
            numbers = torch.full((4,), u, dtype=dtype)
            out = run_accept(impl, p, p[:4], tokens, numbers, 0.3)
            behaviour = f"a draft that is the target, u = {u}, {dtype}"
            assert out[:4] == tokens.tolist(), f"{behaviour}: {out} for {tokens.tolist()}"
            assert len(out) == 5, f"{behaviour}: {len(out)} tokens come out"


def test_many_drafted_tokens(impl):
    p, q = distributions(301, 3), distributions(300, 3)
    tokens = torch.randint(3, (300,))
    ratios = p[:-1].gather(1, tokens[:, None])[:, 0] / q.gather(1, tokens[:, None])[:, 0]
    u = 0.5 * ratios.clamp(max=1)
    out = run_accept(impl, p, q, tokens, u, 0.4)
    assert out[:-1] == tokens.tolist(), f"300 tokens that pass: {len(out) - 1} are kept"
    low = int(ratios[150:].argmin()) + 150
    u[low] = ALMOST_ONE
    check_accept(impl, p, q, tokens, u, 0.4, f"300 tokens, of which number {low} is rejected")


def test_a_large_vocabulary(impl):
    # Whole numbers of 2 ** -27: all sums are exact in float64, and none in float32.
    vocab, unit = 33_000, 2.0**-27
    for _ in range(2):
        p, q = torch.randint(1, 8_000, (2, vocab)).double(), torch.randint(1, 8_000, (1, vocab))
        p, q = p * unit, q.double() * unit
        token = int((p[0] - q[0]).argmin())
        for number in (0.0, 0.999):
            u, tokens = torch.tensor([number], dtype=torch.float64), torch.tensor([token])
            weights = p[1] if number == 0 else (p[0] - q[0]).clamp(min=0)
            kept = [token] if number == 0 else []
            sums = weights.cumsum(0)
            for share in (0.001, 0.3, 0.7, 0.9999):
                v = share + 1e-3 * torch.rand(()).item() * (1 - share)
                goal = v * sums[-1]
                if (sums / goal - 1).abs().min() < NEAR:
                    continue
                drawn = int((sums > goal).nonzero()[0])
                behaviour = f"one of {vocab} tokens at v = {v:.6f}"
                check_accept(impl, p, q, tokens, u, v, behaviour, [*kept, drawn])


# What must hold of every acceptance.


def tensor_oracle(p, q, tokens, u, v):
    return torch.tensor(accept_oracle(p, q, tokens, u, v)[0])


def test_drafts_do_not_disturb_each_other(impl):
    def result(*arguments, v):
        return torch.tensor(run_accept(impl, *arguments, v))

    def inputs(v, dtype):
        while True:
            *draft, _ = random_draft(3, 5, dtype)
            if accept_oracle(*draft, v)[1] > GAP:
                return draft

    for v, dtype in ((0.37, torch.float64), (0.83, torch.float32)):
        assert_repeatable(
            partial(result, v=v),
            partial(inputs, v, dtype),
            partial(tensor_oracle, v=v),
            f"accept of {dtype} at v = {v}",
        )


def test_drafts_of_any_layout_and_mode(impl):
    for dtype in (torch.float64, torch.float32):
        for _ in range(2):
            *draft, v = random_draft(3, 5, dtype)
            expected = tensor_oracle(*draft, v)

            def result(*arguments, v=v):
                return torch.tensor(impl.accept(*arguments, v))

            assert_any_layout(result, draft, expected, f"accept of {dtype}")
            assert_any_mode(result, draft, expected, f"accept of {dtype}")
    # p and q as parts of one tensor, one row of it expanded, and one tensor as both.
    both = distributions(7, 5)
    tokens, u = torch.tensor([4, 0, 2]), torch.tensor([0.31, 0.43, 0.17])
    check_accept(impl, both[:4], both[4:], tokens, u, 0.3, "p and q in one tensor")
    row = both[:1]
    out = run_accept(impl, row.expand(4, 5), row.expand(3, 5), tokens, u, 0.3)
    assert out[:3] == [4, 0, 2], f"one row, expanded, as all of p and q: {out}"
    check_accept(impl, both[:4], row.expand(3, 5), tokens, u, 0.3, "q is one row, expanded")
