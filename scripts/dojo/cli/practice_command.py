"""kata practice: a kata against the clock, in plain lines."""

import random

import click

from dojo import catalogue, play
from dojo.catalogue import Kata
from dojo.cli.diff import colour_diff
from dojo.history import History
from dojo.project import Project
from dojo.report import run_lines, story_lines
from dojo.runner import Runner
from dojo.session import Debrief, Session, choose_bugs, choose_kata
from dojo.watching import Judged, watching

_TICK_SECONDS = 0.5


@click.command(name="practice")
@click.argument("name", metavar="[KATA]", required=False)
@click.option("--minutes", type=click.FloatRange(min=0.01), help="Default: the kata's own.")
@click.pass_obj
def command(project: Project, name: str | None, minutes: float | None) -> None:
    """Hunt a kata's bugs against the clock: it is tested at every save, with a debrief at the end.

    Without a name, a kata is chosen for you. Ctrl-C stops and keeps everything.

    \b
    Example: kata practice softmax --minutes 10
    """
    with Runner(project) as runner:  # it gets warm while the brief is read
        kata = catalogue.find(project, name) if name else _draw(project)
        with play.opened(project, kata) as player:
            backup = player.plant(choose_bugs(kata, player.history, random.Random()), "practice")
            allowed = minutes or kata.minutes
            _introduce(kata, allowed, len(player.planted()), kept=backup is not None)
            session = Session(player, allowed)
            try:
                _hunt(kata, runner, session)
            except KeyboardInterrupt:
                click.echo(
                    f"\nStopped. Your file is as you left it: scripts/check.sh {kata.name} "
                    f"tests it, scripts/reveal.sh {kata.name} tells what was planted."
                )
                raise SystemExit(130) from None
            _conclude(kata, session.debrief())


def _draw(project: Project) -> Kata:
    history = History(project.history)
    try:
        return choose_kata(catalogue.load_all(project), history, random.Random())
    finally:
        history.close()


def _introduce(kata: Kata, minutes: float, bugs: int, *, kept: bool) -> None:
    click.echo(kata.brief.read_text(encoding="utf-8"))
    if kept:
        click.echo(f"Your earlier text is kept: scripts/undo.sh {kata.name}")
    planted = "1 bug is" if bugs == 1 else f"{bugs} bugs are"
    click.echo(f"{planted} planted. You have {minutes:g} minutes from now. Edit and save:")
    click.echo(f"  {kata.botched}")


def _hunt(kata: Kata, runner: Runner, session: Session) -> None:
    """Test at the start and at every save, until the kata is solved or time is up."""
    with watching(kata, runner) as watcher:
        for event in watcher.events(_TICK_SECONDS):
            if isinstance(event, Judged):
                judgement = session.judge(event.result)
                left = max(session.remaining(), 0)
                click.echo(
                    f"\n[{left // 60:.0f}:{left % 60:02.0f} left] revision {event.result.revision}"
                )
                for line in run_lines(kata.name, event.result, judgement):
                    click.echo(line)
                if judgement.solved:
                    return
            if session.remaining() <= 0:
                click.echo("\nTime is up.")
                return


def _conclude(kata: Kata, debrief: Debrief) -> None:
    click.echo(f"\nDebrief: {kata.name}")
    minutes = f"{debrief.seconds // 60:.0f} min {debrief.seconds % 60:.0f} s"
    outcome = "solved" if debrief.solved else "not solved"
    click.echo(f"{outcome}, {minutes}, {debrief.runs} runs, {debrief.hints} hints")
    click.echo("\nWhat you changed:")
    click.echo(colour_diff(debrief.diff) if debrief.diff else "nothing")
    click.echo("\nWhat was planted:")
    for bug in debrief.planted:
        found = "fixed" if bug.id in debrief.gone else "missed"
        lines = story_lines(bug)
        click.echo(f"\n[{found}] " + "\n".join(lines))
    if not debrief.solved:
        click.echo(f"\nThe correct text: scripts/reveal.sh {kata.name}")
