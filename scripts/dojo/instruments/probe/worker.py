"""The process that a learner's file runs in while it is probed.

`python -m dojo.instruments.probe.worker` takes a request as JSON on standard input and answers with
the facts. It is killed from outside where the file takes too long, so it keeps nothing.
"""

import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from dojo.instruments.probe import naming
from dojo.instruments.probe.facts import Facts, Source
from dojo.instruments.probe.hooks import Hooks
from dojo.instruments.probe.order import Order
from dojo.runner import worker
from dojo.testrun import guards
from dojo.testrun.loading import explain_load_error, is_implementation, load_module, place_of
from dojo.testrun.results import Outcome, TestResult

_PATIENCE = 10.0  # seconds of processor time for a `run()` that is not told how many steps to take


def main() -> None:
    """Probe what standard input asks for."""
    order = Order(**json.loads(sys.stdin.buffer.readline()))
    worker.silence_input()
    answers = worker.silenced_output()
    torch.set_num_threads(1)
    worker.limit_memory(order.memory_bytes)
    try:
        facts = probed(order)
        answers.write(json.dumps(facts.to_json()).encode() + b"\n")
        answers.flush()
    except BaseException:
        worker.exit_process(70)
    worker.exit_process(0)


def probed(order: Order) -> Facts:
    """Return the facts of the file's own run, or of the kata's tests where it has none."""
    with Hooks() as hooks:
        path = Path(order.path)
        try:
            with guards.contained(order.run_seconds):
                module = load_module(path, f"kata_{Path(order.folder).name}", path.read_bytes())
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            return Facts(Source.RUN, 0, [], [], [], error=explain_load_error(error, path))
        if callable(getattr(module, "run", None)):
            return _of_run(order, module, hooks)
        return _of_tests(order, hooks)


def _of_run(order: Order, module: ModuleType, hooks: Hooks) -> Facts:
    """Return the facts of the file's own run."""
    arguments = {"seed": order.seed}
    if order.steps is not None:
        arguments["steps"] = order.steps
    ended, cut, error = 0, False, ""
    deadline = time.process_time() + _PATIENCE
    log = None
    try:
        with guards.contained(order.run_seconds):
            log = iter(module.run(**arguments))
            for _ in log:
                ended += 1
                hooks.step = ended + 1
                if order.steps is None and time.process_time() > deadline:
                    cut = True
                    break
    except (Exception, SystemExit, pytest.fail.Exception) as raised:
        error = _explained(raised)
    modules, parameters = naming.modules_and_parameters(hooks)
    optimizers = naming.optimizers(hooks)
    return Facts(
        Source.RUN, ended, modules, parameters, optimizers, hooks.drops_outside, cut, error
    )


def _explained(error: BaseException) -> str:
    if isinstance(error, pytest.fail.Exception):  # of the guards: it says it all
        return str(error)
    return f"{type(error).__name__}{place_of(error)}: {error}"


def _of_tests(order: Order, hooks: Hooks) -> Facts:
    """Return the facts of the modules of the file that the kata's tests call."""
    gathering = _Gathering(hooks)
    pytest.main(
        [
            # Where it runs: in a whole path pytest takes brackets for parameters.
            os.path.relpath(order.folder, order.root),
            "--rootdir=.",
            f"--impl={order.path}",
            f"--kata-seed={order.seed}",
            f"--kata-timeout={order.test_seconds}",
            "--kata-no-history",
            "-q",
            "-pno:cacheprovider",
            "-pno:faulthandler",
        ],
        plugins=[gathering],
    )
    found = gathering.gathered
    return Facts(
        Source.TESTS,
        gathering.tests,
        found.modules,
        found.parameters,
        [],
        error=gathering.error,
    )


class _Gathering:
    """A pytest plugin that takes in what the hooks have noted, test by test."""

    def __init__(self, hooks: Hooks) -> None:
        self.gathered = naming.Gathered()
        self.tests = 0
        self.error = ""
        self._hooks = hooks

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, None, None]:
        self._hooks.forget()
        try:
            yield
        finally:
            self.gathered.add(self._hooks, _is_of_a_kata)
            self._hooks.forget()
            self.tests += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        sent = getattr(report, "kata", None)
        result = TestResult.from_json(sent["result"]) if sent else None
        if result and result.outcome is Outcome.ERROR and not self.error:
            self.error = result.message


def _is_of_a_kata(model: nn.Module) -> bool:
    """Say whether a model is the learner's, and not one of torch that a test compares with."""
    return is_implementation(sys.modules.get(type(model).__module__))


if __name__ == "__main__":
    main()
