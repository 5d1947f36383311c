"""A class's grades as a table, and in a few lines."""

from collections import Counter
from collections.abc import Mapping, Sequence

from dojo.classroom.grading import Grade, Standing
from dojo.classroom.summary import missed_kinds
from dojo.kata.kata import Kata
from dojo.wording.quantities import count
from dojo.wording.tables import render

_SHOWN = 3  # of the kinds that were missed, and of the learners with the same program
_DETAIL = 60  # characters


def grade_table(grades: Sequence[Grade]) -> str:
    """Return a row a submission."""
    header = ("learner", "kata", "result", "bugs gone", "tests failing", "notes")
    rows = [
        (
            grade.learner,
            grade.kata or "-",
            grade.standing,
            gone(grade),
            f"{grade.failing} of {grade.tests}" if grade.tests else "",
            "; ".join(notes(grade)),
        )
        for grade in grades
    ]
    return render(header, rows)


def gone(grade: Grade) -> str:
    """Return how many of the planted bugs are gone; nothing where they were not counted."""
    if grade.gone is None:
        return ""
    at_least = "at least " if grade.at_least else ""
    return f"{at_least}{len(grade.gone)} of {len(grade.planted)}"


def notes(grade: Grade) -> list[str]:
    """Return what is worth a look, as facts."""
    found = []
    if grade.standing not in (Standing.SOLVED, Standing.UNSOLVED) and grade.detail:
        found.append(_cut(grade.detail))
    if grade.banned:
        found.append(_cut(grade.banned))
    if grade.as_planted:
        found.append("unchanged")
    if grade.as_reference:
        found.append("as the reference")
    if grade.same_as:
        more = len(grade.same_as) - _SHOWN
        others = ", ".join(grade.same_as[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        found.append(f"same program as {others}")
    return found


def summary_lines(grades: Sequence[Grade], katas: Mapping[str, Kata]) -> list[str]:
    """Return how many were solved, and which kinds of bug were missed most."""
    standings = Counter(grade.standing for grade in grades)
    said = ", ".join(f"{standings[one]} {one}" for one in Standing if standings[one])
    lines = [f"{count(len(grades), 'submission')}: {said}"]
    missed = missed_kinds(grades, katas)[:_SHOWN]
    if missed:
        kinds = ", ".join(f"{kind.name} ({kind.left} of {kind.planted})" for kind in missed)
        lines.append(f"kinds of bug missed most: {kinds}")
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= _DETAIL else f"{text[:_DETAIL]} ..."
