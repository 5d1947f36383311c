import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.project import Project

COMMANDS = sorted(main.list_commands(None))
REAL = Project.here()


@pytest.fixture
def cli(project):
    def call(*arguments, **options):
        return CliRunner().invoke(main, [str(a) for a in arguments], obj=project, **options)

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_a_script(cli, name):
    result = cli(name, "--help")
    assert result.exit_code == 0
    assert f"Example: scripts/{name}.sh" in result.output
    script = REAL.root / "scripts" / f"{name}.sh"
    assert os.access(script, os.X_OK)
    assert f'kata.sh" {name} "$@"' in script.read_text()


def test_help_imports_neither_torch_nor_a_terminal_interface():
    code = (
        "import sys; from dojo.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'triton', 'numpy', 'textual', 'cosmic_ray'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REAL.root / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["reset", "scael"], "did you mean 01_scale?"),
        (["reset"], "name the katas to reset, or give --all"),
        (["reset", "scale", "--all"], "name the katas to reset, or give --all"),
        (["reset", "scale", "--bugs", "nonsense"], "has no bug 'nonsense'"),
        (["reset", "scale", "--bugs", "adds-factor,divides"], "touch the same lines"),
        (["reset", "scale", "--bugs", "divides", "--seed", "1"], "give one kind"),
        (["reset", "scale", "--count", "9"], "no 9 bugs that can be planted together"),
        (["reset", "scale", "--count", "0"], "at least 1"),
        (["undo", "scale"], "nothing to undo"),
        (["reveal", "scale"], "add --yes"),
        (["new", "Bad-Name"], "is no name for a kata"),
        (["new", "01_scale"], "exists already"),
        (["new", "01_rope"], "01_scale has that number or that word already"),
        (["new", "scale"], "01_scale has that number or that word already"),
        (["new", "02_scale"], "01_scale has that number or that word already"),
        (["verify", "nonsense"], "no kata is called 'nonsense'"),
        (["practice", "scale", "--minutes", "0"], "--minutes"),
    ],
)
def test_bad_input_gets_one_clear_line_and_changes_nothing(cli, kata, arguments, reason):
    before = kata.botched.read_bytes()
    result = cli(*arguments)
    assert result.exit_code in (1, 2)
    assert reason in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert kata.botched.read_bytes() == before


def test_reset_plants_and_undo_brings_back(cli, kata):
    kata.botched.write_text("# mine\n")
    result = cli("reset", "scale")
    assert "1 bug planted; your text is kept: scripts/undo.sh 01_scale" in result.output
    assert kata.botched.read_text() == kata.planted_source(("adds-factor",))
    assert cli("undo", "scale").exit_code == 0
    assert kata.botched.read_text() == "# mine\n"
    assert "reset" in cli("undo", "scale", "--list").output


def test_reset_with_a_seed_is_the_same_everywhere(cli, kata):
    cli("reset", "--all", "--count", "2", "--seed", "7")
    assert kata.botched.read_text() == kata.planted_source(("divides", "subtracts-offset"))


def test_hints_never_tell_the_answer_and_end(cli, kata):
    outputs = [cli("hint", "scale").output for _ in range(4)]
    assert outputs[0] == "Hint 1 of 3: What does scale do?\n"
    assert outputs[2].splitlines() == [
        "Hint 1 of 3: What does scale do?",
        outputs[1].splitlines()[-1],
        "Hint 3 of 3, the last: Look at the operator.",
    ]
    assert "no more hints" in outputs[3]
    assert "x * factor" not in "".join(outputs)


def test_reveal_asks_once_tells_and_applies(cli, kata, project):
    revealed = cli("reveal", "scale", "--yes").output
    assert "+    return x * factor" in revealed
    assert "Adding is not scaling." in revealed
    assert "https://example.org/issues/1" in revealed
    assert "Dividing" not in revealed  # not planted
    again = cli("reveal", "scale", "--apply")
    assert again.exit_code == 0
    assert kata.botched.read_text() == kata.correct_source
    assert "revealed" in cli("list").output
    cli("undo", "scale")
    assert kata.botched.read_text() == kata.planted_source(("adds-factor",))


def test_check_says_how_many_are_fixed(cli, kata):
    result = cli("check", "scale")
    assert result.exit_code == 1
    assert "fails: test_scale (2 of 2 cases)" in result.output
    assert "5 times 2.0 is" in result.output
    assert "01_scale: 0 of 1 bug fixed" in result.output
    kata.botched.write_text(kata.correct_source)
    result = cli("check", "scale")
    assert result.exit_code == 0
    assert "01_scale: solved" in result.output
    assert "solved" in cli("list").output


def test_new_makes_a_kata_and_verify_says_what_is_missing(cli, project):
    assert "made katas/02_rope" in cli("new", "rope").output
    result = cli("verify", "rope")
    assert result.exit_code == 1
    assert "1 of 1" in result.output
    assert "README.md, line 5: TODO: one sentence" in result.output
    assert "kata.toml has 1 of at least 6 bugs" in result.output


def test_verify_refuses_a_bug_that_no_test_catches(cli, kata):
    text = kata.tests.read_text()
    kata.tests.write_text(text.replace("def test_shift", "def not_a_test"))
    result = cli("verify", "scale")
    assert result.exit_code == 1
    assert "bug subtracts-offset is not caught" in result.output
    assert "killed_by names test_shift, which test_scale.py does not define" in result.output


def test_verify_believes_nothing_while_the_reference_fails(cli, kata):
    kata.reference.write_text(kata.correct_source.replace("x + offset", "x + offset + 0 * x[0]"))
    toml = kata.folder / "kata.toml"
    toml.write_text(toml.read_text().replace("x + offset", "x + offset + 0 * x[0]"))
    result = cli("verify", "scale")
    assert result.exit_code == 1
    assert "the reference does not pass" in result.output
    assert " of 3" not in result.output  # no bug was tried


def test_verify_wants_botched_to_be_reference_plus_default_bugs(cli, kata):
    kata.botched.write_text("# an edit\n")
    assert "botched.py is not the reference with the default bugs" in cli("verify", "scale").output


def test_a_learners_edits_do_not_turn_verify_red(cli, kata, project):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(project.root)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    kata.botched.write_text("# a learner's work\n")
    assert "botched.py" not in cli("verify", "scale").output


def test_mutants_that_survive_are_shown(cli, kata):
    result = cli("verify", "scale", "--mutants")
    assert result.exit_code == 0, result.output
    kata.tests.write_text(kata.tests.read_text().replace("def test_shift", "def not_a_test"))
    result = cli("verify", "scale", "--mutants")
    assert result.exit_code == 1
    assert "+ moved = x - offset" in result.output


def test_colours_stop_where_they_are_not_wanted(project):
    environment = {**os.environ, "PYTHONPATH": str(project.root / "scripts"), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "dojo", "reveal", "scale", "--yes"]
    piped = subprocess.run(
        command, env=environment, capture_output=True, check=True, cwd=project.root
    )
    assert b"\x1b[" not in piped.stdout
