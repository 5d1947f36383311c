"""Puts debriefs into words: one kata's for its end, and a session's as a page to share."""

from collections.abc import Sequence

from dojo.errors import typed
from dojo.history.sessions import Ending, Session
from dojo.practice.debrief import Debrief
from dojo.wording.quantities import count, minutes
from dojo.wording.retrospects import interview_lines
from dojo.wording.stories import STORY_WIDTH, aside_lines, code_lines, story_lines

_ENDINGS = {
    Ending.SOLVED: "solved",
    Ending.MISSED: "time was up",
    Ending.REVEALED: "revealed",
    Ending.SKIPPED: "skipped",
}

CHANGED, PLANTED = "what you changed", "what was planted"  # headings
UNCHANGED = "nothing"
CLOCK_STANDS = "The clock stands."
GO_ON = "Enter goes on to the next kata"


def over_line(name: str) -> str:
    """Return all that an interview says of a kata before its report."""
    return f"{name} is over."


def outcome_line(debrief: Debrief) -> str:
    """Return how a kata went, on one line."""
    probes = f"{count(debrief.probes, 'probe')}, " if debrief.probes else ""
    return (
        f"{_ENDINGS[debrief.ending]}, {minutes(debrief.spent)} of {minutes(debrief.budget)}, "
        f"{count(debrief.runs, 'run')}, {count(debrief.hints, 'hint')}, "
        f"{probes}"
        f"{debrief.score} points of 100"
    )


def bug_lines(debrief: Debrief, width: int | None = STORY_WIDTH) -> list[str]:
    """Return each planted bug's story, those that were fixed marked so; none of a kata skipped."""
    if debrief.ending is Ending.SKIPPED:
        return [f"That stays open: {typed('reveal', debrief.kata.name)} tells."]
    lines: list[str] = []
    told: set[str] = set()
    for bug in debrief.planted:
        mark = "fixed" if bug.id in debrief.gone else "missed"
        first, *rest = story_lines(bug, width, told=told)
        lines += ["", f"[{mark}] {first}", *rest]
        told.add(bug.why)
    return [*lines[1:], *aside_lines(debrief.kata, debrief.planted, width)]


def session_markdown(session: Session, debriefs: Sequence[Debrief]) -> str:
    """Return a whole session as a page of Markdown that can be shared."""
    title = "Interview" if session.interview else "Practice session"
    average = round(sum(item.score for item in debriefs) / len(debriefs)) if debriefs else 0
    lines = [
        f"# {title}, {session.started_at.astimezone():%d %B %Y, %H:%M}",
        "",
        f"{count(len(debriefs), 'kata')}, {average} points of 100 on average",
        "",
        "| kata | level | outcome | time | of | bugs fixed | runs | hints | points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {item.kata.name} | {item.kata.level} | {_ENDINGS[item.ending]} "
        f"| {minutes(item.spent)} | {minutes(item.budget)} "
        f"| {len(item.gone)} of {len(item.planted)} | {item.runs} | {item.hints} | {item.score} |"
        for item in debriefs
    ]
    for item in debriefs:
        lines += ["", f"## {item.kata.name}", ""]
        for bug in item.planted if item.ending is not Ending.SKIPPED else ():
            mark = "fixed" if bug.id in item.gone else "missed"
            lines += [f"- {mark}: {bug.title}. {bug.why}", ""]
            lines += [f"      {line}" for line in code_lines(bug)] + [""]
            if bug.seen_in:
                lines += [f"  Seen in: {', '.join(f'<{link}>' for link in bug.seen_in)}", ""]
        if session.interview:
            lines += interview_lines(item)
        if item.diff:
            lines += ["", "```diff", item.diff.rstrip("\n"), "```"]
    return "\n".join(lines) + "\n"
