"""Mutants of a reference by cosmic-ray's standard operators, and whether the tests catch them."""

import ast
import difflib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

from dojo.catalogue import Kata
from dojo.limits import Limits
from dojo.pool import Pool
from dojo.results import Outcome, Status
from dojo.runner import Runner

# A mutant may loop for ever, so it gets little time; a reference's test takes milliseconds.
LIMITS = Limits(test_seconds=3.0, run_seconds=20.0)


@dataclass(frozen=True)
class Mutant:
    """A change of the reference made by an operator."""

    operator: str
    line: int
    before: str
    after: str
    source: str


@dataclass(frozen=True)
class Judged:
    """A mutant and what became of it: caught, survived, equivalent or invalid."""

    mutant: Mutant
    verdict: str


def mutants(source: str) -> Iterator[Mutant]:
    """Yield each mutant that is valid Python and changes more than annotations, once."""
    seen = {_meaning(source)}
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments():  # those name variables of a program they know
            continue
        operator = operator_class()
        for occurrence in range(_count(source, operator)):
            mutated = mutate_code(source, operator, occurrence)
            meaning = _meaning(mutated)
            if meaning is not None and meaning not in seen:
                seen.add(meaning)
                line, before, after = changed_lines(source, mutated)
                yield Mutant(name.removeprefix("core/"), line, before, after, mutated)


def judge(kata: Kata, pool: Pool) -> Iterator[Judged]:
    """Run the kata's tests against every mutant of its reference."""
    equivalent = {(item.before.strip(), item.after.strip()) for item in kata.equivalents}
    with tempfile.TemporaryDirectory(prefix="kata-mutants-") as folder:

        def work(runner: Runner, job: tuple[int, Mutant]) -> Judged:
            number, mutant = job
            path = Path(folder) / f"mutant_{number}.py"
            path.write_text(mutant.source, encoding="utf-8")
            result = runner.run(kata, str(path), seed=number)
            path.unlink()
            timed_out = any(test.outcome is Outcome.TIMEOUT for test in result.tests)
            if result.status in (Status.FAILED, Status.TIMEOUT, Status.CRASHED) or timed_out:
                return Judged(mutant, "caught")
            if result.status is Status.BROKEN:
                return Judged(mutant, "invalid")
            known = (mutant.before.strip(), mutant.after.strip()) in equivalent
            return Judged(mutant, "equivalent" if known else "survived")

        yield from pool.map(work, enumerate(mutants(kata.correct_source)))


def changed_lines(before: str, after: str) -> tuple[int, str, str]:
    """Return where two texts begin to differ (a line from 1), and the lines each has there."""
    old, new = before.splitlines(), after.splitlines()
    blocks = [
        block
        for block in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if block[0] != "equal"
    ]
    first, last = blocks[0], blocks[-1]
    return first[1] + 1, _stripped(old[first[1] : last[2]]), _stripped(new[first[3] : last[4]])


def _stripped(lines: list[str]) -> str:
    return "\n".join(line.strip() for line in lines)


def _count(source: str, operator: Operator) -> int:
    return sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(source)))


def _meaning(source: str) -> str | None:
    """Return the syntax tree as text, less annotations and docstrings; None if it is invalid."""
    try:
        tree = ast.parse(source)
        compile(tree, "mutant", "exec")
    except (SyntaxError, ValueError):
        return None
    return ast.dump(_Bare().visit(tree))


class _Bare(ast.NodeTransformer):
    """Drops what never runs, so that a change there is no mutant."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_docstring = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_docstring else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)
