"""A run cannot change what judges it: that is put back, and said, and the run is no solve."""

import re

import pytest

from dojo.history.history import History
from dojo.learner.player import Player
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Solution
from dojo.testrun.limits import Limits
from dojo.testrun.originals import Originals
from dojo.testrun.results import Verdict

# Right, and does this as it is loaded.
CHEAT = """
from pathlib import Path

root = Path({root!r})
{body}


def scale(x, factor):
    return x * factor


def shift(x, offset):
    return x + offset
"""
TESTS = "katas/01_scale/test_scale.py"
BODIES = {
    "test_scale.py": f"(root / {TESTS!r}).write_text('def test_scale(impl): pass')",
    "reference.py": "(root / 'katas/01_scale/reference.py').unlink()",
    "conftest.py": "import subprocess; subprocess.run(['sh', '-c', f'echo >> {root}/conftest.py'])",
    "golden.json": "(root / 'fixtures/golden.json').write_text('[]')",
    "errors.py": "(root / 'scripts/dojo/errors.py').rename(root / 'gone.py')",
}


@pytest.fixture
def checkout(project):
    """The small checkout, with a fixture file."""
    (project.root / "fixtures").mkdir()
    (project.root / "fixtures" / "golden.json").write_text("[1]")
    return project


def texts(project):
    files = [*project.root.rglob("*.py"), *project.root.rglob("*.json"), *project.root.glob("*")]
    return {
        path: path.read_bytes()
        for path in files
        if path.is_file() and path.name not in ("botched.py", "gone.py") and "__" not in path.name
    }


def test_what_a_run_changes_is_put_back_and_said(checkout, kata):
    before = texts(checkout)
    with Runner(checkout, Limits(run_seconds=30.0)) as runner, History(checkout.history) as history:
        for name, body in BODIES.items():
            kata.botched.write_text(CHEAT.format(root=str(checkout.root), body=body))
            result = runner.run(kata)
            assert result.verdict is Verdict.DAMAGED, name
            assert f"the run changed {name}; it was put back" in result.detail
            assert texts(checkout).items() >= before.items()
            assert not Player(checkout, kata, history).judge(result, runner).solved
        kata.botched.write_text(kata.correct_source)
        assert runner.run(kata).verdict is Verdict.PASSED
    assert (checkout.changed / "test_scale.py").read_text() == "def test_scale(impl): pass"


def test_what_a_person_edits_between_runs_stays(checkout, kata):
    kata.botched.write_text(kata.correct_source)
    with Runner(checkout, Limits(run_seconds=30.0)) as runner:
        assert runner.run(kata).verdict is Verdict.PASSED
        edited = kata.tests.read_text() + "\n# edited\n"
        kata.tests.write_text(edited)
        assert runner.run(kata).verdict is Verdict.PASSED
        # As a file of another kata's, which may change while this one is run.
        assert runner.run(kata, Solution(kata.botched)).verdict is Verdict.PASSED
    assert kata.tests.read_text() == edited


def test_only_files_that_were_read_last_are_put_back(tmp_path):
    one, other, missing = (tmp_path / name for name in ("one", "other", "missing"))
    one.write_text("1")
    other.write_text("1")
    originals = Originals(tmp_path / "aside")
    originals.read([one, other, missing])
    originals.read([one])
    one.write_text("2")
    other.write_text("2")
    assert originals.put_back() == [one]
    assert (one.read_text(), other.read_text()) == ("1", "2")
    one.touch()  # the same text: nothing was changed
    assert originals.put_back() == []


@pytest.mark.slow
def test_plain_pytest_puts_it_back_too(checkout, kata, run_pytest):
    before = kata.tests.read_text()
    body = BODIES["test_scale.py"]
    kata.botched.write_text(CHEAT.format(root=str(checkout.root), body=body))
    ended = run_pytest("katas/01_scale")
    assert ended.returncode == 1
    assert re.search("not judged: the run changed test_scale.py; it was put back", ended.stdout)
    assert "solved" not in ended.stdout
    assert kata.tests.read_text() == before
