"""A practice session as plain lines: for pipes, screen readers and simple terminals."""

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from dojo.cli.diff import colour_diff
from dojo.errors import command as say
from dojo.history.sessions import Ending
from dojo.learner.watcher import Judged, Key, Started, watching
from dojo.practice.debrief import Debrief
from dojo.practice.session import Practice, Round
from dojo.runner.runner import Runner
from dojo.testrun.results import RunResult
from dojo.wording.debriefs import bug_lines, outcome_line
from dojo.wording.quantities import minutes
from dojo.wording.runs import run_lines
from dojo.wording.welcome import planted_line, welcome_lines

_TICK_SECONDS = 0.5
_WARNINGS = (300, 60)  # seconds left


class Plain:
    """Leads through a session in lines."""

    def __init__(self, practice: Practice, runner: Runner) -> None:
        """Take a session that begins or is taken up again."""
        self._practice = practice
        self._runner = runner
        self._letters = _Letters()

    def lead(self) -> bool:
        """Go through the katas that are left; say whether the session came to its end."""
        while True:
            with self._practice.next_round() as round_:
                if round_ is None:
                    return True
                self._introduce(round_)
                ending = self._hunt(round_)
                if ending is None:
                    round_.leave()
                    return False
                debrief = round_.end(ending)
            if self._practice.session.interview:
                click.echo(f"\n{debrief.kata.name} is over.")
            else:
                _print_debrief(debrief)
            if self._practice.standing() and not self._go_on():
                return False

    def _introduce(self, round_: Round) -> None:
        kata = round_.kata
        click.echo(kata.brief.read_text(encoding="utf-8"))
        left = minutes(round_.remaining())
        click.echo(f"{planted_line(round_)}. You have {left} minutes from now.")
        for line in welcome_lines(round_):
            click.echo(line)
        hint = "" if round_.interview else "h hint  "
        click.echo(f"Letters, each with Enter: {hint}d diff  p pause  s skip  r reveal  q quit")

    def _hunt(self, round_: Round) -> Ending | None:
        """Test at the start and at every save; return how it ended, or None for quit."""
        warnings = [seconds for seconds in _WARNINGS if seconds < round_.remaining()]
        with watching(round_.kata, self._runner) as watcher, self._letters.to(watcher.press):
            for event in watcher.events(_TICK_SECONDS):
                if isinstance(event, Started):
                    round_.run_started()
                elif isinstance(event, Judged):
                    if self._print_run(round_, event.result):
                        return Ending.SOLVED
                elif isinstance(event, Key):
                    if event.character == "q":
                        return None
                    if event.character in _ENDINGS:
                        return _ENDINGS[event.character]
                    self._act(round_, event.character)
                left = round_.remaining()
                if left <= 0:
                    click.echo("\nTime is up.")
                    return Ending.MISSED
                while warnings and left <= warnings[0]:
                    click.echo(f"{minutes(warnings.pop(0))} left")
        raise AssertionError("events never end by themselves")

    def _print_run(self, round_: Round, result: RunResult) -> bool:
        judgement = round_.judge(result)
        click.echo(f"\n[{minutes(round_.remaining())} left] revision {result.revision}")
        for line in run_lines(round_.kata.name, result, judgement, names=round_.names_shown):
            click.echo(line)
        return judgement.solved

    def _act(self, round_: Round, letter: str) -> None:
        if letter == "h":
            click.echo(round_.hint())
        elif letter == "d":
            diff = round_.player.diff_from_planted()
            click.echo(colour_diff(diff) if diff else "you have changed nothing yet")
        elif letter == "p":
            stands = round_.toggle_pause()
            click.echo("paused; p goes on" if stands else "the clock goes on")

    def _go_on(self) -> bool:
        """Wait for a line before the next kata; go on at once where none can come."""
        click.echo("\nThe clock stands. Enter goes on to the next kata, q stops here.")
        return self._letters.next() != "q"


_ENDINGS = {"s": Ending.SKIPPED, "r": Ending.REVEALED}


class _Letters:
    """The first letters of the lines on standard input."""

    def __init__(self) -> None:
        self._press: Callable[[str], None] | None = None
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    @contextmanager
    def to(self, press: Callable[[str], None]) -> Iterator[None]:
        """Have letters go there while the block runs, and what was typed before it too."""
        with self._lock:
            self._press = press
            while not self._waiting.empty():
                press(self._waiting.get())
        try:
            yield
        finally:
            with self._lock:
                self._press = None

    def next(self) -> str:
        """Wait for a letter; empty for an empty line, and where no line comes any more."""
        while True:
            try:
                return self._waiting.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                if self._ended.is_set():
                    return ""

    def _read(self) -> None:
        for line in sys.stdin:
            letter = line.strip()[:1].lower()
            with self._lock:
                if self._press:
                    self._press(letter)
                else:
                    self._waiting.put(letter)
        self._ended.set()


def _print_debrief(debrief: Debrief) -> None:
    click.echo(f"\nDebrief: {debrief.kata.name}\n{outcome_line(debrief)}")
    click.echo("\nWhat you changed:")
    click.echo(colour_diff(debrief.diff) if debrief.diff else "nothing")
    click.echo("\nWhat was planted:\n")
    for line in bug_lines(debrief):
        click.echo(line)
    if debrief.ending is not Ending.SOLVED:
        click.echo(f"\nThe correct text: {say('reveal', debrief.kata.name)}")
