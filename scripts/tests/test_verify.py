"""A kata that can be trusted gets no remark; whatever is taken away from it is named."""

import json
import shutil
from itertools import combinations

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.kata import kata_toml
from dojo.kata.planting import conflict
from dojo.runner.pool import Pool
from dojo.verification import budget, lint, reviews, sets, structure, symptoms
from dojo.verification.bugs import Verifier
from dojo.verification.greyed import greyed_out
from dojo.verification.sets import larger_sets, pairs

BRIEF = "# 02 Triple\n\n*layers, easy, 5 minutes*\n\nThe brief of triple.\n"
REFERENCE = '''
"""Three small functions."""

import math


def triple(x: float) -> float:
    """Return three times `x`."""
    return 3 * x


def hypotenuse(a: float, b: float) -> float:
    """Return the third side."""
    square = a * a + b * b
    return math.sqrt(square)


def _half(x: float) -> float:
    return x / 2


def quarter(x: float) -> float:
    """Return a fourth of `x`."""
    once = _half(x)
    return _half(once)
'''
TOML = """
title = "Triple"
topic = "layers"
level = "easy"
minutes = 5
default = ["doubles"]

[[bug]]
id = "doubles"
title = "Doubles"
kind = "scale"
find = "3 * x"
replace = "2 * x"
killed_by = ["test_triple"]
hints = ["How much is it?"]
why = "Two is not three."
seen_in = ["https://github.com/pytorch/pytorch/issues/1"]

[[bug]]
id = "sum-of-sides"
title = "Adds the sides"
kind = "formula"
find = "a * a + b * b"
replace = "a + b * b"
killed_by = ["test_hypotenuse"]
hints = ["Pythagoras?"]
why = "A side has no square."

[[bug]]
id = "no-root"
title = "Leaves out the root"
kind = "formula"
find = "return math.sqrt(square)"
replace = "return math.fabs(square)"
killed_by = ["test_hypotenuse", "test_hypotenuse_scales"]
hints = ["Pythagoras?"]
why = "A square is no side."

[[bug]]
id = "third"
title = "Divides by three"
kind = "scale"
find = "return x / 2"
replace = "return x / 3"
killed_by = ["test_quarter"]
hints = ["Try 4."]
why = "A half is a second part."

[[bug]]
id = "half-and-one"
title = "Adds one before halving"
kind = "formula"
find = "once = _half(x)"
replace = "once = _half(x + 1)"
killed_by = ["test_quarter", "test_quarter_of_nothing"]
hints = ["Try 0."]
why = "Nothing has no parts."

[[bug]]
id = "eighth"
title = "Halves three times"
kind = "scale"
find = "return _half(once)"
replace = "return _half(_half(once))"
killed_by = ["test_quarter", "test_quarter_is_more_than_a_fifth"]
hints = ["Try 8."]
why = "Two halvings make a quarter."
"""
TESTS = """
import pytest


@pytest.fixture
def hypotenuse(impl):
    return impl.hypotenuse


def test_triple(impl):
    assert impl.triple(2.0) == 6.0


def test_hypotenuse(hypotenuse):
    assert hypotenuse(3.0, 4.0) == 5.0, "the third side of 3 and 4"


def test_hypotenuse_scales(hypotenuse):
    assert abs(hypotenuse(6.0, 8.0) - 2 * hypotenuse(3.0, 4.0)) < 2.5


def test_quarter(impl):
    assert impl.quarter(4.0) == 1.0


def test_quarter_of_nothing(impl):
    assert impl.quarter(0.0) == 0.0


def test_quarter_is_more_than_a_fifth(impl):
    assert impl.quarter(10.0) > 2.0
"""


@pytest.fixture
def triple(project):
    folder = project.katas / "02_triple"
    folder.mkdir()
    (folder / "README.md").write_text(BRIEF)
    (folder / "reference.py").write_text(REFERENCE.lstrip())
    (folder / "kata.toml").write_text(TOML)
    (folder / "test_triple.py").write_text(TESTS)
    kata = kata_toml.load(folder)
    kata.botched.write_text(kata.planted_source(kata.default))
    return kata


@pytest.fixture
def verify(project):
    def verify(*arguments):
        return CliRunner().invoke(main, ["verify", *arguments], obj=project)

    return verify


def edited(kata, name, old, new):
    path = kata.folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return kata_toml.load(kata.folder)


def test_a_kata_that_can_be_trusted(verify, triple):
    result = verify("triple")
    assert result.exit_code == 0, result.output
    assert "02_triple: " not in result.output
    row = next(line for line in result.output.splitlines() if line.startswith("02_triple "))
    assert row.split()[-1] == "ok"
    number = len(triple.bugs)
    assert row.split()[1:8] == ["0", str(number), "of", str(number), "-", "10", "of"]


def test_the_whole_check_plants_every_pair(verify, triple):
    number = len(pairs(triple, triple.bugs))
    assert f" {number} of {number} " in verify("triple", "--whole").output


def test_every_pair_that_goes_together_is_planted(triple):
    planted = {frozenset(bug.id for bug in pair) for pair in pairs(triple, triple.bugs)}
    assert planted == {
        frozenset((one.id, other.id))
        for one, other in combinations(triple.bugs, 2)
        if not conflict(triple.correct_source, [one, other])
    }
    larger = larger_sets(triple, triple.bugs)
    assert all(len(chosen) >= 3 for chosen in larger)
    assert len(set(larger)) == len(larger) == 10
    assert larger == larger_sets(triple, triple.bugs)


def test_a_bug_that_masks_another_is_named_with_the_test(verify, triple):
    # Of 8: a third of a third of 9 is 1, and neither bug alone gives that.
    edited(triple, "test_triple.py", "quarter(0.0) == 0.0", "quarter(8.0) in (1.0, 2.0)")
    result = verify("triple", "--whole")
    assert result.exit_code == 1
    assert (
        "02_triple: third + half-and-one: test_quarter_of_nothing passes although half-and-one "
        "is planted; it cannot stand in that bug's killed_by"
    ) in result.output


def test_a_pair_that_behaves_like_one_bug_is_to_be_kept_apart(verify, triple):
    edited(triple, "kata.toml", "math.fabs(square)", "math.fabs(0 * square + 9)")
    result = verify("triple", "--whole")
    assert result.exit_code == 1
    said = "sum-of-sides + no-root behave like no-root alone: write apart = "
    assert f'02_triple: {said}["no-root"] under sum-of-sides' in result.output
    edited(triple, "kata.toml", 'id = "sum-of-sides"', 'id = "sum-of-sides"\napart = ["no-root"]')
    assert said not in verify("triple", "--whole").output


def test_the_reference_comes_first_and_its_failing_test_is_named(verify, triple):
    edited(triple, "test_triple.py", "== 5.0", "== 6.0")
    edited(triple, "README.md", "easy", "hard")
    result = verify("triple")
    assert result.exit_code == 1
    first, second = (line for line in result.output.splitlines() if line.startswith("02_triple: "))
    assert first == (
        "02_triple: the reference does not pass test_hypotenuse (--kata-seed 0): "
        "the third side of 3 and 4"
    )
    assert "README.md, line 3" in second
    assert "of 6" not in result.output  # no bug was tried


@pytest.mark.slow
def test_tests_that_take_too_long_are_refused_with_the_slowest(verify, triple, monkeypatch):
    monkeypatch.setattr(budget, "_slowness", lambda: 1.0)
    edited(triple, "test_triple.py", "import pytest", "import time\n\nimport pytest")
    edited(
        triple,
        "test_triple.py",
        "    assert impl.triple",
        "    end = time.process_time() + 1.1\n"
        "    while time.process_time() < end:\n        pass\n"
        "    assert impl.triple",
    )
    result = verify("triple")
    assert result.exit_code == 1
    assert "s on the reference, more than 1 s; 1.1" in result.output
    assert "s of it test_triple" in result.output
    monkeypatch.setattr(budget, "_slowness", lambda: 2.0)  # a machine half as fast
    assert verify("triple").exit_code == 0


def test_tests_that_do_not_load_are_one_problem(verify, triple):
    edited(triple, "test_triple.py", "import pytest", "import pytest, (")
    result = verify("triple")
    assert result.exit_code == 1
    [problem] = (line for line in result.output.splitlines() if line.startswith("02_triple: "))
    assert problem.startswith("02_triple: the reference does not pass (--kata-seed 0): broken: ")


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("README.md", "# 02 Triple", "# 3 Triple", "README.md, line 1: by kata.toml it is '# 02 T"),
        ("README.md", "easy, 5", "easy, 10", "line 3: by kata.toml it is '*layers, easy, 5 min"),
        ("README.md", "The brief", "TODO", "README.md, line 5: TODO of triple."),
        ("README.md", BRIEF, "", "README.md is missing or empty"),
        (
            "test_triple.py",
            "test_triple(impl):",
            "test_triple():\n    impl = __import__('math')",
            "test_triple does not take impl, so it tests nothing",
        ),
        ("test_triple.py", "hypotenuse(impl):", "hypotenuse():", "test_hypotenuse_scales does not"),
        ("kata.toml", '["test_triple"]', "[]", "bug doubles: killed_by is empty"),
        ("kata.toml", '["test_triple"]', '["test_tripel"]', "names test_tripel, which test_triple"),
        (
            "kata.toml",
            '["test_quarter"]',
            '["test_quarter", "test_quarter_of_nothing"]',
            "bugs third and half-and-one have the same killed_by",
        ),
        ("botched.py", "2 * x", "4 * x", "botched.py is not the reference with the default bugs"),
    ],
)
def test_what_contradicts_the_rest_is_named(triple, name, old, new, problem):
    assert list(structure.problems(triple)) == []
    problems = list(structure.problems(edited(triple, name, old, new)))
    assert any(problem in said for said in problems), problems


@pytest.mark.parametrize(
    "link",
    [
        "http://github.com/pytorch/pytorch/issues/1",
        "https://localhost/issues/1",
        "https://127.0.0.1/issues/1",
        "https://example.org/issues/1",
        "https://github.com/OWNER/REPO/issues/1",
        "https://github.com/pytorch/pytorch/issues/N",
        "https://github.com/pytorch/pytorch/issues/1 and 2",
        "https://github.com",
        "pytorch/pytorch#1",
    ],
)
def test_a_link_that_is_none_is_named(triple, link):
    kata = edited(triple, "kata.toml", "https://github.com/pytorch/pytorch/issues/1", link)
    assert list(structure.problems(kata)) == [
        f"bug doubles: seen_in {link!r} is no https link to a public thread"
    ]


@pytest.mark.parametrize(
    ("fact", "problem"),
    [
        (
            {"killed_by": ["test_of_old"]},
            "fresh-1 names test_of_old, which test_triple",
        ),
        ({"find": "4 * x"}, "fresh-1 does not fit reference.py"),
        ({"operator": "dojo/Unheard"}, "no explanation for the operator"),
    ],
)
def test_stale_fresh_bugs_are_named_with_the_way_out(triple, fact, problem):
    facts = {"id": "fresh-1", "operator": "dojo/ChangeAxis", "find": "3 * x", "replace": "5 * x"}
    facts["killed_by"] = ["test_triple"]
    triple.fresh_file.write_text(json.dumps([facts]))
    assert list(structure.problems(kata_toml.load(triple.folder))) == []
    triple.fresh_file.write_text(json.dumps([{**facts, **fact}]))
    [said] = structure.problems(kata_toml.load(triple.folder))
    assert problem in said
    assert "--record" in said


@pytest.mark.parametrize(
    ("old", "new", "remark"),
    [
        ('"2 * x"', '"2 * x  # close"', "bug doubles stands out: it has the comment '# close'"),
        ('"2 * x"', '"2*x"', "bug doubles stands out: ruff format changes the text"),
        ('"2 * x"', '"sum([t for t in [2 * x]])"', "bug doubles stands out: ruff says C416"),
        ('"a + b * b"', '"b * b"', "bug sum-of-sides stands out: a is not used in hypotenuse"),
        ("return math.fabs(square)", "return square", "bug no-root stands out: math is not used"),
    ],
)
def test_a_bug_that_stands_out_is_named(project, triple, old, new, remark):
    assert list(lint.problems(project, triple)) == []
    [said] = lint.problems(project, edited(triple, "kata.toml", old, new))
    assert said.startswith(remark)


def test_without_ruff_verify_says_so_once_and_goes_on(verify, triple, monkeypatch):
    monkeypatch.setattr(lint, "has_ruff", lambda: False)
    edited(triple, "kata.toml", '"2 * x"', '"2*x"')
    edited(triple, "kata.toml", '"a + b * b"', '"b * b"')
    output = verify("triple").output
    assert output.count("not linted: ruff is missing; scripts/test.sh installs it") == 1
    assert "bug doubles stands out" not in output
    assert "bug sum-of-sides stands out: a is not used in hypotenuse" in output


@pytest.mark.parametrize(
    ("source", "grey"),
    [
        ("import os.path as p, sys\nsys", {"p is not used"}),
        ("def f(a, *b, c=1, _d=2): return b", {"a is not used in f", "c is not used in f"}),
        ("def f(x):\n    n, d = x\n    return n", {"d is not used in f"}),
        ("def f(x):\n    def g(y): return x\n    return g", {"y is not used in g"}),
        ("def f(x):\n    for i in x:\n        x += 1", {"i is not used in f"}),
        ("def f(x):\n    total = 0\n    total += x", set()),
        ("def _f(): pass\n\ndef g(): pass", {"_f is not used"}),
        ("class A:\n    def _m(self): return self\n    def n(self): self._m()", set()),
        ("def f(x):\n    return x\n    return 1", {"what follows `return x` never runs"}),
        ("def f():\n    try: pass\n    except OSError as e: pass", {"e is not used in f"}),
        ("def f():\n    while True:\n        break\n    return 1", set()),
    ],
)
def test_what_an_editor_greys_out(source, grey):
    assert greyed_out(source) == grey


def rows(output):
    return [line.split() for line in output.splitlines() if line.startswith("02_triple ")]


def test_what_was_proved_is_not_run_again_until_something_changes(verify, triple):
    assert rows(verify("triple").output)[0][-3] != "before"
    [known] = rows(verify("triple").output)
    assert known[-4:] == ["as", "before", "-", "ok"]
    assert known[1:5] == ["0", "6", "of", "6"]
    triple.botched.write_text("a learner's text\n")  # no proof rests on it
    assert rows(verify("triple").output)[0][-3] == "before"
    assert rows(verify("triple", "--whole").output)[0][-3] != "before"
    edited(triple, "test_triple.py", "quarter(0.0) == 0.0", "quarter(0.0) == 0")
    assert rows(verify("triple").output)[0][-3] != "before"
    edited(triple, "kata.toml", '"3 * x"', '"3 * x"  ')
    assert rows(verify("triple").output)[0][-3] != "before"


def test_what_has_a_problem_is_not_proved(verify, triple):
    edited(triple, "test_triple.py", "quarter(4.0) == 1.0", "quarter(4.0) < 2.0")
    for _ in range(2):
        result = verify("triple")
        assert result.exit_code == 1
        assert (
            "bug third does not fail test_quarter of its killed_by (--kata-seed 0)" in result.output
        )


def test_an_earlier_proof_hides_no_problem_of_the_folder(verify, triple):
    assert verify("triple").exit_code == 0
    edited(triple, "README.md", "easy", "hard")
    result = verify("triple")
    assert result.exit_code == 1
    assert "README.md, line 3" in result.output
    assert rows(result.output)[0][-4:] == ["as", "before", "-", "PROBLEMS"]


def test_a_killed_by_that_never_fails_is_named_without_whole(verify, triple):
    edited(triple, "kata.toml", '["test_triple"]', '["test_quarter_of_nothing"]')
    edited(triple, "kata.toml", '["test_quarter"]', '["test_quarter", "test_triple"]')
    output = verify("triple").output
    assert "bug doubles does not fail test_quarter_of_nothing of its killed_by" in output
    assert "does not fail test_triple" not in output  # its other test does
    assert "bug third does not fail test_triple of its killed_by" in (
        verify("triple", "--whole").output
    )


def test_other_correct_solutions_are_run_and_one_that_is_refused_is_named(verify, triple):
    solutions = triple.folder / "solutions"
    solutions.mkdir()
    (solutions / "same.py").write_text(triple.correct_source)
    assert rows(verify("triple").output)[0][1] == "1"
    (solutions / "sums.py").write_text(triple.correct_source.replace("3 * x", "x + x"))
    result = verify("triple")
    assert result.exit_code == 1
    assert result.output.count("solutions/sums.py does not pass test_triple (--kata-seed 0)") == 1
    assert rows(result.output)[0][1] == "1"


def test_the_properties_that_the_tests_check_are_shown(verify, triple):
    edited(triple, "test_triple.py", "import pytest", "from dojo.testing import assert_repeatable")
    edited(triple, "test_triple.py", "assert_repeatable", "assert_any_mode, assert_repeatable")
    edited(triple, "test_triple.py", "assert_repeatable", "assert_repeatable\n\nimport pytest")
    assert rows(verify("triple").output)[0][-3:] == ["repeatable", "mode", "ok"]


@pytest.fixture
def descent(project, system):
    """A system, alone in its project."""
    shutil.rmtree(project.katas / "01_scale")
    return system


def test_a_system_is_asked_for_what_it_lacks(verify, descent):
    output = verify("descent").output
    for reason in (
        "no bug is the over_fix_of another: name a tempting fix that is wrong",
        "kata.toml has 1 of at least 2 decoys",
        "healthy.json is missing: scripts/verify.sh 02_descent --healthy records it",
    ):
        assert f"02_descent: {reason}" in output
    edited(descent, "kata.toml", ', ["And its sign?", "That of x - centre."]', "")
    edited(descent, "test_descent.py", "@pytest.mark.symptom\n", "")
    edited(descent, "test_descent.py", "@pytest.mark.symptom\n", "")
    output = verify("descent").output
    assert "bug forgets-centre: ask has 1 of at least 2 questions" in output
    assert "test_descent.py: no test is marked as a symptom" in output


@pytest.mark.slow
def test_a_bug_of_a_system_that_shows_nowhere_outside_is_named(verify, descent):
    verify("descent", "--healthy")
    said = "02_descent: bug half-the-slope shows nowhere outside"
    # It fails a symptom.
    assert said not in verify("descent", "--whole").output
    # It fails none, yet its loss leaves the band.
    edited(descent, "test_descent.py", "0.5 * 49", "0.9 * 49")
    assert said not in verify("descent", "--whole").output
    # Neither: what is logged does not tell.
    edited(descent, "reference.py", '"loss": (x - 3.0) ** 2', '"loss": 0.0')
    verify("descent", "--healthy")
    assert said in verify("descent", "--whole").output


@pytest.mark.slow
def test_the_symptoms_of_healthy_runs_are_looked_for_under_many_seeds(verify, descent):
    edited(descent, "kata.toml", 'find = "10.0 + seed % 7"', 'find = "10.0 +"')
    edited(descent, "reference.py", "seed % 7", "1e9 * (seed == 41)")  # the tests give it seed 1
    verify("descent", "--healthy")
    assert (
        "reference does not pass test_the_loss_falls (--kata-seed 40)"
        in verify("descent", "--whole").output
    )


def test_of_systems_that_are_not_named_a_sample_is_planted(project, system, monkeypatch):
    monkeypatch.setattr(sets, "SAMPLE", 1)
    monkeypatch.setattr(reviews, "SEEDS_OF_SLOW_NAMED", reviews.SEEDS_OF_SLOW)
    every = len(pairs(system, system.bugs))
    assert every > 1
    sampled, whole = (
        Verifier(project, Pool([]), whole=True, sample=sample) for sample in (True, False)
    )
    spared = every - 1 + symptoms.SEEDS - symptoms.SAMPLE
    assert sampled.runs_of(system) == whole.runs_of(system) - spared
