"""Plain pytest, as a learner or an editor runs it, in processes of its own."""

import subprocess
import sys
import time

import pytest

from dojo.benchmarks.terminal import in_terminal
from dojo.history.history import History
from dojo.testrun.results import Verdict

SOLUTION = """
def scale(x, factor):
    return factor * x


def shift(x, offset):
    return x + offset
"""


def test_the_botched_file_is_red_and_the_message_names_the_behaviour(run_pytest, project):
    result = run_pytest("katas/01_scale")
    assert result.returncode == 1
    assert "5 times 2.0 is 7.0" in result.stdout
    assert "01_scale: 0 of 1 bug fixed" in result.stdout
    assert "--kata-seed" in result.stdout
    assert "1 passed" in result.stdout


@pytest.mark.parametrize("arguments", [["-n", "2"], ["-x"], ["--lf"], ["-p", "no:cacheprovider"]])
def test_the_usual_options_work(run_pytest, arguments):
    result = run_pytest("katas/01_scale", *arguments)
    assert result.returncode == 1
    assert "5 times 2.0 is" in result.stdout


def test_it_works_from_inside_the_folder_and_from_afar(run_pytest, project, kata, tmp_path):
    assert "0 of 1 bug fixed" in run_pytest(cwd=kata.folder).stdout
    assert "0 of 1 bug fixed" in run_pytest(kata.folder, cwd=tmp_path).stdout


def test_a_solve_by_plain_pytest_is_seen(run_pytest, project, kata):
    kata.botched.write_text(SOLUTION)
    result = run_pytest("katas/01_scale", "-n", "2")
    assert result.returncode == 0
    assert "01_scale: solved, 1 of 1 bug fixed" in result.stdout
    history = History(project.state / "history.sqlite")
    assert history.solved_katas() == {"01_scale"}
    history.close()


@pytest.mark.parametrize(
    "selection", [["-k", "shift"], ["katas/01_scale/test_scale.py::test_shift"]]
)
def test_a_part_of_the_tests_is_no_solve(run_pytest, project, selection):
    result = run_pytest("katas/01_scale" if selection[0] == "-k" else "-q", *selection)
    assert result.returncode == 0
    assert "a verdict needs all" in result.stdout
    assert not (project.state / "history.sqlite").exists()


def test_lf_runs_what_failed_alone(run_pytest):
    run_pytest("katas/01_scale")
    assert "2 failed" in run_pytest("katas/01_scale", "--lf").stdout


def test_several_bugs_show_progress(run_pytest, kata, player):
    player.plant(["adds-factor", "subtracts-offset"])
    assert "0 of 2 bugs fixed" in run_pytest("katas/01_scale").stdout
    kata.botched.write_text(kata.botched.read_text().replace("x - offset", "x + offset"))
    assert "1 of 2 bugs fixed" in run_pytest("katas/01_scale").stdout


@pytest.mark.parametrize("which", ["reference", "path"])
def test_a_correct_implementation_passes(run_pytest, which, tmp_path):
    path = tmp_path / "solution.py"
    path.write_text(SOLUTION)
    assert (
        run_pytest("katas/01_scale", "--impl", path if which == "path" else which).returncode == 0
    )


def test_a_planted_variant_fails(run_pytest):
    assert run_pytest("katas/01_scale", "--impl", "bug:divides+subtracts-offset").returncode == 1


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("bug:nonsense", "has no bug 'nonsense'"),
        ("bug:adds-factor+divides", "touch the same lines"),
        ("nowhere.py", "there is no such file"),
    ],
)
def test_a_wrong_impl_is_explained(run_pytest, which, reason):
    result = run_pytest("katas/01_scale", "--impl", which)
    assert result.returncode == 1
    assert reason in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_tracebacks_never_print_the_answer(run_pytest, kata):
    kata.reference.write_text(
        kata.reference.read_text().replace("return x * factor", "return x * factor + secret")
    )
    result = run_pytest("katas/01_scale", "--impl", "reference", "--tb=long", "--showlocals")
    assert result.returncode == 1
    assert "return x * factor" not in result.stdout
    assert "NameError" in result.stdout


@pytest.mark.slow
def test_the_seed_repeats_the_data(run_pytest, kata):
    kata.tests.write_text(
        "import random, numpy, torch\n"
        "def test_data(impl):\n"
        "    print('DATA', random.random(), numpy.random.rand(), torch.rand(1).item())\n"
        "    assert 0\n"
    )

    def data(*arguments):
        output = run_pytest("katas/01_scale", *arguments).stdout
        return next(line for line in output.splitlines() if line.startswith("DATA"))

    assert data("--kata-seed", "5") == data("--kata-seed", "5", "-n", "1")
    assert data() != data()


def test_a_warning_is_shown_and_not_judged(run_pytest, kata):
    text = kata.correct_source.replace(
        "return x *", "warnings.warn('close to zero')\n    return x *"
    )
    kata.botched.write_text(f"import warnings\nwarnings.warn('as it loads')\n\n{text}")
    result = run_pytest("katas/01_scale")
    assert result.returncode == 0, result.stdout
    assert "close to zero" in result.stdout
    assert "as it loads" in result.stdout


def test_an_edit_of_the_same_size_in_the_same_second_is_seen(run_pytest, kata):
    first = run_pytest("katas/01_scale")
    kata.botched.write_text(kata.botched.read_text().replace("x + factor", "x * factor"))
    assert first.returncode == 1
    assert run_pytest("katas/01_scale").returncode == 0


def test_collection_needs_no_working_file(run_pytest, kata):
    kata.botched.write_text("while True: pass\n")
    result = run_pytest("katas/01_scale", "--collect-only", "-q")
    assert result.returncode == 0
    assert "test_scale[2.0]" in result.stdout


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "botched.py is missing: scripts/reset.sh puts it back"),
        ("def f(:\n", "botched.py, line 1: SyntaxError"),
        ("x = 1\nraise ValueError('no')\n", "botched.py, line 2: ValueError: no"),
        ("import os\nos._exit(0)\n", "line 2: Exited: the code called os._exit(0)"),
        ("while True: pass\n", "line 1: TimedOut: still running after 2 s"),
        ("while True: print('x' * 1000)\n", "printed more than 16 MB"),
    ],
)
def test_a_file_that_does_not_load_gets_one_clear_error(run_pytest, kata, text, reason):
    if text is None:
        kata.botched.unlink()
    else:
        kata.botched.write_text(text)
    result = run_pytest("katas/01_scale", "--kata-timeout", "2")
    assert result.returncode == 1
    assert reason in result.stdout
    assert "1 error" in result.stdout
    assert "not judged, since the tests could not run" in result.stdout
    assert len(result.stdout) < 20_000


def test_a_missing_function_is_named(run_pytest, kata):
    kata.botched.write_text("def shift(x, offset):\n    return x + offset\n")
    result = run_pytest("katas/01_scale")
    assert "botched.py has no 'scale', which the brief asks for" in result.stdout


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("while True: pass", "still running after 2 s: an endless loop?"),
        ("import os; os._exit(0)", "the code called os._exit(0)"),
        ("while True: print('x' * 1000)", "printed more than 16 MB"),
        ("import sys; sys.exit(0)", "SystemExit"),
    ],
)
def test_code_that_misbehaves_when_called_is_named(run_pytest, kata, body, reason):
    kata.botched.write_text(f"def scale(x, factor):\n    {body}\n{SOLUTION.split('factor * x')[1]}")
    result = run_pytest("katas/01_scale", "--kata-timeout", "2")
    assert result.returncode == 1
    assert reason in result.stdout
    assert len(result.stdout) < 20_000


def test_a_history_that_cannot_be_written_does_not_stop_the_tests(run_pytest, project):
    project.state.mkdir()
    (project.state / "history.sqlite").mkdir()
    result = run_pytest("katas/01_scale")
    assert result.returncode == 1
    assert "01_scale: 0 of 1 bug fixed" in result.stdout
    assert "history.sqlite cannot be written" in result.stdout


def test_the_plugin_needs_nothing_but_pytest_torch_and_numpy(project):
    code = (
        "import sys, pytest\n"
        "for name in ('click', 'cosmic_ray', 'fsrs', 'textual', 'watchfiles'):\n"
        "    sys.modules[name] = None\n"
        "sys.exit(pytest.main(['-q', 'katas/01_scale', '--impl', 'reference']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def pytest_in_terminal(project):
    """Plain pytest in a terminal, where a test has half a second, and three halves on the wall."""

    def start(*arguments):
        command = [sys.executable, "-m", "pytest", "katas/01_scale", "--kata-timeout", "0.5"]
        return in_terminal([*command, *arguments], project)

    return start


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-s"]])
@pytest.mark.parametrize(
    ("prompt_seconds", "code_seconds"),
    [(2.5, 0), (0, 2.5)],
    ids=["long at the prompt", "long after it"],
)
def test_a_test_at_a_breakpoint_has_all_the_time(
    pytest_in_terminal, kata, options, prompt_seconds, code_seconds
):
    pause = f"    breakpoint()\n    import time; time.sleep({code_seconds})\n"
    kata.botched.write_text(SOLUTION.replace("    return x +", pause + "    return x +"))
    with pytest_in_terminal(*options) as terminal:
        terminal.wait_for("a prompt", r"\(Pdb\)")
        time.sleep(prompt_seconds)
        terminal.press("c\n")
        terminal.wait_for("a verdict", "01_scale: solved, 1 of 1 bug fixed")


@pytest.mark.slow
def test_a_breakpoint_in_a_file_that_loads_has_all_the_time(pytest_in_terminal, kata):
    kata.botched.write_text(f"import pdb; pdb.set_trace()\n{SOLUTION}")
    with pytest_in_terminal() as terminal:
        terminal.wait_for("a prompt", r"\(Pdb\)")
        time.sleep(2.5)
        terminal.press("c\n")
        terminal.wait_for("a verdict", "01_scale: solved, 1 of 1 bug fixed")


def test_quitting_the_debugger_while_a_file_loads_ends_pytest(pytest_in_terminal, kata):
    kata.botched.write_text(f"breakpoint()\n{SOLUTION}")
    with pytest_in_terminal() as terminal:
        terminal.wait_for("a prompt", r"\(Pdb\)")
        terminal.press("q\n")
        terminal.wait_for("an end", "Exit: Quitting debugger")


WAIT = "\n\ndef wait():\n    import time\n    time.sleep(99)\n"


def test_code_that_waits_for_ever_is_stopped(run_pytest, kata):
    kata.botched.write_text(SOLUTION.replace("    return x +", "    wait()\n    return x +") + WAIT)
    result = run_pytest("katas/01_scale", "--kata-timeout", "0.5")
    assert "still running after 0.5 s" in result.stdout


def test_what_others_do_on_the_machine_does_not_count(run_pytest, kata):
    # To sleep takes no processor time, as to wait for a processor does.
    short_wait = WAIT.replace("99", "0.9")
    kata.botched.write_text(
        SOLUTION.replace("    return x +", "    wait()\n    return x +") + short_wait
    )
    result = run_pytest("katas/01_scale", "--kata-timeout", "0.5")
    assert "01_scale: solved" in result.stdout, result.stdout


@pytest.mark.slow
def test_after_a_breakpoint_an_endless_loop_of_the_next_test_is_stopped(pytest_in_terminal, kata):
    kata.botched.write_text(
        "def scale(x, factor):\n    if factor == 3: breakpoint()\n    return factor * x\n"
        "def shift(x, offset):\n    while True: pass\n"
    )
    with pytest_in_terminal() as terminal:
        terminal.wait_for("a prompt", r"\(Pdb\)")
        terminal.press("c\n")
        shown = terminal.wait_for("an end", r"1 failed, 2 passed in")
    assert "still running after 0.5 s: an endless loop?" in shown


@pytest.mark.slow
def test_tests_that_are_stepped_through_have_all_the_time(pytest_in_terminal, kata):
    kata.botched.write_text(SOLUTION)
    with pytest_in_terminal("--trace", "-k", "shift") as terminal:
        terminal.wait_for("a prompt", r"\(Pdb\)")
        time.sleep(2.5)
        terminal.press("c\n")
        terminal.wait_for("an end", "the tests that ran pass")


@pytest.mark.slow
def test_a_look_at_a_failure_has_all_the_time(pytest_in_terminal):
    with pytest_in_terminal("--pdb") as terminal:
        for _ in range(2):
            shown = terminal.wait_for("a prompt", r"\(Pdb\)")
            assert "5 times" in shown
            time.sleep(2.5)
            terminal.press("c\n")
        shown = terminal.wait_for("an end", "2 failed, 1 passed")
    assert "still running" not in shown


FOLLOWED = f"""
import sys, time
def follow(*_): ...
follow.__module__ = "{{module}}"
sys.settrace(follow)
{SOLUTION}
time.sleep(2.5)
"""


@pytest.mark.slow
def test_an_editors_debugger_has_all_the_time(run_pytest, kata):
    kata.botched.write_text(FOLLOWED.format(module="pydevd"))
    result = run_pytest("katas/01_scale", "--kata-timeout", "0.5")
    assert "01_scale: solved" in result.stdout, result.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12")
def test_a_debugger_that_does_not_trace_has_all_the_time(run_pytest, kata):
    claim = "import sys, time; sys.monitoring.use_tool_id(sys.monitoring.DEBUGGER_ID, 'editor')"
    kata.botched.write_text(f"{claim}\n{SOLUTION}\ntime.sleep(2.5)\n")
    result = run_pytest("katas/01_scale", "--kata-timeout", "0.5")
    assert "01_scale: solved" in result.stdout, result.stdout


@pytest.mark.slow
def test_measuring_coverage_is_no_debugging(run_pytest, kata):
    kata.botched.write_text(FOLLOWED.format(module="coverage.pytracer"))
    result = run_pytest("katas/01_scale", "--kata-timeout", "0.5")
    assert "TimedOut: still running after 0.5 s" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loading", "a call"])
def test_a_breakpoint_where_nobody_can_answer_ends_in_a_verdict(runner, kata, where):
    in_call = SOLUTION.replace("    return x +", "    breakpoint()\n    return x +")
    kata.botched.write_text(in_call if where == "a call" else f"breakpoint()\n{SOLUTION}")
    result = runner.run(kata)
    assert result.verdict is (Verdict.FAILED if where == "a call" else Verdict.BROKEN)
    assert "none is at hand: use scripts/debug.sh" in result.detail


@pytest.mark.parametrize(
    ("leaving", "said"),
    [
        ("import pytest; pytest.skip('later')", "the code skipped its test: later"),
        ("import pytest; pytest.xfail('later')", "the code skipped its test: later"),
        ("import unittest; raise unittest.SkipTest", "the code skipped its test"),
        ("import pytest; pytest.exit('later', 0)", "the code ended the run: later"),
        ("import posix; posix._exit(0)", "the code called os._exit(0)"),
    ],
)
def test_code_that_leaves_its_test_has_failed_it(run_pytest, kata, leaving, said):
    wrong = kata.botched.read_text().replace("return x + factor", leaving)
    assert leaving in wrong
    kata.botched.write_text(wrong)
    result = run_pytest("katas/01_scale")
    assert (result.returncode, said in result.stdout) == (1, True), result.stdout
    kata.botched.write_text(f"{leaving}\n{SOLUTION}")
    result = run_pytest("katas/01_scale")
    assert (result.returncode, "solved" in result.stdout) == (1, False), result.stdout


def test_a_skip_that_the_module_hands_out_is_no_pass(run_pytest, kata):
    kata.botched.write_text(
        f"{SOLUTION}\nimport functools\nimport pytest\nscale = lambda *_: pytest.skip('later')\n"
    )
    result = run_pytest("katas/01_scale")
    assert "2 failed, 1 passed" in result.stdout
    assert "not solved yet" in result.stdout


def test_no_exit_handler_turns_a_failed_run_into_a_passed_one(run_pytest, kata):
    handler = "import atexit, os, posix\natexit.register(lambda: {}(0))\n"
    for exit_process in ("os._exit", "posix._exit"):
        kata.botched.write_text(kata.botched.read_text() + handler.format(exit_process))
        assert run_pytest("katas/01_scale").returncode == 1


def test_a_process_that_the_code_forks_runs_no_tests(run_pytest, kata):
    kata.botched.write_text(f"import os\nos.fork()\n{SOLUTION}")
    result = run_pytest("katas/01_scale")
    assert result.returncode == 0
    assert result.stdout.count("3 passed") == 1


def test_what_a_fixture_runs_is_guarded_too(run_pytest, system):
    source = system.botched.read_text()
    loops = source.replace("    for step in", "    while True:\n        pass\n    for step in", 1)
    assert loops != source
    system.botched.write_text(loops)
    result = run_pytest("katas/02_descent", "--kata-timeout", "0.5", timeout=60)
    assert "still running after 0.5 s" in result.stdout


@pytest.mark.parametrize("option", ["-q", "-vv"])
def test_lists_that_differ_at_length_take_no_time(run_pytest, kata, monkeypatch, option):
    kata.tests.write_text(
        "def test_rows(impl):\n"
        "    assert {i: 7919 * i % 1009 for i in range(1009)} == {i: i for i in range(1009)}\n"
    )
    monkeypatch.setenv("CI", "true")
    result = run_pytest("katas/01_scale", option, "--kata-timeout", "2")
    assert "1 failed" in result.stdout
    assert "still running" not in result.stdout
