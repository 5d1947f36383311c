"""Finds what a class has handed in: in a folder, in an archive, or by a table."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from dojo.classroom.layouts import Layout, Places, goes_by, learner_name
from dojo.classroom.trees import Entry, Unreadable, decoded, entries, read_file
from dojo.errors import DojoError
from dojo.kata.kata import Kata
from dojo.testrun.printed import printable

_COLUMNS = ("learner", "kata", "path")


@dataclass(frozen=True)
class Submission:
    """One learner's solution of one kata, or why there is none to grade."""

    learner: str
    kata: str  # none if nothing was handed in
    path: str = ""
    text: str = ""
    problem: str = ""


def find_submissions(
    source: Path, katas: Sequence[Kata], *, one: bool, pattern: str | None = None
) -> list[Submission]:
    """Return all submissions of these katas, by learner; raise `DojoError` if there are none.

    `one` says that a single kata is asked for, so that a path need not name it.
    """
    if not source.exists():
        raise DojoError(f"{source} does not exist; name a folder, a zip or a csv file")
    if source.suffix.lower() == ".csv":
        found = list(_by_table(source, katas))
    else:
        found = _by_layout(source, Layout(katas, one, pattern))
    if not any(submission.kata for submission in found):
        raise DojoError(
            f"no submission was found in {source}; name the kata if the files do not, or say where "
            "they lie, as in --pattern '{learner}/{kata}/botched.py'"
        )
    return _without_repeats(sorted(found, key=_order))


def _order(one: Submission) -> tuple[str, str, str]:
    return one.learner, one.kata, one.path


def _by_layout(source: Path, layout: Layout) -> list[Submission]:
    handed_in = {entry.path: entry for entry in entries(source)}
    places = layout.places(handed_in, source.resolve().stem)
    found = [
        _read(learner, kata.name, str(path), handed_in[path])
        for path, (learner, kata) in places.items()
    ]
    alone = any(path.parts[0] == "katas" for path in handed_in)
    return found if alone else found + list(_without_solution(handed_in, places))


def _without_solution(
    handed_in: Mapping[PurePosixPath, Entry], places: Places
) -> Iterator[Submission]:
    """Yield who handed something in, and no solution: a folder or an archive of theirs is there."""
    tops = {path.parts[0] for path in handed_in}
    learners = {learner for learner, _ in places.values()}
    # One folder may hold those of all.
    depth = 1 if len(tops) == 1 and not learners & set(map(learner_name, tops)) else 0
    told = {path.parts[depth] for path in places if len(path.parts) > depth}
    for path, entry in handed_in.items():
        if len(path.parts) <= depth:
            continue
        own = path.parts[depth]
        if path.suffix == ".zip":  # it could not be looked into
            yield _read(learner_name(own), "", str(path), entry)
        elif len(path.parts) > depth + 1 and own not in told:
            problem = "no solution is in it"
            yield Submission(_shown(learner_name(own)), "", _shown(own), problem=problem)
        else:
            continue
        told.add(own)


def _by_table(source: Path, katas: Sequence[Kata]) -> Iterator[Submission]:
    """Yield what a table with the columns learner, kata and path names, beside it or elsewhere."""
    known = {name: kata for kata in katas for name in goes_by(kata)}
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := [one for one in _COLUMNS if one not in (rows.fieldnames or ())]:
                raise DojoError(
                    f"{source} lacks the column {missing[0]}; it needs learner,kata,path"
                )
            for row in rows:
                learner, name, path = ((row[column] or "").strip() for column in _COLUMNS)
                if name not in known:
                    problem = f"no kata asked for is called {name!r}"
                    yield Submission(_shown(learner), "", _shown(path), problem=problem)
                else:
                    file_path = source.parent / path
                    entry = Entry(PurePosixPath(path), partial(read_file, file_path))
                    yield _read(learner, known[name].name, path, entry)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DojoError(f"{source} cannot be read: {error}") from None


def _read(learner: str, kata: str, path: str, entry: Entry) -> Submission:
    learner, path = _shown(learner), _shown(path)
    try:
        return Submission(learner, kata, path, decoded(entry.read()))
    except Unreadable as error:
        return Submission(learner, kata, path, problem=str(error))


def _shown(name: str) -> str:
    """Return a name as it can be shown anywhere, even one that is not UTF-8 on the disk."""
    return printable(name.encode(errors="backslashreplace").decode())


def _without_repeats(submissions: Sequence[Submission]) -> list[Submission]:
    """Return the submissions, each but the first of a learner and a kata with that as a problem."""
    first: dict[tuple[str, str], str] = {}
    kept = []
    for one in submissions:
        before = first.setdefault((one.learner, one.kata), one.path)
        if one.kata and before != one.path:
            one = replace(one, text="", problem=f"is handed in twice: {before} is graded")
        kept.append(one)
    return kept
