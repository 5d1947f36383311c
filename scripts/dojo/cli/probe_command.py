"""kata probe: what happens inside the model as the learner's file runs."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dojo.cli import output
from dojo.cli.records import opened_history
from dojo.errors import DojoError
from dojo.history.moves import MoveKind
from dojo.instruments.probe.facts import Facts
from dojo.instruments.probe.findings import findings, notes
from dojo.instruments.probe.probing import probe
from dojo.kata import catalogue
from dojo.learner.player import Player
from dojo.project import Project
from dojo.wording import probes


@click.command(name="probe")
@click.argument("name", metavar="KATA")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Take N steps of a system (default: its own, for 10 seconds at most).",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Of random data.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write a page, to open in a browser.",
)
@click.pass_obj
def command(
    project: Project,
    name: str,
    steps: int | None,
    seed: int,
    as_json: bool,
    page: Path | None,
) -> None:
    """Show what happens inside your model: outputs, gradients, updates, modes.

    Runs a system's run(), or the tests of any other kata, on your file, and looks on through
    torch's own hooks. Of each module it shows the largest output of the last call; of each
    parameter the norm of its last gradient and of its weight, its last update over that weight, and
    which optimiser owns it. While a session runs in the kata, a probe costs points.

    What stands out is said in a sentence. An update is compared with the weight just before it. It
    is large if it is more than the weight, and of a bias if most are; not from zero, and not while
    the update's entries are below 0.1 / sqrt(fan-in) in size. It is small if it is less than 1e-7
    of the weight at every step. Size is root mean square: outputs explode when theirs passes
    10,000, or 100 and 1,000 times the first, and vanish when it never reaches 1e-6. A learning
    rate may warm up and drop by steps; any other jump of more than a tenth of its peak is told.
    Dropout is seen in torch's functions, not where it is written by hand. Tests choose modes and
    values themselves, so of tests less is told.

    \b
    Example: kata probe mini_gpt
    Example: kata probe mini_gpt --steps 20 --html mini_gpt.html
    Exit status: 0 probed, 1 the run broke, 2 wrong usage.
    """
    kata = catalogue.find(project, name)
    if page is not None and as_json:
        raise click.UsageError("give --json or --html, not both")
    with opened_history(project) as history:
        Player(project, kata, history).look(MoveKind.PROBE)
    facts = probe(project, kata, seed=seed, steps=steps)
    if as_json:
        click.echo(json.dumps(_plain(_document(kata.name, facts, seed)), allow_nan=False))
    elif page is not None and not facts.empty:
        from dojo.wording.probe_page import (
            render_probe,  # not above: `kata probe --help` needs no templates
        )

        output.write(page, render_probe(kata.name, facts, findings(facts), notes(facts), seed))
        click.echo(f"wrote {page}")
    elif not facts.empty:
        _show(kata.name, facts, seed)
    elif not facts.error:
        click.echo(probes.nothing(kata.name, facts))
    if facts.error:
        raise DojoError(f"{kata.name}: the run broke: {facts.error}")


def _show(name: str, facts: Facts, seed: int) -> None:
    click.secho(probes.heading(name, facts, seed), bold=True)
    for line in probes.table_lines(facts):
        click.echo(line)
    lines = [*probes.optimizer_lines(facts), *notes(facts)]
    if lines:
        click.echo()
    for line in lines:
        click.secho(line, dim=True)
    click.echo()
    colour = "yellow" if findings(facts) else None
    for line in probes.finding_lines(facts):
        click.secho(line, fg=colour)


def _document(name: str, facts: Facts, seed: int) -> dict[str, Any]:
    return {
        "kata": name,
        "seed": seed,
        "findings": [asdict(finding) for finding in findings(facts)],
        "notes": notes(facts),
        **facts.to_json(),
    }


def _plain(value: Any) -> Any:
    """Return the value with numbers that JSON has no sign for as texts: "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
