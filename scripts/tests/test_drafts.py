"""What `kata new` writes disturbs nothing until its author has filled it in."""

import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.errors import DojoError
from dojo.history.history import History
from dojo.kata import catalogue, skeleton
from dojo.practice.planning import Wishes, plan
from dojo.project import Project
from dojo.testrun.implementation import Reference
from dojo.testrun.results import Verdict

REAL = Project.here()


@pytest.fixture
def cli(project):
    def call(*arguments):
        return CliRunner().invoke(main, arguments, obj=project)

    return call


@pytest.fixture(params=[False, True], ids=["kata", "system"])
def draft(project, request):
    """A draft that is alone in its project."""
    shutil.rmtree(project.katas / "01_scale")
    skeleton.create(project, "alibi", system=request.param)
    return catalogue.find(project, "alibi")


def test_verify_counts_what_is_left_of_a_draft_and_names_it_on_request(cli, draft):
    result = cli("verify")
    assert result.exit_code == 0, result.output
    assert "1 of 1" in result.output  # its bug is planted all the same
    left = [line for line in cli("verify", "alibi").output.splitlines() if "01_alibi: " in line]
    assert f"01_alibi is a draft: {len(left)} things are left" in result.output
    assert "scripts/verify.sh 01_alibi names them" in result.output
    lacks = ("TODO", " at least ", "over_fix", "healthy.json is missing")
    assert all(any(word in line for word in lacks) for line in left), left
    assert cli("verify", "alibi").exit_code == 1


def test_a_draft_is_never_chosen_and_its_mutants_are_not_tried(cli, draft, tmp_path):
    history = History(tmp_path / "history.sqlite")
    with pytest.raises(DojoError, match="no kata fits"):
        plan([draft], history, Wishes())
    (named,) = plan([], history, Wishes(named=(draft,)))
    assert named.kata == draft
    history.close()
    result = cli("verify", "--mutants")
    assert result.exit_code == 0, result.output
    assert "mutants not tried, for they are drafts: 01_alibi" in result.output


def test_list_shows_a_draft_and_the_readme_does_not(cli, project, draft):
    assert "draft" in cli("list").output
    project.readme.write_text("<!-- katas: by list -->\n<!-- end of katas -->\n")
    assert "wrote 0 rows" in cli("list", "--readme").output
    assert "alibi" not in project.readme.read_text()


def test_the_default_bug_of_a_new_system_shows_as_a_symptom(project, runner):
    skeleton.create(project, "plateau", system=True)
    kata = catalogue.find(project, "plateau")
    failing = {test.function for test in runner.run(kata, seed=0).tests if test.message}
    assert failing == {"test_the_loss_falls", "test_a_step_by_hand"}
    assert runner.run(kata, Reference(), seed=0).verdict is Verdict.PASSED


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is checked in, with a draft beside the katas."""
    copy = REAL.copied_to(tmp_path / "checkout", "katas", "scripts/tests")
    shutil.copy(REAL.readme, copy.readme)
    skeleton.create(copy, "alibi")
    skeleton.create(copy, "plateau", system=True)
    return copy


@pytest.mark.slow
def test_a_new_kata_turns_no_test_of_the_project_red(checkout):
    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=checkout.root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    for name in ("alibi", "plateau"):
        (folder,) = checkout.katas.glob(f"*_{name}")
        run("ruff", "check", str(folder))
        run("ruff", "format", "--check", str(folder))
    names = ("catalogue", "fresh", "planning", "readme")
    tests = [f"scripts/tests/test_{name}.py" for name in names]
    run("pytest", "-q", *tests, "-k", "every_kata or table_of_katas or test_planning")
