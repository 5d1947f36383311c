"""kata practice: katas against the clock."""

import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import partial

import click

from dojo.cli.lines import Lines
from dojo.cli.output import has_screen
from dojo.cli.records import opened_history
from dojo.errors import DojoError, typed
from dojo.files import write_atomically
from dojo.history.history import History
from dojo.kata import catalogue
from dojo.kata.kata import Level, Topic
from dojo.practice import session
from dojo.practice.planning import DEFAULT_MINUTES, Planned, Wishes, plan, plan_proofs
from dojo.practice.session import Practice, Standing
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.wording.debriefs import session_markdown
from dojo.wording.quantities import count as counted
from dojo.wording.quantities import minutes


@click.command(name="practice")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.option(
    "--minutes",
    "allowed",
    type=click.FloatRange(min=0.01),
    help=f"For all katas together. Default: {DEFAULT_MINUTES:g}, or the named katas' own time.",
)
@click.option("--katas", "count", type=click.IntRange(min=1), help="How many katas to choose.")
@click.option(
    "--topic",
    type=click.Choice([str(topic) for topic in Topic]),
    help="Choose katas of this topic.",
)
@click.option(
    "--level",
    type=click.Choice([str(level) for level in Level]),
    help="Choose katas of this level.",
)
@click.option("--seed", type=int, metavar="S", help="The same katas and bugs for everyone.")
@click.option("--gpu", is_flag=True, help="Kernel katas, with bugs that only a GPU shows.")
@click.option("--fresh", is_flag=True, help="Bugs that are in no catalogue.")
@click.option("--interview", is_flag=True, help="No hints, more bugs, one report at the end.")
@click.option("--quiet", is_flag=True, help="At each save no more than solved, or not yet.")
@click.option(
    "--by",
    "interview_on",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="The day of your interview, as 2027-01-31: what is due comes before it.",
)
@click.option("--prove", is_flag=True, help="Write tests that catch wrong versions; hunt nothing.")
@click.option("--mix", is_flag=True, help="Half an hour: a review to warm up, a hunt, a proof.")
@click.option("--daily", is_flag=True, help="Ten minutes: today's bug, the same for everyone.")
@click.option("--plain", is_flag=True, help="Plain lines in place of the full screen.")
@click.pass_obj
def command(
    project: Project,
    names: tuple[str, ...],
    allowed: float | None,
    count: int | None,
    topic: str | None,
    level: str | None,
    seed: int | None,
    gpu: bool,
    fresh: bool,
    interview: bool,
    quiet: bool,
    interview_on: datetime | None,
    prove: bool,
    mix: bool,
    daily: bool,
    plain: bool,
) -> None:
    """Hunt bugs against the clock: your file is tested at every save, with a debrief at the end.

    Without names, katas are chosen for you: what is due, then what is new. A session that was left,
    by q or by a power cut, is taken up again by a bare `kata practice`.

    With --prove you write the tests: first one that catches a bug whose story is told, the next
    time tests that catch half of a kata's wrong versions, then all. It comes in plain lines.

    With --daily, days of hunting, proving and reviewing take turns. No bug comes twice until every
    other has come, and the days that you take in a row are your streak.

    \b
    Example: kata practice
    Example: kata practice softmax --minutes 10
    Example: kata practice --topic convolution --katas 2 --interview
    Example: kata practice --prove --minutes 20
    Example: kata practice --daily
    """
    if names and (count or topic or level):
        raise click.UsageError("--katas, --topic and --level choose katas: name none then")
    wishes = Wishes(
        named=tuple(dict.fromkeys(catalogue.find(project, name) for name in names)),
        minutes=allowed,
        katas=count,
        topic=Topic(topic) if topic else None,
        level=Level(level) if level else None,
        seed=seed,
        gpu=gpu,
        fresh=fresh,
        interview=interview,
        quiet=quiet,
        interview_on=interview_on.date() if interview_on else None,
    )
    if mix or daily:
        if wishes != Wishes() or prove or (mix and daily):
            raise click.UsageError("--mix and --daily choose everything: give one, and no wish")
        _rounds(project, plain=plain, day=date.today() if daily else None)
        return
    if prove:
        if gpu or fresh or interview or quiet or interview_on:
            raise click.UsageError("--prove goes with --minutes, --katas, --topic, --level, --seed")
        _prove(project, wishes)
        return
    lead = _lead(plain, Lines())
    with (
        session.alone(project),
        Runner(project) as runner,  # it gets warm while the brief is read
        opened_history(project) as history,
    ):
        practice = _resumed(project, history, wishes) or _begun(project, history, wishes)
        try:
            finished = lead(practice, runner)
        except KeyboardInterrupt:
            _say_goodbye(project, practice, finished=False)
            raise SystemExit(130) from None
        _say_goodbye(project, practice, finished)


def _prove(project: Project, wishes: Wishes) -> None:
    # Imported here, as it is for this alone.
    from dojo.cli.prove_command import lead

    with session.alone(project), opened_history(project) as history:
        katas = [] if wishes.named else catalogue.load_all(project)
        lead(project, history, plan_proofs(katas, history, wishes), Lines(), wishes.seed)


def _rounds(project: Project, *, plain: bool, day: date | None) -> None:
    # Imported here, as it is for this alone.
    from dojo.cli.rounds import Rounds

    with session.alone(project), opened_history(project) as history:

        def begin(planned: Sequence[Planned]) -> Practice:
            left = session.unfinished(project, history)
            if left and left.is_of(planned):
                return left
            if left:
                _end(left)
            return session.begin(project, history, planned)

        lines = Lines()
        rounds = Rounds(project, history, begin, _lead(plain, lines), lines, plain=plain)
        try:
            rounds.daily(day) if day else rounds.mix()
        except KeyboardInterrupt:
            click.echo(f"\nWhat you did is kept: {typed('practice')} goes on with a hunt.")
            raise SystemExit(130) from None


def _lead(plain: bool, lines: Lines) -> Callable[[Practice, Runner], bool]:
    """Return what leads through a session: on the full screen, where there is one."""
    return _full_screen if has_screen(plain) else partial(_plain, lines=lines)


def _plain(practice: Practice, runner: Runner, lines: Lines) -> bool:
    from dojo.cli.plain import Plain

    return Plain(practice, runner, lines).lead()


def _full_screen(practice: Practice, runner: Runner) -> bool:
    # Imported here: nothing else needs the terminal interface.
    from dojo.tui.app import PracticeApp

    return bool(PracticeApp(practice, runner).run())


def _resumed(project: Project, history: History, wishes: Wishes) -> Practice | None:
    """Return the unfinished session, if there is one and it is to go on."""
    practice = session.unfinished(project, history)
    if practice is None or wishes != Wishes():
        return None
    standing = practice.standing()
    if standing is None:
        return None
    click.echo(f"A session is unfinished: {_describe(standing)}.")
    if sys.stdin.isatty() and not click.confirm("Go on with it?", default=True):
        practice.end()
        return None
    return practice


def _describe(standing: Standing) -> str:
    parts = [f"{standing.kata}, {minutes(standing.left)} left"]
    if standing.hints:
        parts.append(counted(standing.hints, "hint"))
    if standing.last_run:
        run = standing.last_run
        parts.append("last result solved" if run.solved else "last result not solved yet")
    return ", ".join(parts)


def _begun(project: Project, history: History, wishes: Wishes) -> Practice:
    katas = [] if wishes.named else catalogue.load_all(project)
    by = wishes.interview_on
    if by is not None and by < date.today():
        raise DojoError(f"--by {by} is in the past")
    planned = plan(katas, history, wishes)
    # Not before: wishes that cannot be met end no session.
    left = session.unfinished(project, history)
    if left is not None:
        _end(left)
    return session.begin(
        project,
        history,
        planned,
        interview=wishes.interview,
        quiet=wishes.quiet,
        interview_on=wishes.interview_on,
    )


def _end(practice: Practice) -> None:
    """End a session that was left; the learner may say no where they can be asked."""
    standing = practice.standing()
    if standing and sys.stdin.isatty():
        click.echo(f"A session is unfinished: {_describe(standing)}.")
        if not click.confirm("End it, and begin a new one?", default=True):
            raise DojoError(f"the session waits for you; {typed('practice')} goes on with it")
    elif standing:
        click.echo(f"The unfinished session ends here: {_describe(standing)}.")
    practice.end()


def _say_goodbye(project: Project, practice: Practice, finished: bool) -> None:
    if not finished:
        click.echo(
            "\nThe session waits for you, your file is as you left it: "
            f"{typed('practice')} goes on."
        )
        return
    debriefs = practice.debriefs()
    report = session_markdown(practice.session, debriefs)
    name = f"{practice.session.started_at.astimezone():%Y-%m-%d-%H%M}.md"
    path = project.state / "reports" / name
    write_atomically(path, report.encode())
    if practice.session.interview:
        click.echo(report)
    click.echo(f"The session is over. A report to keep or to share: {path}")
