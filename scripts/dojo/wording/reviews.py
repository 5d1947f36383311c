"""A request to review, the truth about it, and what a round of reviews came to."""

import textwrap
from collections.abc import Sequence

from dojo.history.reviews import Effect, Reviewed
from dojo.history.scoring import Score
from dojo.practice.review.changes import Change
from dojo.practice.review.desk import Desk, Judged
from dojo.practice.review.pull_request import PullRequest
from dojo.wording.quantities import count
from dojo.wording.stories import STORY_WIDTH

TASK = "Mark what you would not let in. A request that mends a bug is right: approve it."


def head_lines(request: PullRequest, desk: Desk) -> list[str]:
    """Return what stands above a diff: which request it is, its title and its description."""
    of = f" of {desk.count}" if desk.count else ""
    return [f"Request {desk.number}{of}: {request.title}", *request.description]


def verdict_line(judged: Judged) -> str:
    """Return how a request was judged as a whole."""
    wrong = [one for one in judged.reviewed if one.effect is Effect.BREAKS]
    found = sum(one.marked for one in wrong)
    alarms = sum(one.marked for one in judged.reviewed if one.effect is not Effect.BREAKS)
    if not wrong:
        what = "Nothing in it is wrong"
        return f"{what}, as you said." if not alarms else f"{what}: {_alarms(alarms)}."
    bugs = "the bug" if len(wrong) == 1 else f"{found} of {len(wrong)} bugs"
    said = f"You found {bugs}" if found else f"It brings in {count(len(wrong), 'bug')}, not marked"
    return f"{said}, with {_alarms(alarms)}." if alarms else f"{said}."


def truth_lines(judged: Judged, width: int | None = STORY_WIDTH) -> list[str]:
    """Return what each change does and why, where a bug was seen, and what was said of it."""
    lines: list[str] = []
    for change, reviewed in judged.changes:
        place = places(judged.request, change)
        lines += ["", f"[{mark(reviewed)}] {place}: {change_title(change)}"]
        lines += _wrapped(change_reason(change), width)
        lines += [f"  seen in: {link}" for link in (change.bug.seen_in if change.bug else ())]
    return lines[1:]


def change_title(change: Change) -> str:
    """Return what a change does, in a few words."""
    if change.effect is Effect.HARMLESS or change.bug is None:
        return "harmless"
    verb = "brings in" if change.effect is Effect.BREAKS else "mends"
    return f"{verb} a bug: {change.bug.title}"


def change_reason(change: Change) -> str:
    """Return why a change is wrong, or right."""
    return change.bug.why if change.bug else change.reason


def mark(reviewed: Reviewed) -> str:
    """Return what became of a change, in a word or two."""
    if reviewed.effect is Effect.BREAKS:
        return "found" if reviewed.marked else "missed"
    return "false alarm" if reviewed.marked else "approved"


def places(request: PullRequest, change: Change) -> str:
    """Return the numbers of a change's lines."""
    own = request.changes.index(change)
    numbers = [
        number
        for number, place in enumerate(request.numbered, 1)
        if request.lines[place].change == own
    ]
    return f"line {numbers[0]}" if len(numbers) == 1 else f"lines {_spans(numbers)}"


def summary_lines(score: Score, requests: int) -> list[str]:
    """Return what a round of reviews came to."""
    if not requests:
        return ["No request was judged."]
    wrong, right = score.hits + score.misses, score.false_alarms + score.approvals
    line = (
        f"{count(requests, 'request')}: {score.hits} of {count(wrong, 'bug')} found, "
        f"{count(score.false_alarms, 'false alarm')} on {count(right, 'right change')}"
    )
    return [line, *([measures(score)] if score.sensitivity is not None else [])]


def measures(score: Score) -> str:
    """Return d' and the bias, with what they mean."""
    sensitivity, bias = score.sensitivity or 0.0, score.bias or 0.0
    leaning = "neither way"
    if abs(bias) >= 0.1:
        leaning = "towards approving" if bias > 0 else "towards marking"
    return f"d' {sensitivity:.2f} (0 is guessing, 2 is good), bias {bias:+.2f} (you lean {leaning})"


def _alarms(number: int) -> str:
    return count(number, "false alarm")


def _spans(numbers: Sequence[int]) -> str:
    """Return numbers in order, those that follow one another as a span: 1-3, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in spans)


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return [f"  {text}"]
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")
