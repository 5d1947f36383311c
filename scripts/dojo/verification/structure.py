"""Sees that a kata's folder is complete and agrees with itself, before anything is run."""

import ast
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from dojo.errors import CatalogueError, typed
from dojo.files import revision
from dojo.instruments.bands import read_band
from dojo.kata.kata import Kata
from dojo.kata.planting import conflict
from dojo.testrun.results import check_functions, test_functions

LEAST_BUGS = 6
LEAST_DECOYS, LEAST_QUESTIONS = 2, 2  # of a system; the questions for each bug

# Of `dojo.testing`: what holds for almost every function, by a short name.
PROPERTIES = {
    "assert_repeatable": "repeatable",
    "assert_any_layout": "layout",
    "assert_any_mode": "mode",
    "assert_gradients_reach": "gradients",
}

Functions = dict[str, ast.FunctionDef]  # by name

_LINK = re.compile(r"https://([a-z0-9-]+\.)+[a-z]{2,}/\S+", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"example\.(com|net|org)/|\.(example|internal|invalid|local|test)/|\b(OWNER|REPO)\b|/N$"
)


def problems(kata: Kata) -> Iterator[str]:
    """Yield what is missing from the kata's folder, or contradicts the rest, in words."""
    for path in (kata.brief, kata.tests):
        if not path.is_file() or not path.read_text(encoding="utf-8").strip():
            yield f"{path.name} is missing or empty"
    yield from _left_to_do(kata)
    yield from _brief(kata)
    yield from _bugs(kata)
    # Of tests that are no Python, running the reference says so; more would only hide that.
    if functions := _functions(kata):
        yield from _tests(kata, functions)
        if kata.is_system:
            yield from _system(kata)
        yield from _killed_by(kata, functions)
        yield from _fresh(kata, functions)
    if kata.is_system:
        yield from _healthy(kata)
    if not botched_is_default(kata):
        yield (
            "botched.py is not the reference with the default bugs: "
            f"{typed('reset', kata.name)}, then commit it"
        )


def properties(kata: Kata) -> list[str]:
    """Return the short names of the ready-made properties that the kata's tests check."""
    words = set(re.findall(r"\w+", "\n".join(_lines(kata.tests))))
    return [short for name, short in PROPERTIES.items() if name in words]


def botched_is_default(kata: Kata) -> bool:
    """Say whether botched.py, as git has it or as it stands, is reference plus default bugs.

    What git has counts, so that a learner's own edits do not turn this red.
    """
    expected = kata.planted_source(kata.default).encode()
    if kata.botched.is_file() and kata.botched.read_bytes() == expected:
        return True
    staged = subprocess.run(
        ["git", "show", ":./botched.py"], cwd=kata.folder, capture_output=True, check=False
    )
    return staged.returncode == 0 and staged.stdout == expected


def _left_to_do(kata: Kata) -> Iterator[str]:
    for path in (kata.brief, kata.reference, kata.tests, kata.folder / "kata.toml"):
        for number, line in enumerate(_lines(path), 1):
            if "TODO" in line:
                yield f"{path.name}, line {number}: {line.strip()}"


def _brief(kata: Kata) -> Iterator[str]:
    """Compare the heading and the line of facts with kata.toml."""
    lines = [*_lines(kata.brief), "", "", ""]
    number = kata.name.partition("_")[0]
    facts = f"*{kata.topic}, {kata.level}, {kata.minutes} minutes*"
    for place, wanted in ((1, f"# {number} {kata.title}"), (3, facts)):
        if lines[place - 1] != wanted:
            yield f"README.md, line {place}: by kata.toml it is {wanted!r}"


def _tests(kata: Kata, functions: Functions) -> Iterator[str]:
    """Name the tests that test nothing: `impl` reaches them neither directly nor by a fixture."""
    takes = {
        name: {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        for name, node in functions.items()
    }
    fixtures = {
        name
        for name, node in functions.items()
        if any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    reached = {"impl"}
    while more := {name for name in fixtures - reached if takes[name] & reached}:
        reached |= more
    for name in functions:
        if name.startswith("test_") and not takes[name] & reached:
            yield f"{kata.tests.name}: {name} does not take impl, so it tests nothing"


def _bugs(kata: Kata) -> Iterator[str]:
    if len(kata.bugs) < LEAST_BUGS:
        yield f"kata.toml has {len(kata.bugs)} of at least {LEAST_BUGS} bugs"
    for bug in kata.bugs:
        if not bug.killed_by:
            yield f"bug {bug.id}: killed_by is empty"
        for link in bug.seen_in:
            if not _LINK.fullmatch(link) or _PLACEHOLDER.search(link):
                yield f"bug {bug.id}: seen_in {link!r} is no https link to a public thread"
    for one, other in combinations(kata.bugs, 2):
        if set(one.killed_by) == set(other.killed_by) and not conflict(
            kata.correct_source, [one, other]
        ):
            yield f"bugs {one.id} and {other.id} have the same killed_by: progress would not show"


def _system(kata: Kata) -> Iterator[str]:
    """Name what a whole system needs besides: symptoms, questions, an over-fix, decoys."""
    if test_functions(kata.tests) == check_functions(kata.tests):
        yield f"{kata.tests.name}: no test is marked as a symptom: @pytest.mark.symptom"
    if not any(bug.over_fix_of for bug in kata.bugs):
        yield "no bug is the over_fix_of another: name a tempting fix that is wrong"
    if len(kata.decoys) < LEAST_DECOYS:
        yield f"kata.toml has {len(kata.decoys)} of at least {LEAST_DECOYS} decoys"
    for bug in kata.bugs:
        if len(bug.ask) < LEAST_QUESTIONS:
            yield f"bug {bug.id}: ask has {len(bug.ask)} of at least {LEAST_QUESTIONS} questions"


def _killed_by(kata: Kata, functions: Functions) -> Iterator[str]:
    for bug in kata.bugs:
        for name in sorted(set(bug.killed_by) - functions.keys()):
            yield f"bug {bug.id}: killed_by names {name}, which {kata.tests.name} does not define"


def _fresh(kata: Kata, functions: Functions) -> Iterator[str]:
    try:
        fresh = kata.fresh
    except CatalogueError as error:
        yield str(error)
        return
    stale = {bug.id: set(bug.killed_by) - functions.keys() for bug in fresh}
    stale = {bug_id: names for bug_id, names in stale.items() if names}
    if stale:
        bug_id, names = next(iter(stale.items()))
        yield (
            f"fresh.json: {bug_id} names {min(names)}, which {kata.tests.name} does not define "
            f"({len(stale)} such bugs); {typed('verify', '--mutants', kata.name, '--record')} "
            "makes the file anew"
        )


def _healthy(kata: Kata) -> Iterator[str]:
    """Say where a system's band is missing, or was recorded from another text."""
    name, remedy = kata.healthy_file.name, typed("verify", kata.name, "--healthy")
    try:
        band = read_band(kata.healthy_file)
    except CatalogueError as error:
        yield str(error)
        return
    if band is None:
        yield f"{name} is missing: {remedy} records it"
    elif band.reference != revision(kata.reference.read_bytes()):
        yield f"{name} is not of this reference.py: {remedy} records it anew"


def _functions(kata: Kata) -> Functions:
    """Return the functions of the test file by name; none where it is missing or no Python."""
    try:
        tree = ast.parse("\n".join(_lines(kata.tests)))
    except SyntaxError:
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
