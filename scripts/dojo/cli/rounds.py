"""What a day and a mixed session consist of: a review, a hunt, a proof."""

from collections.abc import Callable, Sequence
from datetime import date

import click

from dojo.cli.lines import Lines
from dojo.cli.prove_command import IMPORTS, prove
from dojo.cli.review_command import read
from dojo.errors import typed
from dojo.history.history import History
from dojo.history.proofs import Goal
from dojo.history.sessions import Ending
from dojo.kata import catalogue
from dojo.practice.daily import MINUTES, REQUESTS, Daily, Discipline, daily
from dojo.practice.planning import Planned, PlannedProof, Wishes, plan, plan_proofs
from dojo.practice.proving import prover
from dojo.practice.review.desk import Desk
from dojo.practice.review.supply import kinds_by_need, supply, under_way
from dojo.practice.session import Practice
from dojo.project import Project
from dojo.runner.pool import runner_pool
from dojo.runner.runner import Runner
from dojo.wording.quantities import count

_REVIEW_MINUTES, _HUNT_MINUTES, _PROOF_MINUTES = 5.0, 15.0, 10.0  # of a mixed session
_NAMES = {
    Discipline.HUNT: "a hunt",
    Discipline.PROOF: "a proof",
    Discipline.REVIEW: "a review",
}

Begin = Callable[[Sequence[Planned]], Practice]
Lead = Callable[[Practice, Runner], bool]


class Rounds:
    """Leads through reviews, hunts and proofs, one after another."""

    def __init__(
        self,
        project: Project,
        history: History,
        begin: Begin,
        lead: Lead,
        lines: Lines,
        *,
        plain: bool,
    ) -> None:
        """Take how a session of hunts begins, how it is led, and where lines come from."""
        self._project = project
        self._history = history
        self._begin = begin
        self._lead = lead
        self._lines = lines
        self._plain = plain

    def daily(self, day: date) -> None:
        """Lead through the bug of the day, once, and say how long the streak is."""
        asked = daily(catalogue.load_all(self._project), day)
        dailies = self._history.dailies
        if day in dailies.all():
            click.echo("Today's bug is done; the next one comes tomorrow.")
        else:
            click.echo(f"{day:%d %B %Y}, the bug of the day: {_NAMES[asked.discipline]}.")
            found = self._take(asked)
            if found is None:
                click.echo(f"The day is not over: {typed('practice', '--daily')} goes on.")
                return
            dailies.add(day, found=found)
        click.echo(f"Your streak: {count(dailies.streak(day), 'day')}.")

    def mix(self) -> None:
        """Lead through a review to warm up, a hunt, and a proof."""
        katas = catalogue.load_all(self._project)
        click.echo(f"1 of 3: a review, {_REVIEW_MINUTES:g} minutes.")
        kinds, without = kinds_by_need(self._history), under_way(self._history)
        requests = supply(self._project, kinds=kinds, without=without)
        desk = Desk(requests, self._history, count=None, seconds=60 * _REVIEW_MINUTES)
        if not read(desk, plain=self._plain):
            return
        click.echo(f"\n2 of 3: a hunt, {_HUNT_MINUTES:g} minutes.")
        planned = plan(katas, self._history, Wishes(minutes=_HUNT_MINUTES, katas=1))
        if self._hunt(planned) is None:
            return
        click.echo(f"\n3 of 3: a proof, {_PROOF_MINUTES:g} minutes.")
        wishes = Wishes(minutes=_PROOF_MINUTES, katas=1)
        for wanted in plan_proofs(katas, self._history, wishes):
            self._prove(wanted)

    def _take(self, asked: Daily) -> bool | None:
        """Say whether the bug was found; None if the learner left."""
        kata, budget = asked.kata, 60 * MINUTES
        if asked.discipline is Discipline.HUNT:
            return self._hunt([Planned(kata, (asked.bug.id,), budget)])
        if asked.discipline is Discipline.PROOF:
            return self._prove(PlannedProof(kata, Goal.ONE, budget), asked.bug.id)
        desk = Desk(supply(self._project, seed=asked.seed), self._history, count=REQUESTS)
        if not read(desk, plain=self._plain):
            return None
        return not (desk.score.misses or desk.score.false_alarms)

    def _hunt(self, planned: Sequence[Planned]) -> bool | None:
        """Go on with a session of just these, or begin it; say whether all was found."""
        with Runner(self._project) as runner:
            practice = self._begin(planned)
            if not self._lead(practice, runner):
                return None
        return all(one.ending is Ending.SOLVED for one in practice.exercises())

    def _prove(self, wanted: PlannedProof, bug: str | None = None) -> bool | None:
        kata = wanted.kata
        with runner_pool(self._project, imports=IMPORTS) as pool:
            proof = prover(
                self._project, kata, self._history, wanted.goal, budget=wanted.budget, bug=bug
            )
            proof.make_file()
            click.echo(kata.brief_text())
            debrief = prove(proof, pool, self._lines)
        return None if debrief is None else debrief.proof.ending is Ending.SOLVED
