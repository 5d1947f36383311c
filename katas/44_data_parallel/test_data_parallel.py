import contextlib
import copy
import inspect
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dojo.simulation.ranks import Deadlock, launch
from dojo.testing import HandDown, assert_matches, read_with_draws, unchanged

STEPS, EPOCH = 60, 5  # of a run


@pytest.fixture(scope="module")
def log(impl):
    """The log of one whole run."""
    return [dict(line) for line in impl.run()]


def on_ranks(world_size, function, *args):
    """What each rank returns, or a failure that tells of ranks that wait for ever."""
    try:
        return launch(world_size, function, *args)
    except Deadlock as error:
        pytest.fail(f"the ranks do not make the same calls: {error}", pytrace=False)


def weighted(lines, name):
    """The mean of a number of the log over examples."""
    total = sum(line["samples"] for line in lines)
    return sum(line[name] * line["samples"] for line in lines) / total


# Symptoms


@pytest.mark.symptom
def test_two_ranks_give_what_one_gives(log):
    assert len(log) == STEPS, f"the log has {len(log)} lines, not {STEPS}"
    for step, line in enumerate(log):
        assert line["gap"] < 1e-7, (
            f"at step {step} the log of two ranks is {line['gap']:.2g} from that of one; "
            "in a healthy run that is rounding, of 1e-14"
        )


@pytest.mark.symptom
def test_the_ranks_stay_together(log):
    for step, line in enumerate(log):
        assert line["spread"] < 1e-9, (
            f"after step {step} the same weight or buffer differs by {line['spread']:.2g} "
            "between the two ranks"
        )


@pytest.mark.symptom
def test_the_run_learns_the_rings(log):
    start, second = log[0]["loss"], weighted(log[EPOCH : 2 * EPOCH], "loss")
    late = weighted(log[-5 * EPOCH :], "loss")
    assert 0.75 < start < 1.6, (
        f"the loss of the first step is {start:.3f}; before anything is learned it is about 1.1"
    )
    assert 0.25 < second < 0.7, (
        f"the loss of the second epoch is {second:.3f}; in a healthy run it is 0.3 to 0.6"
    )
    assert 0.135 < late < 0.28, (
        f"the loss of the last five epochs is {late:.3f}; in a healthy run it is 0.15 to 0.24"
    )
    end = log[-1]
    assert end["val_loss"] < 0.17, (
        f"the run ends with a val_loss of {end['val_loss']:.3f}; in a healthy run it is below 0.12"
    )
    for name, least in (("val_accuracy", 0.92), ("val_balanced_accuracy", 0.84)):
        assert end[name] > least, (
            f"the run ends with a {name} of {end[name]:.3f}; in a healthy run it is higher than "
            f"{least + 0.03:.2f}"
        )


@pytest.mark.symptom
def test_the_gradients_of_the_run(log):
    start = log[0]["grad_norm"]
    late = sum(line["grad_norm"] for line in log[-5 * EPOCH :]) / (5 * EPOCH)
    assert 0.6 < start < 1.45, (
        f"the norm of the first gradient is {start:.3f}; in a healthy run it is 0.7 to 1.35"
    )
    assert 0.17 < late < 0.46, (
        f"the norms of the last five epochs are {late:.3f} on average; "
        "in a healthy run they are 0.21 to 0.37"
    )


@pytest.mark.symptom
def test_an_epoch_shows_every_example_once(log):
    courses = []
    for first in range(0, STEPS, EPOCH):
        lines = log[first : first + EPOCH]
        seen = sum(line["samples"] for line in lines)
        assert seen == 300, f"the epoch of step {first} shows {seen:g} examples of 300"
        mean = weighted(lines, "data")
        assert abs(mean - 149.5) < 1e-6, (
            f"the mean position of the examples of the epoch of step {first} is {mean:.2f}, "
            "which is 149.5 where each is shown once"
        )
        courses.append([line["data"] for line in lines])
    assert courses[0] != courses[1], (
        f"the second epoch shows the examples in the order of the first: {courses[0]}"
    )
    repeated = len(courses) - len({tuple(course) for course in courses})
    assert not repeated, f"{repeated} of {len(courses)} epochs repeat the order of another"


# Splits, noise and shares


def scramble(seed):
    """Put all global generators into some state."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def generators_unmoved(what):
    """Fail if the block draws from a global generator."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    position = np.random.get_state()[2]
    yield
    assert torch.equal(torch.get_rng_state(), before[0]), f"{what} moves torch's global generator"
    assert np.random.get_state()[1].tolist() == before[1], f"{what} moves NumPy's global generator"
    assert np.random.get_state()[2] == position, f"{what} moves NumPy's global generator"
    assert random.getstate() == before[2], f"{what} moves Python's global generator"


def test_a_split_parts_the_examples(impl):
    for size, val_size in ((10, 3), (7, 0), (7, 7), (1, 0), (1, 1), (403, 103)):
        parts = impl.split(size, val_size, 5)
        what = f"split({size}, {val_size})"
        assert isinstance(parts, tuple), f"{what} is a {type(parts).__name__}, not a tuple"
        for part, wanted in zip(parts, (size - val_size, val_size), strict=True):
            assert part.dtype == torch.int64, f"{what} has a part of {part.dtype}"
            assert part.shape == (wanted,), f"{what} has a part of {tuple(part.shape)}"
        together = torch.cat(parts).sort().values
        assert_matches(together, torch.arange(size), f"the parts of {what}, together")


def test_a_split_is_that_of_the_seed_alone(impl):
    splits = []
    for state, seed in ((0, 3), (1, 3), (2, 4)):
        scramble(state)
        with generators_unmoved("split"):
            train, val = impl.split(50, 20, seed)
        splits.append((set(train.tolist()), set(val.tolist())))
    assert splits[0] == splits[1], "a split depends on the state of a global generator"
    assert splits[0] != splits[2], "seeds 3 and 4 give the same split"

    def split_on(comm):
        scramble(comm.get_rank())
        return impl.split(30, 10, 0)

    (train, val), (other_train, other_val) = on_ranks(2, split_on)
    leaked = set(train.tolist()) & set(other_val.tolist())
    assert not leaked, f"rank 0 trains on {len(leaked)} of the 10 examples that rank 1 validates on"
    assert set(val.tolist()) == set(other_val.tolist()), "the ranks validate on other examples"
    assert set(train.tolist()) == set(other_train.tolist()), "the ranks train on other examples"


def test_splits_are_random(impl):
    counts = torch.zeros(12)
    for seed in range(300):
        _, val = impl.split(12, 4, seed)
        counts[val] += 1
    low, high = counts.min().item(), counts.max().item()
    assert 60 < low <= high < 145, (
        f"of 300 seeds, an example is in validation {low:g} to {high:g} times, not about 100"
    )


def test_noise_goes_by_the_example(impl):
    scramble(1)
    rows = impl.noise(torch.arange(40), 3, 2, 7)
    assert rows.dtype == torch.float64, f"noise is {rows.dtype}"
    assert rows.shape == (40, 3), f"the noise of 40 examples of width 3 is {tuple(rows.shape)}"
    scramble(2)
    for chosen in ([5, 17, 3], [39], [0], [8, 8, 1], list(range(39, -1, -1)), []):
        indices = torch.tensor(chosen, dtype=torch.int64)
        with unchanged(indices=indices), generators_unmoved("noise"):
            got = impl.noise(indices, 3, 2, 7)
        assert got.shape == (len(chosen), 3), f"the noise of {len(chosen)} is {tuple(got.shape)}"
        what = f"the noise of the examples {chosen}, drawn together"
        assert_matches(got, rows[indices], what, rtol=0, atol=0)
    assert impl.noise(torch.tensor([4]), 1, 0, 0).shape == (1, 1), "noise of width 1"
    got = impl.noise(torch.tensor([3, 70_000]), 3, 2, 7)
    assert_matches(got[:1], rows[3:4], "the noise of example 3 beside 70000", rtol=0, atol=0)


def test_noise_differs_by_example_epoch_and_seed(impl):
    pairs = list(itertools.product(range(4), range(4)))
    drawn = {pair: impl.noise(torch.arange(60), 2, *pair).flatten() for pair in pairs}
    for one, other in itertools.combinations(pairs, 2):
        same = (drawn[one] == drawn[other]).sum().item()
        assert not same, f"(epoch, seed) {one} and {other} have {same} numbers in common"
        alike = torch.corrcoef(torch.stack([drawn[one], drawn[other]]))[0, 1].item()
        assert abs(alike) < 0.5, f"the noise of (epoch, seed) {one} and {other} is alike"
    everything = torch.cat(list(drawn.values()))
    assert len(everything.unique()) == len(everything), "two examples share a number"
    n = len(everything)
    mean, std = everything.mean().item(), everything.std().item()
    fourth = (everything**4).mean().item()
    assert abs(mean) < 5 / math.sqrt(n), f"the mean of {n} numbers is {mean:.3f}"
    assert abs(std - 1) < 5 / math.sqrt(2 * n), f"the deviation of {n} numbers is {std:.3f}"
    assert abs(fourth - 3) < 1.5, f"the fourth moment of {n} normal numbers is {fourth:.2f}, not 3"


def shares_of(impl, size, batch_size, world_size, epoch=None, **options):
    """By rank, the lists of the shares of an epoch."""
    by_rank = []
    for rank in range(world_size):
        scramble(rank)
        sampler = impl.ShardedSampler(size, batch_size, rank, world_size, **options)
        if epoch is not None:
            sampler.set_epoch(epoch)
        with generators_unmoved("a sampler"):
            shares = list(sampler)
        for share in shares:
            assert (share.dtype, share.ndim) == (torch.int64, 1), "a share is not int64 (n,)"
        by_rank.append([share.tolist() for share in shares])
    return by_rank


SHARES = (
    (10, 4, 1),
    (10, 4, 2),
    (10, 4, 3),
    (21, 8, 2),
    (5, 9, 3),
    (9, 1, 2),
    (13, 6, 4),
    (1, 1, 3),
)


def test_shares_have_each_position_once(impl):
    for size, batch_size, world_size in SHARES:
        for shuffle in (True, False):
            by_rank = shares_of(impl, size, batch_size, world_size, shuffle=shuffle, seed=2)
            what = f"{size} positions in batches of {batch_size} on {world_size} ranks"
            sizes = [min(batch_size, size - i) for i in range(0, size, batch_size)]
            for rank, shares in enumerate(by_rank):
                assert len(shares) == len(sizes), (
                    f"{what}: rank {rank} has {len(shares)} shares of {len(sizes)} batches"
                )
            seen = sorted(i for shares in by_rank for share in shares for i in share)
            assert seen == list(range(size)), f"{what}: an epoch shows {seen}"
            for number, wanted in enumerate(sizes):
                got = [len(shares[number]) for shares in by_rank]
                even = [wanted // world_size + (r < wanted % world_size) for r in range(world_size)]
                assert got == even, f"{what}: the shares of batch {number} have {got}, not {even}"


def test_batches_are_those_of_one_rank(impl):
    for size, batch_size, world_size in SHARES:
        for epoch, seed, shuffle in ((0, 0, True), (3, 0, True), (3, 9, True), (0, 0, False)):
            options = {"epoch": epoch, "seed": seed, "shuffle": shuffle}
            (whole,) = shares_of(impl, size, batch_size, 1, **options)
            by_rank = shares_of(impl, size, batch_size, world_size, **options)
            for number, batch in enumerate(whole):
                together = sorted(i for shares in by_rank for i in shares[number])
                assert together == sorted(batch), (
                    f"batch {number} of {size} in {batch_size}, {options}: {world_size} ranks have "
                    f"{together}, one has {sorted(batch)}"
                )


def test_without_shuffling_batches_go_in_order(impl):
    for epoch in (None, 4):
        by_rank = shares_of(impl, 11, 4, 2, epoch, shuffle=False, seed=3)
        batches = [sorted(one + other) for one, other in zip(*by_rank, strict=True)]
        wanted = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        assert batches == wanted, f"without shuffling the batches are {batches}"


def order_of(impl, size, epoch, **options):
    return tuple(i for (i,) in shares_of(impl, size, 1, 1, epoch, **options)[0])


def test_orders_differ_by_epoch_and_seed(impl):
    pairs = list(itertools.product(range(4), range(4)))
    orders = {(e, s): order_of(impl, 30, e, seed=s) for e, s in pairs}
    for one, other in itertools.combinations(pairs, 2):
        assert orders[one] != orders[other], f"(epoch, seed) {one} and {other} have one order"
    assert order_of(impl, 30, None) == orders[0, 0], "at first it is not epoch 0 of seed 0"
    assert order_of(impl, 30, None, seed=1) == orders[0, 1], "at first it is not epoch 0"
    places = torch.zeros(8, 8)
    for epoch in range(200):
        for place, position in enumerate(order_of(impl, 8, epoch)):
            places[place, position] += 1
    low, high = places.min().item(), places.max().item()
    assert 5 < low <= high < 52, (
        f"in 200 epochs a position stands in a place {low:g} to {high:g} times, not about 25"
    )


def test_a_sampler_is_iterated_again(impl):
    sampler = impl.ShardedSampler(23, 5, 1, 2, True, 6)
    other = impl.ShardedSampler(23, 5, 1, 2, shuffle=True, seed=6)
    first, second = ([s.tolist() for s in sampler] for _ in range(2))
    assert first == second, "a second pass of the same epoch has another order"
    both = [(a.tolist(), b.tolist()) for a, b in zip(sampler, sampler, strict=True)]
    assert both == [(s, s) for s in first], "two passes at a time disturb each other"
    running = iter(sampler)
    begun = [next(running).tolist()]
    sampler.set_epoch(1)
    begun += [s.tolist() for s in running]
    assert begun == first, "set_epoch changes a pass that has begun"
    third = [s.tolist() for s in sampler]
    assert third != first, "epoch 1 has the order of epoch 0"
    assert [s.tolist() for s in other] == first, "one sampler's epoch changes another sampler"
    sampler.set_epoch(0)
    assert [s.tolist() for s in sampler] == first, "back in epoch 0 the order is another"
    other.set_epoch(np.int64(1))
    assert [s.tolist() for s in other] == third, "the order depends on more than seed and epoch"
    for share in sampler:
        share.fill_(0)
    assert [s.tolist() for s in sampler] == first, "a share written to changes the next pass"


# Gathering, and normalisation over all ranks


def test_gather_stacks_by_rank(impl):
    for shape, dtype in (((), torch.float32), ((3,), torch.float64), ((2, 0), torch.float32)):
        xs = [torch.randn(shape, dtype=dtype) for _ in range(3)]

        def collect(comm, xs=xs):
            x = xs[comm.get_rank()]
            out = impl.gather(x, comm)
            again = impl.gather(x + 1, comm)
            return out, again

        for rank, (out, again) in enumerate(on_ranks(3, collect)):
            what = f"gather of {tuple(shape)}, {dtype}, on rank {rank}"
            assert_matches(out, torch.stack(xs), what)
            assert_matches(again, torch.stack(xs) + 1, f"{what}, called again")

    def alias(comm):
        x = torch.ones(2) * (comm.get_rank() + 1)
        out = impl.gather(x, comm)
        x.fill_(9)
        kept = out.clone()
        with torch.no_grad():
            quiet = impl.gather(torch.ones(2, requires_grad=True), comm)
        out.fill_(7)
        return kept, x, quiet.requires_grad

    for world_size in (1, 2):
        for kept, x, recorded in on_ranks(world_size, alias):
            wanted = torch.arange(1.0, world_size + 1)[:, None].expand(-1, 2)
            assert_matches(kept, wanted, "what was gathered, once x is written to")
            assert_matches(x, torch.full((2,), 9.0), "x, once the result is written to")
            assert not recorded, "gather records a graph under no_grad"


def test_the_gradient_of_gather_is_that_of_all_losses(impl):
    """Each rank makes something else of the result: where all do the same, any slice will do."""
    for world_size in (1, 2, 3):
        xs = torch.randn(world_size, 4, dtype=torch.float64)
        factors = torch.randn(world_size, world_size, 4, dtype=torch.float64)

        def back(comm, xs=xs, factors=factors):
            rank = comm.get_rank()
            x = xs[rank].clone().requires_grad_()
            out = impl.gather(2 * x, comm)
            (out.exp() * factors[rank]).sum().backward()
            return x.grad

        leaf = xs.clone().requires_grad_()
        ((2 * leaf).exp() * factors.sum(0)).sum().backward()
        for rank, grad in enumerate(on_ranks(world_size, back)):
            what = f"the gradient for rank {rank}'s x, gathered by {world_size} ranks"
            assert_matches(grad, leaf.grad[rank], what)


def test_gather_leaves_the_upstream_gradient(impl):
    def back(comm):
        upstream = torch.arange(1.0, 7.0).reshape(2, 3) * (1 + comm.get_rank())
        kept = upstream.clone()
        x = torch.ones(3, requires_grad=True)
        HandDown.apply(impl.gather(x, comm), upstream).backward()
        wide = torch.ones(2, 3, 2)[..., 0]
        y = torch.ones(3, requires_grad=True)
        HandDown.apply(impl.gather(y, comm), wide).backward()
        return upstream, kept, x.grad, y.grad

    for rank, (upstream, kept, grad, other) in enumerate(on_ranks(2, back)):
        assert_matches(upstream, kept, "the upstream gradient of gather")
        assert_matches(grad, 3 * kept[rank] / (1 + rank), f"the gradient on rank {rank}")
        assert_matches(other, torch.full((3,), 2.0), "the gradient from a strided upstream")


def cut(x, sizes):
    """Cut the rows of a batch into shares of these sizes."""
    return x.split(list(sizes))


CUTS = ((5,), (3, 2), (4, 1), (5, 0), (0, 5), (2, 2, 1), (1, 0, 4))


def normalise(impl, comm, shares, weights, options, dtype, modes=(True,)):
    """Go through a norm with this rank's shares; return all that it gives."""
    rank = comm.get_rank()
    norm = impl.SyncBatchNorm(3, comm, **options).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, -0.4]))
    results = []
    for share, weight, mode in zip(shares, weights, itertools.cycle(modes)):
        norm.train(mode)
        x = share[rank].clone().requires_grad_()
        norm.zero_grad()
        out = norm(x)
        (out.sin() * weight[rank]).sum().backward()
        results.append((out.detach(), x.grad, norm.weight.grad, norm.bias.grad))
    return results, {name: value.clone() for name, value in norm.state_dict().items()}


def check_norm(
    impl, sizes, options, dtype=torch.float64, modes=(True,), scale=1.0, offset=0.0, **tolerance
):
    xs = [
        (torch.randn(5, 3, dtype=torch.float64) * (i + 1) * scale + i + offset).to(dtype)
        for i in range(4)
    ]
    weights = [torch.randn(5, 3, dtype=dtype) for _ in xs]
    oracle = nn.BatchNorm1d(3, **options).double()
    with torch.no_grad():
        oracle.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
        oracle.bias.copy_(torch.tensor([0.1, 0.2, -0.4]))
    shares = [cut(x, sizes) for x in xs]
    cuts = [cut(weight, sizes) for weight in weights]
    ranks = on_ranks(
        len(sizes),
        lambda comm: normalise(impl, comm, shares, cuts, options, dtype, modes),
    )
    for number, (whole, weight, mode) in enumerate(zip(xs, weights, itertools.cycle(modes))):
        oracle.train(mode)
        leaf = whole.double().requires_grad_()
        oracle.zero_grad()
        wanted = oracle(leaf)
        (wanted.sin() * weight.double()).sum().backward()
        what = f"pass {number} in shares of {sizes}, training={mode}, {dtype}, {options}"
        got = [torch.cat(parts) for parts in zip(*(r[0][number][:2] for r in ranks), strict=True)]
        assert_matches(got[0], wanted.detach().to(dtype), f"the output, {what}", **tolerance)
        assert_matches(got[1], leaf.grad.to(dtype), f"the gradient for x, {what}", **tolerance)
        for place, p in ((2, oracle.weight), (3, oracle.bias)):
            total = sum(r[0][number][place] for r in ranks)
            name = "weight" if place == 2 else "bias"
            assert_matches(
                total, p.grad.to(dtype), f"the {name}'s gradient, over ranks, {what}", **tolerance
            )
    for rank, (_, state) in enumerate(ranks):
        wanted = oracle.state_dict()
        assert list(state) == list(wanted), f"the state dict has {list(state)}"
        for name, value in wanted.items():
            value = value.to(dtype) if value.is_floating_point() else value
            what = f"{name} on rank {rank} after 4 passes in shares of {sizes}, {options}"
            assert_matches(state[name], value, what, **tolerance)


def test_normalisation_is_that_of_the_whole_batch(impl):
    for sizes in CUTS:
        check_norm(impl, sizes, {}, rtol=1e-6, atol=1e-9)


def test_normalisation_with_other_settings(impl):
    for options in (
        {"momentum": 0.4},
        {"eps": 0.3},
        {"eps": 1e-3, "momentum": 1.0},
        {"momentum": 0.0},
    ):
        check_norm(impl, (3, 2), options, rtol=1e-6, atol=1e-9)
    check_norm(impl, (2, 3), {}, modes=(True, False, False, True), rtol=1e-6, atol=1e-9)


def test_normalisation_in_float32_and_beside_a_large_mean(impl):
    check_norm(impl, (4, 1), {}, torch.float32, rtol=1e-4, atol=1e-5)
    check_norm(impl, (4, 1), {}, torch.float32, scale=0.5, offset=1000.0, rtol=5e-3, atol=5e-3)
    check_norm(impl, (2, 3), {}, scale=1e-3, offset=1e5, rtol=1e-4, atol=1e-4)


def test_normalisation_in_evaluation_asks_nobody(impl):
    def alone(comm):
        norm = impl.SyncBatchNorm(2, comm)
        norm.eval()
        if comm.get_rank() == 1:
            return None
        return norm(torch.tensor([[1.0, 2.0]])), norm(torch.zeros(0, 2))

    out, empty = on_ranks(2, alone)[0]
    assert_matches(out, torch.tensor([[1.0, 2.0]]) / math.sqrt(1 + 1e-5), "a fresh norm, one row")
    assert empty.shape == (0, 2), "an empty share in evaluation"


def test_normalisation_counts_passes_without_a_graph(impl):
    x = torch.randn(6, 2)

    def quiet(comm):
        norm = impl.SyncBatchNorm(2, comm)
        before = norm.weight.data_ptr(), norm.running_mean.data_ptr()
        mine = cut(x, (4, 2))[comm.get_rank()]
        with unchanged(x=mine), torch.no_grad():
            norm(mine)
        # Two norms at once, each with statistics of its own.
        other = impl.SyncBatchNorm(2, comm)
        assert other.running_mean.abs().max() == 0, "a new norm does not start at zero"
        kept = (norm.weight.data_ptr(), norm.running_mean.data_ptr()) == before
        return norm.running_mean, norm.num_batches_tracked, kept

    for mean, count, kept in on_ranks(2, quiet):
        assert_matches(mean, 0.1 * x.mean(0), "running_mean after one pass under no_grad")
        assert count == 1, f"num_batches_tracked is {count} after one pass"
        assert kept, "weights or buffers have become other tensors"


# The wrapper


class Products(nn.Module):
    """One weight, whose gradient is the sum of x; another that is frozen, one without a part."""

    def __init__(self, start=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([start]))
        self.frozen = nn.Parameter(torch.tensor([[start, 1.0]]), requires_grad=False)
        self.unused = nn.Parameter(torch.tensor(start))
        self.register_buffer("number", torch.tensor(int(start)))
        self.register_buffer("hidden", torch.tensor([start, 2.0]).double(), persistent=False)

    def forward(self, x, factor=1.0, *, shift=0.0):
        return (self.weight * x).sum() * factor + shift


def test_all_ranks_start_from_rank_0(impl):
    def wrap(comm):
        module = Products(3.0 + comm.get_rank())
        tensors = [*module.parameters(), *module.buffers()]
        before = [t.data_ptr() for t in tensors]
        model = impl.DataParallel(module, comm)
        assert isinstance(model, nn.Module), "a DataParallel is not an nn.Module"
        assert model.module is module, "the attribute module is not the module"
        now = [*model.parameters(), *model.buffers()]
        assert len(now) == 5, f"the model has {len(now)} parameters and buffers, its module 5"
        same = all(
            a is b and a.data_ptr() == p for a, b, p in zip(now, tensors, before, strict=True)
        )
        assert same, "parameters or buffers have become other tensors"
        asking = [p.requires_grad for p in model.parameters()]
        assert asking == [True, False, True], "requires_grad has changed"
        return {**dict(module.named_parameters()), **dict(module.named_buffers())}

    for rank, state in enumerate(on_ranks(3, wrap)):
        wanted = Products(3.0)
        for name, value in {
            **dict(wanted.named_parameters()),
            **dict(wanted.named_buffers()),
        }.items():
            assert_matches(state[name].detach(), value.detach(), f"{name} of rank {rank} at first")


def test_a_call_hands_all_on_and_asks_nobody(impl):
    def call(comm):
        model = impl.DataParallel(Products(2.0), comm)
        if comm.get_rank() == 1:
            return None
        with torch.no_grad():
            quiet = model(torch.ones(2))
        return model(torch.ones(3), 10.0, shift=0.5), quiet

    out, quiet = on_ranks(2, call)[0]
    assert_matches(out.detach(), torch.tensor(60.5), "a call with arguments of all kinds")
    assert_matches(quiet, torch.tensor(4.0), "a call under no_grad")

    class Two(nn.Module):
        def forward(self, x):
            return {"x": x, "rest": (x, None)}

    def other(comm):
        x = torch.ones(1)
        out = impl.DataParallel(Two(), comm)(x)
        return out["x"] is x and out["rest"][1] is None

    assert all(on_ranks(2, other)), "what the module returns is not what a call returns"


def passes(impl, plan):
    """Make backward passes with one value a rank, each `(values, synced)`; the last gradients."""

    def go(comm):
        model = impl.DataParallel(Products(), comm)
        grads = []
        for values, synced in plan:
            with contextlib.nullcontext() if synced else model.no_sync():
                model(torch.tensor([values[comm.get_rank()]])).backward()
            grads.append(model.module.weight.grad.item())
        rest = model.module.frozen.grad, model.module.unused.grad
        return grads, rest

    results = on_ranks(len(plan[0][0]), go)
    for _, rest in results:
        assert rest == (None, None), f"what no pass reaches has the gradients {rest}"
    return [list(step) for step in zip(*(grads for grads, _ in results), strict=True)]


def test_gradients_are_averaged(impl):
    assert passes(impl, [((3.0,), True)]) == [[3.0]], "the gradient of one rank alone changes"
    got = passes(impl, [((2.0, 8.0), True)])
    assert got == [[5.0, 5.0]], f"gradients 2 and 8 become {got[0]}, not 5 on both ranks"
    got = passes(impl, [((1.0, 2.0, 9.0), True)])
    assert got == [[4.0] * 3], f"gradients 1, 2 and 9 become {got[0]}, not 4 on all ranks"
    got = passes(impl, [((2.0, 8.0), True), ((1.0, 5.0), True)])
    assert got[1] == [8.0, 8.0], f"a second pass adds 3 to 5, and makes {got[1]}"


def test_gradients_of_no_sync_are_averaged_later(impl):
    got = passes(impl, [((1.5, 4.5), False), ((2.5, 2.5), True)])
    assert got[0] == [1.5, 4.5], f"within no_sync gradients 1.5 and 4.5 become {got[0]}"
    assert got[1] == [5.5, 5.5], f"the ranks step on {got[1]}, where 5.5 is right"
    got = passes(impl, [((1.0, 2.0), False), ((10.0, 30.0), False), ((100.0, 400.0), True)])
    assert got == [[1.0, 2.0], [11.0, 32.0], [271.5, 271.5]], f"three passes give {got}"
    got = passes(impl, [((2.0, 4.0), True), ((1.0, 5.0), False), ((0.0, 2.0), True)])
    assert got == [[3.0, 3.0], [4.0, 8.0], [7.0, 7.0]], f"a pass, one within, one give {got}"


def test_the_forward_pass_decides(impl):
    def go(comm):
        model = impl.DataParallel(Products(), comm)
        weight, found = model.module.weight, []
        x = torch.tensor([1.0 + 4.0 * comm.get_rank()])  # 1 and 5
        with model.no_sync():
            loss = model(x)
        loss.backward()
        found.append(weight.grad.item())
        weight.grad = None
        loss = model(x)
        with model.no_sync():
            loss.backward()
        found.append(weight.grad.item())
        weight.grad = None
        with model.no_sync():
            with torch.no_grad():
                model(x)
            with model.no_sync():
                pass
            model(x).backward()
            found.append(weight.grad.item())
        weight.grad = None
        loss = model(x)
        with torch.no_grad(), model.no_sync():
            model(x)
        loss.backward()
        found.append(weight.grad.item())
        weight.grad = None
        with model.no_sync():
            loss = model(x)
        with torch.no_grad():
            model(x)
        loss.backward()
        found.append(weight.grad.item())
        weight.grad = None
        with contextlib.suppress(ZeroDivisionError), model.no_sync():
            raise ZeroDivisionError
        model(x).backward()
        found.append(weight.grad.item())
        return found

    cases = {
        "forward within no_sync, backward outside": [1.0, 5.0],
        "forward outside, backward within no_sync": [3.0, 3.0],
        "no_sync within no_sync, and a call under no_grad": [1.0, 5.0],
        "a call under no_grad within no_sync between the two passes": [3.0, 3.0],
        "a call under no_grad outside between the two passes within no_sync": [1.0, 5.0],
        "a pass after an error within no_sync": [3.0, 3.0],
    }
    for (what, wanted), got in zip(cases.items(), zip(*on_ranks(2, go), strict=True), strict=True):
        assert list(got) == wanted, f"{what}: gradients 1 and 5 become {list(got)}, not {wanted}"


def test_two_models_average_for_themselves(impl):
    def go(comm):
        one, other = (impl.DataParallel(Products(), comm) for _ in range(2))
        x = torch.tensor([1.0 + 4.0 * comm.get_rank()])
        with one.no_sync():
            one(x).backward()
            other(x).backward()
        return one.module.weight.grad.item(), other.module.weight.grad.item()

    got = on_ranks(2, go)
    assert got == [(1.0, 3.0), (5.0, 3.0)], f"no_sync of one of two models: {got}"


def test_buffers_stay_each_ranks_own(impl):
    def go(comm):
        module = nn.BatchNorm1d(2)
        model = impl.DataParallel(module, comm)
        model(torch.full((2, 2), float(comm.get_rank())))
        model(torch.full((2, 2), float(comm.get_rank())))
        return module.running_mean.clone()

    for rank, mean in enumerate(on_ranks(2, go)):
        assert_matches(mean, torch.full((2,), 0.19 * rank), f"running_mean of rank {rank}")


# A step


def net(comm, impl, dtype=torch.float64, norm=True):
    """A small net with a normalisation; without ranks, with torch's own."""
    middle = impl.SyncBatchNorm(4, comm) if comm else nn.BatchNorm1d(4)
    layers = [nn.Linear(3, 4), middle, nn.Tanh(), nn.Linear(4, 5)]
    if not norm:
        del layers[1]
    return nn.Sequential(*layers).to(dtype)


def batches_of(sizes, dtype=torch.float64):
    """Random micro-batches of these sizes."""
    return [(torch.randn(n, 3, dtype=dtype), torch.randint(5, (n,))) for n in sizes]


def share_out(batches, cuts):
    """By rank, the micro-batches' shares."""
    parts = [
        [(x, y) for x, y in zip(cut(x, sizes), cut(labels, sizes), strict=True)]
        for (x, labels), sizes in zip(batches, cuts, strict=True)
    ]
    return [list(shares) for shares in zip(*parts, strict=True)]


def whole_step(model, optimizer, batches, max_norm):
    """The step on one rank, by torch's own means; its log."""
    total = sum(len(y) for _, y in batches)
    model.zero_grad()
    loss, right = 0.0, 0
    for x, y in batches:
        logits = model(x)
        share = -logits.log_softmax(1)[torch.arange(len(y)), y].sum() / total
        share.backward()
        loss += share.item()
        right += (logits.argmax(1) == y).sum().item()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in trained(model)))
    for p in trained(model):
        p.grad *= min(1.0, max_norm / (norm + 1e-6))
    optimizer.step()
    return {"loss": loss, "accuracy": right / total, "grad_norm": norm, "samples": float(total)}


def trained(model):
    return [p for p in model.parameters() if p.grad is not None]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.8, weight_decay=0.01)


def steps_on_ranks(impl, world_size, state, steps, max_norm, dtype=torch.float64, norm=True):
    """Take steps, each a list of micro-batches by rank; logs and the final state by rank."""

    def go(comm):
        module = net(comm, impl, dtype, norm)
        module.load_state_dict(state)
        model = impl.DataParallel(module, comm)
        optimizer = sgd(model)
        logs = [
            impl.train_step(model, optimizer, step[comm.get_rank()], comm, max_norm)
            for step in steps
        ]
        return logs, {name: value.clone() for name, value in module.state_dict().items()}

    return on_ranks(world_size, go)


def check_steps(impl, plans, max_norm, dtype=torch.float64, rel=1e-7, norm=True):
    """Take one step for each plan, a list of cuts, and compare with steps on the whole."""
    oracle = net(None, impl, torch.float64, norm)
    state = copy.deepcopy(oracle.state_dict())
    optimizer = sgd(oracle)
    whole = [batches_of([sum(sizes) for sizes in cuts], dtype) for cuts in plans]
    shared = [share_out(batches, cuts) for batches, cuts in zip(whole, plans, strict=True)]
    ranks = steps_on_ranks(impl, len(plans[0][0]), state, shared, max_norm, dtype, norm)
    for number, batches in enumerate(whole):
        wanted = whole_step(oracle, optimizer, [(x.double(), y) for x, y in batches], max_norm)
        for rank, (logs, _) in enumerate(ranks):
            what = f"step {number} on shares of {plans[number]}, rank {rank}"
            assert set(logs[number]) == set(wanted), f"the log has {sorted(logs[number])}"
            for name, value in wanted.items():
                got = logs[number][name]
                assert type(got) is float, f"{name} is a {type(got).__name__}, not a float"
                assert math.isclose(got, value, rel_tol=rel, abs_tol=rel), (
                    f"{what}: {name} is {got:.7g}, on the whole {value:.7g}"
                )
    for rank, (_, got) in enumerate(ranks):
        for name, value in oracle.state_dict().items():
            value = value.to(dtype) if value.is_floating_point() else value
            what = f"{name} of rank {rank} after {len(plans)} steps, cut into {plans[0]} first"
            assert_matches(got[name], value, what, rtol=10 * rel, atol=10 * rel)


def test_steps_of_any_number_of_ranks_are_those_of_one(impl):
    for max_norm in (1e3, 0.2):
        check_steps(impl, [[(6,)], [(3,), (4,)], [(2,)]], max_norm)
        check_steps(impl, [[(3, 3)], [(2, 2), (1, 1)], [(4, 4)]], max_norm)
        check_steps(impl, [[(3, 2)], [(4, 1), (2, 5)], [(1, 1)], [(2, 1)] * 4], max_norm)
        check_steps(impl, [[(3, 2, 1)], [(1, 1, 1), (2, 2, 1)]], max_norm)


def test_old_gradients_of_what_is_not_trained_do_not_count(impl):
    """Those of a frozen parameter, which no optimiser owns."""

    def go(comm, old):
        module = Bias(1.0)
        module.frozen = nn.Parameter(torch.zeros(3, dtype=torch.float64), requires_grad=False)
        module.frozen.grad = torch.full_like(module.frozen, old)
        model = impl.DataParallel(module, comm)
        optimizer = torch.optim.SGD([module.bias], lr=1.0)
        batch = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0, 0])
        log = impl.train_step(model, optimizer, [batch], comm, 0.1)
        return log["grad_norm"], module.bias.detach().clone()

    for (norm, bias), (wanted, other) in zip(
        on_ranks(2, go, 1e3), on_ranks(2, go, 0.0), strict=True
    ):
        assert math.isclose(norm, wanted), f"grad_norm is {norm:.4g}, not {wanted:.4g}"
        assert_matches(bias, other, "weights after a step beside an old gradient")


def test_steps_with_empty_shares(impl):
    for max_norm in (1e3, 0.2):
        check_steps(impl, [[(2, 0)], [(0, 3), (2, 0)], [(3, 2), (3, 0)]], max_norm)
        check_steps(impl, [[(2, 1, 0)], [(0, 0, 2), (1, 1, 1)]], max_norm)
        check_steps(impl, [[(1, 0)], [(0, 0), (1, 0)]], max_norm, norm=False)


def test_steps_in_float32(impl):
    check_steps(impl, [[(3, 2)], [(4, 1), (2, 5)]], 0.5, torch.float32, 1e-4)


def test_every_example_counts_the_same(impl):
    """One example on the one rank, 9 on the other, and a last micro-batch that is short."""
    check_steps(impl, [[(1, 9), (2, 6), (1, 0)]], 1e3, norm=False)
    check_steps(impl, [[(9, 1)], [(1, 0), (0, 8)]], 1e3, norm=False)


class Bias(nn.Module):
    """Two logits that are one number times a bias."""

    def __init__(self, factor):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.factor = factor

    def forward(self, x):
        return self.factor * self.bias.expand(len(x), 2)


def test_clipping_goes_by_the_norm_of_the_mean_gradient(impl):
    """Each rank's gradient has the norm 0.8 or more, and their mean has 0.8."""
    for labels, max_norm in (((0, 0), 1.0), ((0, 0), 0.4), ((0, 1), 0.4), ((0, 0), 1e-3)):

        def go(comm, labels=labels, max_norm=max_norm):
            model = impl.DataParallel(Bias(0.8 * math.sqrt(2)), comm)
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            batch = torch.zeros(3, 1), torch.full((3,), labels[comm.get_rank()])
            log = impl.train_step(model, optimizer, [batch], comm, max_norm)
            return log["grad_norm"], model.module.bias.detach().norm().item()

        norm = 0.8 if labels == (0, 0) else 0.0
        moved = min(norm, max_norm)
        for got, step in on_ranks(2, go):
            assert math.isclose(got, norm, abs_tol=1e-9), f"norm {norm} is reported as {got:.3f}"
            assert math.isclose(step, moved, rel_tol=1e-3, abs_tol=1e-9), (
                f"a gradient of norm {norm} is clipped to {step:.3f}; max_norm is {max_norm}"
            )


def test_clipping_comes_once(impl):
    """Micro-batches whose gradients cancel in part: their sum has half the norm of each."""
    factor = 0.8 * math.sqrt(2)

    def go(comm):
        model = impl.DataParallel(Bias(factor), comm)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        x = torch.zeros(4, 1)
        batches = [(x, torch.zeros(4, dtype=torch.long)), (x, torch.tensor([0, 1, 1, 1]))]
        log = impl.train_step(model, optimizer, batches, comm, 0.3)
        return log["grad_norm"], model.module.bias.detach().norm().item()

    for got, step in on_ranks(2, go):
        assert math.isclose(got, 0.2, rel_tol=1e-6), f"the norm 0.2 is reported as {got:.4f}"
        assert math.isclose(step, 0.2, rel_tol=1e-6), f"a step of 0.2 is {step:.4f}, max_norm 0.3"


def test_a_step_begins_afresh(impl):
    batches = share_out(batches_of([5, 4]), [(3, 2), (2, 2)])

    def go(comm, before):
        module = net(comm, impl)
        for p in module.parameters():
            nn.init.ones_(p)
        model = impl.DataParallel(module, comm)
        module[0].weight.requires_grad_(True)
        if before:
            for p in module.parameters():
                p.grad = torch.full_like(p, 3.0 + comm.get_rank())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        mine = batches[comm.get_rank()]
        named = {
            f"{n}{i}": t for i, pair in enumerate(mine) for n, t in zip("xy", pair, strict=True)
        }
        with unchanged(**named):
            log = impl.train_step(model, optimizer, mine, comm, 1e3)
        return log, [p.detach().clone() for p in module.parameters()]

    fresh, after = on_ranks(2, go, False), on_ranks(2, go, True)
    assert fresh[0][0] == after[0][0], "gradients from before a step change its log"
    for p, q in zip(fresh[0][1], after[0][1], strict=True):
        assert_matches(q, p, "a step with gradients from before")


def test_a_step_leaves_modes_and_what_is_frozen(impl):
    batches = share_out(batches_of([5, 4]), [(3, 2), (2, 2)])

    def go(comm):
        module = net(comm, impl)
        module[3].bias.requires_grad_(False)
        module[1].eval()
        model = impl.DataParallel(module, comm)
        kept = module[3].bias.clone(), module[1].running_mean.clone()
        modes = [m.training for m in model.modules()]
        impl.train_step(model, sgd(model), batches[comm.get_rank()], comm, 1.0)
        assert [m.training for m in model.modules()] == modes, "a step changes modes"
        assert_matches(module[3].bias, kept[0], "a frozen bias after a step")
        assert_matches(module[1].running_mean, kept[1], "statistics in evaluation mode")

    on_ranks(2, go)


def test_a_step_with_another_optimizer(impl):
    batches = batches_of([5, 4])
    cuts = [(3, 2), (1, 3)]
    oracle = net(None, impl)
    state = copy.deepcopy(oracle.state_dict())
    optimizer = torch.optim.RMSprop(oracle[3].parameters(), lr=0.01)
    for _ in range(2):
        whole_step(oracle, optimizer, batches, 1e3)

    def go(comm):
        module = net(comm, impl)
        module.load_state_dict(state)
        optimizer = torch.optim.RMSprop(module[3].parameters(), lr=0.01)
        model = impl.DataParallel(module, comm)
        for _ in range(2):
            impl.train_step(model, optimizer, share_out(batches, cuts)[comm.get_rank()], comm, 1e3)
        return module.state_dict()

    for got in on_ranks(2, go):
        for name, value in oracle.state_dict().items():
            what = f"{name} after two steps of RMSprop, made before the wrapper, on the head alone"
            assert_matches(got[name], value, what, rtol=1e-6, atol=1e-8)


# Evaluation


def scores(logits, labels):
    """Loss, accuracy and balanced accuracy by NumPy."""
    z, y = logits.double().numpy(), labels.numpy()
    top = z.max(1, keepdims=True)
    log_p = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
    right = z.argmax(1) == y
    recall = [right[y == c].mean() for c in np.unique(y)]
    losses = -log_p[np.arange(len(y)), y]
    return {
        "loss": losses.mean(),
        "accuracy": right.mean(),
        "balanced_accuracy": float(np.mean(recall)),
    }


def assert_scores(got, wanted, what, rel=1e-7):
    assert set(got) == set(wanted), f"{what}: {sorted(got)} instead of {sorted(wanted)}"
    for name, value in wanted.items():
        assert type(got[name]) is float, f"{name} is a {type(got[name]).__name__}, not a float"
        assert math.isclose(got[name], value, rel_tol=rel, abs_tol=rel), (
            f"{what}: {name} is {got[name]:.6f}, of all examples at once {value:.6f}"
        )


class Table(nn.Module):
    """Logits that stand in the input, with a place for a gradient."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x * self.scale


def test_evaluation_counts_every_example_once(impl):
    for size in (1, 2, 5, 21):
        x = torch.randn(size, 4)
        labels = torch.randint(3, (size,)) if size < 21 else torch.arange(21) % 7 % 4
        x[::3, 0] += 3.0
        wanted = scores(2 * x, labels)
        for world_size, batch_size in ((1, 4), (2, 4), (2, 1), (2, 30), (3, 7), (4, 2), (2, 21)):

            def go(comm, x=x, labels=labels, batch_size=batch_size):
                with unchanged(x=x, labels=labels):
                    return impl.evaluate(Table(), x, labels, batch_size, comm)

            for got in on_ranks(world_size, go):
                what = f"{size} examples in batches of {batch_size} on {world_size} ranks"
                assert_scores(got, wanted, what, 1e-5)


def test_balanced_accuracy_is_over_classes_that_occur(impl):
    """A class of one example, on one rank, and one that does not occur."""
    labels = torch.tensor([0] * 9 + [3] + [5] * 3)
    x = F.one_hot(torch.tensor([0] * 6 + [1] * 3 + [3] + [0, 5, 2]), 8).float()

    for world_size in (1, 2, 3):
        for got in on_ranks(world_size, lambda comm: impl.evaluate(Table(), x, labels, 4, comm)):
            wanted = (6 / 9 + 1 + 1 / 3) / 3
            assert_scores(got, scores(2 * x, labels), f"a rare class on {world_size} ranks", 1e-5)
            assert math.isclose(got["balanced_accuracy"], wanted, rel_tol=1e-6)


def test_evaluation_leaves_everything_as_it_was(impl):
    x, labels = torch.randn(11, 3, dtype=torch.float64), torch.randint(5, (11,))

    def go(comm, wrapped):
        module = net(comm, impl)
        module[1].running_mean += 1
        module[1].running_var *= 3
        for i, m in enumerate(module.modules()):
            m.training = i % 2 == 0
        model = impl.DataParallel(module, comm) if wrapped else module
        state = copy.deepcopy(module.state_dict())
        modes = [m.training for m in model.modules()]
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                got = impl.evaluate(model, x, labels, 4, comm)
                assert torch.is_grad_enabled() is enabled, "evaluation leaves another grad mode"
        assert [m.training for m in model.modules()] == modes, "evaluation leaves other modes"
        for name, value in module.state_dict().items():
            assert_matches(value, state[name], f"{name} after an evaluation")
        for p in module.parameters():
            assert_matches(p.grad, torch.ones_like(p), "a gradient after an evaluation")
        with torch.no_grad():
            return got, scores(module.eval()(x), labels)

    for wrapped in (False, True):
        for world_size in (1, 2):
            for got, wanted in on_ranks(world_size, go, wrapped):
                assert_scores(got, wanted, f"evaluation mode on {world_size} ranks")


def test_evaluation_records_no_graph(impl):
    class Watch(Table):
        recorded = False

        def forward(self, x):
            out = super().forward(x)
            Watch.recorded |= out.requires_grad
            return out

    x, labels = torch.randn(5, 4), torch.randint(4, (5,))
    on_ranks(2, lambda comm: impl.evaluate(Watch(), x, labels, 2, comm))
    assert not Watch.recorded, "evaluation records a graph"


def test_training_goes_on_after_an_evaluation(impl):
    """Between two micro-steps of two, and in the middle of accumulation."""
    x, labels = torch.randn(5, 3, dtype=torch.float64), torch.randint(5, (5,))

    def go(comm, evaluates):
        torch.manual_seed(0)
        model = impl.DataParallel(net(comm, impl), comm)
        share = slice(None, 3) if comm.get_rank() == 0 else slice(3, None)
        with model.no_sync():
            model(x[share]).square().sum().backward()
            if evaluates:
                impl.evaluate(model, x, labels, 2, comm)
        model(x[share]).sin().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    with_it, without = on_ranks(2, go, True), on_ranks(2, go, False)
    for p, q, r in zip(with_it[0], with_it[1], without[0], strict=True):
        assert_matches(p, r, "gradients of two passes with an evaluation between them")
        assert_matches(q, p, "gradients of the other rank")


# How far ranks are apart


def test_spread_is_the_largest_difference(impl):
    def go(comm, where, by):
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1).double())
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.fill_(4)
        for p in module[0].parameters():
            p.requires_grad_(False)
        tensors = [*module.parameters(), *module.buffers()]
        tensors[where].data.reshape(-1)[-1:] += by[comm.get_rank()]
        got = impl.spread(module, comm)
        assert type(got) is float, f"spread is a {type(got).__name__}, not a float"
        return got

    assert on_ranks(2, go, 0, (0, 0)) == [0.0, 0.0], "ranks that are equal have a spread"
    assert on_ranks(1, go, 0, (5,)) == [0.0], "one rank alone has a spread"
    for where in range(9):
        for by, wanted in (((0, 3, 1), 3.0), ((0, -2, 2), 4.0), ((5, 5, 4), 1.0)):
            got = on_ranks(3, go, where, by)
            assert got == [wanted] * 3, f"tensor {where} differs by {by}: the spread is {got}"


# The whole


def test_a_training_is_the_same_on_any_number_of_ranks(impl):
    (alone,) = on_ranks(1, impl.train, 3, 7)
    assert len(alone) == 7, f"7 steps have {len(alone)} lines"
    for world_size in (2, 4):
        logs = on_ranks(world_size, impl.train, 3, 7)
        for rank, log in enumerate(logs):
            for step, (line, single) in enumerate(zip(log, alone, strict=True)):
                assert set(line) == set(single), f"step {step} of rank {rank} logs {sorted(line)}"
                for name, value in single.items():
                    assert math.isclose(line[name], value, rel_tol=1e-9, abs_tol=1e-9), (
                        f"{name} of step {step} is {line[name]:.7g} on rank {rank} of "
                        f"{world_size}, and {value:.7g} on one"
                    )


def test_a_training_takes_another_order_in_each_epoch(impl):
    (log,) = on_ranks(1, impl.train, 2, 3 * EPOCH)
    courses = [[line["data"] for line in log[i : i + EPOCH]] for i in range(0, 3 * EPOCH, EPOCH)]
    for one, other in itertools.combinations(range(3), 2):
        assert courses[one] != courses[other], f"epochs {one} and {other} have one order"
    for epoch in range(3):
        lines = log[epoch * EPOCH : (epoch + 1) * EPOCH]
        assert [line["samples"] for line in lines] == [66.0] * 4 + [36.0], (
            f"the steps of epoch {epoch} have {[line['samples'] for line in lines]} examples"
        )


def test_training_points_get_new_noise_in_each_epoch(impl):
    points = []

    def note(module, args):
        if torch.is_grad_enabled() and args and args[0].shape[1:] == (2,):
            points.extend(tuple(row) for row in args[0].tolist())

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        on_ranks(1, impl.train, 0, EPOCH)
        first = set(points)
        on_ranks(1, impl.train, 0, 2 * EPOCH)
    finally:
        handle.remove()
    assert len(first) == 300, f"the model is trained on {len(first)} different points, not 300"
    new = set(points) - first
    assert len(new) == 300, f"only {len(new)} of the 300 points of the second epoch are new"


def test_a_run_repeats_itself(impl, log):
    names = {"loss", "accuracy", "grad_norm", "samples", "data", "spread", "gap"}
    ends = {"val_loss", "val_accuracy", "val_balanced_accuracy"}
    scramble(5)
    with generators_unmoved("a run"):
        again = [dict(line) for line in impl.run(0, 6)]
    assert len(again) == 6, f"6 steps have {len(again)} lines"
    for step, (line, before) in enumerate(zip(again, log, strict=False)):
        wanted = names | ends if step in (4, 5) else names
        assert set(line) == wanted, f"step {step} logs {sorted(line)}"
        for name in set(line) & set(before):
            assert type(line[name]) is float, f"{name} is a {type(line[name]).__name__}"
            assert math.isclose(line[name], before[name], rel_tol=1e-9, abs_tol=1e-9), (
                f"{name} of step {step} is {line[name]} in a second run, not {before[name]}"
            )
    (other,) = (dict(line) for line in impl.run(1, 1))
    assert other["loss"] != log[0]["loss"], "seeds 0 and 1 start alike"
    assert ends <= set(other), "the only step of a run has no validation"


def test_a_run_leaves_its_readers_generator(impl):
    (*lines,) = read_with_draws(impl.run, 0, 2)
    assert len(lines) == 2


# Real processes


def scenario(impl, comm):
    """Return numbers that have to be those of simulated ranks; each collective takes its time."""
    import inspect

    import torch
    from torch import nn

    class SGD(torch.optim.SGD):
        """Without the wrappers that import torch._dynamo, which takes a second."""

        step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
        add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)

    rank = comm.get_rank()
    torch.manual_seed(rank)
    model = impl.DataParallel(nn.Linear(3, 3).double(), comm)
    optimizer = SGD(model.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(11, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (11,), generator=generator)
    sampler = impl.ShardedSampler(11, 6, rank, comm.get_world_size(), seed=2)
    batches = [(x[share], labels[share]) for share in sampler]
    numbers = [*impl.train_step(model, optimizer, batches, comm, 0.5).values()]
    numbers += impl.evaluate(model, x, labels, 3, comm).values()
    leaf = torch.tensor([1.0, 2.0 + rank], requires_grad=True)
    (impl.gather(leaf, comm).exp().sum() * (1 + rank)).backward()
    return [*numbers, *leaf.grad.tolist()]


# A process that forks the other, for to import torch twice would take as long as all tests.
WORKER = """
import importlib.util, json, os, sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
path, package, meeting, seen = sys.argv[1:]
sys.path.insert(0, package)
spec = importlib.util.spec_from_file_location("worker_impl", path)
impl = sys.modules["worker_impl"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(impl)
child = os.fork()
rank = int(not child)
dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
names = {}
exec(seen, names)
numbers = names["scenario"](impl, dist)
os.write(1, f"rank {rank} {json.dumps(numbers)}\\n".encode())
if child:
    os.waitpid(child, 0)
os._exit(0)
"""


@pytest.mark.skipif(
    not (hasattr(os, "fork") and torch.distributed.is_gloo_available()),
    reason="needs fork and torch.distributed with gloo, which this system does not have",
)
def test_real_processes_do_what_simulated_ranks_do(impl, tmp_path):
    package = str(Path(inspect.getfile(launch)).parents[2])
    meeting, source = str(tmp_path / "meeting"), inspect.getsource(scenario)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, impl.__file__, package, meeting, source],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        simulated = on_ranks(2, lambda comm: scenario(impl, comm))
        said = worker.communicate(timeout=60)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)  # the fork too
        worker.wait()
    for rank, wanted in enumerate(simulated):
        lines = [line for line in said.splitlines() if line.startswith(f"rank {rank} ")]
        assert lines, f"process {rank} ended without a result:\n{said[-1500:]}"
        got = json.loads(lines[0].removeprefix(f"rank {rank} "))
        for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9), (
                f"number {place} of rank {rank} is {a:.7g} in real processes, {b:.7g} in simulated"
            )
