"""Whatever a system does, its log comes as far as it went, and says why it went no further."""

import os
import select
import time
from dataclasses import replace

import pytest

from dojo.runner.log import LogReader, Printed, Step, ended_line, step_line
from dojo.runner.protocol import END
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Planted, Reference
from dojo.testrun.limits import Limits
from dojo.testrun.results import Verdict

LIMITS = Limits(test_seconds=0.7, run_seconds=3.0, memory_gb=0.25)
SYSTEM = """
def run(seed=0, steps=None):
    for step in range(1, (steps or 4) + 1):
        if step == 3:
            {}
        yield {{"loss": seed + 1 / step}}
"""
NUMBERS = [1.0, 0.5, 1 / 3, 0.25]


def at_step_3(statement):
    return SYSTEM.format(statement), 2


# What the file has: its text, how many steps are logged, and what is said of its end.
HOSTILE = {
    "exception": (*at_step_3("1 / 0"), "step 3: ZeroDivisionError in run, line 5: division by"),
    "loop": (*at_step_3("while True: pass"), "step 3: still running after 0.7 s: an endless loop?"),
    "loop that swallows": (
        *at_step_3(
            "while True:\n                try: pass\n                except Exception: pass"
        ),
        "step 3: still running after 0.7 s",
    ),
    "loop in C": (*at_step_3("sum(range(10**12))"), "step 3: stopped after 3 s in all"),
    "sleep": (*at_step_3("import time; time.sleep(60)"), "step 3: still running after 0.7 s"),
    "os._exit": (*at_step_3("import os; os._exit(0)"), "step 3: the code called os._exit(0)"),
    "sys.exit": (*at_step_3("import sys; sys.exit(0)"), "step 3: SystemExit in run, line 5: 0"),
    "segfault": (*at_step_3("import ctypes; ctypes.string_at(0)"), "step 3: the process was ended"),
    "kill -9": (*at_step_3("import os; os.kill(os.getpid(), 9)"), "by SIGKILL: out of memory?"),
    "memory": (*at_step_3("x = [bytearray(10**8) for _ in range(1000)]"), "step 3: MemoryError"),
    "flood": (*at_step_3("while True: print('x' * 10**5)"), "step 3: the code printed more than"),
    "flood of one line": (
        *at_step_3("import os\n            while True: os.write(2, b'x' * 10**6)"),
        "step 3: the code printed more than 16 MB",
    ),
    "every descriptor closed": (
        *at_step_3("import os; os.closerange(0, 256)"),
        "step 3: the process ended itself (exit code 70) before the run was through",
    ),
    "a list": (*at_step_3("yield [1.0]"), "step 3: run() yields list; it has to be a dict"),
    "no number": (*at_step_3("yield {'loss': 'low'}"), "step 3: 'loss' is str; it has to be a"),
    "a tensor of three": (
        *at_step_3("import torch; yield {'loss': torch.zeros(3)}"),
        "step 3: 'loss' is Tensor of shape (3,); it has to be a number",
    ),
    "no steps": ("def run(seed, steps):\n    yield from ()\n", 0, "without logging a step"),
    "no generator": ("def run(seed, steps):\n    pass\n", 0, "step 1: run() returned NoneType"),
    "no seed": ("def run(steps):\n    pass\n", 0, "step 1: TypeError: run() got an unexpected"),
    "no run": ("def train(): pass\n", 0, "botched.py has no 'run', which the brief asks for"),
    "syntax": ("def f(:\n", 0, "botched.py, line 1: SyntaxError"),
    "loop at load": ("while True: pass\n", 0, "botched.py, line 1: TimedOut: still running after"),
}


@pytest.fixture
def log_runner(project):
    with Runner(project, LIMITS) as runner:
        yield runner


@pytest.fixture
def cold(project):
    # The time of a cold run counts the import of torch too.
    with Runner(project, replace(LIMITS, run_seconds=15.0), warm=False) as runner:
        yield runner


def losses(log):
    return [step["loss"] for step in log.steps]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_that_ends_early_says_why(kata, log_runner, name):
    source, steps, failure = HOSTILE[name]
    kata.botched.write_text(source)
    log = log_runner.log(kata)
    assert losses(log) == NUMBERS[:steps]
    assert failure in log.failure
    kata.botched.write_text(SYSTEM.format("pass"))
    after = log_runner.log(kata, seed=2, steps=3)
    assert (after.failure, len(after.steps), after.steps[0]) == ("", 3, {"loss": 3.0})


COLD = ("exception", "loop in C", "flood", "kill -9")


@pytest.mark.slow
@pytest.mark.parametrize("name", COLD)
def test_a_cold_run_says_the_same(kata, cold, name):
    source, steps, failure = HOSTILE[name]
    kata.botched.write_text(source)
    log = cold.log(kata)
    assert losses(log) == NUMBERS[:steps]
    assert failure.replace("3 s", "15 s") in log.failure


def test_what_is_printed_stands_among_the_steps_in_order(kata, log_runner):
    kata.botched.write_text(
        "import os, sys, warnings\n"
        "def run(seed, steps):\n"
        "    print('begins')\n"
        "    yield {'loss': 2}\n"
        "    print('no', 'end', end='')\n"
        "    yield {'loss': 1}\n"
        "    print('an error', file=sys.stderr)\n"
        "    os.write(1, 'späte Bytes\\n'.encode())\n"
        "    yield {'loss': float('nan')}\n"
        "    print('\\x1e{not json}')\n"
        "    print('last', end='')\n"
    )
    events = []
    log = log_runner.log(kata, tell=events.append)
    assert log.failure == ""
    told = [e.line if isinstance(e, Printed) else e.numbers["loss"] for e in events]
    assert told[:5] == ["begins", 2, "no end", 1, "an error"]
    assert told[5] == "späte Bytes"
    assert told[6] != told[6]
    assert told[7:] == ["\x1e{not json}", "last"]


def test_steps_are_told_as_they_come(kata, log_runner):
    kata.botched.write_text(SYSTEM.format("import time; time.sleep(0.4)"))
    times = []
    log_runner.log(kata, tell=lambda _: times.append(time.monotonic()))
    assert times[2] - times[1] > 0.3


def test_a_run_is_stopped_by_whoever_hears_it(kata, log_runner):
    kata.botched.write_text(SYSTEM.format("while True: pass"))

    def tell(event):
        if event.numbers["loss"] == 0.5:
            log_runner.cancel()

    log = log_runner.log(kata, tell=tell)
    assert (log.failure, losses(log)) == ("cancelled", NUMBERS[:2])
    assert log.seconds < 0.5
    assert log_runner.log(kata, Reference()).failure.endswith("which the brief asks for")


def test_what_a_run_leaves_running_ends_with_it(kata, log_runner):
    pipe = kata.folder / "pipe"
    os.mkfifo(pipe)
    # The far end of the pipe is open for as long as the process that is left runs.
    near = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    kata.botched.write_text(
        "import os, time\n"
        "def run(seed, steps):\n"
        f"    far = os.open({str(pipe)!r}, os.O_WRONLY)\n"
        "    if os.fork() == 0: time.sleep(99)\n"
        "    yield {'loss': 1}\n"
    )
    started = time.monotonic()
    assert log_runner.log(kata).failure == ""
    ready, _, _ = select.select([near], [], [], 10)
    assert ready
    assert os.read(near, 1) == b""
    os.close(near)
    assert time.monotonic() - started < 10


def test_generators_are_seeded_and_one_thread_runs(kata, log_runner):
    kata.botched.write_text(
        "import random, numpy, torch\n"
        "def run(seed, steps):\n"
        "    yield {'threads': torch.get_num_threads(), 'python': random.random(),\n"
        "           'numpy': numpy.random.rand(), 'torch': torch.rand(())}\n"
    )
    one, same, other = (log_runner.log(kata, seed=seed).steps[0] for seed in (5, 5, 6))
    assert one == same
    assert one["threads"] == 1
    assert all(one[name] != other[name] for name in ("python", "numpy", "torch"))


def test_tests_and_logs_take_turns(kata, log_runner):
    system = SYSTEM.format("pass")
    kata.botched.write_text(kata.correct_source + system)
    assert log_runner.log(kata).failure == ""
    assert log_runner.run(kata).verdict is Verdict.PASSED
    assert log_runner.log(kata).failure == ""
    assert log_runner.run(kata, Planted(("divides",))).verdict is Verdict.FAILED
    assert "has no 'run'" in log_runner.log(kata, Planted(("divides",))).failure


def test_a_log_is_put_together_from_pieces_cut_anywhere():
    text = (
        b"a print" + step_line({"loss": 1.5}) + "ä\n".encode() + ended_line("it is") + END
    ).decode()
    for size in (1, 2, 7, len(text)):
        events = []
        reader = LogReader(events.append)
        for start in range(0, len(text), size):
            reader.feed(text[start : start + size])
        reader.close()
        assert events == [Printed("a print"), Step({"loss": 1.5}), Printed("ä")]
        assert (reader.steps, reader.failure) == ([{"loss": 1.5}], "it is")
