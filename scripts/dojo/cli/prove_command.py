"""kata prove: write the tests that expose a kata's bugs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from dojo.cli.keys import key_presses
from dojo.cli.lines import Lines
from dojo.cli.records import opened_history
from dojo.errors import typed
from dojo.history.history import History
from dojo.history.proofs import Goal
from dojo.history.sessions import Ending
from dojo.kata import catalogue
from dojo.learner.player import Player
from dojo.practice.planning import PlannedProof
from dojo.practice.proof_loop import ProofJudged, ProofLoop, ProofOver, proving
from dojo.practice.proving import ProofDebrief, Prover, prover
from dojo.practice.session import refuse_in_interview
from dojo.project import Project
from dojo.runner.pool import Pool, runner_pool
from dojo.wording.proofs import (
    KEYS,
    event_lines,
    hint_lines,
    keys_line,
    session_table,
    task_lines,
)
from dojo.wording.quantities import minutes

# What the first use of torch.testing imports; every run would pay for it.
IMPORTS = ("torch.distributed.tensor",)
_TICK_SECONDS = 0.5


@click.command(name="prove")
@click.argument("name", metavar="KATA")
@click.option(
    "--goal",
    type=click.Choice([str(goal) for goal in Goal]),
    help="Catch one bug whose story is told, half of the wrong versions, or all (the default).",
)
@click.option("--seed", type=int, metavar="S", help="The same wrong versions for everyone.")
@click.option(
    "--minutes",
    "allowed",
    type=click.FloatRange(min=0.01),
    help="Against the clock; without one by default.",
)
@click.option("--once", is_flag=True, help="Judge proof.py once, and end.")
@click.option("--reset", is_flag=True, help="Begin proof.py anew; your text is kept.")
@click.pass_obj
def command(
    project: Project,
    name: str,
    goal: str | None,
    seed: int | None,
    allowed: float | None,
    once: bool,
    reset: bool,
) -> None:
    """Write tests that catch wrong versions of a kata and refuse no correct one.

    Your tests are in proof.py, in the kata's folder. They take the fixture impl, and may use
    dojo.testing or torch.testing. At each save they run on correct versions in several styles, and
    on wrong ones: the catalogued bugs and twenty fresh ones, of a system ten in all. A proof may
    only call the code: one that reads it, or a file of the kata, gets no verdict.

    Without options, a proof that was left goes on with the same versions.

    \b
    Example: kata prove softmax
    Example: kata prove softmax --goal one
    Example: kata prove softmax --once
    Exit status: 0 the goal is reached or you quit, 1 not yet (with --once, or time is up).
    """
    kata = catalogue.find(project, name)
    with (
        runner_pool(project, imports=IMPORTS) as pool,
        opened_history(project) as history,
    ):
        refuse_in_interview(Player(project, kata, history))
        budget = None if allowed is None else 60 * allowed
        proof = prover(project, kata, history, Goal(goal) if goal else None, seed, budget)
        if reset and proof.restart():
            click.echo(f"your text is kept: {typed('undo', kata.name, '--proof')}")
        proof.make_file()
        debrief = prove(proof, pool, Lines(), once=once)
        missed = debrief is not None and debrief.proof.ending is Ending.MISSED
    if missed or (once and not proof.reached):
        raise SystemExit(1)


def lead(
    project: Project,
    history: History,
    planned: Sequence[PlannedProof],
    lines: Lines,
    seed: int | None,
) -> None:
    """Lead through proofs against the clock, one kata after another, and say how they went."""
    debriefs = []
    with runner_pool(project, imports=IMPORTS) as pool:
        for number, plan in enumerate(planned, 1):
            proof = prover(project, plan.kata, history, plan.goal, seed, plan.budget)
            proof.restart()
            click.echo(plan.kata.brief_text())
            click.echo(
                f"Proof {number} of {len(planned)}, {minutes(plan.budget)} minutes from now."
            )
            debrief = prove(proof, pool, lines)
            if debrief is None:
                break
            debriefs.append(debrief)
    if debriefs:
        click.echo(f"\n{session_table(debriefs)}")


def prove(
    prover: Prover, pool: Pool, input_lines: Lines, *, once: bool = False
) -> ProofDebrief | None:
    """Judge a proof at every save until it ends; return how it went, if it came to its end."""
    name = prover.kata.name
    for line in task_lines(prover):
        click.echo(line)
    with proving(prover, pool) as loop, _keys(loop, input_lines, once) as has_keys:
        click.echo(f"{prover.kata.proof}" + (f"\n{keys_line()}" if has_keys else ""))
        try:
            for event in loop.events(KEYS, _TICK_SECONDS):
                judged = isinstance(event, ProofJudged)
                lines = event_lines(event, name)
                if judged and has_keys:
                    click.clear()
                    hint = prover.standing_hint
                    lines = [*task_lines(prover), "", *lines, *(hint_lines(hint) if hint else [])]
                for line in lines:
                    click.echo(line)
                if isinstance(event, ProofOver):
                    return event.debrief
                if once and judged and not prover.reached:
                    return None
                if judged and has_keys:
                    click.echo(keys_line())
        except KeyboardInterrupt:
            click.echo()
    return None


@contextmanager
def _keys(loop: ProofLoop, lines: Lines, once: bool) -> Iterator[bool]:
    """Pass keys on, or where there are none the first letters of lines."""
    if once:
        yield False
        return
    with key_presses(loop.press) as keys:
        if keys:
            yield True
            return
        with lines.to(lambda line: loop.press(line.strip().lower())):
            yield False
