"""How far a long command has come, on standard error."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from dojo.kata.kata import Kata

# How much longer a run of interpreted kernels takes: no more than an estimate for the time left.
_KERNEL_WEIGHT = 8


class Progress:
    """One line that is written over again on a terminal; elsewhere only the lines that stay."""

    def __init__(self) -> None:
        """Look at where the lines go."""
        self._live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Put a passing state in place of the last one."""
        if self._live:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    def say(self, text: str) -> None:
        """Write a line that stays."""
        click.echo(f"\r\x1b[K{text}" if self._live else text, err=True)


class VerifyProgress:
    """Katas done, variants a second and the time left; a line a kata where there is no terminal."""

    def __init__(self, bar: RichProgress | None) -> None:
        """Take the bar to draw, if there is a terminal for it."""
        self._bar = bar
        self._begun = 0

    def expect(self, katas: Sequence[Kata], runs_of: Callable[[Kata], int]) -> None:
        """Say how many runs each kata will take; that is worked out for a terminal alone."""
        if self._bar:
            total = sum(runs_of(kata) * _weight(kata) for kata in katas)
            self._bar.add_task("", total=total, katas=len(katas), runs=0, done=0)

    def begin(self, kata: Kata) -> None:
        """Say that a kata's turn has come."""
        if self._bar:
            self._bar.update(TaskID(0), description=kata.name, done=self._begun)
        else:
            click.echo(f"verifying {kata.name} ...", err=True)
        self._begun += 1

    def ran(self, kata: Kata) -> None:
        """Say that one of its runs has ended."""
        if self._bar:
            runs = self._bar.tasks[0].fields["runs"] + 1
            self._bar.update(TaskID(0), advance=_weight(kata), runs=runs)


@contextmanager
def verifying() -> Iterator[VerifyProgress]:
    """Show the progress of verifying on standard error while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield VerifyProgress(None)
        return
    katas = TextColumn("{task.fields[done]} of {task.fields[katas]} katas")
    columns = (katas, BarColumn(), _Rate(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with RichProgress(*columns, console=console, transient=True) as bar:
        yield VerifyProgress(bar)


@contextmanager
def grading(submissions: int) -> Iterator[Callable[[], None]]:
    """Show the progress of grading on standard error; yield what says that one more is graded."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("graded"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=submissions)
        yield lambda: bar.advance(task)


class _Rate(ProgressColumn):
    """Variants a second."""

    def render(self, task: Task) -> Text:
        """Return the rate since the start."""
        rate = task.fields["runs"] / task.elapsed if task.elapsed else 0.0
        return Text(f"{rate:.0f} variants a second")


def _weight(kata: Kata) -> int:
    return _KERNEL_WEIGHT if kata.needs_triton else 1
