"""What a class is given: katas that run, and no answers."""

import os
import zipfile

import pytest
from click.testing import CliRunner

from dojo.classroom.answerless import write_answerless
from dojo.classroom.assignment import Assignment
from dojo.cli import main
from dojo.errors import DojoError
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


def hand_out(project, *arguments):
    return CliRunner().invoke(main, ["handout", *map(str, arguments)], obj=project)


BLOCKS = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"click", "filelock", "fsrs", "jinja2", "plotille", "rich",
                                  "textual", "watchfiles", "xdist"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
"""


def test_a_handout_runs_with_pytest_torch_and_numpy_alone(project, kata, tmp_path, run_pytest):
    result = hand_out(project, "scale", "--bugs", "divides", "-o", tmp_path / "homework")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("01_scale: divides\n")
    assert "grade.sh SUBMISSIONS --bugs divides" in result.output
    folder = tmp_path / "homework"
    assert (folder / "katas/01_scale/botched.py").read_text() == kata.planted_source(["divides"])
    assert not [path for path in folder.rglob("*.md") if "divides" in path.read_text()]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BLOCKS)
    env = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "bare"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    result = run_pytest("katas/01_scale", cwd=folder, env=env)
    assert "01_scale: not solved yet\n" in result.stdout, result.stdout + result.stderr


def test_an_archive_holds_the_same_bugs_for_the_same_seed(project, tmp_path):
    texts = []
    for name in ("one", "two"):
        target = tmp_path / f"{name}.zip"
        result = hand_out(project, "scale", "--count", "1", "--seed", "3", "-o", target)
        assert "grade.sh SUBMISSIONS --count 1 --seed 3" in result.output
        with zipfile.ZipFile(target) as archive:
            texts.append(archive.read(f"{name}/katas/01_scale/botched.py"))
    assert texts[0] == texts[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout", "one.zip", "two.zip"]


def test_hints_are_folded_and_only_there_if_wanted(project, tmp_path):
    hand_out(project, "scale", "-o", tmp_path / "without")
    assert not (tmp_path / "without/katas/01_scale/HINTS.md").exists()
    hand_out(project, "scale", "--hints", "-o", tmp_path / "with")
    page = (tmp_path / "with/katas/01_scale/HINTS.md").read_text()
    assert page.count("<details>") == 3
    assert "Try factor 1." in page
    assert "adds-factor" not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bugs", "divide"], "01_scale has no bug 'divide'; did you mean 'divides'?"),
        (["--bugs", "divides", "--count", "1"], "give one kind"),
        (["--bugs", "divides,adds-factor"], "touch the same lines"),
        (["--count", "9"], "01_scale has no 9 bugs that can be planted together"),
        (["-o", "{checkout}"], "exists; name another"),
        (["-o", "{checkout}/no/where"], "does not exist; make it first"),
    ],
)
def test_what_cannot_be_handed_out_is_one_line(project, tmp_path, arguments, said):
    arguments = [argument.format(checkout=project.root) for argument in arguments]
    result = hand_out(project, "scale", "-o", tmp_path / "out", *arguments)
    assert result.exit_code != 0
    assert said in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["checkout"]


def test_a_named_bug_goes_to_the_kata_that_has_it(kata, system):
    assignment = Assignment.of("rate-rises, divides", None, None)
    assert assignment.planted([kata, system]) == {
        "01_scale": ("divides",),
        "02_descent": ("rate-rises",),
    }
    with pytest.raises(DojoError, match="02_descent has no bug 'divides'"):
        Assignment.of("divides", None, None).planted([kata, system])


@pytest.mark.parametrize("command", ["check", "hint", "reset", "list", "stats"])
def test_commands_work_in_a_handout_or_say_why_not(project, tmp_path, command):
    hand_out(project, "scale", "-o", tmp_path / "homework")
    names = ["scale"] if command in ("check", "hint", "reset") else []
    result = CliRunner().invoke(main, [command, *names], obj=Project(tmp_path / "homework"))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if names:
        told = "not solved yet" if command == "check" else "this handout "
        assert told in result.output
