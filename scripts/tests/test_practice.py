"""A whole practice session in a process of its own, through pipes."""

import re
import signal
import threading
import time

import pytest


@pytest.fixture
def practice(start_practice):
    processes = []

    def start(*arguments):
        processes.append(start_practice(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def type_line(process, line=""):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


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


def test_a_session_from_brief_to_report(practice, project, kata):
    process = practice("scale")
    start = read_until(process, "0 of 1 bug fixed")
    assert "The brief of scale." in start
    assert "1 bug is planted. You have 5:00 minutes" in start
    text = kata.botched.read_text()
    kata.botched.write_text(text.replace("x + factor", "x / factor"))
    assert "5 times 2.0 is" in read_until(process, "0 of 1 bug fixed")
    type_line(process, "hint")
    read_until(process, "Hint 1 of 3")
    type_line(process, "d")
    assert "-    return x + factor" in read_until(process, "+    return x / factor")
    # As many editors save: a new file renamed into place.
    fixed = kata.folder / "botched.py.new"
    fixed.write_text(text.replace("x + factor", "x * factor"))
    fixed.replace(kata.botched)
    end = read_until(process, "report to keep")
    assert "solved, 0:" in end
    assert "3 runs, 1 hint, 90 points of 100" in end
    assert "+    return x * factor" in end
    assert "[fixed] Adds the factor" in end
    assert process.wait(30) == 0
    (report,) = (project.state / "reports").glob("*.md")
    assert "| 01_scale | easy | solved |" in report.read_text()
    assert "  Seen in: <https://example.org/issues/1>\n" in report.read_text()


@pytest.mark.slow
def test_time_runs_out_and_the_next_kata_waits_for_enter(practice, project, kata):
    kata.folder.with_name("02_scale").mkdir()
    for file in kata.folder.iterdir():
        (kata.folder.with_name("02_scale") / file.name).write_bytes(file.read_bytes())
    process = practice("01", "02", "--minutes", "0.04")
    end = read_until(process, "Enter goes on")
    assert "Time is up." in end
    assert "time was up, 0:02 of 0:02" in end
    assert "[missed] Adds the factor" in end
    type_line(process)
    assert "Debrief: 02_scale" in read_until(process, "report to keep")
    assert process.wait(30) == 0


@pytest.mark.slow
def test_a_session_that_is_left_goes_on_later(practice, kata):
    kata.botched.write_text("# mine\n")
    process = practice("scale")
    read_until(process, "0 of 1 bug fixed")
    kata.botched.write_text("# halfway\n")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    end = read_until(process, "waits for you")
    assert process.wait(30) == 130
    assert "x * factor" not in end
    assert kata.botched.read_text() == "# halfway\n"
    assert (kata.folder.parent.parent / ".dojo/katas/01_scale/0001.py").read_text() == "# mine\n"

    process = practice()
    again = read_until(process, "Edit and save")
    assert re.search(r"A session is unfinished: 01_scale, (5:00|4:5\d) left, last result", again)
    assert kata.botched.read_text() == "# halfway\n"
    type_line(process, "q")
    read_until(process, "waits for you")
    assert process.wait(30) == 0

    process = practice("--topic", "convolution")
    assert "ends here" not in read_until(process, "no kata fits")
    assert process.wait(30) == 1

    process = practice("scale", "--minutes", "1")
    new = read_until(process, "Letters")
    assert "The unfinished session ends here" in new
    assert "Your earlier text is kept" in new


def test_an_interview_hides_names_and_hints_until_its_report(practice, kata):
    process = practice("scale", "--interview")
    start = read_until(process, "half the time is gone")
    assert "test_scale" not in start
    assert "2 bugs are planted" in start  # no three of its bugs go together
    type_line(process, "h")
    read_until(process, "no hints")
    type_line(process, "r")
    read_until(process, "y for yes")
    type_line(process, "y")
    end = read_until(process, "report to keep")
    assert "# Interview" in end
    assert "- missed: Subtracts the offset." in end


def test_two_sessions_at_once_are_refused(practice):
    first = practice("scale")
    read_until(first, "Edit and save")
    second = practice("scale")
    assert "running in this checkout already" in read_until(second, "running")
    assert second.wait(30) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["softmaxx"], "no kata is called"),
        (["--topic", "convolution"], "no kata fits"),
        (["--topic", "cooking"], "is not one of"),
        (["--by", "2020-01-01"], "is in the past"),
        (["scale", "--katas", "2"], "name none then"),
        (["--katas", "0"], "0 is not in the range"),
    ],
)
def test_bad_wishes_get_one_clear_line(practice, arguments, message):
    process = practice(*arguments)
    output = read_until(process, message)
    assert process.wait(30) != 0
    assert "Traceback" not in output
