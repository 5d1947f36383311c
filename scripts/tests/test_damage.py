"""Code that hurts the channel of its own results gets a verdict, and the next save its own."""

import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dojo.errors import DojoError
from dojo.runner.protocol import END, exit_line
from dojo.runner.runner import Runner
from dojo.runner.signed import SignedReader, SignedWriter
from dojo.testrun.implementation import Reference, Solution
from dojo.testrun.limits import Limits
from dojo.testrun.results import Verdict

DAMAGED = "the run's results were damaged"
GOOD = """
def scale(x, factor):
    return x * factor


def shift(x, offset):
    return x + offset
"""
# What damages, as it is loaded; each is followed by functions that are right.
HOSTILE = {
    "writes to all": """
import os
for fd in range(3, 256):
    try: os.write(fd, b"x\\n" * 1000)
    except OSError: pass
""",
    "writes what looks like results": f"""
import os
for fd in range(3, 256):
    try: os.write(fd, {exit_line(0).encode() + END!r})
    except OSError: pass
""",
    "writes no end of a line": """
import os
for fd in range(3, 256):
    try: os.write(fd, b"x")
    except OSError: pass
""",
    "closes all": "import os; os.closerange(3, 256)",
    "puts something else in their place": """
import os
nothing = os.open(os.devnull, os.O_RDWR)
for fd in range(3, 256):
    if fd != nothing: os.dup2(nothing, fd)
""",
    "writes to what it began with": """
import os, sys
sys.__stdout__.buffer.raw.write(b"x\\n" * 1000)
sys.__stdout__.buffer.close()
os.close(0)
""",
    "goes on writing": """
import os, threading
def write():
    while True:
        for fd in range(3, 64):
            try: os.write(fd, b"x\\n" * 1000)
            except OSError: pass
threading.Thread(target=write, daemon=True).start()
""",
    "has another process go on writing": """
import os, time
if os.fork() == 0:
    os.setsid()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        for fd in range(3, 64):
            try: os.write(fd, b"x\\n" * 1000)
            except OSError: pass
    os.kill(os.getpid(), 9)
""",
    "does not block": """
import os
for fd in range(3, 256):
    try: os.set_blocking(fd, False)
    except OSError: pass
""",
    "kills its parent": "import os, time; os.kill(os.getppid(), 9); time.sleep(1)",
    "kills its grandparent": """
import os, pathlib
stat = pathlib.Path(f"/proc/{os.getppid()}/stat").read_text()
os.kill(int(stat.rpartition(")")[2].split()[1]), 9)
""",
}
# Where the results are there before any damage is done, they count.
LATE = {"goes on writing", "has another process go on writing", "kills its grandparent"}
HARMLESS = {"does not block", "writes to what it began with"}


@pytest.mark.own_process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("warm", "names"), [(True, HOSTILE), (False, ["writes to all", "closes all"])]
)
def test_damage_is_a_verdict_and_the_next_run_is_judged(project, kata, tmp_path, warm, names):
    path = tmp_path / "solution.py"
    limits = Limits(test_seconds=2.0, run_seconds=12.0)
    with Runner(project, limits, warm=warm) as runner:
        for name in names:
            text = HOSTILE[name]
            path.write_text(text + GOOD)
            result = runner.run(kata, Solution(path))
            if name not in LATE | HARMLESS:
                assert not result.whole, name
            if name.startswith("writes") and name not in HARMLESS:
                assert result.verdict is Verdict.DAMAGED, f"{name}: {result}"
                assert DAMAGED in result.detail
            path.write_text(GOOD)
            assert runner.run(kata, Solution(path)).verdict is Verdict.PASSED, f"after {name}"


def test_stray_writes_are_a_verdict(runner, kata):
    kata.botched.write_text(HOSTILE["writes what looks like results"] + GOOD)
    result = runner.run(kata)
    assert result.verdict is Verdict.DAMAGED
    assert result.detail.startswith(DAMAGED)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks through /proc")
def test_the_code_holds_no_pipe_of_another_process(runner, kata):
    kata.botched.write_text(
        "import os, pathlib\n"
        "seen = [os.path.realpath(fd) for fd in pathlib.Path('/proc/self/fd').iterdir()]\n"
    )
    kata.tests.write_text(
        "def test_pipes(impl):\n"
        "    assert sum('pipe' in one or 'socket' in one for one in impl.seen) == 1, impl.seen\n"
    )
    result = runner.run(kata)
    assert result.verdict is Verdict.PASSED, result.detail


@pytest.mark.own_process
@pytest.mark.parametrize("name", ["writes to all", "closes all"])
def test_a_test_file_that_does_so_as_it_is_imported_hurts_no_other_run(project, kata, name):
    tests = kata.tests.read_text()
    with Runner(project, Limits(run_seconds=12.0)) as runner:
        kata.tests.write_text(HOSTILE[name] + tests)
        assert not runner.run(kata, Reference()).whole
        kata.tests.write_text(tests)
        assert runner.run(kata, Reference()).verdict is Verdict.PASSED


@pytest.mark.parametrize("name", ["writes to all", "puts something else in their place"])
def test_check_ends_in_one_line(project, kata, name):
    kata.botched.write_text(HOSTILE[name] + GOOD)
    ended = subprocess.run(
        [sys.executable, "-m", "dojo", "check", "scale"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(project.root / "scripts")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert re.fullmatch(r"01_scale: no verdict: .*\n", ended.stdout)
    assert not ended.stderr


def test_watch_judges_the_next_save(project, kata):
    kata.botched.write_text(HOSTILE["writes to all"] + GOOD)
    process = subprocess.Popen(
        [sys.executable, "-m", "dojo", "watch", "scale"],
        cwd=project.root,
        env={
            **os.environ,
            "PYTHONPATH": str(project.root / "scripts"),
            "PYTHONUNBUFFERED": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        lines = iter(process.stdout)
        assert any(DAMAGED in line for line in lines)
        kata.botched.write_text(kata.correct_source)
        assert any("01_scale: solved" in line for line in lines)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_log_that_the_code_ends_itself_says_so(project, system):
    system.botched.write_text(
        "def run(seed=0, steps=None):\n"
        "    import os, time\n"
        "    yield {'loss': 1.0}\n"
        '    os.write(1, b\'\\x1e{"step": 5}\\n\\x1e{"step": {"loss": []}}\\n\')\n'
        f"    os.write(1, {END!r})\n"
        "    time.sleep(60)\n"
    )
    with Runner(project) as runner:
        log = runner.log(system)
        assert log.failure.startswith(f"step 2: {DAMAGED}")
        assert log.steps == ({"loss": 1.0},)


def signed(*lines):
    file = io.BytesIO()
    writer = SignedWriter(file, "key")
    for line in lines:
        writer.write(line)
    return file.getvalue()


WHOLE = signed(b"one\n", b"two\n", END)


def test_signed_lines_come_whole_in_any_pieces():
    for size in (1, 7, 100):
        reader = SignedReader("key")
        for start in range(0, len(WHOLE), size):
            assert not reader.ended
            reader.feed(WHOLE[start : start + size])
        assert reader.lines == [b"one\n", b"two\n", END]
        assert reader.ended
        assert not reader.damaged
        reader.feed(b"more\n")
        assert len(reader.lines) == 3
        assert not reader.damaged


@pytest.mark.parametrize(
    "sent",
    [
        b"x" + WHOLE,
        b"\n" + WHOLE,
        WHOLE.replace(b"two", b"three"),
        b"".join(WHOLE.splitlines(keepends=True)[::2]),  # one is lost
        WHOLE.splitlines(keepends=True)[0] * 2,
        signed(b"one\n") + b"\xff\n",
    ],
)
def test_lines_that_are_not_as_sent_are_damaged(sent):
    reader = SignedReader("key")
    reader.feed(sent)
    assert reader.damaged
    assert not reader.ended


def test_a_log_hurts_no_other_run(project, system):
    steps = "def run(seed=0, steps=None):\n    yield {'loss': 1.0}\n"
    system.botched.write_text(HOSTILE["writes to all"] + steps)
    with Runner(project) as runner:
        for _ in range(2):
            log = runner.log(system)
            assert (log.failure, log.steps) == ("", ({"loss": 1.0},))
        assert runner.run(system, Reference()).verdict is Verdict.PASSED


@pytest.mark.own_process
def test_a_run_after_the_end_starts_no_process(project, kata):
    with Runner(project) as runner:
        assert runner.run(kata, Reference()).verdict is Verdict.PASSED
        process = runner._transport.process
    with pytest.raises(DojoError, match="was closed"):
        runner._transport.ask(runner._request(kata, "reference", kata.tests), print)
    assert runner._transport.process is process
