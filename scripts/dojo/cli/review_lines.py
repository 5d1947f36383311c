"""Reviews as plain lines: for pipes, screen readers and simple terminals."""

import re
import sys

import click

from dojo.practice.review.desk import Desk, Judged
from dojo.practice.review.pull_request import PullRequest
from dojo.wording.events import COLOURS
from dojo.wording.reviews import TASK, head_lines, truth_lines, verdict_line

_ASKED = "Wrong lines (3, or 3 5-6), a approves, q quits: "


class ReviewLines:
    """Leads through requests in lines."""

    def __init__(self, desk: Desk) -> None:
        """Take a desk that has requests."""
        self._desk = desk

    def lead(self) -> None:
        """Show requests and take what is said of them, until there are enough or the input ends."""
        click.echo(TASK)
        while (request := self._desk.next()) is not None:
            self._show(request)
            marks = self._marks(request)
            if marks is None:
                return
            _tell(self._desk.judge(request, marks))

    def _show(self, request: PullRequest) -> None:
        title, *description = head_lines(request, self._desk)
        click.echo()
        click.secho(title, bold=True)
        for sentence in description:
            click.echo(f"  {sentence}")
        click.echo(f"\n      --- a/{request.path}\n      +++ b/{request.path}")
        number = 0
        for hunk in request.hunks:
            click.secho(f"      {hunk.header}", fg=COLOURS.get("@"))
            for line in hunk.lines:
                number += line.changes
                label = f"{number:>4}" if line.changes else "    "
                text = f"{label}  {line.sign}{line.text}".rstrip()
                click.secho(text, fg=COLOURS.get(line.sign))
        click.echo()

    def _marks(self, request: PullRequest) -> set[int] | None:
        """Ask until there is an answer: places of lines, none for approval; None to quit."""
        most = len(request.numbered)
        while True:
            click.echo(_ASKED, nl=False)
            line = sys.stdin.readline()
            if not sys.stdin.isatty():
                click.echo()  # what a pipe gives is seen by nobody, and neither is its end of line
            answer = line.strip().lower()
            if not line or answer in ("q", "quit"):
                return None
            if answer in ("a", "approve"):
                return set()
            numbers = _numbers(answer)
            if numbers and min(numbers) >= 1 and max(numbers) <= most:
                return {request.numbered[number - 1] for number in numbers}
            click.echo(f"Give the numbers of lines, 1 to {most}, or a, or q.")


def _numbers(answer: str) -> set[int]:
    """Return the numbers of an answer such as `3 5-6`; none if it is no such answer."""
    found: set[int] = set()
    for part in answer.replace(",", " ").split():
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if match is None:
            return set()
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            return set()
        found.update(range(first, last + 1))
    return found


def _tell(judged: Judged) -> None:
    click.secho(verdict_line(judged), bold=True)
    for line in truth_lines(judged):
        click.echo(line)
