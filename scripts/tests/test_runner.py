"""Whatever the code under test does ends in a verdict, and never touches the next run."""

import threading
import time
from pathlib import Path

import pytest

from dojo.results import Outcome, Status
from dojo.runner import Limits, Runner

SHIFT = "\n\ndef shift(x, offset):\n    return x + offset\n"
# Fails to load where an earlier run left torch or the environment changed.
CLEAN = """
import os, torch
assert torch.get_default_dtype() == torch.float32
assert os.environ.get("TRITON_INTERPRET") != "0"
assert torch.mul(torch.ones(1), 2).item() == 2
"""
GOOD = "def scale(x, factor):\n    return x * factor\n" + SHIFT


def when_called(body):
    return f"def scale(x, factor):\n    {body}\n    return x * factor\n{SHIFT}"


def when_loaded(body):
    return f"{GOOD}\n{body}\n"


HOSTILE = {
    "good": (GOOD, Status.PASSED, ""),
    "wrong": (GOOD.replace("*", "+"), Status.FAILED, "5 times 2.0 is"),
    "syntax": ("def f(:\n", Status.BROKEN, "line 1: SyntaxError"),
    "no function": (SHIFT, Status.FAILED, "has no 'scale'"),
    "loop at load": (when_loaded("while True: pass"), Status.BROKEN, "still running after 2 s"),
    "loop in a call": (when_called("while True: pass"), Status.FAILED, "still running after 2 s"),
    "loop that swallows": (
        when_called("while True:\n        try: pass\n        except Exception: pass"),
        Status.FAILED,
        "still running after 2 s",
    ),
    "loop in C": (
        when_called("sum(range(10**12))"),
        Status.TIMEOUT,
        "stopped after 6 s",
    ),
    "os._exit at load": (when_loaded("import os; os._exit(0)"), Status.BROKEN, "os._exit(0)"),
    "os._exit in a call": (when_called("import os; os._exit(0)"), Status.FAILED, "os._exit(0)"),
    "sys.exit": (when_called("import sys; sys.exit(0)"), Status.FAILED, "SystemExit"),
    "segfault": (when_called("import ctypes; ctypes.string_at(0)"), Status.CRASHED, "SIGSEGV"),
    "kill -9": (when_called("import os; os.kill(os.getpid(), 9)"), Status.CRASHED, "SIGKILL"),
    "memory": (
        when_called("hoard = [bytearray(10**8) for _ in range(1000)]"),
        Status.FAILED,
        "MemoryError",
    ),
    "memory of a tensor": (
        when_called("import torch; torch.ones(10**10)"),
        Status.FAILED,
        "can't allocate memory",
    ),
    "flood": (when_called("while True: print('x' * 10**5)"), Status.FAILED, "more than 16 MB"),
    "flood of the descriptor": (
        when_called("import os\n    while True: os.write(1, b'x' * 10**6)"),
        Status.FAILED,
        "more than 16 MB",
    ),
    "every descriptor closed": (
        when_called("import os; os.closerange(0, 256)"),
        Status.CRASHED,
        "ended",
    ),
    "a thread left running": (
        when_loaded(
            "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()"
        ),
        Status.PASSED,
        "",
    ),
    "a process left running": (
        when_loaded("import os, time\nif os.fork() == 0: time.sleep(99)"),
        Status.PASSED,
        "",
    ),
    "torch changed": (
        when_loaded(
            "import os, torch; torch.set_default_dtype(torch.float64); torch.mul = None; "
            "os.environ['TRITON_INTERPRET'] = '0'"
        ),
        Status.PASSED,
        "",
    ),
    "the random module patched": (
        when_loaded("import random; random.seed = None"),
        Status.BROKEN,
        "not callable",
    ),
}


def test_every_hostile_file_gets_its_verdict_and_none_touches_the_next(runner, kata, tmp_path):
    path = tmp_path / "solution.py"
    verdicts = {}
    for name, (text, status, _) in HOSTILE.items():
        path.write_text(text)
        result = runner.run(kata, str(path))
        verdicts[name] = (result.status, result.detail)
        assert result.status == status, f"{name}: {result.status}: {result.detail}"
        path.write_text(GOOD + CLEAN)
        assert runner.run(kata, str(path)).status == Status.PASSED, f"after {name}"
    wrong = {name for name, (_, detail) in verdicts.items() if HOSTILE[name][2] not in detail}
    assert not wrong, {name: verdicts[name] for name in wrong}


def test_a_result_says_what_each_test_did_and_which_text_it_judged(runner, kata):
    result = runner.run(kata)
    assert [(test.name, test.outcome) for test in result.tests] == [
        ("test_scale[2.0]", Outcome.FAILED),
        ("test_scale[3.0]", Outcome.FAILED),
        ("test_shift", Outcome.PASSED),
    ]
    assert all(test.seconds >= 0 for test in result.tests)
    first = result.revision
    kata.botched.write_text(kata.correct_source)
    assert runner.run(kata).revision != first
    assert runner.run(kata, "reference").revision == runner.run(kata).revision


def test_a_cold_run_gives_the_same_results(runner, project, kata, tmp_path):
    path = tmp_path / "solution.py"
    with Runner(project, Limits(test_seconds=2.0, run_seconds=20.0), warm=False) as cold:
        for name in ("good", "wrong", "syntax", "loop in a call", "kill -9"):
            path.write_text(HOSTILE[name][0])
            results = [runner.run(kata, str(path), seed=1), cold.run(kata, str(path), seed=1)]
            warm_run, cold_run = [
                (r.status, r.detail, r.revision, [(t.name, t.outcome, t.message) for t in r.tests])
                for r in results
            ]
            assert warm_run == cold_run


def test_a_cold_run_can_be_cancelled(project, kata):
    kata.botched.write_text(when_loaded("import time; time.sleep(60)"))
    with Runner(project, Limits(test_seconds=60.0), warm=False) as cold:
        threading.Timer(1, cold.cancel).start()
        started = time.monotonic()
        assert cold.run(kata).status == Status.CANCELLED
        assert time.monotonic() - started < 10


def test_tests_can_be_selected(runner, kata):
    result = runner.run(kata, select=["test_shift"])
    assert [test.name for test in result.tests] == ["test_shift"]


def test_a_run_can_be_cancelled_and_the_next_one_works(runner, kata):
    runner.run(kata)  # warm
    kata.botched.write_text(when_called("import time; time.sleep(60)"))
    threading.Timer(0.3, runner.cancel).start()
    started = time.monotonic()
    assert runner.run(kata).status == Status.CANCELLED
    assert time.monotonic() - started < 2
    runner.cancel()  # nothing runs: no harm
    kata.botched.write_text(GOOD)
    assert runner.run(kata).status == Status.PASSED


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts through /proc")
def test_many_runs_leave_nothing_behind(runner, kata):
    runner.run(kata)
    server = runner._transport.process.pid

    def held():
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        pages = int(Path(f"/proc/{server}/statm").read_text().split()[1])
        return len(list(Path(f"/proc/{server}/fd").iterdir())), len(children), pages

    before = held()
    for _ in range(30):
        runner.run(kata)
    descriptors, children, pages = held()
    assert (descriptors, children) == before[:2]
    assert pages - before[2] < 2_000  # 8 MB


def test_closing_ends_the_warm_process(runner, kata):
    runner.run(kata)
    runner.close()
    assert runner._transport.process.returncode == 0
