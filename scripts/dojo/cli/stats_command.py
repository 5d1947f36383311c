"""kata stats: what the practice so far adds up to."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import click

from dojo.cli import output
from dojo.cli.records import opened_history
from dojo.errors import CatalogueError, typed
from dojo.history.kinds import Share
from dojo.history.misses import Missed
from dojo.history.statistics import Detected, ReviewStats, Solved, Stats, Times, gather
from dojo.kata import catalogue, kata_toml
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.wording.quantities import clock, count, duration
from dojo.wording.tables import render

_SHOWN = 8  # missed bugs: the list is for choosing what to practise, not for the record
_ARROW = " -> "


@click.command(name="stats")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers for a program.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write them as a page with charts, to open in a browser.",
)
@click.pass_obj
def command(project: Project, as_json: bool, page: Path | None) -> None:
    """Show what you solved, your streak, your times, and what you missed most often.

    A day counts for the streak if you solved a kata, ran one in a practice session, reached a
    proof's goal or reviewed a request. Of each kind of bug it says how many you found: by hunting
    in sessions, by tests of your own, by reading.
    A time in brackets is of an exercise that was not solved. Of reviews, d' says how well you tell
    wrong from right (0 is guessing), and a bias above 0 that you rather approve.

    \b
    --json prints an object with these keys:
      today           the day of the numbers
      topics, levels  a list of name, solved, katas
      removed         solved katas that are no longer here
      days            the days that count for the streak
      current_streak, longest_streak   in days
      times           a list of kata, timings: each seconds, solved
      missed          a list of kata, bug, title, planted, missed,
                      hinted (found after a hint), seen_in
      totals          sessions, seconds, runs, hints, proofs
      reviews         requests, seconds, whole, and by topics and kinds
                      (of bug): each hits, misses, false_alarms,
                      approvals, sensitivity (d'), bias
      kinds           a list of kind, and of hunted, proved, reviewed:
                      each found, met

    \b
    Example: kata stats
    Example: kata stats --html stats.html
    """
    if as_json and page:
        raise click.UsageError("give --json or --html, not both")
    with opened_history(project) as history:
        stats = gather(history, _well_formed(project), datetime.now().date())
    if as_json:
        click.echo(stats.as_json())
    elif page:
        from dojo.wording.statistics_page import (
            render_page,  # not above: `kata --help` needs no templates
        )

        output.write(page, render_page(stats))
        click.echo(f"wrote {page}")
    elif stats.empty:
        click.echo(f"Nothing practised yet. {typed('practice')} starts a session.")
    else:
        width = min(shutil.get_terminal_size().columns, 100)
        click.echo("\n\n".join(_sections(stats, width)))


def _well_formed(project: Project) -> list[Kata]:
    katas = []
    for folder in catalogue.kata_folders(project):
        try:
            katas.append(kata_toml.load(folder))
        except CatalogueError as error:
            click.secho(str(error), fg="red", err=True)
    return katas


def _sections(stats: Stats, width: int) -> Iterator[str]:
    yield _totals(stats)
    yield _solved("topic", stats.topics)
    yield _solved("level", stats.levels)
    if stats.removed:
        yield textwrap.fill(f"Solved, but no longer here: {', '.join(stats.removed)}", width)
    if stats.times:
        room = width - max(len(times.kata) for times in stats.times) - 2
        rows = [(times.kata, _timings(times, room)) for times in stats.times]
        yield render(("kata", "time in sessions (not solved)"), rows)
    if stats.missed:
        lines = [_missed(missed, width) for missed in stats.missed[:_SHOWN]]
        yield "\n".join([click.style("Bugs most often missed", bold=True), *lines])
    if stats.kinds:
        shares = [
            (one.kind, _share(one.hunted), _share(one.proved), _share(one.reviewed))
            for one in stats.kinds
        ]
        yield render(("kind of bug, found by", "hunting", "proving", "reviewing"), shares)
    if stats.reviews.requests:
        yield from _reviews(stats.reviews)


def _totals(stats: Stats) -> str:
    totals = stats.totals
    rows = [
        (
            "streak",
            f"{count(stats.current_streak, 'day')}, longest {count(stats.longest_streak, 'day')}",
        ),
        ("sessions", f"{totals.sessions}, {duration(totals.seconds)}"),
        ("runs", str(totals.runs)),
        ("hints", str(totals.hints)),
        ("proofs", str(totals.proofs)),
    ]
    return "\n".join(f"{name:8}  {value}" for name, value in rows)


def _solved(name: str, groups: Sequence[Solved]) -> str:
    rows = [(group.name, f"{group.solved} of {group.katas}") for group in groups]
    return render((name, "solved"), rows)


def _reviews(reviews: ReviewStats) -> Iterator[str]:
    title = click.style("Reviews", bold=True)
    whole = reviews.whole
    alarms = f"{count(whole.false_alarms, 'false alarm')} on {whole.right} right changes"
    yield (
        f"{title}\n{count(reviews.requests, 'request')}, {duration(reviews.seconds)}; "
        f"{whole.hits} of {count(whole.bugs, 'bug')} found, {alarms}"
    )
    if reviews.kinds:
        yield _detected("kind of bug", reviews.kinds)
    if reviews.topics:
        yield _detected("topic", [*reviews.topics, whole])


def _detected(name: str, rows: Sequence[Detected]) -> str:
    return render(
        (name, "found", "d'", "bias"),
        [
            (one.name, f"{one.hits} of {one.bugs}", _measure(one.sensitivity), _measure(one.bias))
            for one in rows
        ],
    )


def _share(share: Share) -> str:
    return f"{share.found} of {share.met}" if share.met else "-"


def _measure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _timings(times: Times, room: int) -> str:
    """Return the times, without the oldest if there is no room for all."""
    texts = [clock(t.seconds) if t.solved else f"({clock(t.seconds)})" for t in times.timings]
    line = _ARROW.join(texts)
    while len(line) > room and len(texts) > 1:
        del texts[0]
        line = _ARROW.join(["...", *texts])
    return line


def _missed(missed: Missed, width: int) -> str:
    hinted = f", {missed.hinted} found after a hint" if missed.hinted else ""
    text = f"{missed.missed} of {missed.planted}  {missed.title} ({missed.kata}{hinted})"
    return textwrap.fill(text, width, subsequent_indent=" " * 8, break_long_words=False)
