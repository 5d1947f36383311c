"""A practice session as plain lines: for pipes, screen readers and simple terminals."""

import click

from dojo.cli.diff import colour_diff
from dojo.cli.events import event_lines
from dojo.cli.lines import Lines
from dojo.errors import typed
from dojo.history.sessions import Ending
from dojo.learner.watcher import watching
from dojo.practice.debrief import Debrief
from dojo.practice.loop import Ended, RunFails, RunJudged, TimedHunt
from dojo.practice.session import Practice, Round
from dojo.runner.runner import Runner
from dojo.wording.debriefs import (
    CHANGED,
    CLOCK_STANDS,
    GO_ON,
    PLANTED,
    UNCHANGED,
    bug_lines,
    outcome_line,
    over_line,
)
from dojo.wording.keys import PRACTICE, keys_line
from dojo.wording.quantities import minutes
from dojo.wording.welcome import planted_line, welcome_lines

_TICK_SECONDS = 0.5


class Plain:
    """Leads through a session in lines."""

    def __init__(self, practice: Practice, runner: Runner, lines: Lines) -> None:
        """Take a session that begins or is taken up again, and where lines come from."""
        self._practice = practice
        self._runner = runner
        self._lines = lines

    def lead(self) -> bool:
        """Go through the katas that are left; say whether the session came to its end."""
        while (round_ := self._practice.next_round()) is not None:
            self._introduce(round_)
            finished = self._practice.finish(round_, self._hunt(round_))
            if finished is None:
                return False
            if finished.hidden:
                click.echo(f"\n{over_line(round_.kata.name)}")
            else:
                _print_debrief(finished.debrief)
            if finished.more and not self._go_on():
                return False
        return True

    def _introduce(self, round_: Round) -> None:
        kata = round_.kata
        click.echo(kata.brief_text())
        left = minutes(round_.remaining())
        click.echo(f"{planted_line(round_)}. You have {left} minutes from now.")
        for line in welcome_lines(round_):
            click.echo(line)
        letters = keys_line(PRACTICE, hints=not round_.interview)
        click.echo(f"Letters, each with Enter: {letters}")

    def _hunt(self, round_: Round) -> Ending | None:
        """Test at the start and at every save; return how it ended, or None for quit."""
        hunt = TimedHunt(round_)
        planted = round_.player.planting().bugs
        with (
            watching(round_.kata, self._runner, planted) as watcher,
            self._lines.to(watcher.type),
        ):
            for event in hunt.events(watcher, PRACTICE, _TICK_SECONDS):
                if isinstance(event, Ended):
                    if event.ending is Ending.MISSED:
                        click.echo("\nTime is up.")
                    return event.ending
                if isinstance(event, RunFails):
                    continue  # the verdict says it again
                if isinstance(event, RunJudged):
                    click.echo()
                for line in event_lines(event, round_.kata.name):
                    click.echo(line)
        raise AssertionError("a hunt goes on until it has ended")

    def _go_on(self) -> bool:
        """Wait for a line before the next kata; go on at once where none can come."""
        click.echo(f"\n{CLOCK_STANDS} {GO_ON}, q stops here.")
        return self._lines.next_letter() != "q"


def _print_debrief(debrief: Debrief) -> None:
    click.echo(f"\nDebrief: {debrief.kata.name}\n{outcome_line(debrief)}")
    click.echo(f"\n{CHANGED.capitalize()}:\n{colour_diff(debrief.diff or UNCHANGED)}")
    click.echo(f"\n{PLANTED.capitalize()}:\n")
    for line in bug_lines(debrief):
        click.echo(line)
    if debrief.ending is not Ending.SOLVED:
        click.echo(f"\nThe correct text: {typed('reveal', debrief.kata.name)}")
