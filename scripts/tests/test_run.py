"""scripts/run.sh: a system's log, its curves, and what is said of them."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.kata import kata_toml
from dojo.verification import structure

REFERENCE = '''
"""A loss that falls."""

import random
from collections.abc import Iterator


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Yield a dict a step."""
    generator = random.Random(seed)
    loss = 2.0
    for step in range(60 if steps is None else steps):
        loss *= 0.9
        yield {"loss": loss + 0.1 * generator.random(), "lr": 0.1 / (step + 1)}
'''

TOML = """
title = "Falling"
topic = "systems"
level = "easy"
minutes = 5
default = ["falls-slowly"]

[[bug]]
id = "falls-slowly"
title = "Falls slowly"
kind = "scale"
find = "loss *= 0.9"
replace = "loss *= 0.99"
killed_by = ["test_falls"]
hints = ["How far does it fall?"]
why = "A factor near one."
"""

TESTS = """
import pytest


@pytest.mark.symptom
def test_falls(impl):
    assert list(impl.run())[-1]["loss"] < 0.5
"""


@pytest.fixture
def system(project):
    folder = project.katas / "02_falling"
    folder.mkdir()
    (folder / "reference.py").write_text(REFERENCE.lstrip())
    (folder / "kata.toml").write_text(TOML)
    (folder / "test_falling.py").write_text(TESTS)
    kata = kata_toml.load(folder)
    kata.botched.write_text(kata.correct_source)
    return kata


@pytest.fixture
def cli(project):
    def call(*arguments):
        return CliRunner().invoke(main, list(map(str, arguments)), obj=project)

    return call


@pytest.fixture
def recorded(system, cli):
    cli("verify", "falling", "--healthy")
    assert system.healthy_file.is_file()
    return system


def edit(kata, old, new):
    assert kata.correct_source.count(old) == 1
    kata.botched.write_text(kata.correct_source.replace(old, new))


def about_healthy(kata):
    return [problem for problem in structure.problems(kata) if "healthy.json" in problem]


def test_what_healthy_runs_look_like_is_recorded_and_goes_stale(system, cli):
    remedy = "scripts/verify.sh 02_falling --healthy records it"
    assert about_healthy(system) == [f"healthy.json is missing: {remedy}"]
    result = cli("verify", "falling", "--healthy")
    assert "02_falling: wrote healthy.json: 10 runs of 60 steps, 2 numbers\n" in result.output
    assert about_healthy(system) == []
    assert json.loads(system.healthy_file.read_text())["steps"] == 60
    first = system.healthy_file.read_bytes()
    cli("verify", "falling", "--healthy")
    assert system.healthy_file.read_bytes() == first
    system.reference.write_text(REFERENCE + "\n# Changed.\n")
    assert about_healthy(system) == [f"healthy.json is not of this reference.py: {remedy} anew"]
    system.healthy_file.write_text("[")
    (broken,) = about_healthy(system)
    assert "healthy.json: JSONDecodeError" in broken


def test_a_reference_that_does_not_come_to_its_end_is_no_healthy_run(system, cli):
    system.reference.write_text(REFERENCE.replace("loss *= 0.9", "loss *= 0.9 / (step - 5)"))
    system.botched.unlink()
    result = cli("verify", "falling", "--healthy")
    assert result.exit_code == 1
    assert "02_falling: the reference, seed 0: step 6: ZeroDivisionError in run" in result.output
    assert not system.healthy_file.exists()


def test_a_kata_that_is_no_system_has_no_healthy_runs(cli, kata):
    result = cli("verify", "scale", "--healthy")
    assert result.exit_code == 1
    assert "--healthy is for systems, and 01_scale is none" in result.output
    assert about_healthy(kata) == []


def test_a_healthy_run_is_shown_beside_others(recorded, cli, project):
    result = cli("run", "falling", "--seed", 12)
    lines = result.output.splitlines()
    assert result.exit_code == 0
    steps = [line.split()[1] for line in lines if re.match(r"step +\d+  loss", line)]
    assert steps == ["1", *map(str, range(3, 61, 3))]
    titles = [line for line in lines if ", mean of 3 steps" in line]
    assert [title.partition(",")[0] for title in titles] == ["loss", "lr"]
    assert "░" in result.output
    assert re.fullmatch(
        r"02_falling: 60 steps in \d+\.\d s, every number like in healthy runs", lines[-1]
    )
    assert "\x1b" not in result.output


def test_a_bug_leaves_the_band(recorded, cli):
    recorded.botched.write_text(recorded.planted_source(["falls-slowly"]))
    result = cli("run", "falling")
    assert result.exit_code == 0
    *_, said, verdict = result.output.splitlines()
    assert re.match(r"loss is above healthy runs from step \d+ on: 1\.\d+ at step \d+", said)
    assert verdict.endswith("; 1 of 2 numbers unlike healthy runs")


@pytest.mark.parametrize(
    ("change", "last"),
    [
        ("loss *= 0.9; step == 30 and 1 / 0", "step 31: ZeroDivisionError in run, line 12"),
        ("loss *= float('nan') if step == 30 else 0.9", "step 31: loss is NaN"),
        ("loss *= 0.9\n        if step == 30: raise SystemExit", "step 31: SystemExit in run"),
    ],
)
def test_a_run_that_breaks_off_shows_its_log_up_to_there(recorded, cli, change, last):
    edit(recorded, "loss *= 0.9", change)
    result = cli("run", "falling")
    lines = result.output.splitlines()
    assert result.exit_code == 1
    assert lines[-1].startswith(f"02_falling: stopped at {last}")
    steps = [int(line.split()[1]) for line in lines if re.match(r"step +\d+  loss", line)]
    assert steps[-1] in (30, 31)
    assert "steps, healthy runs" not in result.output


def test_what_is_printed_stands_in_the_log(recorded, cli):
    edit(recorded, "loss *= 0.9", "loss *= 0.9; step == 6 and print('here', loss)")
    lines = cli("run", "falling").output.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("here 0.9"))
    assert (lines[at - 1].split()[1], lines[at + 1].split()[1]) == ("6", "9")


def test_without_healthy_runs_of_its_kind_a_run_stands_alone(recorded, cli):
    shorter = cli("run", "falling", "--steps", 20)
    assert "has healthy runs of 60 steps alone: the curves stand alone" in shorter.output
    assert re.fullmatch(r"02_falling: 20 steps in \d+\.\d s", shorter.output.splitlines()[-1])
    assert "░" not in shorter.output.replace("░░ healthy runs", "")
    assert "alone" not in cli("run", "falling", "--steps", 60).output
    recorded.reference.write_text(REFERENCE + "\n# Changed.\n")
    assert "has a healthy.json of another reference" in cli("run", "falling").output
    recorded.healthy_file.unlink()
    alone = cli("run", "falling")
    assert "has no healthy.json" in alone.output
    assert alone.exit_code == 0


def test_nan_where_healthy_runs_are_not_finite_either_goes_on(recorded, cli):
    source = recorded.correct_source.replace(
        '"lr": 0.1', '"lr": float("nan") if step == 4 else 0.1'
    )
    recorded.reference.write_text(source)
    recorded.botched.write_text(source)
    kata_toml.load(recorded.folder)
    cli("verify", "falling", "--healthy")
    assert json.loads(recorded.healthy_file.read_text())["numbers"]["lr"]["low"][4] is None
    result = cli("run", "falling")
    assert (result.exit_code, "every number like" in result.output) == (0, True)


def test_the_curves_are_written_as_a_page(recorded, cli, tmp_path):
    page = tmp_path / "run.html"
    result = cli("run", "falling", "--html", page)
    assert f"wrote {page}\n" in result.output
    assert page.read_text().count("<svg") == 2
    nowhere = cli("run", "falling", "--html", tmp_path / "no" / "run.html")
    assert nowhere.exit_code == 1
    assert "does not exist; make it first" in nowhere.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["scale"], 1, "01_scale is no system: it has no run() and no log; scripts/check.sh 01_sc"),
        (["fallign"], 1, "did you mean 02_falling?"),
        (["falling", "--seed", "-1"], 2, "Invalid value for '--seed'"),
        (["falling", "--steps", "0"], 2, "Invalid value for '--steps'"),
        (["falling", "--reference"], 2, "No such option"),
        ([], 2, "Missing argument 'KATA'"),
    ],
)
def test_what_cannot_be_run_gets_one_line(system, cli, arguments, code, said):
    result = cli("run", *arguments)
    assert result.exit_code == code
    assert said in result.output.replace("'-1'", "-1")


def test_a_file_without_run_gets_one_line(recorded, cli):
    recorded.botched.write_text("def train(): pass\n")
    result = cli("run", "falling")
    assert result.exit_code == 1
    assert result.output == (
        "02_falling: stopped at botched.py has no 'run', which the brief asks for\n"
    )


def test_help_imports_neither_torch_nor_what_draws(project):
    code = (
        "import sys; from dojo.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'plotille', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_the_run_and_says_where(system, project):
    edit(system, "loss *= 0.9", "loss *= 0.9; __import__('time').sleep(0.01 if step < 5 else 99)")
    process = subprocess.Popen(
        [sys.executable, "-m", "dojo", "run", "falling"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(project.root / "scripts")},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process.stdout as shown:
        while not re.match(r"step +5", shown.readline()):
            pass
        process.send_signal(signal.SIGINT)
        assert shown.read() == "02_falling: stopped after 5 steps\n"
    assert process.wait() == 130


def test_colours_are_for_terminals_that_want_them(recorded, project, monkeypatch):
    def shown():
        result = CliRunner().invoke(main, ["run", "falling"], obj=project, color=True)
        assert result.exit_code == 0
        return result.output

    coloured = shown()
    assert "\x1b[33m\x1b[1m" in coloured
    assert "\x1b[32m░" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown()


@pytest.mark.parametrize("value", [math.inf, 1e308])
def test_a_run_that_explodes_is_drawn_as_far_as_it_can_be(recorded, cli, value):
    edit(recorded, "loss *= 0.9", f"loss *= 0.9 if step < 40 else float('{value}')")
    result = cli("run", "falling")
    assert result.exit_code == 0
    assert re.search(r"loss is above healthy runs from step \d+ on: inf", result.output)
