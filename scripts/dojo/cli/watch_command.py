"""kata watch: test a kata at every save."""

import shutil
import sys
import textwrap

import click

from dojo.cli.events import event_lines
from dojo.cli.keys import key_presses
from dojo.cli.records import opened_history
from dojo.kata import catalogue, kata_toml
from dojo.kata.kata import Kata
from dojo.learner.player import Player
from dojo.learner.watcher import watching
from dojo.practice.asides import debug
from dojo.practice.loop import (
    BugsCounted,
    Debugging,
    Event,
    FreeHunt,
    NextKata,
    RunFails,
    RunJudged,
)
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.wording.keys import WATCH, keys_line

_TICK_SECONDS = 0.5


@click.command(name="watch")
@click.argument("name", metavar="KATA")
@click.option("--open", "open_checks", is_flag=True, help="Open all checks of a system.")
@click.pass_obj
def command(project: Project, name: str, open_checks: bool) -> None:
    """Run a kata's tests at every save, until you quit.

    In a terminal, keys give hints, the diff, reset, undo and the next kata. Where the output is
    not a terminal, the same comes as plain lines.

    \b
    Example: kata watch softmax
    """
    kata: Kata | None = catalogue.find(project, name)
    with Runner(project) as runner, opened_history(project) as history:
        while kata is not None:
            go_on = _Screen(Player(project, kata, history, open_checks=open_checks), runner).show()
            kata = _following(project, kata) if go_on else None


class _Screen:
    """One kata on the screen."""

    def __init__(self, player: Player, runner: Runner) -> None:
        self._player = player
        self._runner = runner

    def show(self) -> bool:
        """Watch until a key ends it; say whether to go on with the next kata."""
        kata, hunt = self._player.kata, FreeHunt(self._player)
        planted = self._player.planting().bugs
        with (
            watching(kata, self._runner, planted) as watcher,
            key_presses(watcher.press) as keys,
        ):
            click.echo(f"watching {kata.botched}" + (f"\n{keys_line(WATCH)}" if keys else ""))
            try:
                for event in hunt.events(watcher, WATCH, _TICK_SECONDS):
                    if isinstance(event, NextKata):
                        return True
                    if isinstance(event, Debugging) and keys:
                        with keys.away():
                            debug(self._player.project, event.name)
                        click.echo(_fit(keys_line(WATCH)))
                    else:
                        self._print(event, has_keys=keys is not None)
            except KeyboardInterrupt:
                click.echo()
        return False

    def _print(self, event: Event, *, has_keys: bool) -> None:
        about_run = isinstance(event, RunFails | RunJudged | BugsCounted)
        if isinstance(event, RunFails) and not has_keys:
            return  # the verdict, which takes its place on a screen, says it again
        if has_keys and isinstance(event, RunFails | RunJudged):
            click.clear()
        for line in event_lines(event, self._player.kata.name):
            click.echo(_fit(line) if about_run else line)
        ends = isinstance(event, RunJudged) and not event.count_follows
        if has_keys and (ends or isinstance(event, BugsCounted)):
            for line in self._player.hints_given():
                click.echo(_fit(line))
            click.echo(_fit(keys_line(WATCH)))


def _fit(line: str) -> str:
    """Wrap a line to the terminal, keeping its indent; leave it alone where there is none."""
    width = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(line.strip(), width, initial_indent=indent, subsequent_indent=indent)


def _following(project: Project, kata: Kata) -> Kata | None:
    folders = catalogue.kata_folders(project)
    later = [folder for folder in folders if folder.name > kata.name]
    return kata_toml.load(later[0]) if later else None
