"""Proofs: tests that a learner writes, judged on correct versions and on wrong ones."""

import os
import queue
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.cli.lines import Lines
from dojo.errors import DojoError
from dojo.history.history import History
from dojo.history.proofs import Goal
from dojo.history.sessions import Ending
from dojo.kata import catalogue
from dojo.kata.proof_template import proof_template
from dojo.practice.judging import judge
from dojo.practice.planning import Wishes, plan_proofs
from dojo.practice.proof_loop import ProofJudged, ProofOver, ProofRefused, SurvivorHinted, proving
from dojo.practice.proving import Level, draw_versions, prover
from dojo.project import Project
from dojo.runner.pool import runner_pool
from dojo.testrun.limits import Limits
from dojo.wording.proofs import KEYS, judgement_lines

REAL = Project.here()
KATAS = catalogue.load_all(REAL)

SCALES = """
def test_scales(impl):
    assert impl.scale(5.0, 2.0) == 10.0
"""
SHIFTS = """
def test_shifts(impl):
    assert impl.shift(5.0, 1.5) == 6.5
"""
NOTHING = """
def test_nothing(impl):
    assert impl.scale(0.0, 1.0) is not None
"""


@pytest.fixture
def pool(project):
    limits = Limits(test_seconds=1.0, run_seconds=12.0, memory_gb=0.25)
    with runner_pool(project, limits) as pool:
        yield pool


@pytest.fixture
def worth(pool, kata):
    """Judge a proof by its text, on every bug of the small kata."""

    def worth(text):
        kata.proof.write_text(text)
        return judge(pool, kata, kata.bugs, kata.proof, seed=1)

    return worth


@pytest.fixture
def cli(project):
    def call(*arguments, **options):
        return CliRunner().invoke(main, ["prove", "scale", *arguments], obj=project, **options)

    return call


def add_solution(kata, text, name="one.py"):
    (kata.folder / "solutions").mkdir(exist_ok=True)
    (kata.folder / "solutions" / name).write_text(text)


def test_each_test_catches_its_versions_and_the_others_survive(worth):
    judgement = worth(SCALES + NOTHING)
    assert [(one.test, one.bugs) for one in judgement.catches] == [
        ("test_scales", ("adds-factor", "divides")),
        ("test_nothing", ()),
    ]
    assert [bug.id for bug in judgement.survivors] == ["subtracts-offset"]
    assert judgement_lines(judgement) == [
        "2 of 3 wrong versions caught",
        "  test_scales: catches 2",
        "  test_nothing: catches nothing",
    ]


def test_a_false_alarm_names_the_style_and_its_test_catches_nothing(worth, kata):
    add_solution(
        kata,
        '"""A loop of additions."""\n\n'
        "def scale(x, factor):\n    return sum([x] * int(factor))\n\n"
        "def shift(x, offset):\n    return x + offset\n",
    )
    judgement = worth(SHIFTS + "\n\ndef test_half(impl):\n    assert impl.scale(5.0, 0.5) == 2.5\n")
    (alarm,) = judgement.alarms
    assert (alarm.style, alarm.test.function) == ("A loop of additions", "test_half")
    assert [(one.test, one.bugs) for one in judgement.catches] == [
        ("test_shifts", ("subtracts-offset",))
    ]
    first, *_ = judgement_lines(judgement)
    assert first == "false alarm: test_half refuses a correct version (A loop of additions)"


def test_a_proof_may_use_parameters_fixtures_and_torchs_comparisons(worth):
    judgement = worth(
        "import pytest\nimport torch\n\n\n"
        "@pytest.fixture\ndef offset():\n    return 1.5\n\n\n"
        "@pytest.mark.parametrize('x', [1.0, 2.0])\n"
        "def test_shift(impl, x, offset):\n"
        "    torch.testing.assert_close(impl.shift(x, offset), x + offset)\n"
    )
    assert not judgement.alarms
    assert judgement.caught == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def test_scales(impl)\n", "proof.py"),
        ("x = 1\n", "pytest ended with code 5"),
        ("def test_a():\n    while True:\n        pass\n", "false alarm: test_a refuses a correct"),
        ("def test_a(other):\n    pass\n", "there is no fixture 'other'"),
        ("import pytest\n\n\ndef test_a():\n    pytest.skip('no')\n", "skipped its test"),
    ],
    ids=["syntax", "no test", "endless", "no fixture", "skip"],
)
def test_a_proof_that_does_not_run_is_told_why(worth, text, told):
    lines = judgement_lines(worth(text))
    assert told in " ".join(lines), lines
    assert "0 of 3" in " ".join(lines) or lines[0].startswith("no verdict: ")


HEAD = "import dis\nimport inspect\nfrom pathlib import Path\n\n\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "def test_a(impl):\n    assert '*' in inspect.getsource(impl.scale)\n",
            "the proof reads the text of the code under test",
        ),
        (
            "def test_a(impl):\n    assert '*' in Path(impl.__file__).read_text()\n",
            "the proof reads the text of the code under test",
        ),
        (
            "def test_a(impl):\n    assert impl.scale.__code__.co_code\n",
            "the proof looks into the code under test",
        ),
        (
            "def test_a(impl):\n    dis.dis(impl.scale)\n",
            "the proof looks into the code under test",
        ),
        (
            "def test_a(impl):\n    assert Path(__file__).with_name('kata.toml').read_text()\n",
            "the proof reads kata.toml",
        ),
        (
            "TEXT = Path(__file__).with_name('reference.py').read_text()\n\n\n"
            "def test_a(impl):\n    assert TEXT\n",
            "the proof reads reference.py",
        ),
        (
            "import pytest\n\n\n@pytest.fixture\ndef text(impl):\n"
            "    return Path(impl.__file__).read_text()\n\n\n"
            "def test_a(text):\n    assert text\n",
            "the proof reads the text of the code under test",
        ),
        (
            "def test_a(impl):\n    try:\n        inspect.getsource(impl.scale)\n"
            "    except BaseException:\n        pass\n",
            "the proof reads the text of the code under test",
        ),
    ],
    ids=["source", "file", "bytecode", "dis", "catalogue", "import", "fixture", "swallowed"],
)
def test_a_proof_that_reads_what_it_tests_gets_no_verdict(worth, text, told):
    judgement = worth(HEAD + text)
    assert judgement.problem.startswith(told)
    assert not judgement.catches


def test_a_proof_may_ask_for_a_signature_and_read_elsewhere(worth, tmp_path):
    notes = tmp_path / "numbers.txt"
    notes.write_text("10")
    judgement = worth(
        HEAD + "def test_a(impl):\n"
        "    assert list(inspect.signature(impl.scale).parameters) == ['x', 'factor']\n"
        f"    assert impl.scale(5.0, 2.0) == float(Path({str(notes)!r}).read_text())\n"
    )
    assert not judgement.problem
    assert judgement.caught == 2


def test_a_proof_that_fails_on_its_second_run_gets_no_verdict(worth, tmp_path):
    judgement = worth(
        f"from pathlib import Path\n\nRAN = Path({str(tmp_path / 'ran')!r})\n\n\n"
        "def test_a(impl):\n    first = not RAN.exists()\n    RAN.touch()\n    assert first\n"
    )
    # On two cores another version may be first; then the reference is refused at once.
    refused = judgement.problem.startswith("test_a passes on the reference, and fails when it")
    assert refused or judgement.alarms
    assert not judgement.catches or not judgement.catches[0].bugs


def test_a_time_out_catches_nothing(pool, kata):
    kata.proof.write_text(
        "def test_a(impl):\n    while impl.scale(5.0, 2.0) != 10.0:\n        pass\n"
    )
    judgement = judge(pool, kata, [kata.bug("divides")], kata.proof, seed=1)
    assert not judgement.alarms
    assert judgement.caught == 0


def test_versions_are_all_bugs_and_some_fresh_ones_and_a_seed_repeats_them():
    softmax = catalogue.find(REAL, "softmax")
    versions = draw_versions(softmax, Goal.ALL, seed=7)
    assert versions == draw_versions(softmax, Goal.ALL, seed=7)
    assert versions != draw_versions(softmax, Goal.ALL, seed=8)
    assert {bug.id for bug in softmax.bugs if not bug.gpu} <= set(versions)
    fresh = [bug_id for bug_id in versions if bug_id.startswith("fresh-")]
    assert 0 < len(fresh) <= 20
    texts = {softmax.planted_source([bug_id]) for bug_id in versions}
    assert len(texts) == len(versions)


def test_of_a_system_there_are_ten_versions_and_of_one_bug_one():
    system = catalogue.find(REAL, "42")
    assert len(draw_versions(system, Goal.ALL, seed=1)) == 10
    assert len(draw_versions(system, Goal.ONE, seed=1)) == 1


def test_once_prints_a_verdict_and_its_status(cli, kata):
    result = cli("--once")
    assert result.exit_code == 1
    assert "Catch all of 3 wrong versions. Refuse no correct one." in result.output
    assert "1 of 3 wrong versions caught" in result.output  # by the worked example
    kata.proof.write_text(SCALES + SHIFTS)
    result = cli("--once")
    assert result.exit_code == 0
    assert "01_scale: proved, 3 of 3 wrong versions caught" in result.output
    assert "Adds the factor        test_scales  test_scale" in result.output


def test_one_bug_is_told_and_has_to_be_caught(cli, kata):
    kata.proof.write_text(SCALES + SHIFTS)
    result = cli("--goal", "one", "--seed", "1", "--once")
    assert result.exit_code == 0
    (bug,) = map(kata.bug, draw_versions(kata, Goal.ONE, seed=1))
    assert bug.title in result.output
    assert "Write the test that catches it." in result.output
    assert bug.replace not in result.output.partition("caught")[0]


def test_half_is_enough_where_half_is_the_goal(cli, kata, project):
    kata.proof.write_text(SCALES)
    assert cli("--goal", "half", "--once").exit_code == 0
    with History(project.history) as history:
        (proof,) = history.proofs.all()
    assert (proof.ending, len(proof.caught), proof.grade) == (Ending.SOLVED, 2, 4)


def test_a_proof_that_was_left_goes_on_with_its_versions(project, kata, history):
    first = prover(project, kata, history, Goal.HALF, seed=3)
    again = prover(project, kata, history)
    assert (again.goal, again.bugs) == (Goal.HALF, first.bugs)
    anew = prover(project, kata, history, Goal.ALL)
    assert anew.goal is Goal.ALL
    assert [proof.ending for proof in history.proofs.all()] == [Ending.SKIPPED, None]


def test_reset_keeps_the_text_and_undo_brings_it_back(cli, kata, project):
    kata.proof.write_text(SCALES)
    result = cli("--reset", "--once")
    assert "undo.sh 01_scale --proof" in result.output
    assert kata.proof.read_text() == proof_template(kata)
    CliRunner().invoke(main, ["undo", "scale", "--proof"], obj=project)
    assert kata.proof.read_text() == SCALES
    assert not kata.folder.joinpath("proof").exists()


def test_plain_pytest_runs_a_proof_and_records_nothing(run_pytest, project, kata):
    kata.proof.write_text("def test_shift(impl):\n    pass\n\n\ndef test_scale(impl):\n    pass\n")
    ran = run_pytest(kata.proof)
    assert ran.returncode == 0, ran.stdout
    assert "prove.sh 01_scale says what your proof is worth" in ran.stdout
    assert "solved" not in ran.stdout
    with History(project.history) as history:
        assert not history.attempts(kata.name)


def next_event(events, kind):
    """Return the next event of a kind."""
    for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"it ended without {kind.__name__}")


def test_every_save_is_judged_and_the_goal_ends_it(project, kata, history, pool):
    kata.proof.write_text(SCALES)
    with proving(prover(project, kata, history), pool) as loop:
        events = loop.events(KEYS, 0.05)
        assert next_event(events, ProofJudged).judgement.caught == 2
        time.sleep(0.1)  # the watch has begun
        kata.proof.write_text(SCALES + SHIFTS)
        assert next_event(events, ProofJudged).judgement.caught == 3
        over = next_event(events, ProofOver)
    assert over.debrief.score == 100
    assert history.proofs.all()[-1].ending is Ending.SOLVED


def test_hints_tell_a_behaviour_then_an_input_then_another_survivor(project, kata, history, pool):
    kata.proof.write_text(SHIFTS)
    with proving(prover(project, kata, history, seed=1), pool) as loop:
        events = loop.events(KEYS, 0.05)
        loop.press("h")  # too early
        assert "no verdict yet" in next_event(events, ProofRefused).reason
        next_event(events, ProofJudged)
        hints = []
        for _ in range(4):
            loop.press("h")
            hints.append(next_event(events, SurvivorHinted).hint)
        loop.press("h")
        assert "no more hints" in next_event(events, ProofRefused).reason
        loop.press("r")
        debrief = next_event(events, ProofOver).debrief
    assert [hint.level for hint in hints] == [Level.BEHAVIOUR, Level.INPUT] * 2
    assert {hint.test.function for hint in hints} == {"test_scale"}
    assert hints[1].test.message.startswith("5 times")
    assert (debrief.proof.hints, debrief.proof.ending) == (4, Ending.REVEALED)
    assert debrief.score == round(100 / 3) - 4 * 5


def test_a_claim_is_answered_by_a_counter_example(project, kata, history, pool):
    kata.proof.write_text(SHIFTS)
    proof = prover(project, kata, history, seed=1)
    proof.record(judge(pool, kata, proof.bugs, kata.proof, 1))
    with pytest.raises(DojoError, match="press h first"):
        proof.claim(pool)
    hint = proof.hint(pool)
    assert proof.standing_hint == hint
    assert proof.claim(pool).message.startswith("5 times")
    assert history.proofs.all()[-1].claims == 1
    assert proof.standing_hint.level is Level.INPUT
    kata.proof.write_text(SCALES + SHIFTS)
    proof.record(judge(pool, kata, proof.bugs, kata.proof, 1))
    assert proof.standing_hint is None  # that version is caught now


def test_time_that_is_up_ends_it(project, kata, history, pool):
    kata.proof.write_text(NOTHING)
    with proving(prover(project, kata, history, budget=0.01), pool) as loop:
        over = next_event(loop.events(KEYS, 0.05), ProofOver)
    assert over.debrief.proof.ending is Ending.MISSED
    assert over.debrief.proof.grade == 1


@pytest.mark.slow
def test_plain_lines_take_letters_from_a_pipe(project, kata):
    kata.proof.write_text(SCALES)
    with subprocess.Popen(
        [sys.executable, "-m", "dojo", "prove", "scale"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(project.root / "scripts"), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("  seed"):
                process.stdin.write("h\nq\n")
                process.stdin.flush()
    said = "".join(lines)
    assert process.returncode == 0, said
    assert "2 of 3 wrong versions caught" in said
    assert 'One that survives is wrong where the kata tests "shift".' in said
    assert "Your proof is as you left it" in said


def test_a_session_asks_for_one_bug_first_then_for_half_then_for_all(kata, history):
    goals = []
    for _ in range(4):
        (planned,) = plan_proofs([kata], history, Wishes(named=(kata,)))
        goals.append(planned.goal)
        proof = history.proofs.begin(kata.name, planned.goal, ["divides"])
        history.proofs.end(proof.id, Ending.SOLVED, 3)
    assert goals == [Goal.ONE, Goal.HALF, Goal.ALL, Goal.ALL]


def test_a_session_of_proofs_takes_what_is_due_first(kata, system, history):
    later = history.proofs.begin(kata.name, Goal.ONE, ["divides"])
    history.proofs.end(later.id, Ending.SOLVED, 4)
    order = [plan.kata.name for plan in plan_proofs([kata, system], history, Wishes(katas=2))]
    assert order == [system.name, kata.name]  # what is new comes before what is not due yet


def test_a_session_of_proofs_ends_with_the_time_and_says_how_it_went(project, kata):
    kata.proof.write_text(SCALES)
    arguments = ["practice", "--prove", "scale", "--minutes", "0.02"]
    result = CliRunner().invoke(main, arguments, obj=project)
    assert result.exit_code == 0
    assert "The brief of scale." in result.output
    assert "Proof 1 of 1" in result.output
    assert "01_scale  one   time was up" in result.output
    undo = CliRunner().invoke(main, ["undo", "scale", "--proof"], obj=project)
    assert undo.exit_code == 0
    assert kata.proof.read_text() == SCALES


def test_lines_go_to_whoever_listens_and_to_nobody_before(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream, os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdin", stream)
        lines = Lines()
        for letter in "ab":  # one proof after another
            heard = queue.SimpleQueue()
            with lines.to(heard.put):
                print(letter, file=pipe, flush=True)
                assert heard.get(timeout=10) == f"{letter}\n"
        pipe.close()
        assert not lines.next_letter()  # the reader has come to its end


@pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.name)
def test_the_template_of_every_kata_is_python_and_names_its_functions(kata):
    text = proof_template(kata)
    compile(text, "proof.py", "exec")
    assert "def test_" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of all katas: what is written there is in nobody's way."""
    return REAL.copied_to(tmp_path_factory.mktemp("proofs") / "checkout", "katas", "fixtures")


@pytest.fixture(scope="module")
def checkout_pool(checkout):
    with runner_pool(checkout, Limits(test_seconds=60.0, run_seconds=300.0)) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("name", [kata.name for kata in KATAS])
def test_the_template_of_every_kata_refuses_nothing_and_catches_something(
    name, checkout, checkout_pool
):
    kata = catalogue.find(checkout, name)
    text = proof_template(kata)
    kata.proof.write_text(text)
    bugs = [bug for bug in kata.bugs if not bug.gpu]
    if kata.needs_triton or kata.is_system:  # which take seconds a bug
        bugs.sort(key=lambda bug: not any(f"def {name}(" in text for name in bug.killed_by))
        del bugs[6:]
    judgement = judge(checkout_pool, kata, bugs, kata.proof, seed=1)
    assert not judgement.problem
    assert not judgement.alarms, judgement_lines(judgement)
    assert any(catch.bugs for catch in judgement.catches)


@pytest.mark.slow
@pytest.mark.parametrize("name", [kata.name for kata in KATAS])
def test_the_tests_of_every_kata_are_a_whole_proof(name, checkout, checkout_pool):
    kata = catalogue.find(checkout, name)
    slow = kata.needs_triton or kata.is_system
    versions = draw_versions(kata, Goal.ALL, seed=1)[: 4 if slow else None]
    bugs = list(map(kata.bug, versions))
    judgement = judge(checkout_pool, kata, bugs, kata.tests, seed=1)
    assert not judgement.problem
    assert not judgement.alarms, judgement_lines(judgement)
    assert judgement.caught == len(bugs), [bug.id for bug in judgement.survivors]
