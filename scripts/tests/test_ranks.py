"""Ranks as threads: their collectives, their turns, and how they end."""

import random
import signal
import threading

import numpy as np
import pytest
import torch
from torch.distributed import ReduceOp

from dojo.simulation.ranks import Deadlock, launch


def on_two(function):
    return launch(2, function)


def test_collectives_give_every_rank_what_torch_distributed_gives():
    def train(comm):
        total = torch.tensor([4.0, 7.0])[comm.get_rank() : comm.get_rank() + 1].clone()
        comm.all_reduce(total)
        greatest = torch.tensor([comm.get_rank()])
        comm.all_reduce(greatest, op=ReduceOp.MAX)
        gathered = [torch.zeros(2) for _ in range(comm.get_world_size())]
        comm.all_gather(gathered, torch.full((2,), float(comm.get_rank())))
        chosen = torch.tensor([comm.get_rank()])
        comm.broadcast(chosen, src=1)
        comm.barrier()
        return total.item(), greatest.item(), torch.stack(gathered).tolist(), chosen.item()

    assert on_two(train) == [(11.0, 1, [[0.0, 0.0], [1.0, 1.0]], 1)] * 2


def test_a_backward_pass_may_call_a_collective():
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, comm):
            ctx.comm = comm
            total = x.detach().clone()
            comm.all_reduce(total)
            return total

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            ctx.comm.all_reduce(grad)
            return grad, None

    def gradient(comm):
        x = torch.ones(2, requires_grad=True)
        ((comm.get_rank() + 1) * Sum.apply(x, comm)).sum().backward()
        return x.grad.tolist()

    assert on_two(gradient) == [[3.0, 3.0]] * 2


def test_a_collective_is_unseen_by_autograd():
    def gradient(comm):
        x = torch.full((1,), 2.0, requires_grad=True)
        y = x * x
        comm.all_reduce(x)
        y.backward()
        return x.item(), x.grad.item()

    # As with two real processes: the value that was saved is the one that the call overwrote.
    assert on_two(gradient) == [(4.0, 8.0)] * 2


def test_every_rank_has_the_global_generators_to_itself():
    def draw(comm):
        drawn = []
        for _ in range(2):
            drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))
            comm.barrier()
        return drawn

    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    first, second = on_two(draw)
    after = (torch.rand(()).item(), np.random.rand(), random.random())

    assert first == second
    assert first[0] != first[1]
    assert after == first[0]


def test_a_rank_computes_on_as_many_cores_as_its_caller():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert on_two(lambda comm: torch.get_num_threads()) == [1, 1]
    finally:
        torch.set_num_threads(before)


def ends_early(comm):
    if comm.get_rank() == 1:
        comm.all_reduce(torch.ones(3, 2))


def takes_another_way(comm):
    if comm.get_rank() == 1:
        comm.barrier()
    else:
        comm.broadcast(torch.ones(1), 0)


def has_another_shape(comm):
    comm.all_reduce(torch.ones(comm.get_rank() + 1))


def has_another_dtype(comm):
    comm.all_reduce(torch.ones(1, dtype=[torch.int64, torch.float16][comm.get_rank()]))


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (ends_early, "has ended", "waits in all_reduce(float32 3x2, SUM), its call 1"),
        (takes_another_way, "waits in broadcast(float32 1, from rank 0)", "waits in barrier("),
        (has_another_shape, "waits in all_reduce(float32 1, SUM)", "waits in all_reduce(float32 2"),
        (has_another_dtype, "waits in all_reduce(int64 1, SUM)", "waits in all_reduce(float16 1"),
    ],
)
def test_a_deadlock_says_who_waits_for_what(function, first, second):
    with pytest.raises(Deadlock) as caught:
        on_two(function)
    assert f"rank 0 {first}" in str(caught.value)
    assert f"; rank 1 {second}" in str(caught.value)
    assert not waiting_ranks()


def waiting_ranks():
    for thread in threading.enumerate():
        if thread.daemon:
            thread.join(5)
    return [thread for thread in threading.enumerate() if thread.daemon and thread.is_alive()]


def test_an_error_says_on_which_rank_and_ends_the_others():
    def fail(comm):
        if comm.get_rank() == 1:
            raise ValueError("no such shard")
        comm.barrier()

    with pytest.raises(ValueError, match="no such shard") as caught:
        on_two(fail)
    assert caught.value.__notes__ == ["on rank 1"]
    assert not waiting_ranks()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
def test_an_endless_loop_of_a_rank_ends_with_the_run():
    def loop(comm):
        while comm.get_rank() >= 0:
            pass

    def stop(*_):
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(TimeoutError):
            on_two(loop)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert not waiting_ranks()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda comm: comm.all_reduce(torch.ones(1), op=ReduceOp.BAND), "expected SUM, PRODUCT"),
        (lambda comm: comm.all_gather([torch.ones(1)], torch.ones(1)), "expected 2 tensors, got 1"),
        (lambda comm: comm.all_gather([torch.ones(1)] * 2, torch.ones(2)), "another shape"),
        (lambda comm: comm.broadcast(torch.ones(1), src=2), "there is no rank 2"),
    ],
)
def test_a_call_that_cannot_work_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        on_two(call)
