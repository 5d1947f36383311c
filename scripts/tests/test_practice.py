"""A whole practice session in a process of its own, through pipes."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest


@pytest.fixture
def practice(project):
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "dojo", "practice", *arguments],
            cwd=project.root,
            env={
                **os.environ,
                "PYTHONPATH": str(project.root / "scripts"),
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def read_until(process, text, seconds=30):
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
    finally:
        timer.cancel()
    raise AssertionError(f"{text!r} never came:\n{''.join(lines)}")


def test_a_session_from_brief_to_debrief(practice, kata):
    process = practice("scale")
    start = read_until(process, "0 of 1 bug fixed")
    assert "The brief of scale." in start
    assert "1 bug is planted. You have 5 minutes" in start
    text = kata.botched.read_text()
    kata.botched.write_text(text.replace("x + factor", "x / factor"))
    assert "5 times 2.0 is" in read_until(process, "0 of 1 bug fixed")
    # As many editors save: a new file renamed into place.
    fixed = kata.folder / "botched.py.new"
    fixed.write_text(text.replace("x + factor", "x * factor"))
    fixed.replace(kata.botched)
    end = read_until(process, "seen in")
    assert "solved, 0 min" in end
    assert "3 runs, 0 hints" in end
    assert "+    return x * factor" in end
    assert "[fixed] Adds the factor" in end
    assert process.wait(10) == 0


def test_time_runs_out(practice, kata):
    process = practice("--minutes", "0.05")  # draws the only kata
    end = read_until(process, "The correct text")
    assert "Time is up." in end
    assert "not solved" in end
    assert "[missed] Adds the factor" in end
    assert process.wait(10) == 0


def test_ctrl_c_keeps_everything_and_tells_no_answer(practice, kata):
    kata.botched.write_text("# mine\n")
    process = practice("scale")
    read_until(process, "0 of 1 bug fixed")
    kata.botched.write_text("# halfway\n")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    end = read_until(process, "Stopped.")
    assert process.wait(10) == 130
    assert "x * factor" not in end
    assert kata.botched.read_text() == "# halfway\n"
    assert (kata.folder.parent.parent / ".dojo/katas/01_scale/0001.py").read_text() == "# mine\n"
