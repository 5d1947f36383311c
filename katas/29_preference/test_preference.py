import math
import statistics

import pytest
import torch
from torch.nn.functional import cross_entropy

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

IGNORED = -100
NOT_FINITE = (math.nan, math.inf, -math.inf, 1e30)


def close(dtype):
    """What rounding may do to a few steps on numbers of about one."""
    return dict.fromkeys(("rtol", "atol"), 1e-10 if dtype == torch.float64 else 2e-5)


# Oracles: in float64, one row or one token at a time, and on the autograd graph of their inputs.


def logprobs_oracle(logits, labels, ignore_index=IGNORED):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = [
        -cross_entropy(row[:-1], targets[1:], ignore_index=ignore_index, reduction="sum")
        for row, targets in zip(logits.double(), labels, strict=True)
    ]
    return torch.stack(rows).to(dtype)


def dpo_oracle(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, smoothing=0.0):
    chosen = beta * (policy_chosen.double() - ref_chosen.double())
    rejected = beta * (policy_rejected.double() - ref_rejected.double())
    margin = chosen - rejected
    nothing = torch.zeros_like(margin)
    right, wrong = torch.logaddexp(nothing, -margin), torch.logaddexp(nothing, margin)
    loss = ((1 - smoothing) * right + smoothing * wrong).sum() / len(margin)
    return tuple(part.to(policy_chosen.dtype) for part in (loss, chosen, rejected))


def gae_oracle(rewards, values, next_values, terminated, truncated, gamma, lam):
    steps, environments = rewards.shape
    reward, value, after = (x.double().tolist() for x in (rewards, values, next_values))
    dead, cut = terminated.tolist(), truncated.tolist()
    advantages = [[0.0] * environments for _ in range(steps)]
    for n in range(environments):
        later = 0.0  # the advantage of the step after this one
        for t in range(steps - 1, -1, -1):
            if dead[t][n]:
                later = reward[t][n] - value[t][n]
            else:
                if cut[t][n]:
                    later = 0.0
                later = reward[t][n] + gamma * after[t][n] - value[t][n] + gamma * lam * later
            advantages[t][n] = later
    out = torch.tensor(advantages, dtype=torch.float64)
    return out.to(rewards.dtype), (out + values.double()).to(rewards.dtype)


def ppo_oracle(logprobs, old_logprobs, advantages, mask, clip=0.2):
    terms = []
    for place in mask.nonzero().tolist():
        new, old, advantage = (
            x[tuple(place)].double() for x in (logprobs, old_logprobs, advantages)
        )
        ratio = (new - old).exp()
        # A good action gains no more than the clip lets it, a bad one loses no less.
        bounded = ratio.clamp(max=1 + clip) if advantage > 0 else ratio.clamp(min=1 - clip)
        terms.append(-bounded * advantage)
    return (torch.stack(terms).sum() / len(terms)).to(logprobs.dtype)


def grpo_oracle(rewards, group_size):
    out = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size].tolist()
        mean = math.fsum(group) / group_size
        spread = statistics.stdev(group) if group_size > 1 else 0.0
        out += [0.0 if spread == 0 else (x - mean) / (spread + 1e-6) for x in group]
    return torch.tensor(out, dtype=torch.float64).to(rewards.dtype)


def k3_oracle(logprobs, ref_logprobs, mask):
    diff = ref_logprobs[mask].double() - logprobs[mask].double()
    return ((torch.expm1(diff) - diff).sum() / len(diff)).to(logprobs.dtype)


# Inputs.


def sequences(batch, length, size, dtype=torch.float32, ignore_index=IGNORED):
    """Logits that differ in level and spread, and labels of which some are left out."""
    logits = (3 * torch.randn(batch, length, size) + 5 * torch.randn(batch, length, 1)).to(dtype)
    labels = torch.randint(size, (batch, length))
    labels[torch.rand(batch, length) < 0.35] = ignore_index
    return logits, labels


def answers(batch, dtype=torch.float32):
    """Log-probabilities of whole answers, by the policy and by the reference."""
    ref = [-30 - 20 * torch.rand(batch, dtype=torch.float64) for _ in range(2)]
    policy = [x + 3 * torch.randn(batch, dtype=torch.float64) for x in ref]
    return [x.to(dtype) for x in (*policy, *ref)]


def rollout(steps, environments, dtype=torch.float32, share=0.25):
    """Rewards, values, values of the next observations, and both flags."""
    numbers = [level + torch.randn(steps, environments, dtype=torch.float64) for level in (1, 3, 2)]
    flags = [torch.rand(steps, environments) < share for _ in range(2)]
    return [*(x.to(dtype) for x in numbers), *flags]


def tokens(*shape, dtype=torch.float32):
    """Log-probabilities by two models, advantages, and a mask with at least one real token."""
    new = -3 * torch.rand(shape, dtype=torch.float64)
    old = new + 0.4 * torch.randn(shape, dtype=torch.float64)
    advantages = 0.5 + 2 * torch.randn(shape, dtype=torch.float64)
    mask = torch.rand(shape) < 0.6
    mask.view(-1)[torch.randint(mask.numel(), ())] = True
    return [*(x.to(dtype) for x in (new, old, advantages)), mask]


def pair(*shape, dtype=torch.float32):
    new, old, _, mask = tokens(*shape, dtype=dtype)
    return [new, old, mask]


def gradient(out, x):
    """The gradient for x, zeros if there is none."""
    if not out.requires_grad:
        return torch.zeros_like(x)
    (grad,) = torch.autograd.grad(out, x, allow_unused=True, retain_graph=True)
    return torch.zeros_like(x) if grad is None else grad


def assert_no_gradient(out, behaviour, **tensors):
    for name, x in tensors.items():
        assert not gradient(out, x).any(), f"{behaviour}: {name} gets a gradient"
        assert x.requires_grad, f"{behaviour}: {name} does not ask for a gradient any more"


# sequence_logprobs


def test_logprobs_by_hand(impl):
    # The tokens 1 and 2 after the first are predicted with 1/4 and 1/5; nothing comes after them.
    probs = [[1 / 2, 1 / 4, 1 / 4], [1 / 10, 7 / 10, 1 / 5], [1 / 8, 1 / 8, 3 / 4]]
    logits = torch.tensor([probs, probs[::-1]]).log() + torch.tensor([[[2.0], [-1.0], [0.5]]])
    labels = torch.tensor([[0, 1, 2], [2, 1, 0]])
    with unchanged(logits=logits, labels=labels):
        actual = impl.sequence_logprobs(logits, labels)
    expected = torch.tensor([math.log(1 / 20), math.log(1 / 80)])
    assert_matches(actual, expected, "the log-probabilities of two rows of three tokens")


def test_logprobs_match_cross_entropy(impl):
    for shape in [(3, 6, 5), (1, 2, 7), (4, 9, 2), (2, 5, 1), (2, 2, 3), (5, 5, 5)]:
        for dtype in (torch.float32, torch.float64):
            logits, labels = sequences(*shape, dtype)
            with unchanged(logits=logits, labels=labels):
                actual = impl.sequence_logprobs(logits, labels)
            what = f"log-probabilities of {dtype} for B, T, V = {shape}"
            assert_matches(actual, logprobs_oracle(logits, labels), what, **close(dtype))


def test_each_target_counts_once(impl):
    # All labels are equally likely, so that a row's sum counts its targets.
    rows = {
        (IGNORED, IGNORED, IGNORED, 3, 1): 2,
        (4, 1, 0, 2, 3): 4,
        (4, IGNORED, IGNORED, IGNORED, IGNORED): 0,
        (IGNORED, 1, 1, 1, 1): 4,
        (IGNORED, IGNORED, 2, 0, IGNORED): 2,
        (0, IGNORED, 1, IGNORED, 4): 2,
        (0, 0, IGNORED, IGNORED, IGNORED): 1,
        (IGNORED, IGNORED, IGNORED, IGNORED, 0): 1,
    }
    actual = impl.sequence_logprobs(torch.full((8, 5, 6), 1.5), torch.tensor(list(rows)))
    assert actual.shape == (8,), f"for 8 rows the shape is {tuple(actual.shape)}"
    for (labels, count), found in zip(rows.items(), (-actual / math.log(6)).tolist(), strict=True):
        assert abs(found - count) < 1e-3, f"labels {labels} count {found:.3g} targets, not {count}"


def test_what_has_no_influence_on_logprobs(impl):
    logits, labels = sequences(4, 7, 5)
    labels[:, 0] = 2
    before = impl.sequence_logprobs(logits, labels)
    other = labels.clone()
    other[:, 0] = torch.tensor([0, 4, IGNORED, 1])
    what = "log-probabilities with other first labels"
    assert_matches(impl.sequence_logprobs(logits, other), before, what)
    other = logits.clone()
    other[:, -1] = 20 * torch.randn(4, 5)
    what = "log-probabilities with other logits at the last place"
    assert_matches(impl.sequence_logprobs(other, labels), before, what)
    other = logits.clone()
    other[:, :-1][labels[:, 1:] == IGNORED] = torch.tensor([50.0, -9, 0, 7, 1])
    what = "log-probabilities with other logits for ignored labels"
    assert_matches(impl.sequence_logprobs(other, labels), before, what)
    other = logits + 10 * torch.randn(4, 7, 1)
    what = "log-probabilities with another level of the logits at each place"
    assert_matches(impl.sequence_logprobs(other, labels), before, what, atol=1e-4)


def test_any_ignore_index(impl):
    for ignore_index in (0, 3, 4, 5, 6, -1, -2, 1_000_000, -(2**40)):
        logits, labels = sequences(4, 7, 5, ignore_index=ignore_index)
        expected = logprobs_oracle(logits, labels, ignore_index)
        what = f"log-probabilities with ignore_index {ignore_index}"
        assert_matches(impl.sequence_logprobs(logits, labels, ignore_index), expected, what)
        actual = impl.sequence_logprobs(labels=labels, logits=logits, ignore_index=ignore_index)
        assert_matches(actual, expected, f"{what}, by name")


def test_rows_without_targets(impl):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        logits = torch.randn(3, 4, 5).to(dtype)
        labels = torch.tensor([[1, IGNORED, IGNORED, IGNORED], [2, 0, 4, 1], [IGNORED] * 4])
        wide = torch.promote_types(dtype, torch.float32)
        actual = impl.sequence_logprobs(logits, labels)
        assert_matches(actual[::2], torch.zeros(2, dtype=wide), f"rows of {dtype} without targets")
        actual = impl.sequence_logprobs(logits[:, :1], labels[:, :1])
        assert_matches(actual, torch.zeros(3, dtype=wide), f"{dtype} rows of a single token")


def test_logprobs_of_narrow_logits(impl):
    for dtype in (torch.float16, torch.bfloat16):
        for shape in [(3, 6, 5), (2, 300, 4), (2, 3, 5000)]:
            logits, labels = sequences(*shape, dtype)
            what = f"log-probabilities of {dtype} logits for B, T, V = {shape}"
            expected = logprobs_oracle(logits, labels)
            assert_matches(impl.sequence_logprobs(logits, labels), expected, what, rtol=1e-5)


def test_logits_of_any_size(impl):
    for dtype, size in [
        (torch.float16, 60_000.0),
        (torch.bfloat16, 1e37),
        (torch.float32, 1e37),
        (torch.float32, 1e4),
        (torch.float64, 1e300),
    ]:
        logits = torch.tensor([0.25, 1.0, -1.0]).mul(1.0).to(torch.float64).mul(size).to(dtype)
        logits = logits.expand(2, 4, 3).clone()
        labels = torch.tensor([[0, 1, 1, 1], [0, 2, 0, 1]])
        expected = logprobs_oracle(logits, labels)
        actual = impl.sequence_logprobs(logits, labels)
        assert_matches(actual, expected, f"log-probabilities of {dtype} logits of {size:g}")


def test_many_tokens_and_words(impl):
    for shape in [(2, 3000, 3), (1, 3, 70_000), (300, 3, 4)]:
        logits, labels = sequences(*shape)
        what = f"log-probabilities for B, T, V = {shape}"
        expected = logprobs_oracle(logits, labels)
        assert_matches(impl.sequence_logprobs(logits, labels), expected, what, rtol=1e-5)


def test_gradient_of_logprobs(impl):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        logits, labels = sequences(4, 6, 5, dtype)
        labels[0], labels[1, 1:] = torch.arange(6) % 5, IGNORED
        logits.requires_grad_()
        grad_out = torch.randn(4)
        theirs = gradients(logprobs_oracle(logits, labels), [logits], grad_out)[0]
        ours = gradients(impl.sequence_logprobs(logits, labels), [logits], grad_out)[0]
        assert_matches(ours, theirs, f"the gradient of {dtype} logits", atol=1e-5)
        skipped = torch.cat([labels[:, 1:] == IGNORED, torch.ones(4, 1, dtype=torch.bool)], 1)
        assert not ours[skipped].any(), "logits that predict no target get a gradient"


# dpo_loss


def test_dpo_by_hand(impl):
    # Margins of log 3 and -log 3, whose sigmoids are 3/4 and 1/4.
    policy_chosen = torch.tensor([-10.0, -20.0])
    policy_rejected = torch.tensor([-14.0, -25.0])
    ref_chosen = torch.tensor([-12.0, -19.0])
    shift = 2 * math.log(3)
    ref_rejected = torch.tensor([-16.0 + shift, -24.0 - shift])
    arguments = (policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    rewards = torch.tensor([1.0, -0.5]), torch.tensor([1 - math.log(3), -0.5 + math.log(3)])
    good, bad = math.log(4 / 3), math.log(4)
    for smoothing, pairs in [
        (0.0, (good, bad)),
        (0.25, (0.75 * good + 0.25 * bad, 0.75 * bad + 0.25 * good)),
    ]:
        for rows in (slice(0, 1), slice(1, 2), slice(0, 2)):
            part = [x[rows] for x in arguments]
            expected = (
                torch.tensor(statistics.mean(pairs[rows])),
                *(reward[rows] for reward in rewards),
            )
            what = f"DPO of pairs {rows.start} to {rows.stop - 1}, label_smoothing={smoothing}"
            assert_all_match(impl.dpo_loss(*part, 0.5, smoothing), expected, what)


def test_dpo_matches_the_formula(impl):
    for batch in (1, 2, 7):
        for dtype in (torch.float32, torch.float64):
            for beta, smoothing in [(0.1, 0.0), (0.3, 0.2), (2, 0), (1, 0.5), (0.7, 0.05)]:
                x = answers(batch, dtype)
                with unchanged(a=x[0], b=x[1], c=x[2], d=x[3]):
                    actual = impl.dpo_loss(*x, beta, smoothing)
                what = f"DPO of {batch} {dtype} pairs, beta={beta}, label_smoothing={smoothing}"
                expected = dpo_oracle(*x, beta, smoothing)
                assert_all_match(actual, expected, what, **close(dtype))
    x = answers(5)
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    actual = impl.dpo_loss(beta=0.4, **dict(zip(names, x, strict=True)))
    assert_all_match(actual, dpo_oracle(*x, 0.4), "DPO by name, without label_smoothing", rtol=1e-5)
    actual = impl.dpo_loss(*x, label_smoothing=0.3, beta=0.4)
    assert_all_match(actual, dpo_oracle(*x, 0.4, 0.3), "DPO with both numbers by name", rtol=1e-5)


def test_dpo_of_margins_of_any_size(impl):
    for dtype in (torch.float32, torch.float64):
        for size in (50.0, 200.0, 2e4, 1e20):
            for smoothing in (0.0, 0.125):
                x = [
                    torch.tensor(values, dtype=dtype).requires_grad_()
                    for values in ([-size, 0], [0, -size], [0, 0], [0, 0])
                ]
                loss, chosen, _ = impl.dpo_loss(*x, 0.5, smoothing)
                # One pair is as wrong as can be, the other as right.
                what = f"the {dtype} loss for margins of {size / 2:g} either way, {smoothing=}"
                assert_matches(loss, torch.tensor(size / 4, dtype=dtype), what, rtol=1e-5)
                expected = torch.tensor([-size / 2, 0], dtype=dtype)
                assert_matches(chosen, expected, f"{what}: rewards of the chosen")
                slopes = torch.tensor([smoothing - 1, smoothing], dtype=dtype) / 4
                for part, wanted in zip(x, (slopes, -slopes), strict=False):
                    assert_matches(gradient(loss, part), wanted, f"{what}: gradient", rtol=1e-5)


def test_dpo_where_the_policy_is_the_reference(impl):
    chosen, rejected, *_ = (x.requires_grad_() for x in answers(5, torch.float64))
    loss, *rewards = impl.dpo_loss(chosen, rejected, chosen, rejected, 0.4, 0.1)
    expected = torch.tensor(math.log(2), dtype=torch.float64)
    assert_matches(loss, expected, "the loss of a policy that is its reference")
    zeros = torch.zeros(5, dtype=torch.float64)
    for reward in rewards:
        assert_matches(reward, zeros, "the rewards of a policy that is its reference")
    slope = torch.full((5,), -0.4 * (1 / 2 - 0.1) / 5, dtype=torch.float64)
    what = "the gradient of the log-probabilities where one tensor is policy and reference"
    assert_matches(gradient(loss, chosen), slope, f"{what}, chosen")
    assert_matches(gradient(loss, rejected), -slope, f"{what}, rejected")


def test_dpo_gradient(impl):
    for smoothing in (0.0, 0.2):
        x = [t.requires_grad_() for t in answers(6, torch.float64)]
        loss, *rewards = impl.dpo_loss(*x, 0.3, smoothing)
        expected = dpo_oracle(*x, 0.3, smoothing)[0]
        for name, part in zip(("chosen", "rejected"), x, strict=False):
            what = f"the gradient of policy_{name}, label_smoothing={smoothing}"
            assert_matches(gradient(loss, part), gradient(expected, part), what)
        assert_no_gradient(loss, "the loss of DPO", ref_chosen=x[2], ref_rejected=x[3])
        for which, reward in zip(("chosen", "rejected"), rewards, strict=True):
            assert not reward.requires_grad, f"the rewards of the {which} carry a gradient"


# gae

# Rewards, values and next values of three steps: without a flag the deltas are 1, 2 and 4.
STEPS = ([1.0, 2.0, 4.0], [2.0, 4.0, 8.0], [4.0, 8.0, 16.0])
# With gamma = 1/2 and lam = 1/4: steps that are terminated and truncated, and the advantages.
BY_HAND = [
    ([], [], [1.3125, 2.5, 4]),
    ([1], [], [0.75, -2, 4]),
    ([], [1], [1.25, 2, 4]),
    ([1], [1], [0.75, -2, 4]),
    ([2], [], [1.1875, 1.5, -4]),
    ([], [2], [1.3125, 2.5, 4]),
    ([2], [2], [1.1875, 1.5, -4]),
    ([0], [], [-1, 2.5, 4]),
    ([], [0], [1, 2.5, 4]),
    ([0], [1], [-1, 2, 4]),
    ([2], [0], [1, 1.5, -4]),
    ([0, 1, 2], [], [-1, -2, -4]),
    ([], [0, 1, 2], [1, 2, 4]),
]


def test_gae_of_three_steps_by_hand(impl):
    for terminated, truncated, advantages in BY_HAND:
        numbers = [torch.tensor(x)[:, None] for x in STEPS]
        flags = [
            torch.tensor([[step in which] for step in range(3)])
            for which in (terminated, truncated)
        ]
        expected = torch.tensor(advantages, dtype=torch.float32)[:, None]
        what = f"three steps, {terminated=} {truncated=}"
        actual = impl.gae(*numbers, *flags, 0.5, 0.25)
        assert_all_match(actual, (expected, expected + numbers[1]), what)


def test_gae_matches_torchrl(impl):
    for case in golden("preference.json")["gae"]:
        numbers = [
            torch.tensor(case[name], dtype=torch.float64)
            for name in ("rewards", "values", "next_values", "advantages", "returns")
        ]
        flags = [torch.tensor(case[name]) for name in ("terminated", "truncated")]
        actual = impl.gae(*numbers[:3], *flags, case["gamma"], case["lam"])
        what = f"a rollout of {len(flags[0])} steps beside torchrl's, {case['gamma']=}"
        assert_all_match(actual, tuple(numbers[3:]), what, rtol=1e-5, atol=1e-5)


def test_gae_matches_the_formula(impl):
    names = ("rewards", "values", "next_values", "terminated", "truncated")
    for shape in [(6, 4), (1, 5), (9, 1), (1, 1), (3, 3), (2, 30)]:
        for dtype in (torch.float32, torch.float64):
            for gamma, lam in [(0.9, 0.7), (0.99, 0), (1, 0.8), (0, 0.6), (0.8, 1), (1, 1), (0, 0)]:
                x = rollout(*shape, dtype)
                with unchanged(**dict(zip(names, x, strict=True))):
                    actual = impl.gae(*x, gamma, lam)
                what = f"a {dtype} rollout of T, N = {shape}, gamma={gamma}, lam={lam}"
                assert_all_match(actual, gae_oracle(*x, gamma, lam), what, **close(dtype))
    x = rollout(6, 4)
    actual = impl.gae(lam=0.6, gamma=0.9, **dict(zip(names, x, strict=True)))
    assert_all_match(actual, gae_oracle(*x, 0.9, 0.6), "a rollout by name", rtol=1e-5)


def test_an_episode_is_what_it_is_alone(impl):
    for flag in (3, 4):
        x = rollout(9, 4, share=0)
        x[flag][3] = True
        whole = impl.gae(*x, 0.9, 0.8)
        for part in (slice(0, 4), slice(4, 9)):
            alone = impl.gae(*(t[part] for t in x), 0.9, 0.8)
            name = ("terminated", "truncated")[flag - 3]
            what = f"steps {part.start} to {part.stop - 1} alone, where step 3 is {name}"
            assert_all_match(alone, tuple(t[part] for t in whole), what, rtol=1e-5)


def test_environments_do_not_mix(impl):
    x = rollout(6, 5)
    whole = impl.gae(*x, 0.9, 0.8)
    for n in range(5):
        alone = impl.gae(*(t[:, n : n + 1] for t in x), 0.9, 0.8)
        what = f"environment {n} of 5 alone"
        assert_all_match(alone, tuple(t[:, n : n + 1] for t in whole), what, rtol=1e-5)


def test_nothing_comes_after_a_terminated_step(impl):
    x = rollout(7, 4)
    x[3][6, 0] = x[3][0, 1] = x[3][2, 2] = x[4][2, 2] = True
    expected = gae_oracle(*x, 0.9, 0.8)
    for number in NOT_FINITE:
        other = x[2].masked_fill(x[3], number)
        actual = impl.gae(x[0], x[1], other, x[3], x[4], 0.9, 0.8)
        what = f"a rollout with next values of {number} after terminated steps"
        assert_all_match(actual, expected, what, rtol=1e-5)


def test_gae_carries_no_gradient(impl):
    x = rollout(5, 3)
    for asking in ((0,), (1,), (2,), (0, 1, 2)):
        arguments = [
            t.clone().requires_grad_() if i in asking else t.clone() for i, t in enumerate(x)
        ]
        results = impl.gae(*arguments, 0.9, 0.8)
        for name, result in zip(("advantages", "returns"), results, strict=True):
            assert not result.requires_grad, f"the {name} carry a gradient"
        assert all(arguments[i].requires_grad for i in asking), "an input asks no longer"
        assert torch.is_grad_enabled(), "no gradients are recorded any more after gae"
        assert_all_match(results, gae_oracle(*x, 0.9, 0.8), "a rollout that asks for a gradient")


def test_long_rollouts(impl):
    for steps, share in [(300, 0.0), (1200, 0.01)]:
        x = rollout(steps, 2, share=share)
        what = f"{steps} steps of which {share:.0%} are terminated or truncated"
        actual = impl.gae(*x, 0.99, 0.95)
        assert_all_match(actual, gae_oracle(*x, 0.99, 0.95), what, rtol=1e-4, atol=1e-4)


# ppo_loss


def test_ppo_by_hand(impl):
    cases = [  # ratio, advantage, surrogate and its slope for a clip of 0.2
        (1.5, 2.0, 2.4, 0.0),
        (1.5, -2.0, -3.0, -3.0),
        (0.5, 2.0, 1.0, 1.0),
        (0.5, -2.0, -1.6, 0.0),
        (1.1, 3.0, 3.3, 3.3),
        (0.9, -3.0, -2.7, -2.7),
        (1.0, 0.0, 0.0, 0.0),
    ]
    old = torch.linspace(-2, -1, 7, dtype=torch.float64)
    ratio, advantages, surrogate, slope = torch.tensor(cases, dtype=torch.float64).unbind(1)
    new = (old + ratio.log()).requires_grad_()
    for number, (one, advantage, value, _) in enumerate(cases):
        mask = torch.arange(7) == number
        actual = impl.ppo_loss(new, old, advantages, mask)
        what = f"a ratio of {one} with an advantage of {advantage}"
        assert_matches(actual, torch.tensor(-value, dtype=torch.float64), f"the loss of {what}")
        expected = torch.where(mask, -slope, 0.0)
        assert_matches(gradient(actual, new), expected, f"the gradient of {what}")
    actual = impl.ppo_loss(new, old, advantages, torch.ones(7, dtype=torch.bool))
    assert_matches(actual, -surrogate.sum() / 7, "the loss of all tokens together")


def test_ppo_matches_the_formula(impl):
    names = ("logprobs", "old_logprobs", "advantages", "mask")
    for shape in [(3, 5), (7,), (2, 3, 4), (1,), (1, 1), (4, 1), (4, 4)]:
        for dtype in (torch.float32, torch.float64):
            for clip in ((0.05,), (0.7,), ()):
                x = tokens(*shape, dtype=dtype)
                x[0].requires_grad_()
                with unchanged(**dict(zip(names, x, strict=True))):
                    actual = impl.ppo_loss(*x, *clip)
                expected = ppo_oracle(*x, *clip)
                what = f"PPO of {dtype} tokens of shape {shape}, clip {clip}"
                assert_matches(actual, expected, what, **close(dtype))
                what = f"the gradient of {what}"
                theirs = gradient(expected, x[0])
                assert_matches(gradient(actual, x[0]), theirs, what, **close(dtype))
    x = tokens(3, 5)
    actual = impl.ppo_loss(clip=0.1, **dict(zip(names, x, strict=True)))
    assert_matches(actual, ppo_oracle(*x, 0.1), "PPO by name", rtol=1e-5)


def test_short_rows_weigh_as_their_tokens(impl):
    # One token with an advantage of 6 in the first row, three of 2 in the second, none in a third.
    mask = torch.tensor([[True, False, False, False], [True, True, True, False], [False] * 4])
    advantages = torch.tensor([[6.0] * 4, [2.0] * 4, [1.0] * 4])
    logprobs = torch.full((3, 4), -1.5)
    actual = impl.ppo_loss(logprobs, logprobs.clone(), advantages, mask)
    assert_matches(actual, torch.tensor(-3.0), "PPO of one token in one row and three in another")
    # There d is log 2 for the first row, and 0 for the others.
    ref = logprobs + torch.tensor([[math.log(2)], [0.0], [1.0]])
    expected = torch.tensor((1 - math.log(2)) / 4)
    actual = impl.kl_k3(logprobs, ref, mask)
    assert_matches(actual, expected, "k3 of one token in one row and three in another")


def test_ppo_of_the_first_step(impl):
    for dtype in (torch.float32, torch.float64):
        logprobs, _, advantages, mask = tokens(4, 5, dtype=dtype)
        logprobs.requires_grad_()
        loss = impl.ppo_loss(logprobs, logprobs, advantages, mask)
        expected = -advantages[mask].sum() / mask.sum()
        assert_matches(loss, expected, "PPO where the old policy is the new one", rtol=1e-5)
        expected = torch.where(mask, -advantages, 0.0) / mask.sum()
        what = "the gradient where one tensor is the new and the old log-probabilities"
        assert_matches(gradient(loss, logprobs), expected, what, rtol=1e-5)


def test_ppo_sends_a_gradient_to_the_policy_alone(impl):
    x = [t.requires_grad_() if t.is_floating_point() else t for t in tokens(4, 5)]
    loss = impl.ppo_loss(*x)
    assert gradient(loss, x[0]).any(), "logprobs gets no gradient"
    assert_no_gradient(loss, "the loss of PPO", old_logprobs=x[1], advantages=x[2])


def test_tokens_that_are_not_real(impl):
    for function, oracle, x in [
        (impl.ppo_loss, ppo_oracle, tokens(4, 6)),
        (impl.kl_k3, k3_oracle, pair(4, 6)),
    ]:
        mask = x[-1]
        mask[0], mask[1, 0] = False, False
        mask[2, 0] = True
        expected = oracle(*x)
        clean = x[0].clone().requires_grad_()
        slopes = gradient(oracle(clean, *x[1:]), clean)
        for places in [(0,), (1,), tuple(range(len(x) - 1))]:
            for number in NOT_FINITE:
                other = [
                    t.masked_fill(~mask, number) if i in places else t for i, t in enumerate(x)
                ]
                other[0] = other[0].clone().requires_grad_()
                actual = function(*other)
                what = f"{function.__name__}, {number} in arguments {places} where mask is False"
                assert_matches(actual, expected, what, rtol=1e-5)
                assert_matches(gradient(actual, other[0]), slopes, f"the gradient of {what}")
                hidden = gradient(actual, other[0])[~mask]
                assert not hidden.any(), f"{what}: a token that is not real gets a gradient"


def test_no_real_token(impl):
    for dtype in (torch.float32, torch.float64):
        for shape in [(3, 4), (5,), (1,)]:
            for number in (0.5, math.nan, -math.inf):
                for count, function in [(3, impl.ppo_loss), (2, impl.kl_k3)]:
                    x = [torch.full(shape, number, dtype=dtype) for _ in range(count)]
                    x[0].requires_grad_()
                    actual = function(*x, torch.zeros(shape, dtype=torch.bool))
                    what = f"{function.__name__} of {dtype}, {shape}, without a real token"
                    assert_matches(actual, torch.zeros((), dtype=dtype), what)
                    assert not gradient(actual, x[0]).any(), f"{what}: the gradient is not zero"


def test_ratios_far_from_one(impl):
    mask = torch.tensor([False, True, True])
    advantages = torch.tensor([1.0, 2.0, -3.0])
    for log_ratio in (-5000.0, -80.0, -30.0, -12.0, 12.0, 30.0, 80.0):
        old = torch.tensor([0.0, -4.0, -4.0]) - max(log_ratio, 0)
        new = (old + log_ratio).requires_grad_()
        ratio = math.exp(log_ratio)
        loss = (-2 * min(ratio, 1.2) + 3 * max(ratio, 0.8)) / 2
        slope = [0.0, -ratio, 0.0] if ratio < 1 else [0.0, 0.0, 1.5 * ratio]
        what = f"two tokens that are e^{log_ratio:g} times as likely as before"
        actual = impl.ppo_loss(new, old, advantages, mask)
        assert_matches(actual, torch.tensor(loss), f"PPO of {what}", rtol=1e-4)
        assert_matches(gradient(actual, new), torch.tensor(slope), f"gradient of {what}", rtol=1e-4)


def test_many_tokens(impl):
    mask = torch.rand(190, 180) < 0.99
    x = [torch.full((190, 180), number) for number in (-1.0, -1.0 - math.log(1.1), 3.0)]
    what = f"PPO of {int(mask.sum()):,} tokens alike"
    assert_matches(impl.ppo_loss(*x, mask), torch.tensor(-3.3), what, rtol=1e-4)
    expected = torch.tensor(1 / 1.1 - 1 + math.log(1.1))
    what = f"k3 of {int(mask.sum()):,} tokens alike"
    assert_matches(impl.kl_k3(*x[:2], mask), expected, what, rtol=1e-4)


# grpo_advantages


def test_grpo_by_hand(impl):
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.5, -2.0, -6.0])
    root = math.sqrt(1 / 2)
    expected = torch.tensor([-root, root, -root, root, root, -root])
    what = "three groups of two"
    assert_matches(impl.grpo_advantages(rewards, 2), expected, what, atol=1e-5)
    rewards = torch.tensor([0.0, 3.0, 6.0, 1.0, 1.0, 4.0])
    expected = torch.tensor(
        [-1.0, 0.0, 1.0, -1 / math.sqrt(3), -1 / math.sqrt(3), 2 / math.sqrt(3)]
    )
    actual = impl.grpo_advantages(group_size=3, rewards=rewards)
    assert_matches(actual, expected, "two groups of three, by name", atol=1e-5)


def test_grpo_matches_the_formula(impl):
    for groups, size in [
        (3, 4),
        (4, 3),
        (1, 5),
        (5, 2),
        (3, 3),
        (7, 1),
        (1, 1),
        (2, 300),
        (300, 2),
    ]:
        for dtype in (torch.float32, torch.float64):
            level = 5 * torch.randn(groups, 1, dtype=torch.float64)
            spread = 0.5 + 3 * torch.rand(groups, 1, dtype=torch.float64)
            rewards = level + spread * torch.randn(groups, size, dtype=torch.float64)
            if size == 2:  # not too close, in float32
                rewards[:, 1] = rewards[:, 0] + spread[:, 0]
            rewards = rewards.flatten().to(dtype)
            with unchanged(rewards=rewards):
                actual = impl.grpo_advantages(rewards, size)
            what = f"{groups} groups of {size}, {dtype}"
            expected = grpo_oracle(rewards, size)
            tolerance = 1e-9 if dtype == torch.float64 else 3e-5
            assert_matches(actual, expected, what, rtol=tolerance, atol=tolerance)


def test_groups_do_not_mix(impl):
    rewards = torch.randn(12)
    before = impl.grpo_advantages(rewards, 4)
    for group in range(3):
        other = rewards.clone()
        other[4 * group : 4 * group + 4] *= 30
        moved = (impl.grpo_advantages(other, 4) - before).abs() > 1e-3
        found = set((moved.nonzero().flatten() // 4).tolist())
        assert not found - {group}, f"rewards of group {group} matter to groups {sorted(found)}"


def test_groups_of_equals(impl):
    for dtype in (torch.float32, torch.float64):
        for size in (1, 2, 3, 5, 6, 7, 10, 11, 13, 49):
            equals = [0.1, 1 / 3, 0.7, 1e-3, 12345.678, -0.6, 0.0, 1.0, 1e6 / 3]
            rewards = torch.tensor(equals, dtype=dtype).repeat_interleave(size)
            actual = impl.grpo_advantages(rewards, size)
            zeros = torch.zeros_like(rewards)
            what = f"{dtype} rewards that are equal in each group of {size}"
            assert_matches(actual, zeros, what, rtol=0, atol=0)
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0, 2.0, 0.7, 0.7, 0.7])
    expected = torch.tensor([0.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    what = "a group beside groups of equals"
    assert_matches(impl.grpo_advantages(rewards, 3), expected, what, atol=1e-5)


def test_rewards_that_are_almost_equal(impl):
    # The standard deviation is as small as what is added to it.
    for dtype in (torch.float32, torch.float64):
        rewards = torch.tensor([0.0, 2e-6, -4e-6, 0.0], dtype=dtype)
        actual = impl.grpo_advantages(rewards, 2)
        one, two = (x / (math.sqrt(2) * x + 1e-6) for x in (1e-6, 2e-6))
        expected = torch.tensor([-one, one, -two, two], dtype=dtype)
        assert_matches(actual, expected, "rewards that differ by 2e-6 and 4e-6", rtol=1e-4)


def test_rewards_far_above_their_spread(impl):
    offsets = torch.tensor([[0.25, 1.5, -0.5], [0.0, 0.125, 1.0]], dtype=torch.float64)
    for dtype, spread in [(torch.float32, 1.0), (torch.float64, 1.0), (torch.float64, 1e-3)]:
        for level in (1000.0, -1000.0, 30.0):
            rewards = (level + spread * offsets).flatten().to(dtype)
            what = f"{dtype} rewards of about {level:g} that differ by about {spread:g}"
            expected = grpo_oracle(rewards, 3)
            assert_matches(impl.grpo_advantages(rewards, 3), expected, what, rtol=2e-3, atol=2e-3)
    rewards = torch.tensor([0.0, 3e18, 6e18, 1e-9, 2e-9, 3e-9])
    expected = torch.tensor([-1.0, 0.0, 1.0, -1e-3, 0.0, 1e-3])
    what = "a group of very large rewards beside one of very small ones"
    assert_matches(impl.grpo_advantages(rewards, 3), expected, what, rtol=2e-3, atol=2e-4)


def test_groups_that_are_not_whole(impl):
    for count, size in [(7, 3), (5, 2), (2, 3), (1, 2), (9, 4)]:
        with pytest.raises(ValueError):  # noqa: PT011
            impl.grpo_advantages(torch.randn(count), size)


def test_grpo_carries_no_gradient(impl):
    for size in (1, 3):
        rewards = torch.randn(6, requires_grad=True)
        actual = impl.grpo_advantages(rewards, size)
        assert not actual.requires_grad, "the advantages carry a gradient"
        assert rewards.requires_grad, "the rewards do not ask for a gradient any more"
        assert torch.is_grad_enabled(), "no gradients are recorded any more after grpo_advantages"
        assert_matches(actual, grpo_oracle(rewards.detach(), size), "rewards that ask", atol=3e-5)


# kl_k3


def test_k3_by_hand(impl):
    logprobs = torch.tensor([[0.5, 0.25], [0.3, 0.2]]).log()
    ref = torch.tensor([[0.25, 0.5], [0.9, 0.2]]).log()
    mask = torch.tensor([[True, True], [False, True]])
    cases = {(0, 0): -1 / 2 + math.log(2), (0, 1): 1 - math.log(2), (1, 1): 0.0}
    for place, value in cases.items():
        alone = torch.zeros(2, 2, dtype=torch.bool)
        alone[place] = True
        what = f"k3 of a token of {logprobs[place].exp():.2g} that the reference gives "
        what += f"{ref[place].exp():.2g}"
        assert_matches(impl.kl_k3(logprobs, ref, alone), torch.tensor(value), what)
    assert_matches(impl.kl_k3(logprobs, ref, mask), torch.tensor(0.5 / 3), "k3 of three tokens")


def test_expectation_of_k3(impl):
    # Six tokens, drawn just as often as the policy likes them: 1/2, 1/3 and 1/6.
    policy = torch.tensor([1 / 2, 1 / 3, 1 / 6], dtype=torch.float64)
    for other in ([0.2, 0.3, 0.5], [0.7, 0.1, 0.2], [1 / 6, 1 / 2, 1 / 3]):
        ref = torch.tensor(other, dtype=torch.float64)
        drawn = torch.tensor([[0, 0, 0], [1, 1, 2]])
        mask = torch.ones(2, 3, dtype=torch.bool)
        actual = impl.kl_k3(policy.log()[drawn], ref.log()[drawn], mask)
        expected = (policy * (policy / ref).log()).sum()
        assert_matches(actual, expected, f"the mean of k3 beside KL(policy || {other})")


def test_k3_matches_the_formula(impl):
    names = ("logprobs", "ref_logprobs", "mask")
    for shape in [(3, 5), (7,), (2, 3, 4), (1,), (1, 1), (4, 1), (4, 4)]:
        for dtype in (torch.float32, torch.float64):
            x = pair(*shape, dtype=dtype)
            x[0].requires_grad_()
            with unchanged(**dict(zip(names, x, strict=True))):
                actual = impl.kl_k3(*x)
            what = f"k3 of {dtype} tokens of shape {shape}"
            assert_matches(actual, k3_oracle(*x), what, **close(dtype))
            diff = (x[1] - x[0]).detach()
            expected = torch.where(x[2], 1 - diff.exp(), 0.0) / x[2].sum()
            what = f"the gradient of {what}"
            assert_matches(gradient(actual, x[0]), expected, what, **close(dtype))
    x = pair(3, 5)
    actual = impl.kl_k3(**dict(zip(names, x, strict=True)))
    assert_matches(actual, k3_oracle(*x), "k3 by name", rtol=1e-5)


def test_policies_close_and_far(impl):
    for dtype in (torch.float32, torch.float64):
        for diff in (1e-1, 1e-2, 1e-3, 1e-4, 3.0, 40.0, 80.0, 1e4):
            for sign in (1, -1):
                if sign * diff > 80:
                    continue
                zeros, low = torch.zeros(3, dtype=dtype), torch.full((3,), -diff, dtype=dtype)
                logprobs, ref = (low, zeros) if sign > 0 else (zeros, low)
                mask = torch.tensor([True, False, True])
                d = -sign * low[0].item()
                expected = math.expm1(d) - d
                actual = impl.kl_k3(logprobs, ref, mask)
                wanted = torch.tensor(expected, dtype=dtype)
                allowed = 1e-6 * max(abs(d), expected)
                what = f"k3 of {dtype} tokens that the reference finds e^{d:g} times as likely"
                assert_matches(actual, wanted, what, rtol=0, atol=allowed)


def test_k3_of_the_first_step(impl):
    logprobs, _, _, mask = tokens(4, 5)
    logprobs.requires_grad_()
    actual = impl.kl_k3(logprobs, logprobs, mask)
    assert_matches(actual, torch.tensor(0.0), "k3 of a policy beside itself", rtol=0, atol=0)
    assert not gradient(actual, logprobs).any(), "a policy beside itself gets a gradient from k3"


def test_k3_sends_a_gradient_to_the_policy_alone(impl):
    x = [t.requires_grad_() if t.is_floating_point() else t for t in pair(4, 5)]
    actual = impl.kl_k3(*x)
    assert gradient(actual, x[0]).any(), "logprobs gets no gradient"
    assert_no_gradient(actual, "k3", ref_logprobs=x[1])


# What must hold of every function.


def everything(impl):
    """Name, function, a maker of its arguments, and its oracle."""

    def groups():
        rewards = torch.randn(4, 3)
        rewards[:, 1] = rewards[:, 0] + 1 + torch.rand(4)
        return [rewards.flatten()]

    return [
        ("sequence_logprobs", impl.sequence_logprobs, lambda: sequences(4, 6, 5), logprobs_oracle),
        (
            "dpo_loss",
            lambda *x: impl.dpo_loss(*x, 0.3, 0.2),
            lambda: answers(5),
            lambda *x: dpo_oracle(*x, 0.3, 0.2),
        ),
        (
            "gae",
            lambda *x: impl.gae(*x, 0.9, 0.7),
            lambda: rollout(6, 4),
            lambda *x: gae_oracle(*x, 0.9, 0.7),
        ),
        ("ppo_loss", impl.ppo_loss, lambda: tokens(4, 5), ppo_oracle),
        (
            "grpo_advantages",
            lambda x: impl.grpo_advantages(x, 3),
            groups,
            lambda x: grpo_oracle(x, 3),
        ),
        (
            "grpo_advantages of groups of one",
            lambda x: impl.grpo_advantages(x, 1),
            groups,
            lambda x: grpo_oracle(x, 1),
        ),
        ("kl_k3", impl.kl_k3, lambda: pair(4, 5), k3_oracle),
    ]


def test_nothing_stays_from_an_earlier_call(impl):
    for name, call, inputs, oracle in everything(impl):
        assert_repeatable(call, inputs, oracle, name, rtol=1e-4, atol=3e-5)


def test_any_layout(impl):
    for name, call, inputs, oracle in everything(impl):
        x = inputs()
        assert_any_layout(call, x, oracle(*x), name, rtol=1e-4, atol=3e-5)
        x = [t[:1].expand(t.shape) for t in inputs()]
        if name in ("ppo_loss", "kl_k3"):
            x[-1] = torch.ones_like(x[-1])
        expected = oracle(*(t.clone() for t in x))
        what = f"{name} of tensors expanded from one row"
        assert_all_match(call(*x), expected, what, rtol=1e-4, atol=3e-5)


def test_any_mode(impl):
    for name, call, inputs, oracle in everything(impl):
        x = inputs()
        assert_any_mode(call, x, oracle(*x), name, rtol=1e-4, atol=3e-5)
    logits, labels = sequences(4, 6, 5, torch.bfloat16)
    expected = logprobs_oracle(logits, labels)
    what = "sequence_logprobs of bfloat16"
    assert_any_mode(impl.sequence_logprobs, [logits, labels], expected, what, rtol=1e-5)


def test_gradients_reach_whoever_asks(impl):
    logits, labels = sequences(4, 6, 5, torch.float64)
    assert_gradients_reach(
        lambda logits: impl.sequence_logprobs(logits, labels),
        lambda logits: logprobs_oracle(logits, labels),
        {"logits": logits},
        ["logits"],
        "sequence_logprobs",
    )
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    for asking in (names[:1], names[1:2], names[:2]):
        assert_gradients_reach(
            lambda *x: impl.dpo_loss(*x, 0.3, 0.2)[0],
            lambda *x: dpo_oracle(*x, 0.3, 0.2)[0],
            dict(zip(names, answers(5, torch.float64), strict=True)),
            asking,
            "dpo_loss",
        )
    for function, oracle, x in [
        (impl.ppo_loss, ppo_oracle, tokens(3, 4, dtype=torch.float64)),
        (impl.kl_k3, k3_oracle, pair(3, 4, dtype=torch.float64)),
    ]:
        assert_gradients_reach(
            lambda logprobs: function(logprobs, *x[1:]),  # noqa: B023
            lambda logprobs: oracle(logprobs, *x[1:]),  # noqa: B023
            {"logprobs": x[0]},
            ["logprobs"],
            function.__name__,
        )


def test_from_logits_to_the_loss(impl):
    # DPO as it is trained: one batch of both answers, with prompts of their own.
    logits, labels = sequences(6, 7, 5, torch.float64)
    logits.requires_grad_()
    ref = logprobs_oracle(logits + torch.randn_like(logits), labels).detach()

    def loss(logprobs, dpo):
        chosen, rejected = logprobs(logits, labels).chunk(2)
        return dpo(chosen, rejected, *ref.chunk(2), 0.3)[0]

    ours = loss(impl.sequence_logprobs, impl.dpo_loss)
    theirs = loss(logprobs_oracle, dpo_oracle)
    assert_matches(ours, theirs, "the loss of three pairs of sequences")
    what = "the gradient of the logits of three pairs"
    assert_matches(gradient(ours, logits), gradient(theirs, logits), what)
