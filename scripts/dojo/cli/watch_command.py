"""kata watch: test a kata at every save."""

import shutil
import sys
import textwrap
import time

import click

from dojo.cli.diff import colour_diff
from dojo.cli.keys import key_presses
from dojo.history.history import History
from dojo.kata import catalogue, kata_toml
from dojo.kata.kata import Kata
from dojo.learner.player import Player
from dojo.learner.watcher import Judged, Key, watching
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.testrun.results import RunResult
from dojo.wording.runs import run_lines

_KEYS = "h hint  d diff  r reset  u undo  n next kata  q quit"
_TICK_SECONDS = 0.5


@click.command(name="watch")
@click.argument("name", metavar="KATA")
@click.pass_obj
def command(project: Project, name: str) -> None:
    """Run a kata's tests at every save, until you quit.

    In a terminal, keys give hints, the diff, reset, undo and the next kata. Where the output is
    not a terminal, the same comes as plain lines.

    \b
    Example: kata watch softmax
    """
    kata: Kata | None = catalogue.find(project, name)
    with Runner(project) as runner, History(project.history) as history:
        while kata is not None:
            go_on = _Screen(Player(project, kata, history), runner).show()
            kata = _following(project, kata) if go_on else None


class _Screen:
    """One kata on the screen."""

    def __init__(self, player: Player, runner: Runner) -> None:
        self._player = player
        self._runner = runner
        self._gone: tuple[str, ...] = ()

    def show(self) -> bool:
        """Watch until a key ends it; say whether to go on with the next kata."""
        kata = self._player.kata
        with watching(kata, self._runner) as watcher, key_presses(watcher.press) as has_keys:
            click.echo(f"watching {kata.botched}" + (f"\n{_KEYS}" if has_keys else ""))
            try:
                for event in watcher.events(_TICK_SECONDS):
                    if isinstance(event, Judged):
                        self._print_run(event.result, has_keys)
                    elif isinstance(event, Key):
                        if event.character in "qn":
                            return event.character == "n"
                        self._act(event.character)
            except KeyboardInterrupt:
                click.echo()
        return False

    def _print_run(self, result: RunResult, has_keys: bool) -> None:
        judgement = self._player.record(result)
        self._gone = judgement.gone
        if has_keys:
            click.clear()
        click.echo(f"[{time.strftime('%H:%M:%S')}] revision {result.revision}")
        for line in run_lines(self._player.kata.name, result, judgement):
            click.echo(_fit(line))
        if has_keys:
            click.echo(_fit(_KEYS))

    def _act(self, character: str) -> None:
        """Do what a key asks for; a change of the file is noticed as a save is."""
        if character == "h":
            click.echo(self._player.give_hint(self._gone))
        elif character == "d":
            diff = self._player.diff_from_planted()
            click.echo(colour_diff(diff) if diff else "you have changed nothing yet")
        elif character == "r":
            backup = self._player.plant(self._player.attempt().planted)
            click.echo("planted again" + ("; u brings your text back" if backup else ""))
        elif character == "u":
            if self._player.workspace.backups():
                self._player.workspace.restore()
                click.echo("your earlier text is back")
            else:
                click.echo("nothing to undo")


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
