"""Grades as files: for a spreadsheet, for a program, and for two platforms' autograders."""

import csv
import io
import json
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from dojo.classroom.grading import Grade, Standing
from dojo.files import write_atomically

_POINTS = 100  # of a kata
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = re.compile(r"^[=+\-@\t\r]")
_COLUMNS = (
    "learner", "kata", "path", "standing", "bugs gone", "bugs planted", "gone", "left",
    "tests failing", "tests", "failed", "banned", "as handed out", "as reference", "same as",
    "detail",
)  # fmt: skip


class Format(StrEnum):
    """A platform whose autograder takes a file of results."""

    GRADESCOPE = "gradescope"
    CLASSROOM = "classroom"


def as_csv(grades: Sequence[Grade]) -> str:
    """Return a table with a row a submission."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([_cell(value) for value in _row(grade)] for grade in grades)
    return file.getvalue()


def as_json(grades: Sequence[Grade]) -> str:
    """Return all that is known, a list with an object a submission."""
    return json.dumps([grade.to_json() for grade in grades], indent=2) + "\n"


def write_format(folder: Path, form: Format, grades: Sequence[Grade]) -> None:
    """Write a file of results for each learner into a folder named like the format."""
    by_learner: dict[str, list[Grade]] = {}
    for grade in grades:
        by_learner.setdefault(grade.learner, []).append(grade)
    make = {Format.GRADESCOPE: _gradescope, Format.CLASSROOM: _classroom}[form]
    taken: set[str] = set()
    for learner, own in by_learner.items():
        name = re.sub(r"[^\w.@ -]", "_", learner).strip(". ") or "_"
        while name.lower() in taken:
            name += "_"
        taken.add(name.lower())
        text = json.dumps(make(own), indent=2) + "\n"
        write_atomically(folder / form / f"{name}.json", text.encode())


def _row(grade: Grade) -> list[str | int]:
    counted = grade.gone is not None
    return [
        grade.learner,
        grade.kata,
        grade.path,
        grade.standing,
        len(grade.gone or ()) if counted else "",
        len(grade.planted),
        " ".join(grade.gone or ()),
        " ".join(grade.left),
        grade.failing,
        grade.tests,
        " ".join(grade.failed),
        grade.banned,
        "yes" if grade.as_planted else "",
        "yes" if grade.as_reference else "",
        "; ".join(grade.same_as),
        grade.detail,
    ]


def _cell(value: str | int) -> str | int:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _points(grade: Grade) -> float:
    """Return a kata's points: all if it is solved, else by the share of the bugs that are gone."""
    if grade.standing is Standing.SOLVED:
        return _POINTS
    # Not all: tests fail.
    share = len(grade.gone or ()) / (len(grade.planted) or 1)
    return round(min(share, 0.9) * _POINTS, 1) if grade.standing is Standing.UNSOLVED else 0


def _told(grade: Grade) -> str:
    """Return what a learner may read: how it went, and not which bugs were planted."""
    lines = [str(grade.standing)]
    if grade.gone is not None:
        lines.append(f"{len(grade.gone)} of {len(grade.planted)} planted bugs are gone")
    if grade.tests:
        lines.append(f"{grade.failing} of {grade.tests} tests fail")
    return "\n".join(line for line in [*lines, grade.detail] if line)


def _gradescope(grades: Sequence[Grade]) -> dict[str, Any]:
    """Return the content of Gradescope's results.json."""
    return {
        "execution_time": round(sum(grade.seconds for grade in grades)),
        "tests": [
            {
                "name": grade.kata or grade.path,
                "score": _points(grade),
                "max_score": _POINTS,
                "status": "passed" if grade.standing is Standing.SOLVED else "failed",
                "output": _told(grade),
            }
            for grade in grades
        ],
    }


def _classroom(grades: Sequence[Grade]) -> dict[str, Any]:
    """Return what a grader hands to GitHub Classroom's reporter, before it is put in base64."""
    solved = [grade.standing is Standing.SOLVED for grade in grades]
    return {
        "version": 1,
        "status": "pass" if all(solved) else "fail",
        "max_score": _POINTS * len(grades),
        "tests": [
            {
                "name": grade.kata or grade.path,
                "status": "pass" if passed else "fail",
                "score": _points(grade),
                "message": None if passed else _told(grade),
                "execution_time": f"{grade.seconds:g}s",
                "test_code": f"pytest katas/{grade.kata}",
                "filename": grade.path,
                "line_no": 0,
            }
            for grade, passed in zip(grades, solved, strict=True)
        ],
    }
