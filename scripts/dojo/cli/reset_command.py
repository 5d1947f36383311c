"""kata reset: plant bugs, keeping the learner's text."""

import secrets

import click

from dojo.cli.records import opened_history
from dojo.errors import typed
from dojo.kata import catalogue
from dojo.kata.drawing import draw_bugs
from dojo.kata.kata import Kata
from dojo.learner.player import Player
from dojo.project import Project
from dojo.wording.quantities import count as counted


@click.command(name="reset")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Reset every kata.")
@click.option("--bugs", metavar="ID,ID", help="Plant these bugs in place of the default ones.")
@click.option("--fresh", is_flag=True, help="Draw from the bugs that are in no catalogue.")
@click.option("--count", type=int, metavar="N", help="Plant N bugs drawn at random.")
@click.option("--seed", type=int, metavar="S", help="Draw the same bugs on every machine.")
@click.pass_obj
def command(
    project: Project,
    names: tuple[str, ...],
    every: bool,
    bugs: str | None,
    fresh: bool,
    count: int | None,
    seed: int | None,
) -> None:
    """Plant a kata's bugs again. Your text is kept: scripts/undo.sh brings it back.

    \b
    Example: kata reset softmax
    Example: kata reset softmax --count 2 --seed 7
    Example: kata reset softmax --fresh
    """
    if every == bool(names):
        raise click.UsageError("name the katas to reset, or give --all")
    if bugs is not None and (fresh or count is not None or seed is not None):
        raise click.UsageError(
            "--bugs names the bugs; --fresh, --count and --seed draw them: give one kind"
        )
    if fresh and seed is None:
        seed = secrets.randbelow(10_000)
    katas = catalogue.named(project, names)
    # All are chosen before any is planted: a wrong id changes nothing.
    chosen = [(kata, _choose(kata, bugs, fresh, count, seed)) for kata in katas]
    for kata, bug_ids in chosen:
        kata.planted_source(bug_ids)
    note = f"fresh, --seed {seed}" if fresh else ""
    with opened_history(project) as history:
        for kata, bug_ids in chosen:
            _reset(Player(project, kata, history), bug_ids, note)


def _choose(
    kata: Kata, bugs: str | None, fresh: bool, count: int | None, seed: int | None
) -> tuple[str, ...]:
    if bugs is not None:
        bug_ids = tuple(dict.fromkeys(bug_id.strip() for bug_id in bugs.split(",")))
        for bug_id in bug_ids:
            kata.bug(bug_id)
        return bug_ids
    if count is None and seed is None:
        return kata.default
    number = len(kata.default) if count is None else count
    return draw_bugs(kata, number, seed, kata.some_fresh() if fresh else None)


def _reset(player: Player, bug_ids: tuple[str, ...], note: str) -> None:
    name = player.kata.name
    backup = player.plant(bug_ids)
    kept = f"; your text is kept: {typed('undo', name)}" if backup else ""
    how = f" ({note})" if note else ""
    click.echo(f"{name}: {counted(len(bug_ids), 'bug')} planted{how}{kept}")
