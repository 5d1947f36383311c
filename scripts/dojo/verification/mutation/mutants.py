"""Mutants of a reference: the changes that cosmic-ray's operators, and dojo's own, make to it."""

import ast
import pickle
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.plugins import get_operator, operator_names

from dojo.files import revision

_PLAUSIBLE = re.compile(
    r"dojo/.+"
    r"|core/(NumberReplacer|Replace(True|False|And|Or|Break|Continue)With\w+)"
    r"|core/ReplaceUnaryOperator_Delete_(USub|Invert)"
    r"|core/ReplaceComparisonOperator_"
    r"(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Lt_Gt|Gt_Lt|LtE_GtE|GtE_LtE)"
    r"|core/ReplaceBinaryOperator_"
    r"(Add_Sub|Add_Mul|Sub_Add|Mul_Div|Mul_Add|Div_Mul|Div_FloorDiv|FloorDiv_Div"
    r"|FloorDiv_Mod|Mod_FloorDiv|BitAnd_BitOr|BitOr_BitAnd|LShift_RShift|RShift_LShift)"
)


@dataclass(frozen=True)
class Mutant:
    """A change of the reference made by an operator, such as `core/NumberReplacer`."""

    operator: str
    line: int  # the first that changes
    before: str
    after: str
    source: str
    function: str = ""  # that the line is in, dotted for a method
    occurrence: int = 1  # of the lines that change, among their equals in the function

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
    operators = _operators(in_kernels="import triton" in source)
    places = [
        (name, number, index)
        for name, operator in operators.items()
        for number, node in enumerate(nodes)
        for index, _ in enumerate(operator.mutation_positions(node))
    ]
    if order is not None:
        order.shuffle(places)
    pickled = pickle.dumps(tree)
    scopes = _Scopes(source)
    seen = {meaning(source)}
    for name, number, index in places:
        mutated = _mutate(pickle.loads(pickled), operators[name], number, index)
        means = meaning(mutated)
        if means is not None and means not in seen:
            seen.add(means)
            line, before, after = changed_lines(source, mutated)
            yield Mutant(name, line, before, after, mutated, *scopes.place(line, before))


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


def is_plausible(operator_name: str) -> bool:
    """Say whether an operator makes a change that someone could make by mistake."""
    return bool(_PLAUSIBLE.fullmatch(operator_name))


class _Scopes:
    """Tells in which function of a text a line stands."""

    def __init__(self, source: str) -> None:
        self._lines = [line.strip() for line in source.splitlines()]
        self._functions = list(_functions(ast.parse(source), ""))

    def place(self, line: int, text: str) -> tuple[str, int]:
        """Return the innermost function of a line, and which of the text's places in it that is."""
        name, first, last = "", 1, len(self._lines)
        for function in self._functions:  # from the outermost in
            if function[1] <= line <= function[2]:
                name, first, last = function
        wanted = text.splitlines()
        equals = [
            number
            for number in range(first, last + 1)
            if self._lines[number - 1 : number - 1 + len(wanted)] == wanted
        ]
        return name, equals.index(line) + 1 if line in equals else 1


def _functions(node: ast.AST, scope: str) -> Iterator[tuple[str, int, int]]:
    """Yield each function's dotted name, its first line (a decorator's, if any) and its last."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.ClassDef):
            continue
        name = f"{scope}.{child.name}" if scope else child.name
        first = min([child.lineno, *(item.lineno for item in child.decorator_list)])
        assert child.end_lineno is not None  # it was parsed
        yield name, first, child.end_lineno
        yield from _functions(child, name)


def _operators(in_kernels: bool) -> dict[str, Any]:
    # Where two make the same mutant, the one that was written for tensor code explains it best.
    names = sorted(operator_names(), key=lambda name: (not name.startswith("dojo/"), name))
    classes = {name: get_operator(name) for name in names}
    # Some need arguments: they name variables of a program that they know.
    return {
        name: kind()
        for name, kind in classes.items()
        if not kind.arguments() and not (in_kernels and _is_far_fetched(name))
    }


def _is_far_fetched(operator_name: str) -> bool:
    """Say whether nobody writes it in a kernel, where there would be thousands of such mutants.

    `+` for `|`, `&` for `//` or `<` for `is` say nothing of the tests: nobody has them to fear.
    """
    binary = operator_name.startswith("core/ReplaceBinaryOperator_")
    return (binary and not is_plausible(operator_name)) or operator_name.endswith(("_Is", "_IsNot"))


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
