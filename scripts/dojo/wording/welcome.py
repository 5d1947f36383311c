"""What is said of a kata as its round begins, whatever the interface."""

from dojo.errors import typed
from dojo.practice.debrief import HINT_COSTS
from dojo.practice.planning import INTERVIEW_PLANTS
from dojo.practice.session import Round, last_time
from dojo.wording.quantities import count, minutes


def welcome_lines(round_: Round) -> list[str]:
    """Return where to edit, what a hint costs, how it went last time, and what is kept."""
    kata = round_.kata
    lines = [f"Edit and save {kata.botched}"]
    if round_.interview:
        lines.append("n writes down what you suspect, and why: the report sets it beside what was.")
    else:
        lines.append(f"A hint costs {HINT_COSTS} points of 100.")
    before = last_time(round_.player.history, kata.name)
    if before:
        seconds, hints = before
        lines.append(f"Last time: {minutes(seconds)}, {count(hints, 'hint')}.")
    if round_.kept:
        lines.append(f"Your earlier text is kept: {typed('undo', kata.name)}")
    return lines


def planted_line(round_: Round) -> str:
    """Return how many bugs there are to find, as far as it is told."""
    if round_.interview and round_.kata.is_system:
        least, most = INTERVIEW_PLANTS
        return f"{least} or {most} bugs are planted"
    count = len(round_.player.attempt().planted)
    return "1 bug is planted" if count == 1 else f"{count} bugs are planted"
