"""Requests to review as one page of HTML, on paper or a phone, the answers folded away."""

from collections.abc import Sequence
from dataclasses import dataclass

from dojo.errors import typed
from dojo.history.reviews import Effect
from dojo.practice.review.pull_request import Line, PullRequest
from dojo.wording.pages import templates
from dojo.wording.quantities import count
from dojo.wording.reviews import TASK, change_reason, change_title, places

_CLASSES = {"-": "goes", "+": "comes", " ": ""}


@dataclass(frozen=True)
class _Answer:
    """The truth about one change."""

    place: str
    title: str
    why: str
    links: tuple[str, ...]
    wrong: bool


def render_requests(requests: Sequence[PullRequest], seed: int) -> str:
    """Return the page."""
    environment = templates()
    environment.filters.update(count=count)
    return environment.get_template("review.html").render(
        task=TASK,
        seed=seed,
        command=typed("review", "--seed", str(seed), "--count", str(len(requests))),
        requests=[
            {
                "title": request.title,
                "description": request.description,
                "path": request.path,
                "hunks": _hunks(request),
                "verdict": _verdict(request),
                "answers": _answers(request),
            }
            for request in requests
        ],
    )


def _hunks(request: PullRequest) -> list[tuple[str, list[tuple[str, str, Line]]]]:
    """Return each hunk's header and lines, a line with its number and its class."""
    place = 0
    numbers = {found: str(number) for number, found in enumerate(request.numbered, 1)}
    hunks = []
    for hunk in request.hunks:
        rows = [
            (numbers.get(place + offset, ""), _CLASSES[line.sign], line)
            for offset, line in enumerate(hunk.lines)
        ]
        hunks.append((hunk.header, rows))
        place += len(hunk.lines)
    return hunks


def _verdict(request: PullRequest) -> str:
    wrong = sum(change.effect is Effect.BREAKS for change in request.changes)
    return f"It brings in {count(wrong, 'bug')}." if wrong else "Nothing in it is wrong: approve."


def _answers(request: PullRequest) -> list[_Answer]:
    return [
        _Answer(
            places(request, change),
            change_title(change),
            change_reason(change),
            change.bug.seen_in if change.bug else (),
            change.effect is Effect.BREAKS,
        )
        for change in request.changes
    ]
