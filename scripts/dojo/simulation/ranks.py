"""Ranks of a distributed run as threads of one process, for katas that train on several.

`launch(2, train)` calls `train(communicator)` once a rank. The communicator's methods have the
names, arguments and meaning of the functions of `torch.distributed`, so that the module itself can
be given in its place: https://docs.pytorch.org/docs/stable/distributed.html

One rank runs at a time, in order of rank, until it waits in a collective. A run is therefore the
same each time, and ranks that wait for each other for ever are found at once. As if each rank were
a process, it has the global generators of torch, NumPy and Python to itself: every rank finds them
as the caller left them, and the caller finds them so again.
"""

import ctypes
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ReduceOp

_Generators = tuple[Any, Any, Any]  # states, of torch's, NumPy's and Python's
_REDUCE: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    ReduceOp.SUM: torch.add,
    ReduceOp.PRODUCT: torch.mul,
    ReduceOp.MIN: torch.minimum,
    ReduceOp.MAX: torch.maximum,
}


class Deadlock(RuntimeError):
    """The ranks wait for each other, and none can go on."""


class Communicator:
    """One rank's connection to all ranks; `launch` makes it.

    Every rank has to make the same calls in the same order, with tensors of one shape and dtype.
    Autograd records none of them.
    """

    def __init__(self, rank: int, world_size: int, thread: "_RankThread") -> None:
        """Connect the rank that this thread runs."""
        self._rank = rank
        self._world_size = world_size
        self._thread = thread

    def get_rank(self) -> int:
        """Return this rank's number, from 0."""
        return self._rank

    def get_world_size(self) -> int:
        """Return how many ranks there are."""
        return self._world_size

    def all_reduce(self, tensor: Tensor, op: Any = ReduceOp.SUM) -> None:
        """Set `tensor` to the sum of all ranks' tensors, or their product, minimum or maximum."""
        if op not in _REDUCE:
            raise ValueError(f"all_reduce: expected SUM, PRODUCT, MIN or MAX, got {op}")
        gathered = self._thread.gather(_Call("all_reduce", tensor, _name(op)))
        _overwrite(tensor, reduce(_REDUCE[op], gathered))

    def all_gather(self, tensor_list: Sequence[Tensor], tensor: Tensor) -> None:
        """Write every rank's `tensor`, in order of rank, into the tensors of `tensor_list`."""
        if len(tensor_list) != self._world_size:
            found = len(tensor_list)
            raise ValueError(f"all_gather: expected {self._world_size} tensors, got {found}")
        if any(out.shape != tensor.shape or out.dtype != tensor.dtype for out in tensor_list):
            raise ValueError("all_gather: a tensor of the list has another shape or dtype")
        gathered = self._thread.gather(_Call("all_gather", tensor))
        for out, value in zip(tensor_list, gathered, strict=True):
            _overwrite(out, value)

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Set `tensor` to that of rank `src`."""
        if not 0 <= src < self._world_size:
            raise ValueError(f"broadcast: there is no rank {src}")
        gathered = self._thread.gather(_Call("broadcast", tensor, f"from rank {src}"))
        _overwrite(tensor, gathered[src])

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self._thread.gather(_Call("barrier", torch.empty(0)))


def launch(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(communicator, *args)` on every rank, and return the results by rank.

    Raises what a rank raises, with a note that says which rank, and `Deadlock` where ranks wait in
    different calls, or for one that has ended.
    """
    before = _generators()
    ranks = [_RankThread(rank, world_size, function, args) for rank in range(world_size)]
    gathered: list[Tensor] = []
    try:
        while True:
            for rank in ranks:
                rank.go_on(gathered)
            waiting = [rank.waits_in for rank in ranks if rank.waits_in]
            if not waiting:
                return [rank.result for rank in ranks]
            if len(waiting) < world_size or len({str(call) for call in waiting}) > 1:
                raise Deadlock(f"no rank can go on: {'; '.join(map(str, ranks))}")
            gathered = [call.tensor.detach().clone() for call in waiting]
    finally:
        for rank in ranks:
            rank.stop()
        _set_generators(before)


@dataclass(frozen=True)
class _Call:
    """A collective in which a rank waits; two that go together read the same."""

    name: str
    tensor: Tensor
    option: str = ""  # the operation, or the source

    def __str__(self) -> str:
        shape = "x".join(map(str, self.tensor.shape)) or "()"
        told = f"{str(self.tensor.dtype).removeprefix('torch.')} {shape}"
        return f"{self.name}({told}{', ' if self.option else ''}{self.option})"


class _Stopped(BaseException):
    """Ends a rank that nobody waits for; not an `Exception`, so that no code swallows it."""


class _RankThread:
    """One rank: its thread, which runs when it is told to and until it waits for the others."""

    def __init__(
        self, rank: int, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self._name = f"rank {rank}"
        self._turn = threading.Semaphore(0)
        self._paused = threading.Semaphore(0)
        self._stopped = False
        self._cores = torch.get_num_threads()
        self._calls = 0
        self._gathered: list[Tensor] = []
        self._error: BaseException | None = None
        self.result: Any = None
        self.waits_in: _Call | None = None
        communicator = Communicator(rank, world_size, self)
        self._thread = threading.Thread(
            target=self._run, args=(_generators(), function, communicator, *args), daemon=True
        )
        self._thread.start()

    def __str__(self) -> str:
        if not self.waits_in:
            return f"{self._name} has ended"
        return f"{self._name} waits in {self.waits_in}, its call {self._calls}"

    def _run(self, generators: _Generators, function: Callable[..., Any], *args: Any) -> None:
        try:
            torch.set_num_threads(self._cores)  # a new thread would take all there are
            self._wait_for_turn(generators)
            self.result = function(*args)
        except BaseException as error:
            self._error = error
        finally:
            self._paused.release()

    def gather(self, call: _Call) -> list[Tensor]:
        """Wait until every rank has made this call, and return their tensors by rank."""
        self._calls += 1
        self.waits_in = call
        generators = _generators()
        self._paused.release()
        self._wait_for_turn(generators)
        return self._gathered

    def _wait_for_turn(self, generators: _Generators) -> None:
        self._turn.acquire()
        if self._stopped:
            raise _Stopped
        _set_generators(generators)

    def go_on(self, gathered: list[Tensor]) -> None:
        """Run until it waits again or ends, with what the call gathered that it waits in."""
        self._gathered, self.waits_in = gathered, None
        self._turn.release()
        self._paused.acquire()
        if self._error:
            self._error.add_note(f"on {self._name}")
            raise self._error

    def stop(self) -> None:
        """End it wherever it is, in an endless loop too: what runs next needs the time."""
        self._stopped = True
        self._turn.release()
        self._thread.join(0.1)
        if self._thread.is_alive() and self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(_Stopped)
            )


def _name(op: Any) -> str:
    return str(op).rpartition(".")[2]


def _overwrite(tensor: Tensor, value: Tensor) -> None:
    tensor.data.copy_(value)  # unseen by autograd, as a collective of torch.distributed is


def _generators() -> _Generators:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_generators(states: _Generators) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
