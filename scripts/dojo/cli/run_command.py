"""kata run: a system's log, and its curves beside the band of healthy runs."""

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from dojo.cli import output
from dojo.errors import DojoError, typed
from dojo.files import revision
from dojo.history.history import History
from dojo.history.moves import MoveKind
from dojo.instruments.bands import Band, read_band
from dojo.instruments.curves import Curve, Departure, curves, departures
from dojo.kata import catalogue
from dojo.kata.kata import Kata
from dojo.learner.player import Player
from dojo.project import Project
from dojo.runner.log import Event, RunLog, Step
from dojo.runner.runner import Runner
from dojo.wording.logs import LogLines
from dojo.wording.quantities import count

_NARROWEST, _WIDEST, _HEIGHT = 40, 100, 12  # of a curve, in characters
_STOPPED = 130  # the exit status of what Ctrl-C ends


@click.command(name="run")
@click.argument("name", metavar="KATA")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", show_default=True)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many steps to run (default: as many as the system's own). Healthy runs are shown "
    "beside those of their own length alone.",
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the curves as a page, to open in a browser.",
)
@click.pass_obj
def command(project: Project, name: str, seed: int, steps: int | None, page: Path | None) -> None:
    """Run a system: its log as it comes, then each number as a curve beside healthy runs.

    It calls `run` in your file, in a process of its own. What your code prints stands in the log.
    It ends at the first NaN, and where a step takes longer than a test may. The report of an
    interview says that you looked.

    \b
    Example: kata run mini_gpt
    Example: kata run mini_gpt --seed 3 --html run.html
    Exit status: 0 the run came to its end, 1 it did not.
    """
    kata = catalogue.find(project, name)
    if not kata.is_system:
        raise DojoError(
            f"{kata.name} is no system: it has no run() and no log; "
            f"{typed('check', kata.name)} runs its tests"
        )
    with History(project.history) as history:
        Player(project, kata, history).look(MoveKind.LOG)
    band = _band(kata, steps)
    log = _Following(project, kata, band).run(seed, steps)
    drawn = curves(log.steps, band) if log.steps else []
    left = departures(log.steps, band, ended=not log.failure) if band and log.steps else []
    _show(drawn)
    for departure in left:
        click.secho(str(departure), fg="yellow")
    if page:
        from dojo.wording.run_page import render_run  # not above: `--help` needs no templates

        output.write(page, render_run(kata.name, seed, log, drawn, left))
        click.echo(f"wrote {page}")
    click.echo(_verdict(kata, log, band, left))
    if log.failure:
        raise SystemExit(1)


def _band(kata: Kata, steps: int | None) -> Band | None:
    """Return the band that a run of so many steps can be laid beside, or say why there is none."""
    band = read_band(kata.healthy_file)
    if band is None:
        why = f"has no {kata.healthy_file.name}"
    elif not kata.answerless and band.reference != revision(kata.reference.read_bytes()):
        why = f"has a {kata.healthy_file.name} of another reference"
    elif steps not in (None, band.steps):
        why = f"has healthy runs of {band.steps} steps alone"
    else:
        return band
    click.echo(f"{kata.name} {why}: the curves stand alone", err=True)
    return None


class _Following:
    """Shows a run as it goes, and stops it where its numbers are none any more."""

    def __init__(self, project: Project, kata: Kata, band: Band | None) -> None:
        self._project = project
        self._kata = kata
        self._spans = {name: band.spans(name) for name in band.numbers} if band else {}
        self._band = band
        self._steps: list[dict[str, float]] = []
        self._nan = ""

    def run(self, seed: int, steps: int | None) -> RunLog:
        """Return the log up to where it ended."""
        lines = LogLines(steps or (self._band.steps if self._band else None))
        with Runner(self._project) as runner:

            def tell(event: Event) -> None:
                if self._nan:  # what was under way when the run was stopped
                    return
                if isinstance(event, Step):
                    self._nan = self._first_nan(event)
                    if self._nan:
                        runner.cancel()
                    self._steps.append(event.numbers)
                _echo(lines.lines(event))

            try:
                log = runner.log(self._kata, seed=seed, steps=steps, tell=tell)
            except KeyboardInterrupt:
                _echo(lines.last())
                click.echo(f"{self._kata.name}: stopped after {count(len(self._steps), 'step')}")
                raise SystemExit(_STOPPED) from None
        _echo(lines.last())
        return RunLog(tuple(self._steps), self._nan or log.failure, log.seconds)

    def _first_nan(self, step: Step) -> str:
        """Say which number is NaN; one that is not finite in healthy runs may be."""
        place = len(self._steps)
        for name, value in step.numbers.items():
            spans = self._spans.get(name)
            told = spans is None or (place < len(spans) and spans[place] is not None)
            if math.isnan(value) and told:
                return f"step {place + 1}: {name} is NaN"
        return ""


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _show(drawn: Sequence[Curve]) -> None:
    """Draw the curves; of a single step there is none."""
    from dojo.wording.curves import BAND, CURVE, LEGEND, draw  # not above: `--help` draws nothing

    def colour(text: str) -> str:
        text = BAND.sub(lambda match: click.style(match[0], fg="green"), text)
        return CURVE.sub(lambda match: click.style(match[0], fg="yellow", bold=True), text)

    width = max(_NARROWEST, min(shutil.get_terminal_size().columns, _WIDEST))
    for curve in drawn:
        if len(curve.values) > 1:
            click.echo(f"\n{colour(draw(curve, width, _HEIGHT))}")
    if drawn:
        click.echo(f"\n{colour(LEGEND)}\n")


def _verdict(kata: Kata, log: RunLog, band: Band | None, left: Sequence[Departure]) -> str:
    """Return the last line: how the run ended, and what of it is outside."""
    if log.failure:
        return f"{kata.name}: stopped at {log.failure}"
    ran = f"{kata.name}: {count(len(log.steps), 'step')} in {log.seconds:.1f} s"
    if band is None:
        return ran
    if not left:
        return f"{ran}, every number like in healthy runs"
    return f"{ran}; {len(left)} of {count(len(band.numbers), 'number')} unlike healthy runs"
