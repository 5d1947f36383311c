"""Each planted bug is judged by itself: a count is right whichever was mended, and in what way."""

import itertools
import random
import textwrap

import pytest

from dojo.kata.bug import Bug, Kind
from dojo.kata.catalogue import load_all
from dojo.kata.planting import conflict, plant
from dojo.learner.counting import Count, by_runs, count_gone, without_runs
from dojo.project import Project
from dojo.runner.runner import Runner

KATAS = load_all(Project.here())


@pytest.fixture(scope="module")
def runner():
    with Runner(Project.here(), processes=1) as runner:
        yield runner


def mended_in_turn(kata, chosen):
    """Yield each text on the way from all of these bugs to none, and which are left in it."""
    for number in range(1, len(chosen) + 1):
        for left in itertools.combinations(chosen, number):
            yield plant(kata.correct_source, left), left


def assert_told_apart(kata, chosen, runner):
    """Check every count on the way, by what is proved of each bug alone and of the reference."""
    for text, left in mended_in_turn(kata, chosen):
        count = count_gone(kata.correct_source, chosen, text, by_runs(kata, runner, seed=0))
        gone = tuple(one.id for one in chosen if one not in left)
        assert count == Count(gone), f"left: {[one.id for one in left]}"


@pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.name)
def test_pairs_are_told_apart_whichever_is_mended_first(kata, runner):
    for pair in itertools.combinations(kata.bugs, 2):
        if not conflict(kata.correct_source, pair):
            assert_told_apart(kata, pair, runner)


@pytest.mark.slow
def test_triples_of_all_bugs_are_told_apart(runner):
    rng = random.Random(20)
    triples = 0
    while triples < 200:
        kata = rng.choice(KATAS)
        triple = rng.sample([*kata.bugs, *kata.fresh], 3)
        if not conflict(kata.correct_source, triple):
            assert_told_apart(kata, triple, runner)
            triples += 1


REFERENCE = textwrap.dedent('''\
    """Some arithmetic."""


    def spread(numbers):
        """Return the largest distance of a number from the mean, and the mean."""
        total = sum(numbers)
        mean = total / len(numbers)
        distances = [abs(number - mean) for number in numbers]
        return max(distances), mean
    ''')


def bug(bug_id, find, replace):
    return Bug(
        id=bug_id,
        title=bug_id,
        kind=Kind.FORMULA,
        find=find,
        replace=replace,
        killed_by=("test_spread",),
        hints=(),
        why="",
    )


FLOOR = bug("floor", "total / len", "total // len")
SIGNED = bug("signed", "[abs(number - mean)", "[(number - mean)")
LOST = bug("lost", "    total = sum(numbers)\n", "    total = sum(numbers[1:])\n")


@pytest.mark.parametrize(
    ("edit", "gone"),
    [
        # As the reference has it, and in other ways, on lines that lie next to each other.
        (("total // len", "total / len"), {"floor"}),
        (("total // len(numbers)", "float(total) / len(numbers)"), {"floor"}),
        (("[(number - mean)", "[max(number - mean, mean - number)"), {"signed"}),
        (("numbers[1:]", "numbers"), {"lost"}),
        # By lines that go in between, with the bug's own line as it was.
        (("    distances", "    mean = total / len(numbers)\n    distances"), {"floor"}),
        (("    mean = total", "    total += numbers[0]\n    mean = total"), {"lost"}),
        # By more lines than there were.
        (
            ("    total = sum(numbers[1:])\n", "    total = 0\n    for n in numbers: total += n\n"),
            {"lost"},
        ),
        # Two on lines next to each other, as one.
        (
            (
                "    total = sum(numbers[1:])\n    mean = total // len(numbers)\n",
                "    mean = sum(numbers) / len(numbers)\n",
            ),
            {"lost", "floor"},
        ),
        (("", ""), set()),
        (('"""Some arithmetic."""', '"""My own words."""'), set()),
    ],
)
def test_a_bug_is_gone_in_whatever_way_it_is_mended(edit, gone):
    count = counted([FLOOR, SIGNED, LOST], edit)
    assert set(count.gone) == gone
    assert not count.at_least


def test_where_a_fix_is_wrong_the_others_still_count():
    count = counted([FLOOR, SIGNED, LOST], ("[(number - mean)", "[-(number - mean)"))
    assert count == Count((), at_least=True)
    count = counted(
        [FLOOR, SIGNED, LOST], ("[(number - mean)", "[-(number - mean)"), ("total // ", "total / ")
    )
    assert count == Count(("floor",), at_least=True)


def test_windows_line_ends_are_no_changes():
    count = counted([FLOOR, SIGNED], ("total // len", "total / len"), ("\n", "\r\n"))
    assert count == Count(("floor",))


def passes(text, bug):
    """Run the one test of `REFERENCE`."""
    names = {}
    exec(text, names)
    right = names["spread"]([2, 1, 8, -6]) == (7.25, 1.25)
    return right and names["spread"]([-2, -1, -8, 6]) == (7.25, -1.25)


def test_without_runs_what_is_known_is_counted():
    text = plant(REFERENCE, [FLOOR, SIGNED])
    mended = text.replace("total // len", "total / len")
    assert count_gone(REFERENCE, [FLOOR, SIGNED], mended, without_runs) == Count(("floor",))
    other = text.replace("total // len", "float(total) / len")
    assert count_gone(REFERENCE, [FLOOR, SIGNED], other, without_runs) is None


def counted(bugs, *edits):
    text = plant(REFERENCE, bugs)
    for before, after in edits:
        assert before in text
        text = text.replace(before, after, 1 if before != "\n" else -1)
    return count_gone(REFERENCE, bugs, text, passes)
