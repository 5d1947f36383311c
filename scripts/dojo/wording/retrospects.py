"""Puts an interview into words: what an onlooker saw, what was done when, what would be asked."""

from collections.abc import Mapping

from dojo.history.history import Run
from dojo.history.moves import Move, MoveKind
from dojo.history.sessions import Ending
from dojo.kata.bug import Bug
from dojo.practice.debrief import Debrief
from dojo.practice.retrospect import Entry
from dojo.wording.quantities import count, minutes

_DID = {
    MoveKind.PROBE: "probed the model",
    MoveKind.LOG: "ran the system and read its log",
    MoveKind.DEBUG: "opened the debugger",
}


def interview_lines(debrief: Debrief) -> list[str]:
    """Return what an interviewer would say of a kata, as Markdown."""
    titles = {bug.id: bug.title for bug in debrief.planted}
    lines = ["### What an onlooker saw", ""]
    lines += [f"- {sentence}" for sentence in _sentences(debrief)]
    lines += ["", "### What you did, and when", ""]
    lines += [
        "Times count from the planting, waits and pauses too; those above leave these out.",
        "",
    ]
    lines += ["| time | |", "|---|---|"]
    for entry in debrief.retrospect.entries:
        lines.append(f"| {minutes(entry.seconds)} | {_cell(_entry(entry, titles))} |")
    if debrief.ending is not Ending.SKIPPED:
        lines += _questions(debrief.planted)
    return lines


def _sentences(debrief: Debrief) -> list[str]:
    back = debrief.retrospect
    said = [_level(len(debrief.gone), len(debrief.planted))]
    if back.first_edit is None:
        return [*said, "Nothing was edited."]
    said.append(f"The first edit was tested after {minutes(back.first_edit)}.")
    looks = [(at, move.kind) for at, move in back.moves() if move.kind is not MoveKind.NOTE]
    if looks:
        at, kind = looks[0]
        said.append(f"First looked closer after {minutes(at)}: {_DID[kind]}.")
    else:
        said.append("Neither ran the system on its own, nor probed it, nor opened the debugger.")
    notes = len(back.moves()) - len(looks)
    said.append(
        f"Said {count(notes, 'time')} what they suspected." if notes else "Wrote no suspicion down."
    )
    if back.first_fix is not None:
        said.append(f"The first bug was seen gone after {minutes(back.first_fix)}.")
    if back.taken_back:
        said.append(f"Took {count(back.taken_back, 'edit')} back.")
    return said


def _level(found: int, planted: int) -> str:
    """Return in plain words how good that is."""
    if found == planted:
        word = "the whole round is solved"
    elif found >= planted - 1 and found:
        word = "nearly the whole round"
    elif found >= planted / 2:
        word = "a fair part of the round"
    elif found:
        word = "a beginning"
    else:
        word = "none yet"
    return f"Found {found} of {count(planted, 'bug')}: {word}."


def _entry(entry: Entry, titles: Mapping[str, str]) -> str:
    match entry.deed:
        case Move(kind=MoveKind.NOTE, text=text):
            return f"noted: {text}"
        case Move(kind=kind):
            return _DID[kind]
        case Run(solved=True):
            what = "tested: solved"
        case Run(whole=whole):
            what = "tested: not solved yet" if whole else "tested: no verdict"
    edited = "edited, " if entry.edited else ""
    fixed = "; fixed: " + ", ".join(titles.get(bug, bug) for bug in entry.fixed)
    return edited + what + (fixed if entry.fixed else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _questions(planted: tuple[Bug, ...]) -> list[str]:
    asked = [question for bug in planted for question in bug.ask]
    if not asked:
        return []
    lines = ["", "### What you would be asked", "", "Answer aloud, then look, then tick.", ""]
    for question in asked:
        lines += [
            f"- [ ] {question.text}",
            f"  <details><summary>answer</summary>{question.answer}</details>",
        ]
    return lines
