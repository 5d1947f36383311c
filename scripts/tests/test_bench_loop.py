import re
import sys

import pytest

pytest.importorskip("pytest_watcher")

from dojo.benchmarks.copies import copied, left_as_found
from dojo.benchmarks.loop import compared
from dojo.benchmarks.sizes import Sizes
from dojo.benchmarks.soak import soak
from dojo.benchmarks.terminal import in_terminal
from dojo.benchmarks.variants import verify_rate
from dojo.cli.bench_command import print_loop
from dojo.errors import DojoError

pytestmark = pytest.mark.slow

SHORT = Sizes(saves=2, keys=2, cosmic_ray_seconds=20.0, soak_runs=20)


def test_the_loop_is_measured_from_its_first_figure_to_its_last(project, capsys):
    print_loop(project, "01_scale", SHORT)
    header, rule, *rows, screen, key, request, proof, verified, soaked = (
        capsys.readouterr().out.splitlines()
    )
    assert header.split() == ["01_scale", "ours", "ms", "beside", "its", "ms", "times", "faster"]
    assert set(rule) == {"-", " "}
    assert len(rows) == 5
    for row, (task, tool) in zip(
        rows,
        [
            ("save to first failure", "cold pytest"),
            ("save to verdict", "cold pytest"),
            ("save to count", "cold pytest"),
            ("save to verdict", "pytest-watcher"),
            ("a mutant", "cosmic-ray"),
        ],
        strict=True,
    ):
        assert re.fullmatch(rf"{task} +\d+ +{tool} +\d+ +\d+\.\d", row)
        assert float(row.split()[-1]) > 1
    assert re.fullmatch(r"practice: first screen after \d+\.\d\d s", screen)
    assert re.fullmatch(r"a key, while tests run: \d+ ms", key)
    assert re.fullmatch(r"the next request to review: \d+ ms", request)
    assert re.fullmatch(r"a proof: \d+ ms from save to verdict", proof)
    assert re.fullmatch(r"verify: \d+\.\d variants a second on each core", verified)
    assert re.fullmatch(
        r"after 20 runs: \+0 open files, \+0 processes, [+-][\d,]+ KB of memory", soaked
    )


def test_our_figure_stands_where_the_other_tool_gives_none():
    def silent():
        raise DojoError("60 s went by without a verdict")

    made = compared("save to verdict", "pytest-watcher", 0.08, silent)
    assert (made.ours, made.theirs) == (0.08, None)
    assert made.reason == "60 s went by without a verdict"


def test_a_soak_says_which_run_was_not_as_expected(project):
    with copied(project, "01_scale") as (copy, kata):
        kata.botched.write_text(kata.correct_source)
        with pytest.raises(DojoError, match=r"^run 1 of 20 should have failed .* was passed: .*$"):
            soak(copy, kata, runs=20)


def test_a_measurement_leaves_the_copy_as_it_found_it(project):
    with copied(project, "01_scale") as (copy, kata):
        before = kata.botched.read_bytes(), kata.reference.read_bytes()

        def killed_in_its_midst():
            kata.botched.write_text("something else")
            kata.reference.unlink()
            copy.state.mkdir()
            raise DojoError("60 s went by without a verdict")

        with pytest.raises(DojoError), left_as_found(copy, kata):
            killed_in_its_midst()
        assert (kata.botched.read_bytes(), kata.reference.read_bytes()) == before
        assert not copy.state.exists()


def test_the_learners_own_file_is_not_touched(project, kata):
    before = kata.botched.read_bytes()
    with copied(project, "01_scale") as (_, copy_of_it):
        copy_of_it.botched.write_text("something else")
    assert kata.botched.read_bytes() == before


def test_a_command_that_ends_early_is_told_from_one_that_is_silent(project, monkeypatch):
    monkeypatch.setattr("dojo.benchmarks.terminal.PATIENCE_SECONDS", 0.5)
    with (
        in_terminal([sys.executable, "-c", "print('some text')"], project) as terminal,
        pytest.raises(DojoError, match=r"^it ended without a verdict$"),
    ):
        terminal.wait_for("a verdict", "passed")
    with (
        in_terminal(["sleep", "60"], project) as terminal,
        pytest.raises(DojoError, match=r"^0\.5 s went by without a verdict$"),
    ):
        terminal.wait_for("a verdict", "passed")


def test_a_reference_that_fails_gives_no_rate(project):
    with copied(project, "01_scale") as (copy, kata):
        kata.reference.write_text(kata.planted_source(kata.default))
        with pytest.raises(DojoError, match=r"cannot be verified: the reference does not pass"):
            verify_rate(copy, kata)
