import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.errors import CatalogueError
from dojo.kata.kata_toml import load
from dojo.kata.survivors import Kind, read_survivors
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Text
from dojo.testrun.loading import load_module
from dojo.testrun.results import Outcome, RunResult, TestResult, Verdict
from dojo.verification.mutation import judging
from dojo.verification.mutation.excuses import problems
from dojo.verification.mutation.mutants import mutants
from dojo.verification.mutation.result_store import MutantOutcome, Trial, Trials

SOURCE = '''
def area(width: int = 2) -> int:
    """Return it."""
    return width * width
'''


@pytest.fixture
def cli(project):
    def call(*arguments):
        return CliRunner().invoke(main, ["verify", *map(str, arguments)], obj=project)

    return call


class InProcess:
    """Runs the tests of the fake kata at once, for tests of what is built on runs."""

    def __init__(self):
        self.asked = []

    def run(self, kata, impl, seed, *, first_failure=False):
        if isinstance(impl, Text):  # not the reference, which comes first
            self.asked.append((impl, seed))
        source = impl.source if isinstance(impl, Text) else kata.correct_source
        module = load_module(kata.reference, "mutant", source.encode())
        tests = {}
        exec(kata.tests.read_text(), tests)
        results = []
        for name in ("test_scale[2.0]", "test_scale[3.0]", "test_shift"):
            function, _, factor = name.partition("[")
            if function in tests:
                arguments = [float(factor[:-1])] if factor else []
                results.append(result(name, *outcome_of(tests[function], module, *arguments)))
                if first_failure and results[-1].outcome is Outcome.FAILED:
                    break
        failed = any(test.outcome is Outcome.FAILED for test in results)
        return run_of(*results, verdict=Verdict.FAILED if failed else Verdict.PASSED)


def outcome_of(test, *arguments):
    try:
        test(*arguments)
    except AssertionError as error:
        return Outcome.FAILED, str(error)
    except Exception as error:
        return Outcome.FAILED, str(error), True
    return Outcome.PASSED, ""


@pytest.fixture
def runner(monkeypatch):
    """A runner in this process, which the command uses too."""
    runner = InProcess()
    monkeypatch.setattr(
        "dojo.cli.mutants.runner_pool", lambda *_: contextlib.nullcontext(Pool([runner]))
    )
    return runner


def result(name, outcome, message="message", raised=False):
    return TestResult(name, outcome, message, 0.1, "abc", raised)


def run_of(*tests, verdict=Verdict.FAILED):
    return RunResult(verdict, tests, "", 0.1)


def test_mutants_are_valid_and_each_is_another():
    found = list(mutants(SOURCE))
    assert len({mutant.source for mutant in found}) == len(found)
    assert {"return width + width", "return width / width"} <= {mutant.after for mutant in found}
    assert {mutant.line for mutant in found} == {2, 4}
    for mutant in found:
        compile(mutant.source, "mutant", "exec")
        assert mutant.source.replace(mutant.after, mutant.before) == SOURCE


def test_numbers_are_written_as_a_person_would():
    after = {mutant.after for mutant in mutants("y = x[0]\n")}
    assert {"y = x[1]", "y = x[-1]"} <= after


def test_what_never_runs_makes_no_mutant():
    assert not list(mutants('def f(x: "int | 3") -> 3:\n    """3 + 4"""\n'))


def test_a_random_order_leaves_none_out():
    shuffled = list(mutants(SOURCE, random.Random(1)))
    ordered = list(mutants(SOURCE))
    assert shuffled != ordered
    assert {mutant.source for mutant in shuffled} == {mutant.source for mutant in ordered}


def test_a_sample_is_always_the_same(kata):
    drawn = judging.sample(kata, 5)
    assert drawn == judging.sample(kata, 5) == judging.sample(kata, 8)[:5]
    assert len(judging.sample(kata, 10_000)) == len(judging.all_mutants(kata))


def test_a_trial_tells_wrong_answers_from_exceptions():
    trial = Trial.of(
        "key",
        0,
        True,
        run_of(
            result("test_a[1]", Outcome.FAILED),
            result("test_a[2]", Outcome.FAILED, raised=True),
            result("test_a[3]", Outcome.PASSED),
            result("test_b", Outcome.PASSED),
            result("test_gpu", Outcome.SKIPPED),
        ),
    )
    assert (trial.outcome, trial.ended) == ("caught", True)
    assert (trial.failing, trial.passing) == (("test_a",), 1)
    assert (trial.wrong, trial.raised) == (1, 1)


def test_the_plugin_says_which_failures_are_exceptions(project, kata):
    kata.botched.write_text(
        "def scale(x, factor):\n    return x / 0\n\n\ndef shift(x, offset):\n    return 0.0\n"
    )
    with Runner(project, warm=False) as runner:
        raised = {test.name: test.raised for test in runner.run(kata).tests}
    assert raised == {"test_scale[2.0]": True, "test_scale[3.0]": True, "test_shift": False}


@pytest.mark.parametrize(
    ("run", "verdict", "ended"),
    [
        (run_of(result("test_a", Outcome.PASSED), verdict=Verdict.PASSED), "survived", True),
        (run_of(result("test_a", Outcome.TIMEOUT)), "caught", False),
        (run_of(verdict=Verdict.TIMEOUT), "caught", False),
        (run_of(verdict=Verdict.CRASHED), "caught", False),
        (run_of(result("test_a", Outcome.ERROR), verdict=Verdict.BROKEN), "invalid", False),
    ],
)
def test_verdicts(run, verdict, ended):
    trial = Trial.of("key", 0, True, run)
    assert (trial.outcome, trial.ended) == (verdict, ended)


def test_behaviour_is_what_fails_and_what_it_says():
    def behaviour(name, message):
        return Trial.of("key", 0, True, run_of(result(name, Outcome.FAILED, message))).behaviour

    assert behaviour("test_a", "<f at 0x7f12>") == behaviour("test_a", "<f at 0x8a34>")
    assert behaviour("test_a", "1 is 2") != behaviour("test_a", "1 is 3")
    assert behaviour("test_a[1]", "wrong") != behaviour("test_a[2]", "wrong")


def test_judging_one_kata(kata, runner):
    judged = list(judging.judge(kata, Pool([runner])))
    assert len(judged) == len(judging.all_mutants(kata))
    assert {one.outcome for one in judged} == {"caught"}


def list_survivors(kata, *entries, kind="equivalent"):
    text = f'[[survivors]]\nkind = "{kind}"\nreason = "so they\\n  say"\nmutants = [\n'
    for entry in entries:
        text += "    { " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in entry.items()) + " },\n"
    (kata.folder / "mutants.toml").write_text(text + "]\n")


SCALE = {"function": "scale", "before": "return x * factor"}


@pytest.mark.parametrize(
    ("entry", "excused"),
    [
        ({**SCALE, "after": "return x /factor"}, True),  # whatever the blanks
        ({**SCALE, "after": "*"}, True),
        ({**SCALE, "after": "return x / factor", "occurrence": 1}, True),
        ({**SCALE, "after": "return x / factor", "occurrence": 2}, False),
        ({**SCALE, "after": "return x // factor"}, False),
        ({**SCALE, "after": "return x / factor", "function": "shift"}, False),
        ({"before": "return x * factor", "after": "return x / factor"}, False),
    ],
)
def test_a_survivor_is_known_by_its_function_and_lines(kata, entry, excused):
    mutant = next(m for m in judging.all_mutants(kata) if m.after == "return x / factor")
    list_survivors(kata, entry)
    (survivor,) = read_survivors(kata)
    assert survivor.reason == "so they say"
    assert survivor.excuses(mutant) == excused


@pytest.mark.parametrize("kind", list(Kind))
def test_an_excuse_counts_for_a_mutant_that_survived_and_for_no_other(kata, kind):
    mutant = next(m for m in judging.all_mutants(kata) if m.after == "return x / factor")
    list_survivors(kata, {**SCALE, "after": "*"}, kind=kind)
    (survivor,) = read_survivors(kata)
    for outcome, verdict in [(Outcome.PASSED, Verdict.PASSED), (Outcome.FAILED, Verdict.FAILED)]:
        trial = Trial.of(mutant.key, 0, True, run_of(result("test_a", outcome), verdict=verdict))
        wanted = MutantOutcome(kind) if outcome is Outcome.PASSED else MutantOutcome.CAUGHT
        assert judging.Judged(kata, mutant, trial, survivor).outcome is wanted
    assert judging.Judged(kata, mutant, trial).outcome is MutantOutcome.CAUGHT


def test_equal_changes_in_one_function_are_told_apart():
    source = "def f(x):\n    x = x + 1\n    x = x * 2\n    x = x + 1\n    return x\n"
    found = [m for m in mutants(source) if (m.before, m.after) == ("x = x + 1", "x = x - 1")]
    assert [(m.function, m.occurrence, m.line) for m in found] == [("f", 1, 2), ("f", 2, 4)]


def test_functions_are_named_with_their_classes_and_decorators():
    source = "A = 1\n\n\nclass C:\n    @property\n    def f(self):\n        return 2\n"
    assert {m.function for m in mutants(source) if m.line == 1} == {""}
    assert {m.function for m in mutants(source) if m.line in (5, 7)} == {"C.f"}


def test_entries_that_are_stale_ambiguous_or_a_bug_are_said(kata):
    source = kata.correct_source + "\n\ndef more(x):\n    x = x + 3\n    x = x + 3\n    return x\n"
    kata.reference.write_text(source)
    kata = load(kata.folder)
    list_survivors(
        kata,
        {**SCALE, "after": "return x @ factor"},
        {"function": "more", "before": "x = x + 3", "after": "x = x - 3"},
        {**SCALE, "after": "return x + factor"},
    )
    gone, several, bug = "none any more", "means 2 mutants", "excuses the bug adds-factor"
    said = "\n".join(problems(kata, read_survivors(kata), judging.all_mutants(kata)))
    assert all(text in said for text in (gone, several, bug))
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize(
    "text",
    [
        "[[survivors]]",
        "survivors = 3",
        '[[survivors]]\nkind = "odd"\nreason = ""\nmutants = [{before = "", after = ""}]',
        "[",
    ],
)
def test_a_malformed_list_of_survivors_is_refused(kata, text):
    (kata.folder / "mutants.toml").write_text(text)
    with pytest.raises(CatalogueError, match=r"mutants\.toml"):
        read_survivors(kata)


def test_what_nobody_writes_in_a_kernel_is_not_made():
    code = "import {}\n\n\ndef f(a, b):\n    return (a + b) & (a < b)\n"
    plain, kernel = ({m.after for m in mutants(code.format(name))} for name in ("torch", "triton"))
    assert {"return (a | b) & (a < b)", "return (a + b) & (a is b)"} <= plain - kernel
    assert {"return (a - b) & (a < b)", "return (a + b) & (a <= b)"} <= kernel


def test_a_reference_that_fails_is_named_and_its_mutants_are_not_judged(cli, kata, runner):
    kata.tests.write_text(kata.tests.read_text().replace("actual == 6.5", "actual == 7.5"))
    result = cli("scale", "--mutants", "--record")
    assert result.exit_code == 1
    assert "the reference does not pass test_shift (--kata-seed 0)" in result.output
    assert runner.asked == []
    assert not kata.fresh_file.exists()


def test_trials_outlive_a_cut_off_line_but_not_other_tests(tmp_path):
    path = tmp_path / "kata.jsonl"
    trials = Trials(path, "tests")
    for key in ("one", "two"):
        trials.add(Trial.of(key, 0, True, run_of(result("test_a", Outcome.FAILED))))
    path.write_bytes(path.read_bytes()[:-20])
    again = Trials(path, "tests")
    assert again.get("one", 0, True) == trials.get("one", 0, True)
    assert again.get("two", 0, True) is None
    again.add(Trial.of("three", 1, True, run_of(result("test_a", Outcome.FAILED))))
    assert Trials(path, "tests").get("three", 1, True)
    assert Trials(path, "other tests").get("one", 0, True) is None


def slowed(kata):
    """Make a run of the kata's tests take long enough to be stopped in."""
    text = kata.tests.read_text()
    kata.tests.write_text(
        text.replace("actual = impl.shift", "import time; time.sleep(0.1)\n    actual = impl.shift")
    )


def started(project, kata):
    """Start the command in a process of its own, and wait until some mutants are judged."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dojo", "verify", "scale", "--mutants"],
        env={**os.environ, "PYTHONPATH": str(project.root / "scripts")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=project.root,
        text=True,
    )
    kept = project.state / "mutants" / "01_scale.jsonl"
    deadline = time.monotonic() + 30
    while not kept.exists() or len(kept.read_bytes().splitlines()) < 4:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, kept


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(project, kata, cli, runner, how):
    slowed(kata)
    process, kept = started(project, kata)
    process.send_signal(how)
    said, _ = process.communicate(timeout=30)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert said.endswith("Stopped; the same command goes on from here.\n")
        assert "Traceback" not in said
    lines = [line for line in kept.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    total = len(judging.all_mutants(kata))
    assert 4 <= len(lines) < total
    finished = cli("scale", "--mutants")
    assert finished.exit_code == 0, finished.output
    assert len(runner.asked) == total - (len(lines) - 1)
    assert f"{total} mutants judged, 0 survived" in finished.output


def test_judged_mutants_are_run_again_after_an_edit_of_the_tests_alone(cli, kata, runner):
    cli("scale", "--mutants")
    total = len(runner.asked)
    cli("scale", "--mutants")
    assert len(runner.asked) == total
    kata.tests.write_text(kata.tests.read_text().replace("def test_shift", "def not_a_test"))
    result = cli("scale", "--mutants")
    assert len(runner.asked) == 2 * total
    assert result.exit_code == 1
    assert "+ moved = x - offset" in result.output


def test_a_sample_is_small_and_judged_anew_each_time(cli, project, runner):
    first, second = (cli("scale", "--mutants", "--sample", "3") for _ in range(2))
    assert first.output == second.output
    assert "01_scale  3        3       0" in first.output
    assert len(runner.asked) == 6
    assert not (project.state / "mutants").exists()


def test_scores_and_survivors_as_json(cli, runner, kata, project, tmp_path):
    kata.tests.write_text(kata.tests.read_text().replace("def test_shift", "def not_a_test"))
    entry = {"function": "shift", "before": "moved = x + offset", "after": "moved = x * offset"}
    list_survivors(kata, entry)
    assert cli("scale", "--mutants", "--json", tmp_path / "scores.json").exit_code == 1
    scores = json.loads((tmp_path / "scores.json").read_text())
    (of_kata,) = scores["katas"]
    assert of_kata["kata"] == "01_scale"
    assert of_kata["mutants"] == of_kata["caught"] + of_kata["survived"]
    assert of_kata["score"] == of_kata["caught"] / of_kata["mutants"] < 1
    assert len(of_kata["survivors"]) == of_kata["survived"]
    assert "moved = x - offset" in {survivor["after"] for survivor in of_kata["survivors"]}
    assert [one["reason"] for one in of_kata["excused"]] == ["so they say"]
    assert scores["all"]["survived"] == of_kata["survived"]


def test_json_on_standard_output_stands_alone(cli, runner):
    result = cli("scale", "--mutants", "--json", "-")
    assert json.loads(result.stdout)["all"]["survived"] == 0


def test_all_is_the_bugs_and_then_the_mutants(cli, runner, monkeypatch):
    verified = []
    monkeypatch.setattr(
        "dojo.cli.verify_command._bugs", lambda *_, named, whole, err: verified.append(err) or False
    )
    result = cli("scale", "--all", "--json", "-")
    assert result.exit_code == 1  # a bug was not caught
    assert verified == [True]  # what it says goes to standard error
    assert json.loads(result.stdout)["all"]["survived"] == 0


@pytest.mark.slow
@pytest.mark.own_process
@pytest.mark.filterwarnings("default")  # Dask's own
def test_a_cluster_judges_as_one_machine_does_though_a_worker_is_killed(cli, project, kata):
    distributed = pytest.importorskip("distributed")
    environment = {**os.environ, "PYTHONPATH": str(project.root / "scripts")}
    command = [sys.executable, "-m", "dojo", "verify", "scale", "--mutants", "--json", "-"]
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        judging = subprocess.Popen(
            [*command, "--cluster", cluster.scheduler_address],
            cwd=project.root,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        kept = project.state / "mutants"
        while not any(kept.glob("*")) and judging.poll() is None:
            time.sleep(0.02)
        os.kill(cluster.workers[0].pid, signal.SIGKILL)
        output, _ = judging.communicate(timeout=300)
    assert not list((project.state / "cluster").glob("*"))
    shutil.rmtree(kept)
    assert json.loads(output) == json.loads(cli("scale", "--mutants", "--json", "-").stdout)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sample", "3"], "go with --mutants or --all"),
        (["--record"], "go with --mutants or --all"),
        (["--cluster", "tcp://10.0.0.1:8786"], "go with --mutants or --all"),
        (["--mutants", "--sample", "3", "--record"], "leave out --sample"),
        (["--mutants", "--sample", "0"], "--sample"),
        (["--mutants", "--json", "/no/such/folder/scores.json"], "No such file"),
    ],
)
def test_options_that_make_no_sense_are_refused(cli, arguments, reason):
    result = cli("scale", *arguments)
    assert result.exit_code == 2
    assert reason in result.output.replace("\n", " ")
