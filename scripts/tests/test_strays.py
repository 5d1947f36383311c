"""Code under test that starts processes, writes without end, or calls itself without end."""

import contextlib
import sys
import time
from pathlib import Path

import pytest

from dojo.learner.player import Judgement, Planting
from dojo.testrun.results import Verdict
from dojo.wording.runs import run_lines

pytestmark = pytest.mark.slow

REST = "\n\ndef shift(x, offset):\n    return x + offset\n"
CHILD = """
import subprocess, sys
def scale(x, factor):
    command = [sys.executable, "-c", "import time; time.sleep(600)", {mark!r}]
    subprocess.Popen(command, start_new_session=True)
    return x * factor
"""
GRANDCHILD = """
import os, sys
def scale(x, factor):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            command = [sys.executable, "-c", "import time; time.sleep(600)", {mark!r}]
            os.execv(sys.executable, command)
        os._exit(0)
    return x * factor
"""
GROUP = CHILD.replace(", start_new_session=True", "")


def running(mark):
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            count += mark.encode() in (process / "cmdline").read_bytes()
    return count


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process adopts orphans")
@pytest.mark.parametrize(
    ("code", "named"),
    [(CHILD, True), (GRANDCHILD, True), (GROUP, False)],
    ids=["child", "of child", "group"],
)
def test_what_a_run_starts_ends_with_it(runner, kata, tmp_path, code, named):
    mark = f"stray-{tmp_path}"
    kata.botched.write_text(code.format(mark=mark) + REST)
    result = runner.run(kata)
    assert result.verdict is Verdict.PASSED
    lines = run_lines(kata.name, result, Judgement(Planting(()), True))
    assert any("running, now ended" in line for line in lines) is named, lines
    deadline = time.monotonic() + 10
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(mark) == 0
    kata.botched.write_text(kata.correct_source)
    again = runner.run(kata)
    assert (again.verdict, again.strays) == (Verdict.PASSED, 0)


@pytest.mark.parametrize(
    ("code", "verdict", "said"),
    [
        (
            "def scale(x, factor):\n    with open({file!r}, 'wb') as file:\n"
            "        while True: file.write(b'x' * 10**5)\n",
            Verdict.FAILED,
            "the code wrote a file of more than 16 MB",
        ),
        (
            "def scale(x, factor):\n    while True: print('x' * 10**5)\n",
            Verdict.FAILED,
            "the code printed more than 16 MB",
        ),
        (
            "import sys\nsys.setrecursionlimit(10**9)\nclass Deep:\n"
            "    def __repr__(self): return repr([self])\n"
            "def scale(x, factor):\n    return repr(Deep())\n",
            Verdict.CRASHED,
            "SIGSEGV: a crash in C code, or a recursion without end",
        ),
    ],
    ids=["writes", "prints", "recurses"],
)
def test_what_goes_on_without_end_is_named(runner, kata, tmp_path, code, verdict, said):
    kata.botched.write_text(code.replace("{file!r}", repr(str(tmp_path / "file"))) + REST)
    result = runner.run(kata)
    assert result.verdict is verdict
    assert said in result.detail
