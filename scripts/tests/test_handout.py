"""What a class is given: katas that run, and no answers."""

import pytest

from dojo.classroom.answerless import write_answerless
from dojo.kata import catalogue
from dojo.kata.catalogue import load_all
from dojo.project import Project


@pytest.fixture
def answerless(project, kata, system, tmp_path):
    return write_answerless(project, [kata, system], tmp_path / "class")


def answers(kata):
    """What stands in a kata's catalogue and nowhere else."""
    for bug in kata.bugs:
        yield from (bug.id, bug.title, bug.why, *bug.hints)


def test_an_answerless_checkout_holds_no_answers(answerless, kata, system):
    files = [path for path in answerless.root.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert not names & {"reference.py", "fresh.json", "mutants.toml", "history.sqlite"}
    assert not [path for path in files if path.parent.name == "solutions"]
    of_katas = "".join(path.read_text() for path in answerless.katas.rglob("*.*"))
    assert not [text for one in (kata, system) for text in answers(one) if text in of_katas]


def test_its_katas_are_found_and_run(answerless, kata, run_pytest):
    stripped = catalogue.find(answerless, "scale")
    assert (stripped.title, stripped.minutes, stripped.answerless) == ("Scale", 5, True)
    stripped.botched.write_text(kata.planted_source(["divides"]))
    result = run_pytest("katas/01_scale", cwd=answerless.root)
    assert "5 times 2.0 is 2.5" in result.stdout
    assert "01_scale: not solved yet\n" in result.stdout
    assert "hint" not in result.stdout
    stripped.botched.write_text(kata.correct_source)
    assert "01_scale: solved\n" in run_pytest("katas/01_scale", cwd=answerless.root).stdout


def test_its_checks_are_sealed(answerless, system, run_pytest):
    (answerless.katas / system.name / "botched.py").write_text(system.botched.read_text())
    result = run_pytest("katas/02_descent", cwd=answerless.root)
    assert "2 of 2 symptoms, 3 of 3 checks fail" in result.stdout
    assert "sealed: --open-checks opens them all" in result.stdout
    assert "gradient_by_hand" not in result.stdout


def test_every_kata_can_be_had_without_answers(tmp_path):
    copy = write_answerless(Project.here(), load_all(Project.here()), tmp_path / "class")
    katas = load_all(copy)
    assert len(katas) == len(load_all(Project.here()))
    assert all(kata.answerless and kata.tests.is_file() for kata in katas)
    assert not list(copy.fixtures.glob("*.py"))
