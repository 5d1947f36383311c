"""Has a learner's file probed in a process of its own."""

from dojo.errors import DojoError
from dojo.instruments.probe.facts import Facts
from dojo.instruments.probe.order import Order
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner import isolated
from dojo.runner.protocol import ended
from dojo.testrun.limits import Limits

_START = 15.0  # seconds, for torch to be imported on a busy machine


def probe(
    project: Project,
    kata: Kata,
    *,
    seed: int = 0,
    steps: int | None = None,
    limits: Limits | None = None,
) -> Facts:
    """Return what was seen as the learner's file ran; `error` says what ended it, if anything did.

    A system's `run(seed, steps)` runs, for a few seconds where no steps are given; of any other
    kata the tests do. `DojoError` where the process told nothing.
    """
    limits = limits or Limits.from_environment()
    order = Order(
        root=str(project.root),
        folder=str(kata.folder),
        path=str(kata.botched),
        seed=seed,
        steps=steps,
        test_seconds=limits.test_seconds,
        run_seconds=limits.run_seconds,
        memory_bytes=int(limits.memory_gb * 2**30),
    )
    told = isolated.ask(
        project, "dojo.instruments.probe.worker", order.to_json(), limits.run_seconds + _START
    )
    if told.message is not None:
        return Facts.from_json(told.message)
    if told.timed_out:
        raise DojoError(
            f"{kata.name}: stopped after {told.seconds:.0f} s, before anything could be told: an "
            "endless loop in C code?"
        )
    raise DojoError(f"{kata.name}: nothing to show: {ended(told.status)}")
