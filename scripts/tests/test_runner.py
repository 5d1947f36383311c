"""Whatever the code under test does ends in a verdict, and never touches the next run."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from dojo.errors import DojoError
from dojo.runner.pool import runner_pool
from dojo.runner.runner import Runner
from dojo.testrun.device import cores
from dojo.testrun.implementation import Reference, Solution
from dojo.testrun.limits import Limits
from dojo.testrun.results import Outcome, Verdict

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
    "good": (GOOD, Verdict.PASSED, ""),
    "wrong": (GOOD.replace("*", "+"), Verdict.FAILED, "5 times 2.0 is"),
    "syntax": ("def f(:\n", Verdict.BROKEN, "line 1: SyntaxError"),
    "no function": (SHIFT, Verdict.FAILED, "has no 'scale'"),
    "loop at load": (when_loaded("while True: pass"), Verdict.BROKEN, "still running after 2 s"),
    "loop in a call": (when_called("while True: pass"), Verdict.FAILED, "still running after 2 s"),
    "loop that swallows": (
        when_called("while True:\n        try: pass\n        except Exception: pass"),
        Verdict.FAILED,
        "still running after 2 s",
    ),
    "loop in C": (
        when_called("sum(range(10**12))"),
        Verdict.TIMEOUT,
        "stopped after 12 s",
    ),
    "os._exit at load": (when_loaded("import os; os._exit(0)"), Verdict.BROKEN, "os._exit(0)"),
    "os._exit in a call": (when_called("import os; os._exit(0)"), Verdict.FAILED, "os._exit(0)"),
    "sys.exit": (when_called("import sys; sys.exit(0)"), Verdict.FAILED, "SystemExit"),
    "segfault": (when_called("import ctypes; ctypes.string_at(0)"), Verdict.CRASHED, "SIGSEGV"),
    "kill -9": (when_called("import os; os.kill(os.getpid(), 9)"), Verdict.CRASHED, "SIGKILL"),
    "memory": (
        when_called("hoard = [bytearray(10**8) for _ in range(1000)]"),
        Verdict.FAILED,
        "MemoryError",
    ),
    "memory of a tensor": (
        when_called("import torch; torch.ones(10**10)"),
        Verdict.FAILED,
        "can't allocate memory",
    ),
    "flood": (when_called("while True: print('x' * 10**5)"), Verdict.FAILED, "more than 16 MB"),
    "flood of the descriptor": (
        when_called("import os\n    while True: os.write(1, b'x' * 10**6)"),
        Verdict.FAILED,
        "more than 16 MB",
    ),
    "every descriptor closed": (
        when_called("import os; os.closerange(0, 256)"),
        Verdict.CRASHED,
        "ended",
    ),
    "a thread left running": (
        when_loaded(
            "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()"
        ),
        Verdict.PASSED,
        "",
    ),
    "a process left running": (
        when_loaded("import os, time\nif os.fork() == 0: time.sleep(99)"),
        Verdict.PASSED,
        "",
    ),
    "torch changed": (
        when_loaded(
            "import os, torch; torch.set_default_dtype(torch.float64); torch.mul = None; "
            "os.environ['TRITON_INTERPRET'] = '0'"
        ),
        Verdict.PASSED,
        "",
    ),
    "the random module patched": (
        when_loaded("import random; random.seed = None"),
        Verdict.BROKEN,
        "not callable",
    ),
}


@pytest.mark.slow
def test_every_hostile_file_gets_its_verdict_and_none_touches_the_next(runner, kata, tmp_path):
    path = tmp_path / "solution.py"
    verdicts = {}
    for name, (text, status, _) in HOSTILE.items():
        path.write_text(text)
        result = runner.run(kata, Solution(path))
        verdicts[name] = (result.verdict, result.detail)
        assert result.verdict == status, f"{name}: {result.verdict}: {result.detail}"
        path.write_text(GOOD + CLEAN)
        assert runner.run(kata, Solution(path)).verdict == Verdict.PASSED, f"after {name}"
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
    assert runner.run(kata, seed=7).seed == 7
    first = result.revision
    kata.botched.write_text(kata.correct_source)
    assert runner.run(kata).revision != first
    assert runner.run(kata, Reference()).revision == runner.run(kata).revision


@pytest.mark.slow
def test_a_cold_run_gives_the_same_results(project, kata, tmp_path):
    path = tmp_path / "solution.py"
    limits = Limits(test_seconds=2.0, run_seconds=20.0)
    with (
        Runner(project, limits, processes=1) as runner,
        Runner(project, limits, warm=False) as cold,
    ):
        for name in ("good", "wrong", "syntax", "loop in a call", "kill -9"):
            path.write_text(HOSTILE[name][0])
            results = [
                runner.run(kata, Solution(path), seed=1),
                cold.run(kata, Solution(path), seed=1),
            ]
            warm_run, cold_run = [
                (r.verdict, r.detail, r.revision, [(t.name, t.outcome, t.message) for t in r.tests])
                for r in results
            ]
            assert warm_run == cold_run


def test_a_cold_run_can_be_cancelled(project, kata):
    kata.botched.write_text(when_loaded("import time; time.sleep(60)"))
    with Runner(project, Limits(test_seconds=60.0), warm=False) as cold:
        threading.Timer(1, cold.cancel).start()
        started = time.monotonic()
        assert cold.run(kata).verdict == Verdict.CANCELLED
        assert time.monotonic() - started < 10


@pytest.mark.slow
def test_an_edited_test_file_is_collected_anew(runner, kata):
    assert runner.run(kata, Reference()).verdict == Verdict.PASSED
    text = kata.tests.read_text()
    kata.tests.write_text(text + "\n\ndef test_more(impl):\n    assert impl.scale(1, 1) == 2\n")
    assert runner.run(kata, Reference()).verdict == Verdict.FAILED
    kata.tests.write_text("import nothing_of_this_name\n")
    assert "nothing_of_this_name" in runner.run(kata, Reference()).detail
    kata.tests.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    assert runner.run(kata, Reference()).verdict == Verdict.CRASHED
    kata.tests.write_text("while True: pass\n")
    assert runner.run(kata, Reference()).verdict == Verdict.TIMEOUT
    kata.tests.unlink()
    with pytest.raises(DojoError, match="is missing"):
        runner.run(kata, Reference())
    kata.tests.write_text(text)
    assert runner.run(kata, Reference()).verdict == Verdict.PASSED


def test_what_one_run_prints_is_not_shown_by_the_next(runner, kata):
    kata.botched.write_text(when_called("import os; print('from before'); os.kill(os.getpid(), 9)"))
    assert runner.run(kata).verdict == Verdict.CRASHED
    kata.tests.write_text(
        "def test_output(impl, capfd):\n"
        "    impl.scale(1, 1)\n"
        "    assert not any(capfd.readouterr())\n"
    )
    kata.botched.write_text(GOOD)
    assert runner.run(kata).verdict == Verdict.PASSED


def test_what_the_code_prints_stands_with_the_test_that_failed(runner, kata):
    noise = """import os, sys
    print("x is", x, flush=True)
    print("to stderr", file=sys.stderr)
    os.write(1, b'{"exit": 0}\\n{"end": true}\\n')
    for number in range(40): print("\\x1b[31mline", number, "\\x1b[0m\\rback")"""
    kata.botched.write_text(when_called(noise).replace("x * factor", "x + factor"))
    first, second, third = runner.run(kata).tests
    assert first.outcome is second.outcome is Outcome.FAILED
    lines = first.printed.splitlines()
    assert lines[:3] == ["x is 5.0", '{"exit": 0}', '{"end": true}']
    assert lines[3:5] == ["line 0", "back"]
    assert lines[10:] == ["... 74 more lines"]
    assert third.outcome is Outcome.PASSED
    assert third.printed == ""


def test_code_that_closes_what_it_prints_to_ends_in_a_verdict(runner, kata):
    kata.botched.write_text(when_called("import sys; sys.stdout.close()"))
    assert runner.run(kata).verdict in (Verdict.FAILED, Verdict.BROKEN, Verdict.CRASHED)
    kata.botched.write_text(GOOD)
    assert runner.run(kata).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no')", "ValueError in scale, line 2: no"),
        ("assert x is None, 'own'", "AssertionError in scale, line 2: own"),
        ("max(y.z for y in [x])", "AttributeError in line 2: 'float' object has no attribute 'z'"),
        ("import os; os._exit(3)", "in scale, line 2: the code called os._exit(3)"),
    ],
)
def test_an_error_says_where_in_the_learners_file_it_came_up(runner, kata, body, said):
    kata.botched.write_text(when_called(body))
    assert runner.run(kata).tests[0].message.splitlines()[0] == said


def test_what_torch_says_of_its_graph_is_said_of_the_result(runner, kata):
    kata.tests.write_text(
        "def test_gradient(impl):\n"
        "    raise RuntimeError('element 0 of tensors does not require grad and does not have a '\n"
        "                       'grad_fn')\n"
    )
    (test,) = runner.run(kata).tests
    assert test.message.startswith("autograd finds no way back through the result: is it detached")


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_limit_that_is_no_number_is_refused_with_its_name(monkeypatch, text):
    monkeypatch.setenv("KATA_TEST_SECONDS", text)
    with pytest.raises(DojoError, match="KATA_TEST_SECONDS"):
        Limits.from_environment()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_crash_names_the_test_that_was_running(project, kata, processes):
    kata.botched.write_text(
        when_called("import os\n    if factor == 3: os.kill(os.getpid(), 9)").replace("*", "+")
    )
    with Runner(project, processes=processes) as runner:
        result = runner.run(kata)
    assert result.verdict is Verdict.CRASHED
    assert result.running == "test_scale[3.0]"
    assert result.tests[0].outcome is Outcome.FAILED
    kata.botched.write_text(GOOD)
    with Runner(project, processes=processes) as runner:
        assert runner.run(kata).running == ""


def test_a_run_without_a_fork_names_the_test_that_it_crashed_in(project, kata):
    kata.botched.write_text(when_called("import os\n    if factor == 3: os.kill(os.getpid(), 9)"))
    with Runner(project, warm=False) as cold:
        result = cold.run(kata)
    assert result.running == "test_scale[3.0]"
    assert [test.outcome for test in result.tests] == [Outcome.PASSED]


def test_a_run_that_does_not_end_names_the_test_that_was_running(project, kata):
    kata.botched.write_text(when_called("sum(range(10**12))"))
    with Runner(project, Limits(run_seconds=2.0), processes=1) as runner:
        result = runner.run(kata)
    assert result.verdict is Verdict.TIMEOUT
    assert result.running == "test_scale[2.0]"


def test_each_limit_has_its_setting(monkeypatch):
    monkeypatch.setenv("KATA_TEST_SECONDS", "1.5")
    monkeypatch.setenv("KATA_MEMORY_GB", "2")
    assert Limits.from_environment() == Limits(1.5, 60.0, 2.0)


def test_a_run_can_be_cancelled_and_the_next_one_works(runner, kata):
    runner.run(kata)  # warm
    kata.botched.write_text(when_called("import time; time.sleep(60)"))
    threading.Timer(0.3, runner.cancel).start()
    started = time.monotonic()
    assert runner.run(kata).verdict == Verdict.CANCELLED
    assert time.monotonic() - started < 2
    runner.cancel()  # nothing runs: no harm
    kata.botched.write_text(GOOD)
    assert runner.run(kata).verdict == Verdict.PASSED


def children(process):
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.mark.slow
@pytest.mark.own_process
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts through /proc")
def test_many_runs_leave_nothing_behind(runner, kata):
    runner.run(kata)
    first = runner._transport.process.pid
    (collector,) = children(first)

    def held():
        time.sleep(0.5)  # the last forks are reaped, and the next made, after the answer
        files = [len(list(Path(f"/proc/{p}/fd").iterdir())) for p in (first, collector)]
        pages = int(Path(f"/proc/{collector}/statm").read_text().split()[1])
        return [*files, children(first), len(children(collector))], pages

    before, pages_before = held()
    assert before[-1] == runner._processes
    for _ in range(100):
        runner.run(kata)
    after, pages = held()
    assert after == before
    assert pages - pages_before < 256  # 1 MB


@pytest.mark.own_process
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts through /proc")
def test_a_run_until_a_failure_leaves_as_many_waiting_as_the_next_may_need(runner, kata):
    runner.run(kata)
    runner.run(kata, first_failure=True)
    time.sleep(0.5)  # they are made after the answer
    (collector,) = children(runner._transport.process.pid)
    assert len(children(collector)) == runner._processes


@pytest.mark.own_process
def test_closing_ends_the_warm_process(runner, kata):
    runner.run(kata)
    runner.close()
    assert runner._transport.process.returncode == 0


def test_a_process_that_waits_makes_no_fixture_of_the_tests(runner, kata, tmp_path):
    made, tests = tmp_path / "made", kata.tests.read_text()
    fixture = (
        "\n\n@pytest.fixture(autouse=True)\ndef noted(impl):\n"
        f"    with open({str(made)!r}, 'a') as file:\n        file.write('x')\n"
    )
    kata.tests.write_text(f"import pytest\n{tests}{fixture}")
    count = len(runner.run(kata).tests)
    assert len(runner.run(kata).tests) == count
    assert made.stat().st_size == 2 * count


def test_a_run_until_the_first_failure_ends_there(runner, kata):
    kata.botched.write_text(kata.planted_source(("adds-factor", "subtracts-offset")))
    assert len(runner.run(kata).tests) == 3
    (only,) = runner.run(kata, first_failure=True).tests
    assert only.outcome is Outcome.FAILED
    kata.botched.write_text(kata.correct_source)
    assert runner.run(kata, first_failure=True).verdict is Verdict.PASSED


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False])
def test_a_run_of_some_tests_runs_these_alone(project, kata, warm):
    with Runner(project, Limits(run_seconds=30.0), warm=warm) as runner:
        whole = runner.run(kata, seed=1)
        some = runner.run(kata, seed=1, only={"test_shift"})
        assert [(test.name, test.outcome) for test in some.tests] == [
            ("test_shift", Outcome.PASSED)
        ]
        assert some.verdict is Verdict.PASSED
        again = runner.run(kata, seed=1)  # the others are not lost
        assert [test.name for test in again.tests] == [test.name for test in whole.tests]
        assert runner.run(kata, only={"test_of_no_such_name"}).verdict is Verdict.BROKEN


@pytest.mark.parametrize("warm", [True, False])
def test_tests_that_come_first_run_first_and_results_stand_in_the_files_order(project, kata, warm):
    counts_calls = GOOD.replace("return x +", "print('shift')\n    return x +")
    kata.botched.write_text(f"calls = 0\n{counts_calls}")
    kata.tests.write_text(
        kata.tests.read_text().replace("impl.scale(", "impl.calls or impl.scale(")
        + "    impl.calls = factor = 1\n"
    )
    with Runner(project, Limits(run_seconds=30.0), warm=warm, processes=1) as runner:
        names = [test.name for test in runner.run(kata).tests]
        # test_scale goes wrong once test_shift has run.
        result = runner.run(kata, first={"test_shift"})
        assert [test.name for test in result.tests] == names
        assert [test.outcome for test in result.tests] == [
            Outcome.FAILED,
            Outcome.FAILED,
            Outcome.PASSED,
        ]


def test_the_first_failure_is_told_before_the_run_ends(runner, kata):
    kata.tests.write_text(
        "import time\n\n"
        "def test_passes(impl):\n    assert impl.scale(1, 1) == 1\n\n"
        "def test_fails(impl):\n    assert impl.scale(1, 1) == 2, 'not two'\n\n"
        "def test_takes_long(impl):\n    time.sleep(1)\n\n"
        "def test_fails_too(impl):\n    assert impl.scale(1, 1) == 3\n"
    )
    told = []
    started = time.monotonic()

    def tell(test):
        told.append((test.name, test.message, time.monotonic() - started))

    runner.run(kata, Reference())
    started = time.monotonic()
    result = runner.run(kata, Reference(), tell_failure=tell)
    ((name, message, seconds),) = told
    assert (name, message) == ("test_fails", "not two")
    assert seconds < 1 < time.monotonic() - started
    assert len(result.tests) == 4
    kata.tests.write_text("def test_passes(impl):\n    assert impl.scale(1, 1) == 1\n")
    runner.run(kata, Reference(), tell_failure=tell)
    assert len(told) == 1


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_out_the_tests_and_lose_none(project, kata, processes):
    lines = ["import pytest\n\n"]
    lines += [
        f"def test_{n}(impl):\n    assert impl.scale({n}, 1) != 5, 'five'\n" for n in range(7)
    ]
    kata.tests.write_text("\n".join(lines))
    with Runner(project, Limits(), processes=processes) as runner:
        result = runner.run(kata, Reference())
        assert [(test.name, test.outcome) for test in result.tests] == [
            (f"test_{n}", Outcome.FAILED if n == 5 else Outcome.PASSED) for n in range(7)
        ]
        (one,) = runner.run(kata, Reference(), only={"test_3"}).tests
        assert one.outcome is Outcome.PASSED
        assert [t.name for t in runner.run(kata, Reference(), first={"test_6"}).tests] == [
            test.name for test in result.tests
        ]


def test_a_crash_of_one_process_is_no_pass_of_the_others(project, kata):
    kata.tests.write_text(
        "import os\n\ndef test_ends(impl):\n    os.kill(os.getpid(), 9)\n\n"
        "def test_passes(impl):\n    pass\n"
    )
    with Runner(project, Limits(), processes=2) as runner:
        for _ in range(3):
            result = runner.run(kata, Reference())
            assert result.verdict is Verdict.CRASHED
            assert "SIGKILL" in result.detail


@pytest.mark.own_process
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds processes through /proc")
def test_a_process_that_dies_while_it_waits_costs_one_run(project, kata):
    with Runner(project, Limits(), processes=2) as runner:
        assert runner.run(kata, Reference()).verdict is Verdict.PASSED
        (collector,) = children(runner._transport.process.pid)
        time.sleep(0.5)  # the next are made after the answer
        for process in children(collector):
            os.kill(int(process), signal.SIGKILL)
        assert runner.run(kata, Reference()).verdict is Verdict.CRASHED
        assert runner.run(kata, Reference()).verdict is Verdict.PASSED


def test_what_a_run_leaves_running_is_not_waited_for(project, kata):
    kata.tests.write_text(
        "import os, time\n\ndef test_ends(impl):\n"
        "    if os.fork() == 0:\n        os.setsid()\n        time.sleep(20)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    with Runner(project, Limits(), processes=2) as runner:
        started = time.monotonic()
        assert runner.run(kata, Reference()).verdict is Verdict.CRASHED
        assert time.monotonic() - started < 10


def test_a_pool_has_a_runner_a_core_also_where_affinity_is_unknown(project, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    with runner_pool(project) as pool:
        assert pool.size == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


@pytest.mark.own_process
def test_closing_does_not_wait_for_the_start(project):
    runner = Runner(project)
    runner.close()
    assert runner._transport.process.returncode == -signal.SIGKILL
