"""Mutants of a reference: the changes that cosmic-ray's operators, and dojo's own, make to it."""

import ast
import pickle
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.plugins import get_operator, operator_names

from dojo.files import revision


@dataclass(frozen=True)
class Mutant:
    """A change of the reference made by an operator, such as `core/NumberReplacer`."""

    operator: str
    line: int
    before: str
    after: str
    source: str

    @cached_property
    def key(self) -> str:
        """Return the name of the mutant's text."""
        return revision(self.source.encode())


def mutants(source: str, order: random.Random | None = None) -> Iterator[Mutant]:
    """Yield each mutant that is valid Python and changes more than annotations, once.

    They come operator by operator, or in the random order given: the first ones are a sample.
    """
    tree = get_ast(source)
    nodes = list(ast_nodes(tree))
    operators = _operators()
    places = [
        (name, number, index)
        for name, operator in operators.items()
        for number, node in enumerate(nodes)
        for index, _ in enumerate(operator.mutation_positions(node))
    ]
    if order is not None:
        order.shuffle(places)
    pickled = pickle.dumps(tree)
    seen = {meaning(source)}
    for name, number, index in places:
        mutated = _mutate(pickle.loads(pickled), operators[name], number, index)
        means = meaning(mutated)
        if means is not None and means not in seen:
            seen.add(means)
            yield Mutant(name, *changed_lines(source, mutated), mutated)


def changed_lines(before: str, after: str) -> tuple[int, str, str]:
    """Return where two texts begin to differ (a line from 1), and the lines each has there."""
    old, new = before.splitlines(), after.splitlines()
    first, last = common_ends(old, new)
    return (
        first + 1,
        _stripped(old[first : len(old) - last]),
        _stripped(new[first : len(new) - last]),
    )


def common_ends(old: list[str], new: list[str]) -> tuple[int, int]:
    """Return how many lines two texts share at their beginning, and then at their end."""
    least = min(len(old), len(new))
    first = next((i for i in range(least) if old[i] != new[i]), least)
    last = next((i for i in range(least - first) if old[-1 - i] != new[-1 - i]), least - first)
    return first, last


def meaning(source: str) -> str | None:
    """Return the syntax tree as text, less annotations and docstrings; None if it is invalid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python warns of would give the bug away
            tree = ast.parse(source)
            compile(tree, "mutant", "exec")
    except (SyntaxError, ValueError):
        return None
    return ast.dump(_Bare().visit(tree))


def _operators() -> dict[str, Any]:
    # Where two make the same mutant, the one that was written for tensor code explains it best.
    names = sorted(operator_names(), key=lambda name: (not name.startswith("dojo/"), name))
    classes = {name: get_operator(name) for name in names}
    # Some need arguments: they name variables of a program that they know.
    return {name: kind() for name, kind in classes.items() if not kind.arguments()}


def _mutate(tree: Any, operator: Any, number: int, index: int) -> str:
    """Return the text of the tree after the operator changed its node of that number."""
    node = next(node for i, node in enumerate(ast_nodes(tree)) if i == number)
    siblings = node.parent.children if node.parent else [node]
    place = siblings.index(node)
    mutated = operator.mutate(node, index)
    if node.type == "number":  # cosmic-ray puts a blank before it, whatever stood there
        mutated.value, mutated.prefix = mutated.value.strip(), node.prefix
    siblings[place : place + 1] = [] if mutated is None else [mutated]
    code: str = tree.get_code() if node.parent else mutated.get_code()
    return code


def _stripped(lines: list[str]) -> str:
    return "\n".join(line.strip() for line in lines)


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
