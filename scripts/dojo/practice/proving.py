"""One kata's proof under way, without a screen: what it is to catch, hints, claims, its end."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from dojo.errors import DojoError
from dojo.history.history import History
from dojo.history.proofs import Goal, Proof
from dojo.history.sessions import Ending
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.kata.proof_template import proof_template
from dojo.learner.workspace import Backup, Workspace
from dojo.practice import scheduler
from dojo.practice.judging import ProofJudgement
from dojo.practice.stopwatch import Clock
from dojo.project import Project
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.device import has_gpu
from dojo.testrun.implementation import Planted
from dojo.testrun.results import Outcome, RunResult, TestResult

_FRESH = 20  # wrong versions beside the catalogued ones
_OF_A_SYSTEM = 10  # whose runs take seconds
HINT_COSTS, CLAIM_COSTS = 5, 5  # points of a hundred


class Level(Enum):
    """How near a hint comes to a survivor."""

    BEHAVIOUR = auto()
    INPUT = auto()


@dataclass(frozen=True)
class ProofHint:
    """What is told of a wrong version that no test catches: how the kata's own tests see it."""

    level: Level
    test: TestResult


@dataclass(frozen=True)
class ProofDebrief:
    """How a proof went."""

    kata: Kata
    proof: Proof
    bugs: tuple[Bug, ...]
    judgement: ProofJudgement | None  # none if it was never judged

    @property
    def score(self) -> int:
        """Return the points of a hundred: for what is caught, less what help costs."""
        if self.proof.alarms:
            return 0
        caught = round(100 * len(self.proof.caught) / max(1, len(self.bugs)))
        return max(0, caught - HINT_COSTS * self.proof.hints - CLAIM_COSTS * self.proof.claims)


class Prover:
    """A learner who writes tests for one kata."""

    def __init__(self, project: Project, kata: Kata, history: History, proof: Proof) -> None:
        """Take a proof that has begun."""
        self.kata = kata
        self.bugs = tuple(map(kata.bug, proof.versions))
        self.goal = proof.goal
        self.budget = proof.budget
        self.clock = Clock(proof.spent)
        self.workspace = Workspace(project, kata, proof=True)
        self.last: ProofJudgement | None = None
        self._history = history
        self._id = proof.id
        self._hinted: tuple[str, ProofHint] | None = None

    def make_file(self) -> bool:
        """Write the template if there is no file yet, and say whether there was none."""
        if self.workspace.content() is not None:
            return False
        self.workspace.replace(proof_template(self.kata).encode(), None, "prove")
        return True

    def restart(self) -> Backup | None:
        """Write the template anew, keeping the learner's text."""
        return self.workspace.replace(proof_template(self.kata).encode(), None, "prove --reset")

    def record(self, judgement: ProofJudgement) -> bool:
        """Record what the newest text is worth, and say whether it reaches the goal."""
        self.last = judgement
        if not judgement.problem:
            left = {bug.id for bug in judgement.survivors}
            caught = [bug.id for bug in self.bugs if bug.id not in left]
            self._history.proofs.judged(self._id, caught, len(judgement.alarms))
        return self.reached

    @property
    def reached(self) -> bool:
        """Say whether the newest text reaches the goal."""
        last = self.last
        if last is None or last.problem or last.alarms:
            return False
        return last.caught >= (last.versions / 2 if self.goal is Goal.HALF else last.versions)

    def hint(self, pool: Pool) -> ProofHint:
        """Tell a survivor's behaviour, and asked again an input; `DojoError` if none is left."""
        survivors = self._survivors()
        bug, level = survivors[0], Level.BEHAVIOUR
        if self._hinted and self._hinted[0] in {one.id for one in survivors}:
            bug = self.kata.bug(self._hinted[0])
            if self._hinted[1].level is Level.INPUT:
                later = survivors[survivors.index(bug) + 1 :]
                if not later:
                    raise DojoError("no more hints: what is left was told, with an input each")
                bug = later[0]
            else:
                level = Level.INPUT
        hint = ProofHint(level, self._seen_by_the_kata(pool, bug))
        self._hinted = (bug.id, hint)
        self._history.proofs.add_hint(self._id)
        return hint

    def claim(self, pool: Pool) -> TestResult:
        """Answer the claim that the hinted survivor is correct by what shows that it is not."""
        if self._hinted is None:
            raise DojoError("a claim is about the survivor of the last hint: press h first")
        survivors = {bug.id for bug in self._survivors()}
        bug = self.kata.bug(self._hinted[0])
        if bug.id not in survivors:
            raise DojoError("your tests catch that version now; h tells of another")
        counter_example = self._seen_by_the_kata(pool, bug)
        self._hinted = (bug.id, ProofHint(Level.INPUT, counter_example))
        self._history.proofs.add_claim(self._id)
        return counter_example

    @property
    def standing_hint(self) -> ProofHint | None:
        """Return the last hint, as long as the version that it is about survives."""
        if self.last is None or self._hinted is None:
            return None
        bug_id, hint = self._hinted
        return hint if any(bug.id == bug_id for bug in self.last.survivors) else None

    def _survivors(self) -> tuple[Bug, ...]:
        if self.last is None or self.last.problem:
            raise DojoError("no verdict yet: a hint is about a version that your tests let pass")
        if not self.last.survivors:
            raise DojoError("every wrong version is caught")
        return self.last.survivors

    def _seen_by_the_kata(self, pool: Pool, bug: Bug) -> TestResult:
        """Return what the kata's own tests say of a bug."""

        def run(runner: Runner, planted: Planted) -> RunResult:
            return runner.run(self.kata, planted, only=bug.killed_by)

        result = next(pool.map(run, [Planted((bug.id,))]))
        failed = [test for test in result.tests if test.outcome is Outcome.FAILED]
        if not failed:
            raise DojoError(
                f"{self.kata.name}: the kata's own tests did not come to their end: {result.detail}"
            )
        # A check says what is wrong; a symptom, that something is.
        return min(failed, key=lambda test: test.symptom)

    def left(self) -> float | None:
        """Return the seconds that are left; None without a clock."""
        spent = self.clock.spent()
        self._history.proofs.spend(self._id, spent)
        return None if self.budget is None else self.budget - spent

    def end(self, ending: Ending) -> ProofDebrief:
        """Record the end, and return how it went."""
        self.left()
        proof = self._history.proofs.get(self._id)
        budget = proof.budget or 60.0 * self.kata.minutes
        grade = scheduler.grade(ending, proof.spent, budget, proof.hints + proof.claims)
        ended = self._history.proofs.end(self._id, ending, grade)
        return ProofDebrief(self.kata, ended, self.bugs, self.last)


def prover(
    project: Project,
    kata: Kata,
    history: History,
    goal: Goal | None = None,
    seed: int | None = None,
    budget: float | None = None,
    bug: str | None = None,
) -> Prover:
    """Go on with the kata's proof that was left, or begin one where something is asked for.

    That of one bug goes on if it was left, and begins otherwise.
    """
    left = history.proofs.unfinished(kata.name)
    known = left is not None and all(map(_known(kata), left.versions))
    asked = left is None or left.versions != (bug,) if bug else (goal, seed, budget) != (None,) * 3
    if left is None or not known or asked:
        goal = Goal.ONE if bug else goal or Goal.ALL
        versions = (bug,) if bug else draw_versions(kata, goal, seed)
        left = history.proofs.begin(kata.name, goal, versions, budget)
    return Prover(project, kata, history, left)


def draw_versions(kata: Kata, goal: Goal, seed: int | None) -> tuple[str, ...]:
    """Return the ids of the bugs to catch: the catalogue's and some fresh ones, no two the same.

    Of a system there are a few, and one where one is the goal. A seed gives the same everywhere.
    """
    rng = random.Random() if seed is None else random.Random(f"{kata.name}:{goal}:{seed}")
    catalogued = [bug for bug in kata.bugs if has_gpu() or not bug.gpu]
    if goal is Goal.ONE:
        return (rng.choice(catalogued).id,)
    if kata.is_system:
        return tuple(bug.id for bug in rng.sample(catalogued, min(_OF_A_SYSTEM, len(catalogued))))
    fresh = rng.sample(kata.fresh, min(_FRESH, len(kata.fresh)))
    by_text = {kata.planted_source([bug.id]): bug.id for bug in [*fresh, *catalogued]}
    chosen = list(by_text.values())
    rng.shuffle(chosen)
    return tuple(chosen)


def _known(kata: Kata) -> Callable[[str], bool]:
    ids = {bug.id for bug in (*kata.bugs, *kata.fresh)}
    return ids.__contains__
