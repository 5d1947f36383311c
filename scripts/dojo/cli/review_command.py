"""kata review: find bugs by reading."""

import random
from pathlib import Path

import click

from dojo.cli import output
from dojo.cli.records import opened_history
from dojo.history.history import History
from dojo.kata import catalogue
from dojo.kata.bug import Kind
from dojo.kata.kata import Topic
from dojo.learner.player import Player
from dojo.practice.review.desk import COUNT, Desk
from dojo.practice.review.supply import kinds_by_need, supply, under_way
from dojo.practice.session import refuse_in_interview
from dojo.project import Project
from dojo.wording.quantities import count as counted
from dojo.wording.reviews import summary_lines

_ON_A_PAGE = 10  # requests, unless another number is asked for


@click.command(name="review")
@click.argument("name", metavar="[KATA]", required=False)
@click.option(
    "--topic",
    type=click.Choice([str(topic) for topic in Topic]),
    help="Requests to katas of this topic.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.01),
    metavar="M",
    help="No new request after that time.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"How many requests. Default: {COUNT}, as many as fit with --minutes, "
    f"{_ON_A_PAGE} with --html.",
)
@click.option("--seed", type=int, metavar="S", help="The same requests for everyone.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write a page to read on paper or a phone, with the answers folded away.",
)
@click.option("--plain", is_flag=True, help="Plain lines in place of the full screen.")
@click.pass_obj
def command(
    project: Project,
    name: str | None,
    topic: str | None,
    minutes: float | None,
    count: int | None,
    seed: int | None,
    page: Path | None,
    plain: bool,
) -> None:
    """Find bugs by reading: pull requests to approve, or to mark where they are wrong.

    Each has one to four changes. A change brings a bug in, mends one, or is harmless; half of the
    requests bring one in. Mark any line of a change that you would not let in: one that goes or one
    that comes. A change that mends a bug is right. Then you see what was wrong and why, and why
    the rest was not.

    You are scored as a detector is: d' says how well you tell wrong from right, whatever you lean
    to, and the bias what you lean to. Kinds of bug that you missed come again. `kata stats` shows
    them. Nothing is run, and your files stay as they are.

    \b
    Example: kata review
    Example: kata review --topic layers --minutes 5
    Example: kata review --seed 7 --html requests.html
    """
    if name and topic:
        raise click.UsageError("--topic chooses katas: name none then")
    if page is not None and minutes is not None:
        raise click.UsageError("a page has no clock: leave out --minutes or --html")
    kata = catalogue.find(project, name) if name else None
    wanted = Topic(topic) if topic else None
    if page is not None:
        from dojo.wording.review_page import (
            render_requests,  # not above: `kata review --help` needs no templates
        )

        seed = random.randrange(10**6) if seed is None else seed
        requests = supply(project, kata=kata, topic=wanted, seed=seed)
        drawn = [next(requests) for _ in range(count or _ON_A_PAGE)]
        output.write(page, render_requests(drawn, seed))
        click.echo(f"wrote {page}: {counted(len(drawn), 'request')}, seed {seed}")
        return
    with opened_history(project) as history:
        if kata:
            refuse_in_interview(Player(project, kata, history))
        # A seed's requests are the same for everyone, whatever their history.
        kinds, without = ((), set()) if seed is not None else _wishes(history)
        desk = Desk(
            supply(project, kata=kata, topic=wanted, seed=seed, kinds=kinds, without=without),
            history,
            count=count if count or minutes else COUNT,
            seconds=None if minutes is None else 60 * minutes,
        )
        read(desk, plain=plain)


def read(desk: Desk, *, plain: bool) -> bool:
    """Lead through the requests on a desk, and say what came of them; say if none is left."""
    interrupted = False
    try:
        _full_screen(desk) if output.has_screen(plain) else _plain(desk)
    except KeyboardInterrupt:
        click.echo()
        interrupted = True
    finally:
        desk.close()
    click.echo()
    for line in summary_lines(desk.score, len(desk.judged)):
        click.echo(line)
    if interrupted:
        raise SystemExit(130)
    return desk.done


def _wishes(history: History) -> tuple[list[Kind], set[str]]:
    """Return the kinds of bug to begin with, and the katas to leave out."""
    return kinds_by_need(history), under_way(history)


def _plain(desk: Desk) -> None:
    from dojo.cli.review_lines import ReviewLines

    ReviewLines(desk).lead()


def _full_screen(desk: Desk) -> None:
    # Imported here: nothing else needs the terminal interface.
    from dojo.tui.review import ReviewApp

    error = ReviewApp(desk).run()
    if error is not None:
        raise error
